"""Which of the nearest images make a page: skipped ones, near-duplicates, and whether more come.

A page is cut out of one sequence that its question has, whichever page is asked for.  An index that
approximates may find another image among the first hundred when it is asked for a thousand, so the
sequence is not what one wide search finds: it begins with the hits of a search for one page, goes
on with those that a wider search finds besides, and so forth.  A page needs as much of it as it
needs, and none contradicts another.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from search.questions import Wanted
from storage.candidates import ROUNDING
from storage.ranking import Neighbour

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Nearest = Callable[[Sequence[int], int], list[list[Neighbour]]]
"""Some of the queries, by number, and k -> the k nearest of each; fewer where no more are there."""
VectorsOf = Callable[[Sequence[int]], FloatArray]
"""Rows -> their vectors, shape ``(n, d)``, float32, unit length."""

WIDER: Final = 4
"""So many times as many hits the next search asks for."""
WIDEST: Final = 50_000
"""What lies farther out than so many images is not looked at, however alike they are."""
_BLOCK: Final = 256
"""Hits compared with those that are kept at once."""


class Page:
    """The hits of one query, the best first, as far as they are needed.

    Parameters
    ----------
    wanted
        What is asked for.
    vectors
        Gives the vectors of hits, where near-duplicates are to be left out.
    """

    def __init__(self, wanted: Wanted, vectors: VectorsOf) -> None:
        self._wanted = wanted
        self._vectors = vectors
        self._end = wanted.skip + wanted.k
        self._seen: set[int] = set()
        self._kept: list[Neighbour] = []
        self._kept_x: FloatArray | None = None

    @property
    def is_full(self) -> bool:
        """Whether the page is there, and whether another one follows is known."""
        return len(self._kept) > self._end

    @property
    def hits(self) -> list[Neighbour]:
        """The page."""
        return self._kept[self._wanted.skip : self._end]

    def add(self, hits: Sequence[Neighbour]) -> None:
        """Take up what a search found, the best first; what an earlier one found stays first."""
        new = [hit for hit in hits if hit.row not in self._seen]
        self._seen.update(hit.row for hit in new)
        if self._wanted.distinct is None:
            self._kept += new
            return
        for start in range(0, len(new), _BLOCK):
            if self.is_full:
                return
            self._add_unlike(new[start : start + _BLOCK], self._wanted.distinct - ROUNDING)

    def _add_unlike(self, hits: Sequence[Neighbour], least: float) -> None:
        """Keep those that are like none that is kept, each by itself in their order."""
        x = self._vectors([hit.row for hit in hits])
        kept_x = x[:0] if self._kept_x is None else self._kept_x
        hidden: BoolArray = np.any(x @ kept_x.T >= least, axis=1)
        alike = x @ x.T >= least
        chosen = []
        for at in range(len(hits)):
            if not hidden[at]:
                chosen.append(at)
                hidden |= alike[at]
        self._kept += [hits[at] for at in chosen]
        self._kept_x = np.concatenate([kept_x, x[chosen]])


def fill(nearest: Nearest, pages: Sequence[Page], wanted: Wanted) -> None:
    """Search wider and wider, for those pages that are not full yet, until there is no more."""
    width = wanted.k + 1  # the same for every page of a question, and one that says if more come
    lacking = list(range(len(pages)))
    while lacking:
        found = nearest(lacking, width)
        for at, hits in zip(lacking, found, strict=True):
            pages[at].add(hits)
        lacking = [
            at
            for at, hits in zip(lacking, found, strict=True)
            if len(hits) == width and not pages[at].is_full
        ]
        if width == WIDEST:
            return
        width = min(width * WIDER, WIDEST)
