"""The collection as a map: images that look alike lie near each other, as far as a plane can show.

The plane is that of the first two principal components of the vectors (``search.projection``),
found from a seeded sample.  Each vector is read once, in blocks; of a large space a seeded sample
is drawn, so neither memory nor the browser has to hold more than `MOST_POINTS` points.
"""

import hashlib
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import orjson

from search.projection import Plane, principal_plane
from storage.dead import live_rows
from storage.reading import Rows, Snapshot, Watched, again_if_missing, open_store
from storage.vectors import VectorStore

if TYPE_CHECKING:
    from search.engine import Searcher

FloatArray = npt.NDArray[np.float32]
RowArray = npt.NDArray[np.int64]

MOST_POINTS = 100_000
"""Images on a map; of more a seeded sample is drawn."""
SAMPLE_BYTES = 64 << 20
"""Vectors that the plane is found from."""
MOST_SAMPLE = 10_000
EXTENT = 99_999
"""The longer side of a map: five digits, and no two points closer than a screen can show."""


@dataclass(frozen=True, eq=False)
class Map:
    """Where the images of a space lie, in an order that says nothing: the first are a sample.

    Parameters
    ----------
    space
        The space's name.
    generation
        Name of the published index whose images are drawn; None where there is none, and then all
        are.
    vectors
        In the space at that time, dead ones included.
    images
        Image ids, shape ``(n,)``, int64.
    xy
        Their places, shape ``(n, 2)``, int64, 0 to `EXTENT`, one unit the same length both ways.
    shares
        What share of all variance each direction shows, 0 to 1.
    json
        All of this for a browser.
    """

    space: str
    generation: str | None
    vectors: int
    images: RowArray
    xy: RowArray
    shares: tuple[float, float]
    json: bytes = field(repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """Return the width and the height that hold all points."""
        if not len(self.xy):
            return 0, 0
        width, height = self.xy.max(axis=0).tolist()
        return width, height

    @property
    def is_sample(self) -> bool:
        """Whether the space has more vectors than a map shows."""
        return self.vectors > MOST_POINTS

    @property
    def tag(self) -> str:
        """Return what names these bytes."""
        return hashlib.sha256(self.json).hexdigest()[:32]


class _Kept:
    """The last map of a searcher."""

    def __init__(self, watched: Watched) -> None:
        self.watched = watched
        self.lock = threading.Lock()
        self.stamp: tuple[Any, ...] = ()
        self.map: Map | None = None


_KEPT: "WeakKeyDictionary[Searcher, _Kept]" = WeakKeyDictionary()
_KEEPING = threading.Lock()


def map_of(searcher: "Searcher") -> Map:
    """Return the map of a searcher's space, drawn anew only where another index is published.

    Threads may ask at once: one draws, the others wait for it.

    Raises
    ------
    PartError
        A part is missing or not what the catalog says.
    SpaceError
        The space was dropped.
    """
    with _KEEPING:
        kept = _KEPT.setdefault(searcher, _Kept(Watched(searcher.space)))
    with kept.lock:
        return again_if_missing(lambda: _current(searcher, kept))


def _current(searcher: "Searcher", kept: _Kept) -> Map:
    with searcher.catalog.read() as conn:
        view = kept.watched.snapshot_in(conn)
        generation = view.generation
        stamp = (view.next_row,) if generation is None else (generation.name,)
        if kept.map is not None and kept.stamp == stamp:
            return kept.map
        store = open_store(searcher.catalog, searcher.space)
        living = live_rows(conn, view.space.id, some_rows(store, view, MOST_POINTS).tolist())
    kept.map, kept.stamp = _drawn(view, Rows(store, view.parts), living), stamp
    return kept.map


def some_rows(store: VectorStore, view: Snapshot, most: int, seed: int = 0) -> RowArray:
    """Return the rows of the published index, or without one all rows; of many a seeded sample.

    Returns
    -------
    array
        Shape ``(n,)``, int64, ascending, n at most ``most``.
    """
    end = view.next_row if view.generation is None else view.generation.row_end
    parts = [part for part in view.parts if part.row_start < end]
    n = sum(part.n for part in parts)
    picks = np.arange(min(n, most))
    if n > most:
        picks = np.sort(np.random.default_rng(seed).choice(n, most, replace=False, shuffle=False))
    rows, first = [np.empty(0, np.int64)], 0
    for part in parts:
        start, stop = np.searchsorted(picks, [first, first + part.n])
        if start < stop:
            rows.append(store.rows(part)[picks[start:stop] - first])
        first += part.n
    found = np.concatenate(rows)
    return found[found < end]


def _drawn(view: Snapshot, vectors: Rows, living: dict[int, int]) -> Map:
    """Return the map of some rows, with the image of each."""
    rows = np.array(sorted(living), np.int64)
    images = np.array([living[row] for row in rows.tolist()], np.int64)
    plane = _plane(vectors, rows)
    xy = np.empty((len(rows), 2), np.float32)
    at = 0
    for some, x in vectors.blocks(rows=rows):
        xy[at : at + len(some)] = plane.project(x)
        at += len(some)
    places, sound = _fitted(xy)
    order = np.random.default_rng(0).permutation(len(places))
    images, places = images[sound][order], places[order]
    name = None if view.generation is None else view.generation.name
    told = {
        "space": view.space.name,
        "generation": name,
        "vectors": view.n,
        "shares": list(plane.shares),
        "images": images,
        "x": np.ascontiguousarray(places[:, 0]),
        "y": np.ascontiguousarray(places[:, 1]),
    }
    return Map(
        space=view.space.name,
        generation=name,
        vectors=view.n,
        images=images,
        xy=places,
        shares=plane.shares,
        json=orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY),
    )


def _plane(vectors: Rows, rows: RowArray) -> Plane:
    """Return the plane that a seeded sample of the rows lies along."""
    most = max(2, min(MOST_SAMPLE, SAMPLE_BYTES // (4 * vectors.d)))
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
    x = vectors.gather(rows)
    x = x[np.isfinite(x).all(axis=1)]
    return principal_plane(x if len(x) else np.zeros((1, vectors.d), np.float32))


def _fitted(xy: FloatArray) -> tuple[RowArray, npt.NDArray[np.bool_]]:
    """Return places in whole numbers from 0 on, and which of the points have one."""
    sound = np.asarray(np.isfinite(xy).all(axis=1))
    xy = xy[sound]
    if not len(xy):
        return np.empty((0, 2), np.int64), sound
    low = xy.min(axis=0)
    longest = float((xy.max(axis=0) - low).max())
    scale = EXTENT / longest if longest > 0 else 0.0
    return np.rint((xy - low).astype(np.float64) * scale).astype(np.int64), sound
