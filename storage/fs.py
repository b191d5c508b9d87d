"""The calls that change files, in one object, so that a test can stand in for the disk.

Everything that must outlive a crash is written through `fs`: the store's own files and what the
exports put in place.  SQLite and Postgres write their files themselves.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, cast

Buffer = bytes | bytearray | memoryview
Path = str | bytes

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


class Fs:
    """The file system as it is.  Every method raises `OSError` where the system refuses."""

    def open_new(self, path: Path, mode: int = 0o600) -> int:
        """Make a file that was not there; return its descriptor, for reading and writing."""
        return os.open(path, _NEW, mode)

    def write(self, fd: int, data: Any) -> int:
        """Write bytes where the descriptor stands; return how many, which may be fewer."""
        return os.write(fd, data)

    def fsync(self, fd: int) -> None:
        """Bring a file's bytes to the disk; another library may have written them."""
        os.fsync(fd)

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def replace(self, old: Path, new: Path) -> None:
        """Give a file or folder another name on its disk; a file of that name goes."""
        os.replace(old, new)

    def unlink(self, path: Path) -> None:
        """Delete a file."""
        os.unlink(path)

    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        """Make a folder."""
        os.mkdir(path, mode)

    def rmdir(self, path: Path) -> None:
        """Delete an empty folder."""
        os.rmdir(path)

    def fsync_dir(self, path: Path) -> None:
        """Make the names in a folder durable, where the system can (not on Windows)."""
        if os.name == "nt":
            return
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


_in_force = Fs()


def fs() -> Fs:
    """Return the file system that is in force, for all threads of the process."""
    return _in_force


@contextmanager
def using(other: Fs) -> Iterator[Fs]:
    """Put another file system in force, for tests."""
    global _in_force
    before, _in_force = _in_force, other
    try:
        yield other
    finally:
        _in_force = before


def write_all(fd: int, data: Any) -> int:
    """Write all of bytes or an array, where the system takes fewer at a time too; return how many.

    Raises
    ------
    OSError
        The system refuses, e.g. ``ENOSPC``.
    """
    view = memoryview(data).cast("B")
    done = 0
    while done < len(view):
        done += fs().write(fd, view[done : done + (1 << 30)])
    return done


def open_stream(path: Path, buffer_bytes: int = 1 << 20, mode: int = 0o666) -> BinaryIO:
    """Make an empty file, in the place of one of this name, for buffered writing and reading.

    The caller syncs it by `Fs.fsync` after a flush.
    """
    with suppress(FileNotFoundError):
        fs().unlink(path)
    raw = _Raw(fs().open_new(path, mode), "r+")
    return cast(BinaryIO, io.BufferedRandom(raw, buffer_bytes))


class _Raw(io.FileIO):
    def write(self, data: Any, /) -> int:
        return fs().write(self.fileno(), data)
