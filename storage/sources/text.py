"""The text of a list, readable from the start any number of times, a pipe's too."""

import io
import os
import shutil
import stat
import sys
import tempfile
from typing import BinaryIO, TextIO

import xxhash

from storage.errors import SourceError
from storage.sources.table import as_text

_PIECE_BYTES = 1 << 20


class ListText:
    """An open list.  What can be read once only is first copied to an unnamed temporary file.

    Parameters
    ----------
    path
        The list; ``None`` is standard input.

    Attributes
    ----------
    title
        What messages call it.
    name
        Its name, whose suffix counts; ``b""`` where it has none.
    folder
        Where its relative paths start: its own folder, for a pipe the current one.

    Raises
    ------
    SourceError
        It can't be read, or is no text.
    """

    def __init__(self, path: bytes | None) -> None:
        self.title = "standard input" if path is None else f"list {as_text(path)}"
        self.name, self.folder = b"", os.getcwdb()
        try:
            self._file = _copied(sys.stdin.buffer) if path is None else self._open(path)
            start = os.pread(self._file.fileno(), _PIECE_BYTES, 0)
        except OSError as trouble:
            raise SourceError(f"{self.title}: {trouble.strerror}") from trouble
        if b"\0" in start:
            self._file.close()
            raise SourceError(
                f"{self.title} is no UTF-8 text: a source is a directory, a list of paths (.tsv, "
                ".csv, .txt) or an .npy array"
            )

    def _open(self, path: bytes) -> BinaryIO:
        file: BinaryIO = open(path, "rb")  # noqa: SIM115 - open as long as the list
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            self.name = os.path.basename(path)
            self.folder = os.path.dirname(os.path.abspath(path))
            return file
        with file:
            return _copied(file)

    def lines(self) -> TextIO:
        """Return the lines from the first one, at a place of their own."""
        raw = io.BufferedReader(_FromStart(self._file.fileno()), _PIECE_BYTES)
        return io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="\n")

    def checksum(self) -> str:
        """Return the xxh3-128 of all bytes, hexadecimal."""
        total, at = xxhash.xxh3_128(), 0
        while piece := os.pread(self._file.fileno(), _PIECE_BYTES, at):
            total.update(piece)
            at += len(piece)
        return str(total.hexdigest())

    def close(self) -> None:
        """Close the file; a temporary one is gone with it."""
        self._file.close()


class _FromStart(io.RawIOBase):
    """Reads an open file from its start, and leaves the file's own place alone."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = os.pread(self._fd, len(buffer), self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _copied(file: BinaryIO) -> BinaryIO:
    copy: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the list
    try:
        shutil.copyfileobj(file, copy, _PIECE_BYTES)
        copy.flush()
    except BaseException:
        copy.close()
        raise
    return copy
