"""The FAISS index of a space: write, load and search it; ``storage.build`` makes it.

A FAISS id is a position, 0 to n - 1; the rowmap, shape ``(n,)``, int64, ascending, says which row
that is.  No ``IDMap`` (over IVF it returns wrong ids after a removal) and no ``remove_ids``: the
dead are left out by a selector, and the index is built anew.

Names are FAISS's own: d dimension, n vectors, k neighbours, xb base, xq queries, D products,
I positions.
"""

import os
import threading
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import faiss
import numpy as np
import numpy.typing as npt

from storage.durable import DurableFile, file_checksum
from storage.errors import IndexFileError, StorageError
from storage.kinds import EF_SEARCH, K_FACTOR, NPROBE, IndexSpec, choose, spec_of

__all__ = [
    "IndexSpec",
    "SelectorRefused",
    "all_but",
    "choose",
    "load_index",
    "only",
    "search_index",
    "search_parameters",
    "spec_of",
    "write_index",
]

FloatArray = npt.NDArray[np.float32]
RowArray = npt.NDArray[np.int64]

# FAISS's type stubs lack its writers and the fields of its search parameters.
_faiss: Any = faiss


_QUERIES, _LISTS = 0, 1
"""What threads share: ``IndexIVF.parallel_mode``."""


class SelectorRefused(StorageError):
    """The kind of index can't leave positions out while it searches."""


def write_index(index: faiss.Index, path: str) -> tuple[int, str]:
    """Write an index durably; return its size in bytes and its xxh3-128, hexadecimal.

    Not by FAISS's own writer, which truncates the old file first and does not sync.
    """
    with DurableFile(path) as file:
        faiss.write_index(index, _faiss.PyCallbackIOWriter(file.write))
    return file.size_bytes, file.checksum


def load_index(path: str, *, size_bytes: int, checksum: str, d: int, n: int) -> faiss.Index:
    """Map an index into memory, after a check of every byte.

    FAISS notices a truncated file but no flipped bits, hence the checksum.

    Raises
    ------
    IndexFileError
        The file is missing (the cause is then ``FileNotFoundError``), or not what the catalog says.
    """
    try:
        size = os.stat(path).st_size
        if size != size_bytes:
            raise IndexFileError(f"{path} has {size} bytes, the catalog says {size_bytes}")
        if file_checksum(path) != checksum:
            raise IndexFileError(f"{path} does not have the checksum that the catalog holds")
        index = _read(path)
    except (OSError, RuntimeError) as error:
        raise IndexFileError(f"{path} can't be read: {_first_line(error)}") from error
    if (index.d, index.ntotal) != (d, n) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise IndexFileError(
            f"{path} has dimension {index.d} and {index.ntotal} vectors, "
            f"the catalog says {d} and {n}, by inner product"
        )
    return index


def _read(path: str) -> faiss.Index:
    try:
        return faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError:  # a kind that can't be mapped
        return faiss.read_index(path)


def _first_line(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]


def search_index(
    index: faiss.Index,
    parameters: Mapping[str, Any],
    xq: FloatArray,
    k: int,
    selector: faiss.IDSelector | None = None,
) -> tuple[FloatArray, RowArray]:
    """Search an index.

    Parameters
    ----------
    index
        What `load_index` returned.
    parameters
        The generation's search parameters.
    xq
        Queries, shape ``(nq, d)``, float32, unit length.
    k
        How many; at most ``index.ntotal`` are asked of FAISS.
    selector
        Which positions may be found: `only` or `all_but`.

    Returns
    -------
    D, I
        Shape ``(nq, min(k, n))``: products as the index approximates them, float32, and
        positions, int64; -1 where the index found no more.

    Raises
    ------
    ValueError
        The queries have another dimension.
    SelectorRefused
        This kind takes no selector.
    """
    if xq.ndim != 2 or xq.shape[1] != index.d:
        raise ValueError(f"the index has dimension {index.d}, the queries are {xq.shape}")
    k = min(k, index.ntotal)
    with _UNDER_WAY as others:
        _share_out(index, len(xq), others)
        try:
            D, I = index.search(xq, k, params=search_parameters(index, parameters, selector))  # noqa: E741, N806
        except RuntimeError as error:
            if selector is not None:
                raise SelectorRefused(f"{type(index).__name__} takes no selector") from error
            D, I = index.search(xq, k)  # noqa: E741, N806 - kinds that take no parameters at all
    return D, I


class _UnderWay:
    """Counts the searches of this process; entering says how many others there are."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def __enter__(self) -> int:
        with self._lock:
            self._count += 1
            return self._count - 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._count -= 1


_UNDER_WAY = _UnderWay()


def _share_out(index: faiss.Index, nq: int, others: int) -> None:
    """Let threads share the lists of each query, where queries and other searches are few.

    By itself FAISS gives whole queries to threads, so a single one has a single thread.  Both ways
    find the same, and a search that another thread is at meanwhile ends well either way.
    """
    ivf: Any = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        few = not others and nq < faiss.omp_get_max_threads()
        ivf.parallel_mode = _LISTS if few else _QUERIES


def only(positions: RowArray) -> faiss.IDSelector:
    """Return a selector of these positions."""
    return faiss.IDSelectorBatch(np.ascontiguousarray(positions, dtype=np.int64))


def all_but(positions: RowArray) -> faiss.IDSelector:
    """Return a selector of every position but these."""
    return faiss.IDSelectorNot(only(positions))


def search_parameters(
    index: faiss.Index, parameters: Mapping[str, Any], selector: faiss.IDSelector | None = None
) -> Any:
    """Return what FAISS takes for ``params``; kept where nothing but the queries changes."""
    if selector is not None:
        return _search_parameters(index, parameters, selector)
    kept = _KEPT.get(index)
    if kept is None or kept[0] is not parameters:
        kept = parameters, _search_parameters(index, parameters, None)
        _KEPT[index] = kept
    return kept[1]


_KEPT: WeakKeyDictionary[faiss.Index, tuple[Mapping[str, Any], Any]] = WeakKeyDictionary()
"""By identity of the parameters: a search of a millisecond should not make them anew."""


def _search_parameters(
    index: faiss.Index, parameters: Mapping[str, Any], selector: faiss.IDSelector | None
) -> Any:
    """Return what this kind of index wants to be told: each has a class of its own."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        inner = _search_parameters(index.index, parameters, selector)
        return _faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexRefine):
        inner = _search_parameters(index.base_index, parameters, selector)
        k_factor = parameters.get("k_factor", K_FACTOR)
        return _faiss.IndexRefineSearchParameters(k_factor=k_factor, base_index_params=inner)
    if isinstance(index, faiss.IndexHNSW):
        ef_search = parameters.get("efSearch", EF_SEARCH)
        return _faiss.SearchParametersHNSW(efSearch=ef_search, sel=selector)
    if isinstance(index, faiss.IndexIVF):
        nprobe = min(parameters.get("nprobe", NPROBE), index.nlist)
        return _faiss.SearchParametersIVF(nprobe=nprobe, sel=selector)
    return _faiss.SearchParameters(sel=selector)
