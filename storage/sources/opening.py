"""Open whatever a person names as the source of images."""

import os
import stat
from dataclasses import dataclass
from typing import Literal

from storage.errors import SourceError
from storage.scan import has_suffix
from storage.sources.arrays import ArraySource
from storage.sources.directory import DirectorySource
from storage.sources.items import Source
from storage.sources.lists import ListSource
from storage.sources.npy import MAGIC
from storage.sources.table import as_text

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
    if text == "-":
        _refuse_array_options("standard input", options)
        return ListSource(None, options.columns)
    path = os.fsencode(text)
    try:
        status = os.stat(path)
    except OSError as trouble:
        raise SourceError(f"{as_text(path)}: {trouble.strerror}") from trouble
    if stat.S_ISDIR(status.st_mode):
        _refuse_columns("a directory", options)
        _refuse_array_options("a directory", options)
        return DirectorySource(path)
    if _is_npy(path, status):
        _refuse_columns("an array", options)
        return _array(path, options)
    if has_suffix(os.path.basename(path)):
        raise SourceError(
            f"{as_text(path)} is a picture; a source is a directory, a list of paths (.tsv, .csv, "
            ".txt) or an .npy array"
        )
    _refuse_array_options("a list", options)
    return ListSource(path, options.columns)


def _is_npy(path: bytes, status: os.stat_result) -> bool:
    if path.lower().endswith(b".npy"):
        return True
    if not stat.S_ISREG(status.st_mode):
        return False  # what is read of a pipe is gone
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as trouble:
        raise SourceError(f"{as_text(path)}: {trouble.strerror}") from trouble


def _array(path: bytes, options: SourceOptions) -> Source:
    return ArraySource(
        path,
        None if options.labels is None else os.fsencode(options.labels),
        (options.height, options.width, options.channels),
        options.values,
    )


def _refuse_columns(kind: str, options: SourceOptions) -> None:
    if options.columns is not None:
        raise SourceError(f"--columns is for lists; the source is {kind}")


def _refuse_array_options(kind: str, options: SourceOptions) -> None:
    for name in ("labels", "height", "width", "channels", "values"):
        if getattr(options, name) is not None:
            raise SourceError(f"--{name} is for an npy array; the source is {kind}")
