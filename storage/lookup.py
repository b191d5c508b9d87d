"""What is near a vector: nearest live images of a space, read in one transaction."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from storage.candidates import Neighbour, Search, Wish
from storage.catalog import Catalog
from storage.errors import IndexFileError
from storage.kinds import FLAT_BELOW
from storage.reading import Rows, Snapshot, again_if_missing, open_store, snapshot_in
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
        self._rows: Rows | None = None
        self._loaded: tuple[str, Loaded | str] = ("", "")
        self._lock = threading.Lock()

    def nearest(
        self,
        xq: npt.ArrayLike,
        k: int,
        *,
        under: bytes | None = None,
        min_score: float | None = None,
        exclude_image: Sequence[int | None] | None = None,
    ) -> Found:
        """Return the k nearest live images for each query.

        Parameters
        ----------
        xq
            Queries, shape ``(nq, d)``, float32, unit length.
        k
            How many images, at least 1.
        under
            Absolute path: only images with a live file there or below, also one that a manifest
            names.
        min_score
            Only images with at least this cosine.
        exclude_image
            For each query an image that is not wanted, or None.

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
        queries = _checked(np.asarray(xq, dtype=np.float32), self.space.dim)
        if k < 1:
            raise ValueError(f"k is {k}, it must be at least 1")
        if exclude_image is None:
            exclude_image = [None] * len(queries)
        if len(exclude_image) != len(queries):
            raise ValueError(f"{len(exclude_image)} images to exclude for {len(queries)} queries")
        wish = Wish(queries, k, under, min_score, exclude_image)
        return again_if_missing(lambda: self._nearest(wish))

    def _nearest(self, wish: Wish) -> Found:
        warnings: list[str] = []
        with self.catalog.read() as conn:
            view = snapshot_in(conn, self.space)
            search = Search(conn, view, self._rows_of(view), self._index_of(view, warnings), wish)
            return Found(search.run(), warnings)

    def _rows_of(self, view: Snapshot) -> Rows:
        with self._lock:
            if self._rows is None or self._rows.parts != view.parts:
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
                    loaded = str(error)
                self._loaded = (view.generation.name, loaded)
        if isinstance(loaded, str):
            warnings.append(
                f"{loaded}; searched without the index, which is slower: publish it anew with "
                "`lookalike check --repair`"
            )
            return None
        return loaded


def _checked(xq: FloatArray, d: int) -> FloatArray:
    if xq.ndim != 2 or xq.shape[1] != d:
        raise ValueError(f"the space has dimension {d}, the queries are of shape {xq.shape}")
    norms, far = off_unit(xq)
    if len(far):
        raise ValueError(f"query {far[0]} has norm {norms[far[0]]:.6g} instead of 1")
    return np.ascontiguousarray(xq)
