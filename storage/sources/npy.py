"""Npy files that others wrote, mapped and not read: the checks come before the first access."""

import mmap
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import SourceError
from storage.npy import BAD_HEADER
from storage.sources.table import as_text

MAGIC = b"\x93NUMPY"

_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class MappedNpy:
    """An npy file as an array that lies on disk; nothing of it can run code.

    Attributes
    ----------
    array
        Any shape and dtype, read-only.
    header
        The bytes before the numbers.

    Raises
    ------
    SourceError
        It can't be read, is damaged, or holds Python objects.
    """

    def __init__(self, path: bytes) -> None:
        self.path = os.path.abspath(path)
        self.title = f"array {as_text(self.path)}"
        try:
            with open(self.path, "rb") as file:
                self._status = os.fstat(file.fileno())
                shape, fortran, dtype = self._read_header(file)
                start = file.tell()
                self._check_size(start + int(np.prod(shape, dtype=object)) * dtype.itemsize)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise SourceError(f"{self.title}: {error.strerror or error}") from error
        except BAD_HEADER as error:
            raise SourceError(f"{self.title} is no npy file: {error}") from error
        self.array: NDArray[Any] = np.ndarray(
            shape, dtype, self._map, start, order="F" if fortran else "C"
        )

    def _read_header(self, file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
        version = np.lib.format.read_magic(file)
        if version not in _READERS:
            raise ValueError(f"version {version} is not known")
        shape, fortran, dtype = _READERS[version](file)
        if dtype.hasobject:
            raise SourceError(
                f"{self.title} holds Python objects, which are never loaded: save it as numbers "
                "or text (allow_pickle=False)"
            )
        return shape, fortran, dtype

    def _check_size(self, due: int) -> None:
        if self._status.st_size != due:
            raise SourceError(
                f"{self.title} has {self._status.st_size:,} bytes instead of {due:,}: damaged, or "
                "still being written"
            )

    @property
    def identity(self) -> dict[str, Any]:
        """Path, shape, dtype, size and time: the numbers themselves are not read for it."""
        return {
            "path": as_text(self.path),
            "shape": list(self.array.shape),
            "dtype": self.array.dtype.str,
            "size_bytes": self._status.st_size,
            "mtime_ns": self._status.st_mtime_ns,
        }

    def forget(self) -> None:
        """Take what was read out of this process's memory; it is there again when asked for."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
