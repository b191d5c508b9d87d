"""Compare a published index with its checksums, and its neighbours with the vectors themselves."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from storage.candidates import fetch_width
from storage.catalog import Catalog
from storage.errors import IndexFileError, PartError
from storage.npy import MEND, map_npy
from storage.reading import GenerationInfo, Rows, Snapshot, generation_paths, open_store
from storage.recall import LEAST_RECALL, TIE, RecallInfo, noise, of_training, series

if TYPE_CHECKING:
    from storage.generation import Loaded

RowArray = npt.NDArray[np.int64]

QUERIES = 100
K = 10


def index_problems(folder: str, generation: GenerationInfo) -> list[str]:
    """Return what sizes and headers of an index's files tell."""
    index_path, rowmap_path = generation_paths(folder, generation.name)
    try:
        map_npy(rowmap_path, "<i8", (generation.n,))
        size = os.path.getsize(index_path)
    except (PartError, IndexFileError) as error:
        return [str(error)]
    except OSError as error:
        return [f"{index_path} can't be read: {error.strerror}; {MEND}"]
    if size != generation.size_bytes:
        due = generation.size_bytes
        return [f"{index_path} has {size} bytes instead of {due}; {MEND}"]
    return []


def deep_index_problems(
    catalog: Catalog, view: Snapshot, entered: RowArray, held: RowArray
) -> Iterator[str]:
    """Yield what is wrong with every byte of an index, with its rows, and with what it finds.

    Parameters
    ----------
    catalog, view
        The space as one transaction saw it, with its generation.
    entered
        Rows that are some image's vector, shape ``(n,)``, int64, ascending.
    held
        Rows that readable parts hold, in the same form.
    """
    generation = view.generation
    if generation is None:
        return
    from storage.generation import load_generation

    try:
        folder = catalog.home.index_dir(view.space.fingerprint)
        loaded = load_generation(folder, generation, view.space.dim)
    except IndexFileError as error:
        yield str(error)
        return
    lacking = np.setdiff1d(entered[entered < generation.row_end], loaded.rowmap, assume_unique=True)
    if len(lacking):
        yield f"the index {generation.name} lacks {len(lacking):,} rows that it should hold"
        return
    share, n = _found_share(catalog, view, loaded, held)
    least = _least(series(catalog, view.space), generation, n)
    if share < least:
        yield (
            f"the index {generation.name} finds {100 * share:.0f} % of {n} of its own vectors, "
            f"{100 * least:.0f} % were to be expected"
        )


def _found_share(
    catalog: Catalog, view: Snapshot, loaded: "Loaded", held: RowArray
) -> tuple[float, int]:
    """Return which share of a sample of its own vectors the index finds, by their true cosines."""
    there = np.intersect1d(loaded.rowmap, held, assume_unique=True)
    if not len(there):
        return 1.0, 0
    from storage.index import search_index

    n = min(QUERIES, len(there))
    rows = np.sort(np.random.default_rng(0).choice(there, n, replace=False))
    vectors = Rows(open_store(catalog, view.space), view.parts)
    xq = vectors.gather(rows)
    fetch = fetch_width(K, len(loaded.rowmap))
    positions = search_index(loaded.index, loaded.generation.parameters, xq, fetch)[1]
    found = 0
    for query, near in zip(xq.astype(np.float64), positions, strict=True):
        offered = np.intersect1d(loaded.rowmap[near[near >= 0]], held)
        if len(offered):
            x = vectors.gather(offered).astype(np.float64)
            cosines = x @ query / np.linalg.norm(x, axis=1) / np.linalg.norm(query)
            found += bool(cosines.max() >= 1 - TIE)
    return found / n, n


def _least(measured: list[RecallInfo], generation: GenerationInfo, n: int) -> float:
    """Return the least share that chance explains, by what was measured when it was trained."""
    info = of_training(measured, generation)
    if info is None or not n:
        return LEAST_RECALL
    now = RecallInfo(info.generation, info.factory, info.n, K, n, info.recall, 0.0)
    return info.recall - noise(info, now)
