"""Write-once part files of vectors, with the digests of their images beside them.

A part is ``<name>.npy`` and ``<name>.ids.npy``; after compaction also ``<name>.rows.npy``.
``docs/format.md`` gives every byte.  A name is taken once and never again, a published file is
never changed, and the vectors' file is the last to appear: once it is durable, the sidecars are.
"""

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.durable import delete_durably, file_checksum, make_dir
from storage.errors import DiskFull, PartError, PartUnreadable
from storage.home import free_bytes
from storage.npy import Array, map_npy, trouble_of, write_npy

DIGEST_BYTES = 32
UNIT_TOLERANCE = 1e-3
"""How far from 1 a norm may be, as it is stored; rounding to float16 moves it by half of that."""
RESERVE_BYTES = 64 << 20
"""Disk that a write leaves free, for the catalog's own commit."""
_DTYPES = {"float32": "<f4", "float16": "<f2"}


@dataclass(frozen=True, slots=True)
class PartWritten:
    """A part that lies durably on disk and that no transaction has taken up yet."""

    name: str
    n: int
    digests: tuple[bytes, ...]
    size_bytes: int
    checksum: str
    ids_checksum: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    rows_checksum: str | None = None


@dataclass(frozen=True, slots=True)
class PartInfo:
    """A committed part as the catalog knows it, rows ``row_start`` to ``row_end`` (exclusive)."""

    id: int
    name: str
    row_start: int
    row_end: int
    n: int
    size_bytes: int
    checksum: str
    ids_checksum: str
    rows_checksum: str | None = None


class VectorStore:
    """The parts of one space, in ``<space_dir>/parts/``.

    Parameters
    ----------
    space_dir
        Folder of the space; made when the first part is written.
    dim
        Dimension of the vectors.
    dtype
        ``float32`` or ``float16``, what the files hold.
    reserve_bytes
        Disk that a write leaves free.
    """

    def __init__(
        self, space_dir: str, dim: int, dtype: str, *, reserve_bytes: int = RESERVE_BYTES
    ) -> None:
        self.folder = os.path.join(space_dir, "parts")
        self.dim = dim
        self.dtype = dtype
        self.reserve_bytes = reserve_bytes
        self._npy_dtype = _DTYPES[dtype]

    def path(self, name: str, kind: str = "") -> str:
        """Return the path of a part's file; ``kind`` is empty, ``.ids`` or ``.rows``."""
        return os.path.join(self.folder, f"{name}{kind}.npy")

    def append(
        self,
        run_id: str,
        vectors: npt.NDArray[np.float32],
        digests: Sequence[bytes],
        *,
        facts: Mapping[str, Any] | None = None,
        offsets: npt.NDArray[np.int64] | None = None,
    ) -> PartWritten:
        """Write a new part durably; the catalog knows nothing of it yet.

        Parameters
        ----------
        run_id
            The run that writes; the part's name begins with it.
        vectors
            Shape ``(n, dim)``, float32, unit length, ``n > 0``; rounded to the store's dtype.
        digests
            SHA-256 of each vector's image, ``n`` times 32 bytes.
        facts
            How the vectors were computed: device, engine, precision.
        offsets
            Shape ``(n,)``, int64, ascending: each row's distance from the part's first row, for
            a part that leaves rows out.  None: the rows follow each other.

        Raises
        ------
        ValueError
            The arrays don't fit the store or each other.
        DiskFull
            Too little free disk; nothing was written.
        StorageError
            The file system failed; what was written so far is an orphan.
        """
        self._check(vectors, digests, offsets)
        n = len(digests)
        self._make_room(n * (self.dim * np.dtype(self._npy_dtype).itemsize + DIGEST_BYTES + 8))
        name = f"{run_id}-{uuid.uuid4().hex}"
        ids = np.frombuffer(b"".join(digests), np.uint8).reshape(n, DIGEST_BYTES)
        # Nobody knows of the part before it is whole: one sync of the folder serves all names.
        ids_file = write_npy(self.path(name, ".ids"), ids, synced_name=False)
        rows_file = None
        if offsets is not None:
            rows = offsets.astype("<i8")
            rows_file = write_npy(self.path(name, ".rows"), rows, synced_name=False)
        file = write_npy(self.path(name), vectors.astype(self._npy_dtype, copy=False))
        return PartWritten(
            name=name,
            n=n,
            digests=tuple(digests),
            size_bytes=file.size_bytes,
            checksum=file.checksum,
            ids_checksum=ids_file.checksum,
            facts=dict(facts or {}),
            rows_checksum=rows_file.checksum if rows_file else None,
        )

    def _check(
        self, vectors: Array, digests: Sequence[bytes], offsets: npt.NDArray[np.int64] | None
    ) -> None:
        n = len(digests)
        if vectors.dtype != np.float32 or vectors.shape != (n, self.dim) or n == 0:
            raise ValueError(
                f"{n} digests and dimension {self.dim} ask for vectors float32 ({n}, {self.dim}), "
                f"n > 0; given are {vectors.dtype} {vectors.shape}"
            )
        if wrong := [len(digest) for digest in digests if len(digest) != DIGEST_BYTES]:
            raise ValueError(f"a digest has {wrong[0]} bytes instead of {DIGEST_BYTES}")
        if offsets is not None and not (len(offsets) == n and ascending(offsets)):
            raise ValueError(f"{len(offsets)} offsets for {n} vectors, or not ascending from 0 up")
        norms, far = off_unit(vectors.astype(self._npy_dtype, copy=False))
        if len(far):
            raise ValueError(
                f"vector {far[0]} of {n} has norm {norms[far[0]]:.6g} instead of 1 "
                f"(within {UNIT_TOLERANCE}); {len(far)} are like that"
            )

    def _make_room(self, needed: int) -> None:
        if not os.path.isdir(self.folder):  # the space was made with its folders
            make_dir(self.folder)
        free = free_bytes(self.folder)
        if free < needed + self.reserve_bytes:
            raise DiskFull(
                f"{self.folder}: {needed >> 20} MiB of vectors and {self.reserve_bytes >> 20} MiB "
                f"of reserve don't fit into {free >> 20} MiB; make room and run again"
            )

    def open(self, part: PartInfo) -> Array:
        """Map a part's vectors, shape ``(n, dim)``, the store's dtype; `PartError` as `map_npy`."""
        return map_npy(self.path(part.name), self._npy_dtype, (part.n, self.dim), part.size_bytes)

    def digests(self, part: PartInfo) -> npt.NDArray[np.uint8]:
        """Map the digests of a part's images, shape ``(n, 32)``, uint8; `PartError`."""
        return map_npy(self.path(part.name, ".ids"), "|u1", (part.n, DIGEST_BYTES))

    def rows(self, part: PartInfo) -> npt.NDArray[np.int64]:
        """Return the rows of a part's vectors, shape ``(n,)``, int64, ascending; `PartError`."""
        if part.rows_checksum is None:
            if part.n != part.row_end - part.row_start:
                raise PartError(
                    f"part {part.name} has {part.n} vectors for rows "
                    f"{part.row_start} to {part.row_end} and no rows sidecar"
                )
            return np.arange(part.row_start, part.row_end, dtype=np.int64)
        path = self.path(part.name, ".rows")
        offsets = map_npy(path, "<i8", (part.n,))
        if not ascending(offsets) or offsets[-1] >= part.row_end - part.row_start:
            raise PartError(f"{path} does not ascend within the part's rows")
        return np.asarray(offsets + part.row_start, dtype=np.int64)

    def verify(self, part: PartInfo) -> list[str]:
        """Compare a part's files with the catalog, every byte; return what is wrong.

        Raises
        ------
        PartUnreadable
            A file can't be read now, and may be whole.
        """
        sums = {"": part.checksum, ".ids": part.ids_checksum, ".rows": part.rows_checksum}
        found = [_compared(self.path(part.name, kind), due) for kind, due in sums.items() if due]
        problems = [problem for problem in found if problem]
        if not problems:
            try:
                self.open(part)
                self.digests(part)
                self.rows(part)
            except PartUnreadable:
                raise
            except PartError as error:
                problems.append(str(error))
        return problems

    def refuse_damaged(self, part: PartInfo) -> None:
        """Raise `PartError` where `verify` finds something, so that damage is never copied."""
        for problem in self.verify(part):
            raise PartError(
                f"{problem}; `lookalike check --deep --repair` drops the part, and the next "
                "`lookalike index` extracts its images again"
            )

    def remove(self, name: str) -> None:
        """Delete a part's files, the vectors first, so that no half part looks whole."""
        delete_durably(*(self.path(name, kind) for kind in ("", ".rows", ".ids")))


def _compared(path: str, checksum: str) -> str:
    """Return what is wrong with a file by its checksum, if anything; `PartUnreadable`."""
    try:
        sound = file_checksum(path) == checksum
    except OSError as error:
        trouble = trouble_of(path, error)
        if isinstance(trouble, PartUnreadable):
            raise trouble from error
        return f"{path} can't be read: {error.strerror}"
    return "" if sound else f"{path} does not have the checksum that the catalog holds"


def off_unit(x: Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """Return the norms of vectors, shape ``(n, d)``, and which of them are not of unit length."""
    norms = np.sqrt(np.einsum("nd,nd->n", x, x, dtype=np.float64))
    # Not written as `> tolerance`: a NaN must not pass.
    return norms, np.flatnonzero(~(np.abs(norms - 1.0) < UNIT_TOLERANCE))


def ascending(values: npt.NDArray[np.int64]) -> bool:
    """Say whether non-negative integers, shape ``(n,)``, ``n > 0``, strictly ascend."""
    return bool(len(values) and values[0] >= 0 and np.all(np.diff(values) > 0))
