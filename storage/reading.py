"""One consistent view of a space, and its vectors by row."""

import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Select, select

from storage.catalog import Catalog
from storage.errors import IndexFileError, PartError, SpaceError
from storage.npy import Array
from storage.spaces import SpaceInfo
from storage.tables import Generation, Part, Space
from storage.vectors import PartInfo, VectorStore

T = TypeVar("T")
RowArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]

BLOCK_ROWS = 65_536
BLOCK_BYTES = 256 << 20
OPEN_PARTS = 256
"""Maps kept open: each holds a file descriptor, and a million images may be 3,000 parts."""


@dataclass(frozen=True, slots=True)
class GenerationInfo:
    """A published index as the catalog knows it: ``n`` rows, all below ``row_end``.

    ``requested``: somebody asked for this ``factory``, and later indexes keep it.
    """

    id: int
    name: str
    row_end: int
    n: int
    factory: str
    requested: bool
    parameters: Mapping[str, Any]
    size_bytes: int
    checksum: str
    rowmap_checksum: str
    created_at: float


def generation_paths(folder: str, name: str) -> tuple[str, str]:
    """Return the paths of a published index and of its rowmap."""
    return os.path.join(folder, f"{name}.faiss"), os.path.join(folder, f"{name}.rowmap.npy")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A space as one transaction saw it: its index if any, its parts in the order of rows."""

    space: SpaceInfo
    generation: GenerationInfo | None
    parts: tuple[PartInfo, ...]
    next_row: int

    @property
    def n(self) -> int:
        """Vectors in the parts, dead ones included."""
        return sum(part.n for part in self.parts)


def snapshot(catalog: Catalog, space: SpaceInfo) -> Snapshot:
    """Return one consistent view of a space; `snapshot_in` a transaction of its own."""
    with catalog.read() as conn:
        return snapshot_in(conn, space)


def snapshot_in(conn: Connection, space: SpaceInfo) -> Snapshot:
    """Return the view of a space that an open transaction has.

    Raises
    ------
    SpaceError
        The space was dropped.
    """
    next_row = conn.execute(select(Space.next_row).where(Space.id == space.id)).scalar()
    if next_row is None:
        raise SpaceError(f"the space {space.name} is gone; `lookalike spaces` lists what there is")
    parts = conn.execute(
        _columns(Part, PartInfo)
        .where(Part.space_id == space.id, Part.state == "live")
        .order_by(Part.row_start)
    )
    newest = conn.execute(
        _columns(Generation, GenerationInfo)
        .where(Generation.space_id == space.id, Generation.state == "live")
        .order_by(Generation.id.desc())
        .limit(1)
    ).first()
    return Snapshot(
        space=space,
        generation=GenerationInfo(*newest) if newest else None,
        parts=tuple(PartInfo(*row) for row in parts),
        next_row=next_row,
    )


def _columns(table: Any, info: type) -> Select[Any]:
    return select(*(getattr(table, name) for name in info.__dataclass_fields__))  # type: ignore[attr-defined]


def again_if_missing(attempt: Callable[[], T]) -> T:
    """Return what ``attempt`` returns; once more where a file that it knew of was gone.

    Compaction keeps replaced files for a day, so a second attempt, with a snapshot of its own,
    meets a missing file only where the store is damaged.
    """
    try:
        return attempt()
    except (PartError, IndexFileError) as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
    return attempt()


def open_store(catalog: Catalog, space: SpaceInfo) -> VectorStore:
    """Return the parts of a space in the catalog's home."""
    return VectorStore(catalog.home.space_dir(space.fingerprint), space.dim, space.dtype)


class Rows:
    """The vectors of some parts, by row.  Threads may share it.

    Parameters
    ----------
    store
        Where the files are.
    parts
        In the order of rows, without overlap.

    Raises
    ------
    PartError
        Here and in every method: a part is missing or not what the catalog says.
    """

    def __init__(self, store: VectorStore, parts: Sequence[PartInfo]) -> None:
        self.store = store
        self.parts = tuple(parts)
        self.d = store.dim
        self._starts = np.array([part.row_start for part in self.parts], dtype=np.int64)
        self._open: OrderedDict[int, tuple[Array, RowArray]] = OrderedDict()
        self._lock = threading.Lock()

    def gather(self, rows: npt.ArrayLike) -> FloatArray:
        """Return the vectors of ``rows``, shape ``(n,)``, int64, in any order.

        Returns
        -------
        array
            Shape ``(n, d)``, float32, in the order of ``rows``.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        out = np.empty((len(wanted), self.d), np.float32)
        order = np.argsort(wanted, kind="stable")
        which = np.searchsorted(self._starts, wanted[order], side="right") - 1
        for number, at in _runs(which):
            if number < 0:
                raise _unknown(int(wanted[order[at.start]]))
            x, places = self._at(number, wanted[order[at]])
            out[order[at]] = x[places]
        return out

    def blocks(
        self, row_start: int = 0, row_end: int | None = None, rows: RowArray | None = None
    ) -> Iterator[tuple[RowArray, FloatArray]]:
        """Yield vectors in the order of rows, in blocks of bounded size.

        Parameters
        ----------
        row_start, row_end
            Only rows in this range, the end excluded; None is no end.
        rows
            Only these rows, shape ``(n,)``, int64, ascending.  Each must exist.

        Yields
        ------
        rows, vectors
            Shapes ``(m,)`` int64 and ``(m, d)`` float32; m at most 65,536, and 256 MiB.  Where a
            block is a stretch of a float32 part it is the map itself, without a copy.
        """
        most = max(1, min(BLOCK_ROWS, BLOCK_BYTES // (4 * self.d)))
        end = row_end if row_end is not None else np.iinfo(np.int64).max
        if rows is not None:
            rows = rows[(rows >= row_start) & (rows < end)]
            which = np.searchsorted(self._starts, rows, side="right") - 1
            for number, at in _runs(which):
                for start in range(at.start, at.stop, most):
                    some = rows[start : min(start + most, at.stop)]
                    if number < 0:
                        raise _unknown(int(some[0]))
                    yield some, _floats(*self._at(number, some))
            return
        for number, part in enumerate(self.parts):
            if part.row_end <= row_start or part.row_start >= end:
                continue
            x, own = self._part(number)
            first, last = np.searchsorted(own, [row_start, end])
            for start in range(int(first), int(last), most):
                stop = min(start + most, int(last))
                yield own[start:stop], np.asarray(x[start:stop], dtype=np.float32)

    def _at(self, number: int, rows: RowArray) -> tuple[Array, RowArray]:
        """Return a part's map and the places of ``rows``, ascending, inside it."""
        x, own = self._part(number)
        places = np.searchsorted(own, rows)
        missing = np.flatnonzero(own[np.minimum(places, len(own) - 1)] != rows)
        if len(missing):
            raise _unknown(int(rows[missing[0]]))
        return x, places

    def _part(self, number: int) -> tuple[Array, RowArray]:
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number]
        part = self.parts[number]
        opened = self.store.open(part), self.store.rows(part)
        with self._lock:
            self._open[number] = opened
            if len(self._open) > OPEN_PARTS:
                self._open.popitem(last=False)
        return opened


def _runs(values: npt.NDArray[np.intp]) -> Iterator[tuple[int, slice]]:
    """Yield each stretch of equal values as (value, slice)."""
    edges = np.flatnonzero(np.diff(values)) + 1
    bounds = [0, *edges.tolist(), len(values)] if len(values) else [0]
    for start, stop in itertools.pairwise(bounds):
        yield int(values[start]), slice(start, stop)


def _floats(x: Array, places: RowArray) -> FloatArray:
    if places[-1] - places[0] == len(places) - 1:  # one stretch: no copy
        return np.asarray(x[places[0] : places[-1] + 1], dtype=np.float32)
    return np.asarray(x[places], dtype=np.float32)


def _unknown(row: int) -> PartError:
    return PartError(f"no part holds row {row}; `lookalike check --repair` sorts it out")
