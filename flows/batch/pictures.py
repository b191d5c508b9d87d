"""Items of a source as what the extractor loads: a file, or a row of an array."""

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from storage.begun import Begun
from storage.sources.items import BadPixels, Item, Source

if TYPE_CHECKING:
    from extractor.loader import Source as Picture


def picture_of(source: Source, key: int, item: Item, begun: Begun) -> "Picture":
    """Return what to load for an item, known by ``key``; a row is read when its turn comes.

    What a process died with is decoded with care; ``begun`` knows it.
    """
    from extractor.loader import Source as Picture

    if item.row is None:
        return Picture(key, item.path, None, source.inside, begun.is_suspect(item.path))
    return Picture(key, b"", partial(_pixels, source, item.row))


def _pixels(source: Source, row: int) -> NDArray[np.uint8]:
    from extractor.reading import Failure, Unread

    try:
        return source.pixels(row)
    except BadPixels as error:
        failure = Failure("read", error.failure_class, error.message, transient=False)
        raise Unread(failure) from error


def paths_of(items: Iterable[Item]) -> list[bytes]:
    """Return the paths of the items that are files, and not rows of an array."""
    return [item.path for item in items if item.row is None]
