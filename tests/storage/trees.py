"""Real trees of files for tests: built from relative paths, and looked at without privileges."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

NOBODY = 65534


def plant(root: bytes, paths: Iterable[bytes]) -> None:
    """Write a small file at each path; a path that ends in a slash becomes an empty folder."""
    for path in paths:
        full = os.path.join(root, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        if not path.endswith(b"/"):
            with open(full, "wb") as file:
                file.write(b"picture " + path)


@contextmanager
def public_folder() -> Iterator[bytes]:
    """Make an empty folder that an unprivileged user may read, which pytest's own are not."""
    path = os.path.realpath(tempfile.mkdtemp().encode())
    os.chmod(path, 0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Act as nobody where the tests run as root, for whom nothing is unreadable."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)
