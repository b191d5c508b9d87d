"""One search: candidates from index and tail, rescored and filtered, widened where they lack.

The index serves rows below its ``row_end``, the tail above is compared one by one.  Candidates are
rescored from the parts, so that scores are true cosines whatever the index approximates; rows whose
image has no live file are left out, and the search widens until k live images are found or none is
left.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from storage.dead import entered_rows, rows_at
from storage.exact import is_in, search_exact
from storage.ranking import Line, Living, Neighbour, best_first, find_living
from storage.reading import Rows, Snapshot

if TYPE_CHECKING:
    from storage.generation import Loaded

FloatArray = npt.NDArray[np.float32]
RowArray = npt.NDArray[np.int64]
Attempt = Callable[[FloatArray], "Candidates | None"]
"""Queries, shape ``(nq, d)`` -> candidates; None: another way is better."""

FETCH = 100
WIDENINGS = (1, 4, 16)
NARROW_ROWS = 50_000
NARROW_SHARE = 0.05
"""What leaves less is searched exactly: a graph's recall falls to a third there."""
LEAST_LIVE = 0.1
"""Where fewer candidates live, those that do lie so far out that a graph misses nearer ones."""
EFFORT = ("nprobe", "efSearch")
MOST_EFFORT = 16
ROUNDING = 1e-6
"""By so much two ways to compute one cosine may differ."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Rows that may be near: from the index, and by comparison of the other vectors with all.

    Shapes ``(nq, c)``, int64, best first, -1 where there are no more; the widths may differ.
    """

    indexed: RowArray
    compared: RowArray


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked: the k nearest live images of each query.

    Parameters
    ----------
    xq
        Queries, shape ``(nq, d)``, float32, unit length.
    k
        How many images, at least 1.
    under
        Absolute paths: only images with a live file at or below any of them, also one that a
        manifest names; without any, all images.
    min_score
        Only images with at least this cosine, less what rounding may take from it.
    exclude
        For each query the images that are left out, if any are.
    """

    xq: FloatArray
    k: int
    under: tuple[bytes, ...] = ()
    min_score: float | None = None
    exclude: Sequence[Collection[int]] | None = None


def fetch_width(k: int, n: int) -> int:
    """Return how many of n rows to fetch for the k nearest, at first."""
    return min(max(4 * k, FETCH), n + 1)


class Search:
    """One search inside one transaction."""

    def __init__(
        self,
        conn: Connection,
        view: Snapshot,
        rows: Rows,
        loaded: "Loaded | None",
        wish: Wish,
        living: Living,
    ) -> None:
        self._conn = conn
        self._view = view
        self._rows = rows
        self._loaded = loaded
        self._wish = wish
        self._living = living
        self._most = view.n + 1  # one more than there are: whoever finds fewer has found all
        most_left_out = max(map(len, wish.exclude or ()), default=0)
        self._fetch = fetch_width(wish.k + most_left_out, view.n)
        self._floor = -math.inf if wish.min_score is None else wish.min_score - ROUNDING
        self._live: RowArray | None = None

    def run(self) -> list[list[Neighbour]]:
        """Try one way after the other, for those queries that lack hits still."""
        wish = self._wish
        hits: list[list[Neighbour]] = [[] for _ in wish.xq]
        lacking = list(range(len(wish.xq)))
        for attempt in self._attempts():
            candidates = attempt(wish.xq[lacking]) if lacking else None
            if candidates is None:
                continue
            pairs = [self._lines(query, candidates, at) for at, query in enumerate(lacking)]
            find_living([line for pair in pairs for line in pair], self._living)
            still = []
            for at, query in enumerate(lacking):
                indexed, compared = pairs[at]
                hits[query] = _merged(indexed.hits, compared.hits, wish.k)
                if not self._settled(indexed, compared, candidates, at):
                    still.append(query)
            lacking = still
        return [[hit for hit in found if hit.score >= self._floor] for found in hits]

    def _lines(self, query: int, candidates: Candidates, at: int) -> tuple[Line, Line]:
        return (
            self._line(query, candidates.indexed[at], LEAST_LIVE),
            self._line(query, candidates.compared[at], 0),
        )

    def _line(self, query: int, rows: RowArray, least: float) -> Line:
        wish = self._wish
        rows = rows[rows >= 0]
        need = max(wish.k, math.ceil(least * len(rows)))
        best = best_first(self._rows, rows, wish.xq[query], self._living)
        unwanted = () if wish.exclude is None else wish.exclude[query]
        return Line(*best, len(rows), need, unwanted)

    def _settled(self, indexed: Line, compared: Line, candidates: Candidates, at: int) -> bool:
        """Say whether index and comparison, each by itself, have no nearer live row to offer."""
        if candidates.compared[at][-1] >= 0 and not self._enough(compared, 0):
            return False  # not all of them are here
        return not candidates.indexed.shape[1] or self._enough(indexed, LEAST_LIVE)

    def _enough(self, line: Line, least: float) -> bool:
        if len(line.hits) < least * line.offered:
            return False
        # What a wider search adds is farther away than what is here.
        too_far = line.hits and line.hits[-1].score < self._floor
        return bool(too_far) or len(line.hits) >= self._wish.k

    def _attempts(self) -> Iterator[Attempt]:
        """Yield ways to find candidates; the last one misses no live row."""
        if self._wish.under:
            yield from self._attempts_at(self._wish.under)
        elif self._loaded is None:
            yield lambda xq: self._exact(xq)
            if self._fetch < self._view.n:
                yield lambda xq: self._exact(xq, self._live_rows())
        else:
            for fetch in dict.fromkeys(min(self._fetch * by, self._most) for by in WIDENINGS):
                yield self._widened(self._loaded, fetch)
            yield self._selected(self._loaded, self._live_rows)
            yield lambda xq: self._exact(xq, self._live_rows())

    def _attempts_at(self, places: Sequence[bytes]) -> Iterator[Attempt]:
        found = [rows_at(self._conn, self._view.space.id, path) for path in places]
        allowed = found[0] if len(found) == 1 else np.unique(np.concatenate(found))
        if self._loaded is not None:
            yield self._selected(self._loaded, lambda: allowed)
        yield lambda xq: self._exact(xq, allowed)

    def _live_rows(self) -> RowArray:
        if self._live is None:
            self._live = entered_rows(self._conn, self._view.space.id, live=True)
        return self._live

    def _exact(self, xq: FloatArray, allowed: RowArray | None = None) -> Candidates:
        """Compare the queries with every row, or with each that is allowed."""
        compared = search_exact(self._rows.blocks(rows=allowed), xq, self._fetch)[1]
        return Candidates(np.empty((len(xq), 0), np.int64), compared)

    def _widened(self, loaded: "Loaded", fetch: int) -> Attempt:
        """Return the search for the nearest rows, dead ones among them."""
        return lambda xq: Candidates(
            self._indexed(loaded, xq, fetch), self._tail(loaded, xq, fetch)
        )

    def _selected(self, loaded: "Loaded", allowed: Callable[[], RowArray]) -> Attempt:
        """Return the search for allowed rows only; None where exact search does that better."""
        from storage.index import SelectorRefused, all_but, only

        def attempt(xq: FloatArray) -> Candidates | None:
            rows = allowed()
            if len(rows) < max(NARROW_SHARE * self._view.n, NARROW_ROWS):
                return None
            inside = is_in(loaded.rowmap, rows)
            few, others = np.flatnonzero(inside), np.flatnonzero(~inside)
            selector = only(few) if len(few) < len(others) else all_but(others)
            # An index meets allowed rows the more seldom, the fewer they are.
            effort = len(inside) / max(len(few), 1)
            try:
                found = self._indexed(loaded, xq, self._fetch, selector, effort)
            except SelectorRefused:
                return None
            return Candidates(found, self._tail(loaded, xq, self._fetch, rows))

        return attempt

    def _indexed(
        self, loaded: "Loaded", xq: FloatArray, fetch: int, selector: Any = None, effort: float = 1
    ) -> RowArray:
        from storage.index import search_index

        parameters = loaded.generation.parameters
        if effort != 1:
            parameters = {
                name: round(value * min(effort, MOST_EFFORT)) if name in EFFORT else value
                for name, value in parameters.items()
            }
        _, positions = search_index(loaded.index, parameters, xq, fetch, selector)
        return np.where(positions >= 0, loaded.rowmap[positions], -1)

    def _tail(
        self, loaded: "Loaded", xq: FloatArray, fetch: int, allowed: RowArray | None = None
    ) -> RowArray:
        if loaded.generation.row_end == self._view.next_row:
            return np.full((len(xq), 1), -1, np.int64)
        blocks = self._rows.blocks(loaded.generation.row_end, rows=allowed)
        return search_exact(blocks, xq, fetch)[1]


def _merged(some: list[Neighbour], others: list[Neighbour], k: int) -> list[Neighbour]:
    """Return the k nearest of two lists that are in order each."""
    if not others or not some:
        return (some or others)[:k]
    return sorted(some + others, key=lambda hit: (-hit.score, hit.row))[:k]
