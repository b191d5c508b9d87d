"""Folders for what is only needed for a while, on this machine, which no killed process leaves.

Each holds a lock for as long as its process lives.  Whoever makes one deletes those that nobody
holds any more.
"""

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PREFIX = "lookalike-scratch-"
_LOCK = "lock"


@contextmanager
def scratch_folder() -> Iterator[str]:
    """Yield an empty folder below ``TMPDIR`` for the owner alone, and delete it.

    Raises
    ------
    OSError
        It can't be made.
    """
    _delete_abandoned()
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        inside = os.path.join(folder, "inside")
        os.mkdir(inside, 0o700)
        lock = _locked(folder)
        try:
            yield inside
        finally:
            if lock >= 0:
                os.close(lock)


def _locked(folder: str) -> int:
    """Lock a folder; the lock's name appears when it is held, so that nobody else can take it."""
    if os.name == "nt":  # pragma: no cover - no flock there
        return -1
    import fcntl

    path = os.path.join(folder, _LOCK)
    lock = os.open(f"{path}.new", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.rename(f"{path}.new", path)
    except OSError:  # no locks on this file system: nobody else deletes it either
        os.close(lock)
        return -1
    return lock


def _delete_abandoned() -> None:
    """Delete the folders whose process has died; another user's are left."""
    if os.name == "nt":  # pragma: no cover - no flock there
        return
    import fcntl

    for folder in glob.glob(os.path.join(glob.escape(tempfile.gettempdir()), f"{PREFIX}*")):
        with suppress(OSError):
            if os.lstat(folder).st_uid != os.geteuid():
                continue
            lock = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(lock)
