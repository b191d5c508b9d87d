"""Files that appear complete and synced or not at all, and checked maps of npy files.

Never written through a memory map: there a full disk is a signal and no exception.
"""

import contextlib
import errno
import io
import os
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import xxhash

from storage.errors import DiskFull, PartError, StorageError
from storage.home import fsync_dir, write_all

Array = npt.NDArray[Any]

_PIECE_BYTES = 8 << 20


class DurableFile:
    """A new file that appears under its name complete and synced, or not at all.

    A context manager with ``write``; ``size_bytes`` and ``checksum`` (xxh3-128, hexadecimal)
    are those of the finished file.  After a failed write or sync the file is abandoned, because
    a second sync of it may succeed without the data being on disk.

    Raises
    ------
    DiskFull
        The disk or the quota is full.
    StorageError
        Any other trouble of the file system.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.size_bytes = 0
        self._temporary = f"{path}.tmp"
        self._hash = xxhash.xxh3_128()
        self._fd = -1

    @property
    def checksum(self) -> str:
        """xxh3-128 of the bytes written so far, hexadecimal."""
        return str(self._hash.hexdigest())

    def __enter__(self) -> Self:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            self._fd = os.open(self._temporary, flags, 0o600)
        except OSError as error:
            raise self._trouble(error) from error
        return self

    def write(self, data: Any) -> int:
        """Append ``data``, bytes or a contiguous array; return the number of bytes."""
        try:
            written = write_all(self._fd, data)
        except OSError as error:
            raise self._trouble(error) from error
        self._hash.update(data)
        self.size_bytes += written
        return written

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            os.close(self._fd)
            self._abandon()
            return
        try:
            try:
                os.fsync(self._fd)
            finally:
                os.close(self._fd)
            os.rename(self._temporary, self.path)
            fsync_dir(os.path.dirname(self.path))
        except OSError as trouble:
            self._abandon()
            raise self._trouble(trouble) from trouble

    def _abandon(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._temporary)

    def _trouble(self, error: OSError) -> StorageError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskFull(f"no space left to write {self.path}; make room and run again")
        return StorageError(f"{self.path} can't be written: {error.strerror}")


def file_checksum(path: str) -> str:
    """Return the xxh3-128 of a file, hexadecimal."""
    total = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE_BYTES):
            total.update(piece)
    return str(total.hexdigest())


def write_npy(path: str, array: Array) -> DurableFile:
    """Write an array in C order as an npy file of version 1.0, durably."""
    array = np.ascontiguousarray(array)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    with DurableFile(path) as file:
        file.write(header.getvalue())
        file.write(array.reshape(-1).view(np.uint8))
    return file


def map_npy(path: str, dtype: str, shape: tuple[int, ...], size_bytes: int | None = None) -> Array:
    """Map an npy file for reading after a check of its header and size.

    Returns
    -------
    array
        ``np.memmap`` of the shape and little-endian dtype that were asked for.

    Raises
    ------
    PartError
        The file is missing (the cause is then ``FileNotFoundError``), or its dtype, order,
        shape or size differ.  Checked first because a read past the end of a map is a signal.
    """
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise PartError(f"{path} is an npy file of version {version}, not (1, 0)")
            found, fortran, found_dtype = np.lib.format.read_array_header_1_0(file)
            wanted = np.dtype(dtype)
            if (found, fortran, found_dtype) != (shape, False, wanted):
                order = "Fortran" if fortran else "C"
                raise PartError(
                    f"{path} holds {found_dtype} {found} in {order} order, "
                    f"the catalog says {wanted} {shape} in C order"
                )
            size = os.fstat(file.fileno()).st_size
            due = file.tell() + int(np.prod(shape)) * wanted.itemsize
            if size != due or size_bytes not in (None, size):
                raise PartError(f"{path} has {size} bytes instead of {size_bytes or due}")
            return np.memmap(file, dtype=wanted, mode="r", offset=file.tell(), shape=shape)
    except FileNotFoundError as error:
        raise PartError(f"{path} is missing; `lookalike check --repair` sorts it out") from error
    except (OSError, ValueError) as error:
        raise PartError(f"{path} can't be read as npy: {error}") from error
