"""What is asked, and what comes back: plain values.

A question is made of examples: pictures, images of the catalog, vectors or words that the hits
shall be like, and others that they shall not.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from search.answers import Hit
from search.errors import SearchError

FloatArray = npt.NDArray[np.float32]
Exemplary = str | bytes | os.PathLike[str] | int | FloatArray
"""Path of a picture, number of an image, or a vector."""

MOST: Final = 10_000
"""How deep hits may lie: a page ends here."""
MINUS: Final = 0.4
"""Weight of what is unlike beside that of what is like, by ``benchmarks/minus.py``.

Of ResNet-18's vectors of Corel-1k: where the first wrong hit among 20 is said to be unlike, .791 of
the next 20 are right, and .770 without; of a picture of each of two classes, less another one of
the second, .874 of 20 hits are of the first class, and .488 without.  The first figure is best with
a weight of .2, the second with .6; from .6 on the first is worse than without.
"""
_NOTHING: Final = 1e-6
"""What is shorter than this has no direction but that of rounding."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which hits are wanted.

    Pages of one question follow each other without a hit twice or left out where only ``skip``
    differs, for as long as the store does not change.

    Parameters
    ----------
    k
        How many, at most.
    skip
        How many of the best ones earlier pages have shown; with ``k`` at most 10,000.
    under
        Absolute paths: only images with a live file at or below any of them, or in such a manifest.
    min_score
        Only hits with at least this cosine.
    no_self
        Leave out every image that is an example, of either sort.
    distinct
        Leave out a hit whose cosine with a better one that is kept is at least this.

    Raises
    ------
    SearchError
        A value makes no sense.
    """

    k: int = 10
    skip: int = 0
    under: tuple[bytes, ...] = ()
    min_score: float | None = None
    no_self: bool = False
    distinct: float | None = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise SearchError(f"k is {self.k}, it must be at least 1")
        if self.skip < 0:
            raise SearchError(f"skip is {self.skip}, it must be at least 0")
        if self.skip + self.k > MOST:
            raise SearchError(
                f"skip and k make {self.skip + self.k:,}, hits beyond the {MOST:,}th can't be had"
            )
        if self.min_score is not None and math.isnan(self.min_score):
            raise SearchError("min_score is not a number")
        if self.distinct is not None and not 0 < self.distinct <= 1:
            raise SearchError(f"distinct is {self.distinct:g}, it must be above 0 and at most 1")


@dataclass(frozen=True, eq=False)
class Example:
    """One thing that hits shall be like or unlike; exactly one of these is given.

    Parameters
    ----------
    path
        Absolute path of a picture.
    data
        Bytes of a picture's file.
    image_id
        An image of the catalog.
    vector
        Shape ``(d,)``, float32, unit length.
    words
        What is to be seen, where the space's network knows words.
    """

    path: bytes | None = None
    data: bytes | None = None
    image_id: int | None = None
    vector: FloatArray | None = None
    words: str | None = None

    def __post_init__(self) -> None:
        given = (self.path, self.data, self.image_id, self.vector, self.words)
        if sum(value is not None for value in given) != 1:
            raise ValueError("an example is a path, data, an image_id, a vector or words: one")

    @classmethod
    def of(cls, what: Exemplary) -> "Example":
        """Return the example that a number (an image), a path or an array (a vector) means."""
        if isinstance(what, np.ndarray):
            return cls(vector=what)
        if isinstance(what, (str, bytes, os.PathLike)):
            return cls(path=os.path.abspath(os.fsencode(what)))
        return cls(image_id=int(what))

    @classmethod
    def each(cls, given: "Exemplary | Sequence[Exemplary]") -> "tuple[Example, ...]":
        """Return the examples that are meant by one thing as `of` takes it, or by several."""
        if isinstance(given, np.ndarray):
            is_vector = given.ndim == 1 and given.dtype.kind == "f"
            return (cls.of(given),) if is_vector else tuple(map(cls.of, given))
        if isinstance(given, (str, bytes, os.PathLike, int, np.integer)):
            return (cls.of(given),)
        return tuple(map(cls.of, given))


@dataclass(frozen=True)
class Question:
    """What hits shall be like, and what they shall not; at least one example to be like."""

    plus: tuple[Example, ...]
    minus: tuple[Example, ...] = ()

    def __post_init__(self) -> None:
        if not self.plus:
            raise SearchError("give at least one example that the hits shall be like")


@dataclass(frozen=True, eq=False)
class Reply:
    """The hits of one question, the best first.

    Attributes
    ----------
    space
        Name of the space that was searched.
    hits
        At most ``k`` of them.
    vector
        What was searched for: shape ``(d,)``, float32, unit length.  Asking for it again gives the
        same hits.
    more
        Whether the next page would have hits.
    """

    space: str
    hits: tuple[Hit, ...]
    vector: FloatArray
    more: bool


def direction(plus: FloatArray, minus: FloatArray) -> FloatArray:
    """Return where examples point: the mean of those to be like, less that of the others.

    This is Rocchio's, with a weight for what is unlike (`MINUS`).

    Parameters
    ----------
    plus, minus
        Shapes ``(p, d)``, p at least 1, and ``(m, d)``, float32, unit length.

    Returns
    -------
    array
        Shape ``(d,)``, float32, unit length; a single example to be like as it is.

    Raises
    ------
    SearchError
        Nothing is left of them.
    """
    only: FloatArray = plus[0]
    if len(plus) == 1 and not len(minus):
        return only
    found = plus.mean(axis=0, dtype=np.float64)
    if len(minus):
        found -= MINUS * minus.mean(axis=0, dtype=np.float64)
    length = float(np.linalg.norm(found))
    if not length > _NOTHING:
        raise SearchError("the examples cancel each other out: leave some of them away")
    unit: FloatArray = (found / length).astype(np.float32)
    return unit
