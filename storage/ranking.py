"""The candidates of one query in the order of their true cosines, and which of them are alive.

Scores come first and the catalog second: it is asked for the best ones alone, and for more of them
only where too few of those live.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from storage.errors import PartError
from storage.rows import FloatArray, RowArray, Rows, unknown_row
from storage.vectors import UNIT_TOLERANCE

Living = Callable[[Iterable[int]], dict[int, int]]
"""Rows -> image ids of those that live."""

RESCORED = 8192
"""Vectors in memory at once while candidates are rescored."""
_MORE = 4
"""By so much more than are lacking the catalog is asked once some were dead."""


class Neighbour(NamedTuple):
    """One image near a query; the score is the cosine."""

    row: int
    image_id: int
    score: float


class Line:
    """Candidates of one query, the nearest first; `hits` of them are found alive, in that order.

    Parameters
    ----------
    rows, scores
        Shape ``(n,)``: distinct rows by falling score, equal ones by row, and their cosines.
    offered
        How many there were, those included that no part holds any more.
    need
        How many live ones are enough.
    unwanted
        Images that count as dead.
    """

    __slots__ = ("_at", "_need", "_rows", "_scores", "_until", "_unwanted", "hits", "offered")

    def __init__(
        self,
        rows: RowArray,
        scores: FloatArray,
        offered: int,
        need: int,
        unwanted: Collection[int],
    ) -> None:
        self._rows: list[int] = rows.tolist()
        self._scores: list[float] = scores.tolist()
        self.offered = offered
        self._need = need
        self._unwanted = unwanted
        self._at = self._until = 0
        self.hits: list[Neighbour] = []

    def asked(self) -> Sequence[int]:
        """Return the rows to look up next; none where enough are found or none is left."""
        lacking = self._need - len(self.hits)
        if lacking <= 0:
            return ()
        first = self._at == 0
        step = lacking + len(self._unwanted) if first else lacking * _MORE
        self._until = min(self._at + step, len(self._rows))
        return self._rows[self._at : self._until]

    def heard(self, living: dict[int, int]) -> None:
        """Take up which of the rows that were asked for live."""
        for at in range(self._at, self._until):
            image = living.get(self._rows[at])
            if image is not None and image not in self._unwanted:
                self.hits.append(Neighbour(self._rows[at], image, self._scores[at]))
        self._at = self._until


def find_living(lines: Sequence[Line], living: Living) -> None:
    """Ask for the lines' rows, of all lines at once, until each has enough or none left."""
    while asked := {row for line in lines for row in line.asked()}:
        found = living(sorted(asked))
        for line in lines:
            line.heard(found)


def best_first(
    vectors: Rows, rows: RowArray, q: FloatArray, living: Living
) -> tuple[RowArray, FloatArray]:
    """Order rows by their cosine with a query.

    Parameters
    ----------
    vectors
        Where the vectors are.
    rows
        Shape ``(n,)``; one may be there twice.
    q
        The query, shape ``(d,)``, unit length.
    living
        Asked about those rows alone that are no vector, or a damaged one.

    Returns
    -------
    rows, scores
        The rows that are, distinct, and their cosines, float32: largest first, and equal ones in
        the order of rows.

    Raises
    ------
    PartError
        The vector of a live row is damaged or missing.
    """
    if not len(rows):
        return rows, np.empty(0, np.float32)
    scores = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), RESCORED):
        some = slice(start, start + RESCORED)
        scores[some] = _cosines(vectors, rows[some], q, living)
    order = np.lexsort((rows, -scores))
    rows, scores = rows[order], scores[order]
    kept = np.isfinite(scores)
    kept[1:] &= rows[1:] != rows[:-1]
    return rows[kept], scores[kept]


def _cosines(vectors: Rows, rows: RowArray, q: FloatArray, living: Living) -> FloatArray:
    """Return cosines, shape ``(n,)``; -inf for dead rows without a sound vector."""
    x, there = vectors.gather_some(rows)
    with np.errstate(over="ignore", invalid="ignore"):  # damaged vectors, which are refused below
        lengths = np.sqrt(np.vecdot(x, x))  # float16 is not of unit length
    # Not written as `> tolerance`: a NaN must not pass.
    sound = np.abs(lengths - 1) < UNIT_TOLERANCE
    if sound.all():
        lengths *= np.sqrt(q @ q)
        cosines: FloatArray = np.vecdot(x, q)
        cosines /= lengths
        np.clip(cosines, -1, 1, out=cosines)
        return cosines
    for at in np.flatnonzero(~sound).tolist():
        if living([int(rows[at])]):
            raise _damaged(int(rows[at]), lengths[at]) if there[at] else unknown_row(int(rows[at]))
    out = np.full(len(rows), -np.inf, np.float32)
    out[sound] = _cosines(vectors, rows[sound], q, living)
    return out


def _damaged(row: int, length: np.float32) -> PartError:
    # One flipped bit can make an image everybody's nearest.
    return PartError(
        f"the vector of row {row} is damaged, its length is {length:.6g}; "
        "`lookalike check --deep --repair` sorts it out"
    )
