"""Pairs of images that are among the nearest of each other, over a whole space at once.

Two images are *mutual neighbours* where their cosine is at least the threshold, and each is among
the ``NEAREST`` images that are most like the other one; of equal scores all count.  Who is asked is
the index, a batch of vectors at a time.  A space that is too small to be searched by its index is
compared exactly, a batch with all, and so are vectors that no index has yet.  In memory are the
rows, one score for each of them and the pairs that were found; never all against all.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from search.nearby import Compared, FloatArray, Indexed, Near, RowArray, unit
from storage.candidates import ROUNDING
from storage.catalog import Catalog
from storage.dead import entered_rows, rows_at
from storage.errors import IndexFileError
from storage.kinds import FLAT_BELOW
from storage.npy import MEND
from storage.reading import Rows, again_if_missing, open_store, snapshot_in
from storage.spaces import SpaceInfo

if TYPE_CHECKING:
    from storage.generation import Loaded

NEAREST = 16
"""More copies than this find each other by way of one another."""
BATCH = 256
"""Vectors that an index is asked about at once; an interrupt waits for a batch."""
BATCH_COMPARED = 1024
"""Vectors that are compared with all at once."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Mutual neighbours, each pair once: rows, int64, shape ``(n,)``, and cosines, float32."""

    a: RowArray
    b: RowArray
    scores: FloatArray


class Join:
    """A space, or the part of it below a path, to be compared with itself.

    Parameters
    ----------
    catalog, space
        Open for reading at least, and the space.
    under
        Absolute path: only images with a live file at or below it.
    nearest
        Each of a pair is among so many nearest of the other.
    exact_below
        Fewer images than this are compared without an index.

    Attributes
    ----------
    rows
        Rows of the live images, shape ``(n,)``, int64, ascending.
    warnings
        What a person should know.

    Raises
    ------
    PartError
        Here and later: a part is missing or damaged.
    SpaceError
        The space was dropped.
    """

    def __init__(
        self,
        catalog: Catalog,
        space: SpaceInfo,
        under: bytes | None = None,
        *,
        nearest: int = NEAREST,
        exact_below: int = FLAT_BELOW,
    ) -> None:
        self.catalog = catalog
        self.space = space
        self._nearest = nearest
        self.warnings: list[str] = []
        again_if_missing(lambda: self._open(under, exact_below))

    def _open(self, under: bytes | None, exact_below: int) -> None:
        with self.catalog.read() as conn:
            view = snapshot_in(conn, self.space)
            self.rows = (
                entered_rows(conn, self.space.id, live=True)
                if under is None
                else rows_at(conn, self.space.id, under)
            )
        self._vectors = Rows(open_store(self.catalog, self.space), view.parts)
        self._ways: list[Compared | Indexed] = [Compared(self._vectors, self.rows, self._nearest)]
        if view.generation is None or len(self.rows) < exact_below:
            return
        from storage.generation import load_generation

        folder = self.catalog.home.index_dir(self.space.fingerprint)
        try:
            loaded = load_generation(folder, view.generation, self.space.dim)
        except IndexFileError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise
            self._warn(str(error).removesuffix(f"; {MEND}"))
            return
        self._ask(loaded, view.next_row)

    def _ask(self, loaded: "Loaded", next_row: int) -> None:
        """Ask this index from now on, and compare what it has not."""
        from storage.index import SelectorRefused

        try:
            self._ways = [Indexed(loaded, self._vectors, self.rows, self._nearest)]
        except SelectorRefused:
            return
        row_end = loaded.generation.row_end
        if row_end < next_row:
            self._ways.append(Compared(self._vectors, self.rows, self._nearest, row_end))

    def _warn(self, why: str) -> None:
        self.warnings.append(
            f"{why}; compared without the index, which is slower: publish it anew with "
            "`lookalike check --repair`"
        )

    @property
    def is_exact(self) -> bool:
        """Whether all are compared with all, so that no pair is missed."""
        return len(self._ways) == 1 and isinstance(self._ways[0], Compared)

    def pairs(self, threshold: float, progress: Callable[[int, int], None] | None = None) -> Pairs:
        """Return all mutual neighbours.

        Parameters
        ----------
        threshold
            Least cosine.
        progress
            Told how many images were asked about, and of how many.
        """
        n = len(self.rows)
        last = np.full(n, -np.inf, np.float32)  # the score of each one's last neighbour that counts
        found: list[Near] = []
        done = 0
        for rows, x in self._batches():
            near = Near.joined([way.near(rows, x, threshold) for way in self._ways])
            near = near.nearest(self._nearest)
            counts = np.bincount(near.query, minlength=len(rows))
            full = np.flatnonzero(counts == self._nearest)
            last[done + full] = near.score[np.cumsum(counts)[full] - 1]
            at = np.searchsorted(self.rows, near.row)
            found.append(Near(near.query + done, at, near.score))
            done += len(rows)
            if progress is not None:
                progress(done, n)
        return self._mutual(Near.joined(found), last)

    def scores(self, row: int, rows: RowArray) -> FloatArray:
        """Return the cosines of a row with others, shape ``(n,)``, float32."""
        x = self._vectors.gather(np.append(rows, row))
        x = unit(np.append(rows, row), x)
        cosines: FloatArray = np.minimum(x[:-1] @ x[-1], 1)
        return cosines

    def _batches(self) -> Iterator[tuple[RowArray, FloatArray]]:
        """Yield rows and their vectors, of unit length, in order."""
        batch = BATCH_COMPARED if self.is_exact else BATCH
        for rows, x in self._vectors.blocks(rows=self.rows):
            for start in range(0, len(rows), batch):
                some = slice(start, start + batch)
                yield rows[some], unit(rows[some], x[some])

    def _mutual(self, near: Near, last: FloatArray) -> Pairs:
        """Keep a pair whose score reaches the last one of both, though one alone had found it.

        A cosine is the same from both sides: so the scores tell who is among the nearest of whom,
        also where equal ones, or an index, cut the list of one of them short.
        """
        mutual = near.score >= np.maximum(last[near.query], last[near.row]) - ROUNDING
        a, b, scores = near.query[mutual], near.row[mutual], near.score[mutual]
        low, high = np.minimum(a, b), np.maximum(a, b)
        _, once = np.unique(low * len(last) + high, return_index=True)
        return Pairs(self.rows[low[once]], self.rows[high[once]], scores[once])
