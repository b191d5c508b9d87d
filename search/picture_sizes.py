"""How many pixels a picture has, from the first bytes of a file that still is what was hashed."""

import os
import stat
from typing import Final

from search.copies import Held

FIRST_BYTES: Final = 64 << 10
"""Mostly enough; formats that have their sizes at the end are read whole."""
_FLAGS: Final = (
    os.O_RDONLY
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)  # opening a FIFO must not wait for a writer
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_BINARY", 0)
)


def size_of(held: Held) -> tuple[int, int] | None:
    """Return width and height as the file stores them; no pixel is decoded.

    None where the file is gone or was touched since it was indexed, or where it is no picture.
    """
    from extractor.decode import DecodeError, open_header

    try:
        descriptor = os.open(held.path, _FLAGS)
    except (OSError, ValueError):
        return None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return None
        if (found.st_size, found.st_mtime_ns) != (held.size_bytes, held.mtime_ns):
            return None
        data = b""
        for length in (FIRST_BYTES, found.st_size):
            try:
                data += _read(descriptor, length - len(data))
                return open_header(data).size
            except (DecodeError, OSError, MemoryError):
                continue
    finally:
        os.close(descriptor)
    return None


def _read(descriptor: int, length: int) -> bytes:
    """Return the next bytes of a file, so many where it has them."""
    blocks = []
    while length > 0 and (block := os.read(descriptor, length)):
        blocks.append(block)
        length -= len(block)
    return b"".join(blocks)
