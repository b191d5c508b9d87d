"""One search: candidates from index and tail, rescored and filtered, widened where they lack.

The index serves rows below its ``row_end``, the tail above is compared one by one.  Candidates are
rescored from the parts, so that scores are true cosines whatever the index approximates; rows whose
image has no live file are left out, and the search widens until k live images are found or none is
left.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from storage.dead import entered_rows, live_rows, rows_at
from storage.errors import PartError
from storage.exact import is_in, search_exact
from storage.reading import Rows, Snapshot
from storage.vectors import off_unit

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
RESCORED = 8192
"""Vectors in memory at once while candidates are rescored."""
EFFORT = ("nprobe", "efSearch")
MOST_EFFORT = 16


@dataclass(frozen=True, slots=True)
class Candidates:
    """Rows that may be near: from the index, and by comparison of the other vectors with all.

    Shapes ``(nq, c)``, int64, best first, -1 where there are no more; the widths may differ.
    """

    indexed: RowArray
    compared: RowArray


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One image near a query; the score is the cosine."""

    row: int
    image_id: int
    score: float


@dataclass(frozen=True, slots=True)
class Wish:
    """What the caller asked for."""

    xq: FloatArray
    k: int
    under: bytes | None
    min_score: float | None
    exclude_image: Sequence[int | None]


def fetch_width(k: int, n: int) -> int:
    """Return how many of n rows to fetch for the k nearest, at first."""
    return min(max(4 * k, FETCH), n + 1)


class Search:
    """One search inside one transaction."""

    def __init__(
        self, conn: Connection, view: Snapshot, rows: Rows, loaded: "Loaded | None", wish: Wish
    ) -> None:
        self._conn = conn
        self._view = view
        self._rows = rows
        self._loaded = loaded
        self._wish = wish
        self._most = view.n + 1  # one more than there are: whoever finds fewer has found all
        self._fetch = fetch_width(wish.k, view.n)
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
            both = np.concatenate([candidates.indexed, candidates.compared], axis=1)
            live = live_rows(self._conn, self._view.space.id, np.unique(both[both >= 0]))
            still = []
            for at, query in enumerate(lacking):
                hits[query] = self._rescored(query, both[at], live)
                if not self._settled(hits[query], candidates, at):
                    still.append(query)
            lacking = still
        floor = -np.inf if wish.min_score is None else wish.min_score
        return [[hit for hit in found[: wish.k] if hit.score >= floor] for found in hits]

    def _settled(self, found: list[Neighbour], candidates: Candidates, at: int) -> bool:
        """Say whether index and comparison, each by itself, have no nearer live row to offer."""
        compared, indexed = candidates.compared[at], candidates.indexed[at]
        if compared[-1] >= 0 and not self._enough(found, compared):
            return False  # not all of them are here
        return not len(indexed) or self._enough(found, indexed, LEAST_LIVE)

    def _enough(self, found: list[Neighbour], rows: RowArray, least: float = 0) -> bool:
        wish, own = self._wish, set(rows[rows >= 0].tolist())
        hits = [hit for hit in found if hit.row in own]
        if len(hits) < least * len(own):
            return False
        # What a wider search adds is farther away than what is here.
        too_far = wish.min_score is not None and hits and hits[-1].score < wish.min_score
        return bool(too_far) or len(hits) >= wish.k

    def _rescored(self, query: int, rows: RowArray, live: dict[int, int]) -> list[Neighbour]:
        """Return the live candidates by true cosine, nearest first."""
        unwanted = self._wish.exclude_image[query]
        own = sorted({row for row in rows.tolist() if live.get(row, unwanted) != unwanted})
        q = self._wish.xq[query].astype(np.float64)
        scores = np.empty(len(own), np.float32)
        for start in range(0, len(own), RESCORED):
            some = slice(start, start + RESCORED)
            scores[some] = _cosines(own[some], self._rows.gather(own[some]), q)
        order = np.lexsort((own, -scores))
        return [Neighbour(own[at], live[own[at]], float(scores[at])) for at in order]

    def _attempts(self) -> Iterator[Attempt]:
        """Yield ways to find candidates; the last one misses no live row."""
        if self._wish.under is not None:
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

    def _attempts_at(self, path: bytes) -> Iterator[Attempt]:
        allowed = rows_at(self._conn, self._view.space.id, path)
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

        parameters = {
            name: round(value * min(effort, MOST_EFFORT)) if name in EFFORT else value
            for name, value in loaded.generation.parameters.items()
        }
        _, positions = search_index(loaded.index, parameters, xq, fetch, selector)
        return np.where(positions >= 0, loaded.rowmap[positions], -1)

    def _tail(
        self, loaded: "Loaded", xq: FloatArray, fetch: int, allowed: RowArray | None = None
    ) -> RowArray:
        blocks = self._rows.blocks(loaded.generation.row_end, rows=allowed)
        return search_exact(blocks, xq, fetch)[1]


def _cosines(rows: Sequence[int], x: FloatArray, q: npt.NDArray[np.float64]) -> FloatArray:
    """Return the cosines of ``x``, shape ``(n, d)``, with ``q``; float16 is not of unit length."""
    exact = x.astype(np.float64)
    lengths, far = off_unit(exact)
    if len(far):  # one flipped bit can make an image everybody's nearest
        raise PartError(
            f"the vector of row {rows[far[0]]} is damaged, its length is {lengths[far[0]]:.6g}; "
            "`lookalike check --deep --repair` sorts it out"
        )
    cosines = np.einsum("nd,d->n", exact, q) / (lengths * np.sqrt(q @ q))
    return np.asarray(cosines, np.float32).clip(-1, 1)
