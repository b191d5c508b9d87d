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

from storage.dead import entered_rows, live_rows, rows_under
from storage.exact import is_in, search_exact
from storage.reading import Rows, Snapshot

if TYPE_CHECKING:
    from storage.generation import Loaded

FloatArray = npt.NDArray[np.float32]
RowArray = npt.NDArray[np.int64]
Attempt = Callable[[FloatArray], RowArray | None]
"""Queries ``(nq, d)`` -> candidate rows ``(nq, c)``, -1 where none; None: not possible here."""

FETCH = 100
WIDENINGS = (1, 4, 16)
NARROW_ROWS = 50_000
NARROW_SHARE = 0.05
"""What leaves less is searched exactly: a graph's recall falls to a third there."""
EFFORT = ("nprobe", "efSearch")
MOST_EFFORT = 16


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
    under: tuple[int, bytes] | None
    min_score: float | None
    exclude_image: Sequence[int | None]


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
        self._fetch = max(4 * wish.k, FETCH)
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
            live = live_rows(
                self._conn, self._view.space.id, np.unique(candidates[candidates >= 0])
            )
            for query, rows in zip(lacking, candidates, strict=True):
                hits[query] = self._rescored(query, rows, live)
            lacking = [query for query in lacking if not self._enough(hits[query])]
        floor = -np.inf if wish.min_score is None else wish.min_score
        return [[hit for hit in found[: wish.k] if hit.score >= floor] for found in hits]

    def _enough(self, found: list[Neighbour]) -> bool:
        wish = self._wish
        # What a wider search adds is farther away than what is here.
        too_far = wish.min_score is not None and found and found[-1].score < wish.min_score
        return bool(too_far) or len(found) >= wish.k

    def _rescored(self, query: int, rows: RowArray, live: dict[int, int]) -> list[Neighbour]:
        """Return the live candidates by true cosine, nearest first."""
        unwanted = self._wish.exclude_image[query]
        own = sorted({row for row in rows.tolist() if live.get(row, unwanted) != unwanted})
        x = self._rows.gather(own).astype(np.float64)
        q = self._wish.xq[query].astype(np.float64)
        # float16 parts are not quite of unit length.
        lengths = np.sqrt(np.einsum("nd,nd->n", x, x)) * np.sqrt(q @ q)
        scores = (np.einsum("nd,d->n", x, q) / lengths).astype(np.float32).clip(-1, 1)
        order = np.lexsort((own, -scores))
        return [Neighbour(own[at], live[own[at]], float(scores[at])) for at in order]

    def _attempts(self) -> Iterator[Attempt]:
        """Yield ways to find candidates; the last one misses no live row."""
        if self._wish.under is not None:
            yield from self._attempts_under(*self._wish.under)
        elif self._loaded is None:
            yield lambda xq: self._exact(xq)
            if self._fetch < self._view.n:
                yield lambda xq: self._exact(xq, self._live_rows())
        else:
            for widening in WIDENINGS:
                yield self._widened(self._loaded, self._fetch * widening)
            yield self._selected(self._loaded, self._live_rows)
            yield lambda xq: self._exact(xq, self._live_rows())

    def _attempts_under(self, root_id: int, prefix: bytes) -> Iterator[Attempt]:
        allowed = rows_under(self._conn, self._view.space.id, root_id, prefix)
        if self._loaded is not None:
            yield self._selected(self._loaded, lambda: allowed)
        yield lambda xq: self._exact(xq, allowed)

    def _live_rows(self) -> RowArray:
        if self._live is None:
            self._live = entered_rows(self._conn, self._view.space.id, live=True)
        return self._live

    def _exact(self, xq: FloatArray, allowed: RowArray | None = None) -> RowArray:
        """Compare the queries with every row, or with each that is allowed."""
        return search_exact(self._rows.blocks(rows=allowed), xq, self._fetch)[1]

    def _widened(self, loaded: "Loaded", fetch: int) -> Attempt:
        """Return the search for the nearest rows, dead ones among them."""
        return lambda xq: np.concatenate(
            [self._indexed(loaded, xq, fetch), self._tail(loaded, xq, fetch)], axis=1
        )

    def _selected(self, loaded: "Loaded", allowed: Callable[[], RowArray]) -> Attempt:
        """Return the search for allowed rows only; None where exact search does that better."""
        from storage.index import SelectorRefused, all_but, only

        def attempt(xq: FloatArray) -> RowArray | None:
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
            return np.concatenate([found, self._tail(loaded, xq, self._fetch, rows)], axis=1)

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
