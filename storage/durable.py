"""Files and folders that appear complete and synced, or not at all.

A file is durable when its bytes, its name and its folder are: temporary name in the same folder,
write, fsync, rename, fsync of the folder.  Never written through a memory map: there a full disk
is a signal and no exception.
"""

import errno
import os
import uuid
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import xxhash

from storage.errors import DiskFull, StorageError
from storage.fs import Buffer, fs, write_all

_PIECE_BYTES = 8 << 20


class DurableFile:
    """A file that appears under its name complete and synced, or not at all.

    A context manager with ``write``; ``size_bytes`` and ``checksum`` (xxh3-128, hexadecimal)
    are those of the finished file.  A file that was there under the name is replaced whole.  After
    a failed write or sync the file is abandoned, because a second sync of it may succeed without
    the data being on disk.

    Parameters
    ----------
    path
        Its name.
    synced_name
        False where another file of the folder follows at once, whose end makes both names durable,
        and nobody may rely on the one without the other.

    Raises
    ------
    DiskFull
        The disk or the quota is full.
    StorageError
        Any other trouble of the file system.
    """

    def __init__(self, path: str, *, synced_name: bool = True) -> None:
        self.path = path
        self.synced_name = synced_name
        self.size_bytes = 0
        self._temporary = f"{path}.{uuid.uuid4().hex}.tmp"
        self._hash = xxhash.xxh3_128()
        self._fd = -1

    @property
    def checksum(self) -> str:
        """xxh3-128 of the bytes written so far, hexadecimal."""
        return str(self._hash.hexdigest())

    def __enter__(self) -> Self:
        try:
            self._fd = fs().open_new(self._temporary)
        except OSError as error:
            raise trouble_with(self.path, error) from error
        return self

    def write(self, data: Any) -> int:
        """Append ``data``, bytes or a contiguous array; return the number of bytes."""
        try:
            written = write_all(self._fd, data)
        except OSError as error:
            raise trouble_with(self.path, error) from error
        self._hash.update(data)
        self.size_bytes += written
        return written

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._finish(abandoned=kind is not None)
        except OSError as trouble:
            if kind is None:  # else what was wrong before is told
                raise trouble_with(self.path, trouble) from trouble

    def _finish(self, *, abandoned: bool) -> None:
        try:
            try:
                if not abandoned:
                    fs().fsync(self._fd)
            finally:
                fs().close(self._fd)
            if not abandoned:
                fs().replace(self._temporary, self.path)
                if self.synced_name:
                    fs().fsync_dir(os.path.dirname(self.path))
                return
        except BaseException:
            self._abandon()
            raise
        self._abandon()

    def _abandon(self) -> None:
        with suppress(OSError):
            fs().unlink(self._temporary)


def trouble_with(path: str, error: OSError) -> StorageError:
    """Return what to tell a person about a file or folder that can't be changed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"no space left to write {path}; make room and run again")
    return StorageError(f"{path} can't be written: {error.strerror}")


def delete_durably(*paths: str) -> None:
    """Delete files of one folder, in this order, those that are there.

    Raises
    ------
    StorageError
        The system refuses.
    """
    for path in paths:
        try:
            with suppress(FileNotFoundError):
                fs().unlink(path)
        except OSError as error:
            raise StorageError(f"{path} can't be deleted: {error.strerror}") from error
    folder = os.path.dirname(paths[-1])
    try:
        with suppress(FileNotFoundError):
            fs().fsync_dir(folder)
    except OSError as error:
        raise trouble_with(folder, error) from error


def write_durably(path: str, data: Buffer) -> None:
    """Write a whole file so that after a power cut it is the old one or the new one.

    Raises
    ------
    DiskFull
        The disk or the quota is full; an earlier file of this name is untouched.
    StorageError
        Anything else that the system refuses.
    """
    with DurableFile(path) as file:
        file.write(data)


def file_checksum(path: str) -> str:
    """Return the xxh3-128 of a file, hexadecimal."""
    total = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE_BYTES):
            total.update(piece)
    return str(total.hexdigest())


def make_dir(path: str) -> None:
    """Create a folder for the owner alone (0700) and the folders above it, durably.

    Folders that exist already keep their permissions.  Their names are synced all the same: whoever
    made one may have been killed before it was durable.

    Raises
    ------
    DiskFull
        The disk or the quota is full.
    StorageError
        Anything else that the system refuses.
    """
    try:
        _make_dir(path)
    except OSError as error:
        raise trouble_with(path, error) from error


def _make_dir(path: str) -> None:
    parent = os.path.dirname(path)
    if os.path.isdir(path):
        with suppress(PermissionError):  # none of ours: a folder of all homes, for example
            fs().fsync_dir(parent)
        return
    if parent != path:
        _make_dir(parent)
    with suppress(FileExistsError):
        fs().mkdir(path, 0o700)
    fs().fsync_dir(parent)


def create_private(path: str) -> None:
    """Make an empty file for the owner alone (0600), unless there is one of this name."""
    with suppress(FileExistsError):  # never opens one: SQLite's locks would go
        fs().close(fs().open_new(path))
