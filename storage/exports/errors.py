"""How trouble with an output is told to a person."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from storage.errors import DiskFull, ExportError
from storage.roots import display

__all__ = ["ExportError", "plain_errors", "shown"]


def shown(path: str) -> str:
    r"""Return a path as text for people: ``\xe9`` for a byte that is not UTF-8."""
    return display(path.encode("utf-8", "surrogateescape"))


@contextmanager
def plain_errors(path: str) -> Iterator[None]:
    """Say in one line what the file system refuses about an output.

    Raises
    ------
    DiskFull
        The disk, the quota or the largest size of a file is reached.
    ExportError
        Any other trouble of the file system.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull(
                f"no space left to write {shown(path)}; make room and run again"
            ) from error
        reason = error.strerror or str(error)
        raise ExportError(f"{shown(path)} can't be written: {reason}") from error
