"""Build the FAISS index of a space: train it on a sample, and add every vector.

Names are FAISS's own: d dimension, n vectors, xb base vectors, xt training vectors.
"""

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from storage.errors import SpaceError
from storage.kinds import IndexSpec
from storage.reading import Rows

FloatArray = npt.NDArray[np.float32]
RowArray = npt.NDArray[np.int64]

# FAISS's type stubs lack its callbacks.
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
        built = _build_on_gpu(index, xt, pieces(vectors, rowmap, check))
        if built is not None:
            return built
    if points:
        _train(index, xt, spec, check)
    for xb in pieces(vectors, rowmap, check):
        index.add(xb)
    return index


def draw_on(index: faiss.Index) -> None:
    """Let a graph that was loaded draw other levels than it did for its first vectors.

    Where the draw had come to is not in its file.
    """
    graph = faiss.downcast_index(index)
    if isinstance(graph, faiss.IndexHNSW):
        _faiss.downcast_index(index).hnsw.rng = _faiss.RandomGenerator(index.ntotal)


def pieces(vectors: Rows, rows: RowArray, check: Callable[[], None] | None) -> Iterator[FloatArray]:
    """Yield the vectors of ``rows``, shape ``(m, d)``, and call ``check`` before each piece."""
    for _, xb in vectors.blocks(rows=rows):
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
