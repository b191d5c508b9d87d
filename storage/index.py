"""The FAISS index of a space: build, write, load and search it.

A FAISS id is a position, 0 to n - 1; the rowmap, shape ``(n,)``, int64, ascending, says which row
that is.  No ``IDMap`` (over IVF it returns wrong ids after a removal) and no ``remove_ids``: the
dead are left out by a selector, and the index is built anew.

Names are FAISS's own: d dimension, n vectors, k neighbours, xb base, xq queries, D products,
I positions.
"""

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from storage.durable import DurableFile, file_checksum
from storage.errors import IndexFileError, SpaceError, StorageError
from storage.kinds import EF_SEARCH, K_FACTOR, NPROBE, IndexSpec, choose, spec_of
from storage.reading import Rows

__all__ = [
    "IndexSpec",
    "SelectorRefused",
    "all_but",
    "build",
    "choose",
    "load_index",
    "only",
    "search_index",
    "spec_of",
    "write_index",
]

FloatArray = npt.NDArray[np.float32]
RowArray = npt.NDArray[np.int64]

# FAISS's type stubs lack its writers and the fields of its search parameters.
_faiss: Any = faiss

_TRAIN_POINTS = 65_536
_TRAIN_PER_LIST = 64
_TRAIN_LEAST_PER_LIST = 39
"""FAISS warns below this many training points for each list."""
_TRAIN_BYTES = 2 << 30
_ADD_ROWS = 8192
"""Vectors added between two looks at whether to go on: some seconds of a graph's time."""
_WATCH_S = 0.2
_FAISS_SAYS = re.compile(r"Error in .*? at \S+:\d+: (?:Error: '.*' failed(?:: |$))?(.*)")


class SelectorRefused(StorageError):
    """The kind of index can't leave positions out while it searches."""


def build(
    vectors: Rows,
    rowmap: RowArray,
    spec: IndexSpec,
    *,
    seed: int = 0,
    check: Callable[[], None] | None = None,
) -> faiss.Index:
    """Train and fill an index over the inner product.

    Parameters
    ----------
    vectors
        The space's vectors, unit length.
    rowmap
        Rows in the order of their positions, shape ``(n,)``, int64, ascending, ``n > 0``.
    spec
        The kind.
    seed
        Of the training sample: the same rows make the same index.
    check
        Called now and then during the training, from a thread, and before every 8,192 vectors;
        what it raises ends the build.

    Raises
    ------
    SpaceError
        FAISS knows no such kind, or it needs more vectors for its training.
    PartError
        A part is missing or not what the catalog says.
    """
    n, d = len(rowmap), vectors.d
    try:
        index = faiss.index_factory(d, spec.factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise _refused(spec, f"is not known to FAISS for dimension {d}", error) from error
    points = 0 if index.is_trained else _train_points(index, n, d)
    picks = np.random.default_rng(seed).choice(n, points, replace=False)
    xt = vectors.gather(rowmap[np.sort(picks)])
    if check is not None:
        check()
    if faiss.get_num_gpus() > 0:  # pragma: no cover - needs CUDA
        built = _build_on_gpu(index, xt, _pieces(vectors, rowmap, check))
        if built is not None:
            return built
    if points:
        _train(index, xt, spec, check)
    for xb in _pieces(vectors, rowmap, check):
        index.add(xb)
    return index


def _pieces(
    vectors: Rows, rowmap: RowArray, check: Callable[[], None] | None
) -> Iterator[FloatArray]:
    """Yield the vectors to add, shape ``(m, d)``, and call ``check`` before each piece."""
    for _, xb in vectors.blocks(rows=rowmap):
        for start in range(0, len(xb), _ADD_ROWS):
            if check is not None:
                check()
            yield xb[start : start + _ADD_ROWS]


def _build_on_gpu(
    index: faiss.Index, xt: FloatArray, pieces: Iterator[FloatArray]
) -> faiss.Index | None:  # pragma: no cover - needs CUDA
    """Return the index built on a GPU; None where its kind or size does not fit there."""
    if not isinstance(faiss.downcast_index(index), faiss.IndexIVF):
        return None  # building the others takes no k-means
    try:
        on_gpu = _faiss.index_cpu_to_all_gpus(index, ngpu=1)
        on_gpu.train(xt)
        for xb in pieces:
            on_gpu.add(xb)
        index = _faiss.index_gpu_to_cpu(on_gpu)
    except RuntimeError:
        return None
    return index


def _train(
    index: faiss.Index, xt: FloatArray, spec: IndexSpec, check: Callable[[], None] | None
) -> None:
    try:
        with _ended_by(check):
            index.train(xt)
    except RuntimeError as error:
        if check is not None:
            check()
        raise _refused(spec, f"can't be trained with {len(xt)} vectors", error) from error


@contextlib.contextmanager
def _ended_by(check: Callable[[], None] | None) -> Iterator[None]:
    """Let ``check`` end a training: FAISS asks between its iterations whether time has run out."""
    over = threading.Event()

    def watch() -> None:
        while check is not None and not over.wait(_WATCH_S):
            try:
                check()
            except BaseException:  # noqa: BLE001 - it is raised again where the training ended
                _faiss.TimeoutCallback.reset(1e-9)  # 0 would mean never
                return

    watcher = threading.Thread(target=watch, name="training-watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        _faiss.PythonInterruptCallback.reset()


def _train_points(index: faiss.Index, n: int, d: int) -> int:
    ivf = faiss.try_extract_index_ivf(index)
    least = _TRAIN_LEAST_PER_LIST * ivf.nlist if ivf is not None else 0
    wanted = max(_TRAIN_POINTS, _TRAIN_PER_LIST * ivf.nlist if ivf is not None else 0)
    return min(n, max(least, min(wanted, _TRAIN_BYTES // (4 * d))))


def _refused(spec: IndexSpec, why: str, error: RuntimeError) -> SpaceError:
    return SpaceError(f"the index spec {spec.factory!r} {why}{_telling(error)}")


def _telling(error: RuntimeError) -> str:
    """Return what FAISS says beside its function, its source file and its condition."""
    text = " ".join(str(error).split())
    found = _FAISS_SAYS.fullmatch(text)
    said = found[1] if found else text
    return f": {said}" if said else ""


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
    try:
        D, I = index.search(xq, k, params=_search_parameters(index, parameters, selector))  # noqa: E741, N806
    except RuntimeError as error:
        if selector is not None:
            raise SelectorRefused(f"{type(index).__name__} takes no selector") from error
        D, I = index.search(xq, k)  # noqa: E741, N806 - kinds that take no parameters at all
    return D, I


def only(positions: RowArray) -> faiss.IDSelector:
    """Return a selector of these positions."""
    return faiss.IDSelectorBatch(np.ascontiguousarray(positions, dtype=np.int64))


def all_but(positions: RowArray) -> faiss.IDSelector:
    """Return a selector of every position but these."""
    return faiss.IDSelectorNot(only(positions))


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
