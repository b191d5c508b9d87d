"""Npy files of vectors and rows: written durably, and mapped only after a check."""

import errno
import io
import os
import tokenize
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.durable import DurableFile
from storage.errors import PartError, PartUnreadable

Array = npt.NDArray[Any]

BAD_HEADER = (ValueError, TypeError, SyntaxError, tokenize.TokenError)
"""What numpy raises for a damaged header: it reads it as a piece of Python."""
_OF_THE_FILE = (errno.ENOENT, errno.EIO, errno.EISDIR, errno.ENOTDIR, errno.ELOOP)
"""What is wrong with a file itself; all else that the system says, such as `EACCES`, `EMFILE`,
`ENOMEM` or `ESTALE`, may be otherwise the next time."""
MEND = "`lookalike check --repair` sorts it out"
"""What to do about a file that is missing or not what the catalog says."""


def write_npy(path: str, array: Array, *, synced_name: bool = True) -> DurableFile:
    """Write an array in C order as an npy file of version 1.0, durably as `DurableFile` does."""
    array = np.ascontiguousarray(array)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    with DurableFile(path, synced_name=synced_name) as file:
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
    PartUnreadable
        The system refuses to open or map it, which says nothing of what it holds.
    """
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise PartError(f"{path} is an npy file of version {version}, not (1, 0); {MEND}")
            found, fortran, found_dtype = np.lib.format.read_array_header_1_0(file)
            wanted = np.dtype(dtype)
            if (found, fortran, found_dtype) != (shape, False, wanted):
                order = "Fortran" if fortran else "C"
                raise PartError(
                    f"{path} holds {found_dtype} {found} in {order} order, "
                    f"the catalog says {wanted} {shape} in C order; {MEND}"
                )
            size = os.fstat(file.fileno()).st_size
            due = file.tell() + int(np.prod(shape)) * wanted.itemsize
            if size != due or size_bytes not in (None, size):
                raise PartError(f"{path} has {size} bytes instead of {size_bytes or due}; {MEND}")
            return np.memmap(file, dtype=wanted, mode="r", offset=file.tell(), shape=shape)
    except FileNotFoundError as error:
        raise PartError(f"{path} is missing; {MEND}") from error
    except OSError as error:
        raise trouble_of(path, error) from error
    except BAD_HEADER as error:
        raise PartError(f"{path} can't be read as npy: {error}; {MEND}") from error


def trouble_of(path: str, error: OSError) -> PartError:
    """Return what to raise for a file that is there and can't be read.

    Returns
    -------
    PartError
        A `PartUnreadable` where it may be readable the next time.
    """
    said = f"{path} can't be read: {error.strerror or error}"
    return PartError(f"{said}; {MEND}") if error.errno in _OF_THE_FILE else PartUnreadable(said)
