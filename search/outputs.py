"""Files that a command writes for a person: whole or not at all, and never over another's file."""

import os

from search.errors import OutputError
from storage.durable import DurableFile

_LOOKED_AT = 4096


def new_output(path: str, mark: bytes) -> DurableFile:
    """Return a file that appears under its name when it is whole.

    Parameters
    ----------
    path
        Absolute.
    mark
        What an earlier output of this kind has at its beginning; nothing else is replaced.

    Raises
    ------
    OutputError
        There is something else under this name, or no folder for it.
    """
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise OutputError(f"{path} can't be written: there is no folder {folder}")
    if os.path.lexists(path) and not is_ours(path, mark):
        raise OutputError(f"{path} is there already, and was not written by this command")
    return DurableFile(path)


def is_ours(path: str, mark: bytes) -> bool:
    """Return whether there is a plain file that has the mark at its beginning."""
    try:
        if os.path.islink(path) or not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            return mark in file.read(_LOOKED_AT)
    except OSError:
        return False
