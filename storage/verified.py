"""Vectors by row, from parts that were compared with their checksums before they are read."""

import numpy as np
import numpy.typing as npt

from storage.errors import PartError
from storage.reading import FloatArray, Rows, Snapshot
from storage.vectors import VectorStore


class VerifiedRows:
    """The vectors of a snapshot, for whoever writes them elsewhere.

    One part is open at a time: what the system has mapped of a file counts as memory.
    """

    def __init__(self, store: VectorStore, view: Snapshot) -> None:
        self._store = store
        self._parts = view.parts
        self._starts = np.array([part.row_start for part in view.parts], dtype=np.int64)
        self._verified: set[int] = set()

    def gather(self, rows: npt.NDArray[np.int64]) -> FloatArray:
        """Return the vectors of some rows, shape ``(n, d)``, float32.

        Raises
        ------
        PartError
            A part is missing or damaged, or no part holds a row.
        """
        out = np.empty((len(rows), self._store.dim), np.float32)
        which = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(which).tolist():
            part = self._parts[max(number, 0)]  # a row before all parts is refused as unknown
            if number not in self._verified:
                self._store.refuse_damaged(part)
                self._verified.add(number)
            out[which == number] = Rows(self._store, [part]).gather(rows[which == number])
        if not np.isfinite(out).all():
            raise PartError("a vector is not finite; `lookalike check --deep --repair` drops it")
        return out
