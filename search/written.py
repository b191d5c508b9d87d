"""Files for people, which appear whole or not at all."""

import os
import uuid
from contextlib import suppress

from search.errors import SearchError
from storage.fs import fs, open_stream


def write_file(path: str, data: bytes, what: str) -> None:
    """Write a file, in the place of one of this name; a device or a pipe is written as it is.

    Parameters
    ----------
    path
        Its name; a symbolic link is followed.
    data
        All of it.
    what
        What to call it in a message.

    Raises
    ------
    SearchError
        The file can't be written.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            with open(path, "wb") as file:
                file.write(data)
        else:
            _replace(os.path.realpath(path), data)
    except OSError as error:
        why = error.strerror or str(error)
        raise SearchError(f"{what} {path} can't be written: {why}") from error


def _replace(target: str, data: bytes) -> None:
    temporary = f"{target}.{uuid.uuid4().hex}.tmp"
    try:
        with open_stream(temporary) as file:
            file.write(data)
            file.flush()
            fs().fsync(file.fileno())
        fs().replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            fs().unlink(temporary)
        raise
