"""What is near the vectors of a batch: by comparison with all of a space, or told by its index."""

from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from storage.candidates import EFFORT, ROUNDING
from storage.errors import PartError
from storage.exact import is_in
from storage.reading import Rows
from storage.vectors import UNIT_TOLERANCE

if TYPE_CHECKING:
    import faiss

    from storage.generation import Loaded

FloatArray = npt.NDArray[np.float32]
RowArray = npt.NDArray[np.int64]

SLACK = 0.15
"""By so much less an index may rate a neighbour than it is, and still have it compared."""
EASIER = 4
"""By this an index is asked with less effort than for a search: what is that near is in the first
lists that are probed.  Of 6,000 pairs with cosines of 0.90 to 0.99 among 60,000 vectors in 1,024
lists 8 probes found all, as do the 128 of a search."""
CROWDED = 0.9
"""Where less of an index is asked about, the rest is left out while it searches."""
_RESCORED = 8192
"""Vectors in memory at once while what an index told is compared."""
_SCORES = 4 << 20
"""Cosines that are looked through at once: all of them may be near enough."""


class Near(NamedTuple):
    """Who is near whom, each of shape ``(n,)``: number of the query, row, and cosine."""

    query: RowArray
    row: RowArray
    score: FloatArray

    @classmethod
    def joined(cls, some: "list[Near]") -> Self:
        """Return one of several."""
        if not some:
            nothing = np.empty(0, np.int64)
            return cls(nothing, nothing, np.empty(0, np.float32))
        return cls(*(np.concatenate(column) for column in zip(*some, strict=True)))

    def nearest(self, k: int) -> Self:
        """Return the k nearest of each query: in the order of queries, the nearest first."""
        order = np.lexsort((self.row, -self.score, self.query))
        query = self.query[order]
        firsts = np.searchsorted(query, query)  # where each one's query begins
        order = order[np.arange(len(query)) - firsts < k]
        return type(self)(self.query[order], self.row[order], self.score[order])


class Compared:
    """Compares a batch with each vector of some rows.

    Parameters
    ----------
    vectors
        Where they are.
    rows
        Which: shape ``(n,)``, int64, ascending.
    k
        How many of the nearest are told for each of a batch.
    row_start
        Only those from this row on.
    """

    def __init__(self, vectors: Rows, rows: RowArray, k: int, row_start: int = 0) -> None:
        self._vectors = vectors
        self._rows = rows
        self._k = k
        self._row_start = row_start

    def near(self, rows: RowArray, x: FloatArray, threshold: float) -> Near:
        """Return the nearest of each vector of a batch with at least this cosine, but not itself.

        Parameters
        ----------
        rows, x
            The batch: shapes ``(nq,)``, int64, and ``(nq, d)``, float32, unit length.
        threshold
            Least cosine.

        Raises
        ------
        PartError
            A vector is missing or damaged.
        """
        found = []
        for others, y in self._vectors.blocks(self._row_start, rows=self._rows):
            scores = x @ y.T  # (nq, m)
            scores /= _lengths(others, y)
            step = max(1, _SCORES // len(others))
            for start in range(0, len(rows), step):
                query, at = np.nonzero(scores[start : start + step] >= threshold - ROUNDING)
                query += start
                apart = others[at] != rows[query]
                query, at = query[apart], at[apart]
                near = Near(query, others[at], np.minimum(scores[query, at], 1))
                found.append(near.nearest(self._k))
        return Near.joined(found).nearest(self._k)


class Indexed:
    """Asks an index for what is near a batch, and compares that.

    Parameters
    ----------
    loaded
        The index.
    vectors, rows
        As `Compared` takes them.
    k
        As `Compared` takes it; twice as many are asked for, since some may be dead.

    Raises
    ------
    SelectorRefused
        The index can't leave the other rows out, which are many.
    """

    def __init__(self, loaded: "Loaded", vectors: Rows, rows: RowArray, k: int) -> None:
        self._loaded = loaded
        self._vectors = vectors
        self._rows = rows
        self._k = k
        self._selector: faiss.IDSelector | None = None
        asked = loaded.generation.parameters
        self._parameters = {
            name: max(1, value // EASIER) if name in EFFORT else value
            for name, value in asked.items()
        }
        inside = is_in(loaded.rowmap, rows)
        if inside.mean() < CROWDED:
            self._select(inside)

    def _select(self, inside: npt.NDArray[np.bool_]) -> None:
        from storage.index import all_but, only, search_index

        few, others = np.flatnonzero(inside), np.flatnonzero(~inside)
        self._selector = only(few) if len(few) < len(others) else all_but(others)
        probe = np.zeros((1, self._vectors.d), np.float32)
        search_index(self._loaded.index, self._parameters, probe, 1, self._selector)

    def near(self, rows: RowArray, x: FloatArray, threshold: float) -> Near:
        """Return what `Compared.near` does, as far as the index knows it."""
        from storage.index import search_index

        rated, positions = search_index(
            self._loaded.index, self._parameters, x, 2 * (self._k + 1), self._selector
        )
        query, at = np.nonzero((positions >= 0) & (rated >= threshold - SLACK))
        others = self._loaded.rowmap[positions[query, at]]
        wanted = is_in(others, self._rows) & (others != rows[query])
        query, others = query[wanted], others[wanted]
        scores = np.empty(len(query), np.float32)
        for start in range(0, len(query), _RESCORED):
            some = slice(start, start + _RESCORED)
            y = unit(others[some], self._vectors.gather(others[some]))
            scores[some] = np.minimum(np.vecdot(x[query[some]], y), 1)
        near = scores >= threshold - ROUNDING
        return Near(query[near], others[near], scores[near]).nearest(self._k)


def unit(rows: RowArray, x: FloatArray) -> FloatArray:
    """Return stored vectors, shape ``(n, d)``, at exactly unit length: float16 is a bit off.

    Raises
    ------
    PartError
        One is damaged.
    """
    scaled: FloatArray = x / _lengths(rows, x)[:, None]
    return scaled


def _lengths(rows: RowArray, x: FloatArray) -> FloatArray:
    with np.errstate(over="ignore", invalid="ignore"):  # damaged vectors, which are refused below
        lengths: FloatArray = np.sqrt(np.vecdot(x, x))
    # Not written as `> tolerance`: a NaN must not pass.
    bad = np.flatnonzero(~(np.abs(lengths - 1) < UNIT_TOLERANCE))
    if len(bad):
        raise PartError(
            f"the vector of row {rows[bad[0]]} is damaged, its length is {lengths[bad[0]]:.6g}; "
            "`lookalike check --deep --repair` sorts it out"
        )
    return lengths
