"""The vectors of a space by row, from the parts that hold them."""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from storage.errors import PartError
from storage.npy import Array
from storage.vectors import PartInfo, VectorStore

RowArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]

BLOCK_ROWS = 65_536
BLOCK_BYTES = 256 << 20
OPEN_PARTS = 256
"""Maps kept open: each holds a file descriptor, and a million images may be 3,000 parts."""
_SCATTERED = 8
"""With fewer rows wanted of each part than this, they are copied one by one."""


class _Opened(NamedTuple):
    """A part's vectors, the map itself, and the rows that they are."""

    x: Array
    rows: RowArray


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
        self._counts = np.array([part.n for part in self.parts], dtype=np.int64)
        self._sparse = np.array([part.rows_checksum is not None for part in self.parts], np.bool_)
        self._open: OrderedDict[int, _Opened] = OrderedDict()
        self._lock = threading.Lock()

    def gather(self, rows: npt.ArrayLike) -> FloatArray:
        """Return the vectors of ``rows``, shape ``(n,)``, int64, in any order.

        Returns
        -------
        array
            Shape ``(n, d)``, float32, in the order of ``rows``.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        out, there = self.gather_some(wanted)
        if not there.all():
            raise unknown_row(int(wanted[~there][0]))
        return out

    def gather_some(self, rows: RowArray) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """Return the vectors of those ``rows`` that a part holds, and which these are.

        Returns
        -------
        vectors, there
            Shape ``(n, d)``, float32, zeros where no part holds the row; a mask, shape ``(n,)``.
        """
        out = np.empty((len(rows), self.d), np.float32)
        which, places = self._places(rows)
        there = places >= 0
        at = np.arange(len(rows))
        if not there.all():
            out[~there] = 0
            at = at[there]
        many = len(self.parts) > OPEN_PARTS and len(np.unique(which[at])) > OPEN_PARTS
        if many or len(at) > _SCATTERED * len(self.parts):
            at = at[np.argsort(rows[at], kind="stable")]
            for number, some in _runs(which[at]):
                out[at[some]] = self._part(number).x[places[at[some]]]
            return out, there
        # Few of each part: a copy each costs less than an index into each.
        numbers = which[at].tolist()
        opened = {number: self._part(number).x for number in set(numbers)}
        for i, number, place in zip(at.tolist(), numbers, places[at].tolist(), strict=True):
            out[i] = opened[number][place]
        return out, there

    def _places(self, rows: RowArray) -> tuple[npt.NDArray[np.intp], RowArray]:
        """Return the parts' numbers and the places inside, -1 where a part has no such row."""
        if not len(self.parts):
            nowhere = np.full(len(rows), -1, np.int64)
            return nowhere, nowhere
        which = np.searchsorted(self._starts, rows, side="right") - 1
        places = rows - self._starts[which]
        sparse = self._sparse[which]
        places[(which < 0) | ((places >= self._counts[which]) & ~sparse)] = -1
        if sparse.any():
            for number in np.unique(which[sparse & (which >= 0)]).tolist():
                own = self._part(number).rows
                mine = which == number
                found = np.minimum(np.searchsorted(own, rows[mine]), len(own) - 1)
                places[mine] = np.where(own[found] == rows[mine], found, -1)
        return which, places

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
                        raise unknown_row(int(some[0]))
                    yield some, _floats(*self._at(number, some))
            return
        first_part = max(0, int(np.searchsorted(self._starts, row_start, side="right")) - 1)
        for number, part in enumerate(self.parts[first_part:], first_part):
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
            raise unknown_row(int(rows[missing[0]]))
        return x, places

    def _part(self, number: int) -> _Opened:
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number]
        part = self.parts[number]
        # As a plain array: each index into a map makes a map again, which takes ten times as long.
        opened = _Opened(np.asarray(self.store.open(part)), self.store.rows(part))
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


def unknown_row(row: int) -> PartError:
    """Return what to raise for a row that should be in a part and is in none."""
    return PartError(f"no part holds row {row}; `lookalike check --repair` sorts it out")
