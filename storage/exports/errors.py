"""What can be wrong with an output; a branch of the tree in ``storage.errors``.

::

    StorageError
    └── ExportError      2  the output can't be written as asked
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from storage.errors import DiskFull, StorageError
from storage.roots import display


class ExportError(StorageError):
    """The output can't be written as asked; the message says what would do."""

    exit_code = 2


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
