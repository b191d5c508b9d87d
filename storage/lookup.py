"""What is near a vector: nearest live images of a space, read in one transaction."""

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from storage.candidates import Search, Wish
from storage.catalog import Catalog
from storage.dead import live_rows
from storage.errors import IndexFileError
from storage.kinds import FLAT_BELOW
from storage.npy import MEND
from storage.ranking import Living, Neighbour
from storage.reading import Rows, Snapshot, Watched, again_if_missing, open_store
from storage.spaces import SpaceInfo
from storage.vectors import off_unit

__all__ = ["Found", "Lookup", "Neighbour"]

if TYPE_CHECKING:
    from storage.generation import Loaded

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Found:
    """Neighbours for each query, nearest first, and what the person should know."""

    neighbours: list[list[Neighbour]]
    warnings: list[str] = field(default_factory=list)


class Lookup:
    """Searches one space, and keeps its index and parts open between searches.

    Threads may share it.  What other processes commit or publish is seen by the next search.

    Parameters
    ----------
    catalog
        Open, for reading at least.
    space
        The space.
    exact_below
        With fewer vectors than this the index is not used: comparing all is as fast.
    """

    def __init__(
        self, catalog: Catalog, space: SpaceInfo, *, exact_below: int = FLAT_BELOW
    ) -> None:
        self.catalog = catalog
        self.space = space
        self.exact_below = exact_below
        self._watched = Watched(space)
        self._rows: Rows | None = None
        self._loaded: tuple[str, Loaded | str] = ("", "")
        self._lock = threading.Lock()

    def nearest(
        self,
        xq: npt.ArrayLike,
        k: int,
        *,
        under: Sequence[bytes] = (),
        min_score: float | None = None,
        exclude: Sequence[Collection[int]] | None = None,
    ) -> Found:
        """Return the k nearest live images for each query.

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
            Only images with at least this cosine.
        exclude
            For each query the images that are left out, if any are.

        Returns
        -------
        Found
            For each query up to k neighbours, one an image, best first and equal scores in the
            order of rows; fewer only where fewer live images are there.

        Raises
        ------
        ValueError
            Shape or length of the queries, or k, is wrong.
        PartError
            A part is missing or not what the catalog says.
        SpaceError
            The space was dropped.
        """
        queries = np.ascontiguousarray(xq, dtype=np.float32)
        wish = Wish(queries, k, tuple(under), min_score, exclude)

        def attempt() -> Found:
            with self.catalog.read() as conn:
                return self.nearest_in(conn, wish)

        return again_if_missing(attempt)

    def nearest_in(self, conn: Connection, wish: Wish, living: Living | None = None) -> Found:
        """Return what `nearest` does, as an open transaction sees it.

        The caller tries once more, with another transaction, where a file was gone
        (``storage.reading.again_if_missing``).

        Parameters
        ----------
        conn
            The transaction.
        wish
            What is asked.
        living
            Says which rows live, by the same transaction; without it the catalog does.
        """
        _check(wish, self.space.dim)
        if living is None:
            living = partial(live_rows, conn, self.space.id)
        warnings: list[str] = []
        view = self._watched.snapshot_in(conn)
        rows, index = self._rows_of(view), self._index_of(view, warnings)
        return Found(Search(conn, view, rows, index, wish, living).run(), warnings)

    def vectors_in(self, conn: Connection, rows: npt.ArrayLike) -> FloatArray:
        """Return the stored vectors of some rows, as an open transaction sees them.

        Returns
        -------
        array
            Shape ``(n, d)``, float32, in the order of ``rows``.

        Raises
        ------
        PartError
            A part is missing or not what the catalog says, or no part holds a row.
        SpaceError
            The space was dropped.
        """
        return self._rows_of(self._watched.snapshot_in(conn)).gather(rows)

    def _rows_of(self, view: Snapshot) -> Rows:
        with self._lock:
            if self._rows is None or self._rows.parts is not view.parts:
                self._rows = Rows(open_store(self.catalog, self.space), view.parts)
            return self._rows

    def _index_of(self, view: Snapshot, warnings: list[str]) -> "Loaded | None":
        """Return the newest index; None where exact search is as fast or the file is broken."""
        if view.generation is None or view.n < self.exact_below:
            return None
        from storage.generation import load_generation

        with self._lock:
            name, loaded = self._loaded
            if name != view.generation.name:
                folder = self.catalog.home.index_dir(self.space.fingerprint)
                try:
                    loaded = load_generation(folder, view.generation, self.space.dim)
                except IndexFileError as error:
                    loaded = str(error).removesuffix(f"; {MEND}")
                    if isinstance(error.__cause__, OSError):  # it may be there the next time
                        return self._without(loaded, warnings)
                self._loaded = (view.generation.name, loaded)
        return self._without(loaded, warnings) if isinstance(loaded, str) else loaded

    @staticmethod
    def _without(why: str, warnings: list[str]) -> None:
        warnings.append(
            f"{why}; searched without the index, which is slower: publish it anew with "
            "`lookalike check --repair`"
        )


def _check(wish: Wish, d: int) -> None:
    xq = wish.xq
    if xq.ndim != 2 or xq.shape[1] != d:
        raise ValueError(f"the space has dimension {d}, the queries are of shape {xq.shape}")
    norms, far = off_unit(xq.astype(np.float64))
    if len(far):
        raise ValueError(f"query {far[0]} has norm {norms[far[0]]:.6g} instead of 1")
    if wish.k < 1:
        raise ValueError(f"k is {wish.k}, it must be at least 1")
    if wish.exclude is not None and len(wish.exclude) != len(xq):
        raise ValueError(f"{len(wish.exclude)} sets of images to exclude for {len(xq)} queries")
