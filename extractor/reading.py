"""Read a file whole, once, and know that it did not change meanwhile."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

_FLAGS: Final = (
    os.O_RDONLY
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)  # opening a FIFO must not wait for a writer
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_BINARY", 0)
)
_FOLDER: Final = (
    getattr(os, "O_PATH", os.O_RDONLY)  # asks for no right to list it
    | getattr(os, "O_DIRECTORY", 0)
    | getattr(os, "O_CLOEXEC", 0)
)
_CLASSES: Final = {
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.ENOENT: "vanished",
    errno.ENOTDIR: "vanished",
    errno.ELOOP: "vanished",  # a symbolic link is in its place
    errno.ENXIO: "not_a_file",  # a socket
}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a file has no pixels.

    Parameters
    ----------
    stage
        ``read`` or ``decode`` here; ``forward`` is the engine's.
    failure_class
        ``permission vanished io busy too_large not_a_file memory`` when reading; when decoding
        those of ``extractor.decode.DecodeError``, and ``error`` for what nobody expected.
    message
        One line for a person.
    transient
        Whether another try may go well though the file stays as it is.
    """

    stage: str
    failure_class: str
    message: str
    transient: bool


class Unread(Exception):
    """A file couldn't be read.  ``sig`` is its signature, where it could be opened."""

    def __init__(self, failure: Failure, sig: tuple[int, int, int, int] | None = None) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.sig = sig


class OpenFile:
    """A regular file that is open, with the signature that it had then."""

    def __init__(self, descriptor: int, sig: tuple[int, int, int, int]) -> None:
        self._descriptor = descriptor
        self.sig = sig

    def read(self) -> bytes:
        """Return the whole content.

        Raises
        ------
        Unread
            ``busy`` when the file is not what it was when it was opened, ``io``, ``memory``.
        """
        with _as_unread(self.sig):
            blocks, left = [], self.sig[0]
            while left and (block := os.read(self._descriptor, left)):
                blocks.append(block)
                left -= len(block)
            after = _signature(os.fstat(self._descriptor))
            data = blocks[0] if len(blocks) == 1 else b"".join(blocks)
        if left or after != self.sig:
            message = "the file changed while it was read; it is tried again on the next run"
            raise Unread(Failure("read", "busy", message, transient=True), self.sig)
        return data


@contextmanager
def opened(path: bytes, most_bytes: int, inside: bytes | None = None) -> Iterator[OpenFile]:
    """Open a regular file, never waiting for a FIFO.

    Parameters
    ----------
    path
        Absolute.
    most_bytes
        A larger file is refused without reading any of it.
    inside
        A folder above it: below that no symbolic link is followed, so that what is put in the place
        of a file or folder leads nowhere else.  None follows all links.

    Raises
    ------
    Unread
        ``permission``, ``vanished``, ``io``, ``not_a_file``, ``too_large``.
    """
    with _as_unread(None):
        descriptor = os.open(path, _FLAGS) if inside is None else _open_inside(inside, path)
    try:
        with _as_unread(None):
            found = os.fstat(descriptor)
        sig = _signature(found)
        if not stat.S_ISREG(found.st_mode):
            failure = Failure("read", "not_a_file", "not a regular file", transient=False)
            raise Unread(failure, sig)
        if sig[0] > most_bytes:
            message = f"{sig[0]:,} bytes, limit {most_bytes:,}"
            raise Unread(Failure("read", "too_large", message, transient=False), sig)
        yield OpenFile(descriptor, sig)
    finally:
        os.close(descriptor)


def _open_inside(folder: bytes, path: bytes) -> int:
    """Open a file step by step below a folder; a link on the way is an ``OSError``."""
    if os.open not in os.supports_dir_fd:  # pragma: no cover - Windows
        return os.open(path, _FLAGS)
    *folders, name = os.path.relpath(path, folder).split(os.fsencode(os.sep))
    if os.pardir.encode() in folders:
        raise FileNotFoundError(errno.ENOENT, "not below the folder that was scanned")
    here = os.open(folder, _FOLDER)
    try:
        for each in folders:
            above, here = here, os.open(each, _FOLDER | os.O_NOFOLLOW, dir_fd=here)
            os.close(above)
        return os.open(name, _FLAGS | os.O_NOFOLLOW, dir_fd=here)
    finally:
        os.close(here)


def _signature(found: os.stat_result) -> tuple[int, int, int, int]:
    """Return ``(size_bytes, mtime_ns, ctime_ns, inode)``."""
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


@contextmanager
def _as_unread(sig: tuple[int, int, int, int] | None) -> Iterator[None]:
    """Turn what the system says into ``Unread``."""
    try:
        yield
    except OSError as error:
        name = _CLASSES.get(error.errno or 0, "io")
        message = error.strerror or str(error)
        raise Unread(Failure("read", name, message, name != "not_a_file"), sig) from error
    except ValueError as error:
        message = "the path holds a zero byte"
        raise Unread(Failure("read", "not_a_file", message, transient=False), sig) from error
    except MemoryError as error:
        message = "not enough memory to read this file"
        raise Unread(Failure("read", "memory", message, transient=True), sig) from error
