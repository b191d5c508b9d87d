"""Open whatever a person names as the source of images."""

import os
from dataclasses import dataclass
from typing import Literal

from storage.errors import SourceError
from storage.sources.directory import DirectorySource
from storage.sources.items import Source

__all__ = ["Source", "SourceOptions", "open_source"]


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What a source does not say itself.

    Parameters
    ----------
    labels
        An npy file with one label for each picture of an array.
    height, width, channels
        The pictures' shape where an array has them as rows of numbers.
    values
        Where white lies in an array that is not uint8: ``unit`` at 1, ``byte`` at 255.
    columns
        The columns of a list, in its order, of the words ``id``, ``path``, ``label`` and ``-`` for
        one that is not used: ``label,path``.
    """

    labels: str | None = None
    height: int | None = None
    width: int | None = None
    channels: int | None = None
    values: Literal["unit", "byte"] | None = None
    columns: str | None = None


NO_OPTIONS = SourceOptions()


def open_source(text: str, options: SourceOptions = NO_OPTIONS) -> Source:
    """Open a directory, a list (``-`` is standard input) or an npy array of pictures.

    Raises
    ------
    SourceError
        It is missing, can't be read, or does not fit the options.
    ManifestError
        Lines of a list are wrong or ids repeat; the message gives the numbers of the first ten.
    """
    path = os.fsencode(text)
    if os.path.isdir(path):
        return DirectorySource(path)
    raise SourceError(f"{text} is no directory, list or array of pictures")
