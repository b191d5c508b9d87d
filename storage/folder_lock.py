"""A folder that one process has to itself for as long as it lives."""

import errno
import os
from contextlib import suppress

from storage.errors import LeaseHeld
from storage.fs import fs
from storage.owner import this_process

LOCK = "lock"

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def lock_folder(folder: str, what: str) -> int:
    """Make a folder durably, and lock it until the descriptor that is returned is closed.

    Its holder may delete the folder.  Where the file system has no locks nobody is kept out, and
    the result may be -1.

    Parameters
    ----------
    folder
        The folder above it must be there.
    what
        What the holder works on, for a message.

    Raises
    ------
    LeaseHeld
        Another process has it.
    OSError
        The folder can't be made or written.
    """
    if os.name == "nt":  # pragma: no cover - no flock there
        os.makedirs(folder, exist_ok=True)
        return -1
    while True:
        with suppress(FileExistsError):
            fs().mkdir(folder)
        with suppress(PermissionError):  # a folder above that may be written and not read
            fs().fsync_dir(os.path.dirname(folder))
        try:
            lock = os.open(os.path.join(folder, LOCK), os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            if os.path.isdir(os.path.dirname(folder)):
                continue  # whoever was here has deleted it just now
            raise
        if _held(lock, what) and _is_there(folder, lock):
            me = this_process()
            with suppress(OSError):  # a full disk: it only tells others whose the lock is
                os.ftruncate(lock, 0)
                os.pwrite(lock, f"process {me.pid} on {me.host}".encode(), 0)
            return lock
        os.close(lock)


def _held(lock: int, what: str) -> bool:
    """Take the lock."""
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(lock, 200, 0).decode(errors="replace")
        os.close(lock)
        raise LeaseHeld(
            f"{holder or 'another process'} is at work on {what}; wait for it, or choose another "
            "output"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(lock)
            raise
    return True


def _is_there(folder: str, lock: int) -> bool:
    """Return whether the lock is still the folder's: its former holder may have deleted both."""
    try:
        return os.path.samestat(os.stat(os.path.join(folder, LOCK)), os.fstat(lock))
    except FileNotFoundError:
        return False
