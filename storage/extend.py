"""Extend a published index by the rows that came after it, without a look at the older parts.

What is trained stays as it was: the lists of IVF and the ranges of SQ8.  So the new vectors must
be few beside those that it was trained with, the dead few beside all, and a sample of the new ones
must find its neighbours as well as one of the old did; else it is built anew.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, func, select

from storage.catalog import Catalog
from storage.dead import DEAD_SHARE
from storage.errors import IndexFileError
from storage.kinds import IndexSpec, wanted
from storage.reading import GenerationInfo, Rows, Snapshot, generation_paths
from storage.recall import Added, RecallInfo, Sample, measure, noise, of_training, series_in
from storage.slices import sliced
from storage.spaces import SpaceInfo
from storage.tables import Vector

if TYPE_CHECKING:
    import faiss

RowArray = npt.NDArray[np.int64]

GROWTH = 0.5
"""An index that would hold so many more vectors than it was trained with is trained anew."""


@dataclass(frozen=True, slots=True)
class Extension:
    """Which index is extended, and by which rows, shape ``(m,)``, int64, ascending, ``m > 0``.

    ``trained`` is what was measured when it was trained.
    """

    generation: GenerationInfo
    rows: RowArray
    trained: RecallInfo


def extension(conn: Connection, view: Snapshot, asked: str) -> Extension | None:
    """Return how to extend a space's index; None where it is built anew.

    It is built anew where there is none, or nothing to add; where another kind, or other parameters
    of its search, are wanted now; where more than a tenth of its rows are no image's vector any
    more; and where it would outgrow by half the number of vectors that it was trained and measured
    with, or nothing tells that number.

    Parameters
    ----------
    conn, view
        Open transaction, and the space as it sees it.
    asked
        `IndexSpec.factory` that somebody asked for before, or ``auto``.
    """
    newest = view.generation
    if newest is None:
        return None
    trained = of_training(series_in(conn, view.space.id, 1), newest)
    if trained is None:
        return None
    entered = Vector.space_id == view.space.id
    kept = conn.execute(
        select(func.count()).select_from(Vector).where(entered, Vector.row < newest.row_end)
    ).scalar_one()
    added = select(Vector.row).where(
        entered, Vector.row >= newest.row_end, Vector.row < view.next_row
    )
    rows = np.fromiter(conn.execute(added.order_by(Vector.row)).scalars(), dtype=np.int64)
    spec = wanted(asked, kept + len(rows))
    same = spec == IndexSpec(newest.factory, newest.parameters)
    few_dead = newest.n - DEAD_SHARE * newest.n <= kept <= newest.n
    grown = newest.n + len(rows) > (1 + GROWTH) * trained.n
    return (
        Extension(newest, rows, trained) if len(rows) and same and few_dead and not grown else None
    )


def extended(
    catalog: Catalog,
    vectors: Rows,
    space: SpaceInfo,
    how: Extension,
    check: Callable[[], None] | None = None,
) -> "tuple[faiss.Index, RowArray] | None":
    """Load a published index, after a check of every byte, and add the newer rows' vectors.

    Parameters
    ----------
    catalog, space
        Where the index's files are; they stay as they are.
    vectors
        The space's vectors.
    how
        What `extension` returned.
    check
        Called now and then; what it raises ends this.

    Returns
    -------
    index, rowmap
        Filled, in memory, and the rows in the order of its positions, shape ``(n,)``, int64; None
        where the published index is missing, damaged, takes no more vectors, or finds the
        neighbours of the new ones less well than it did those of the old when it was trained.

    Raises
    ------
    PartError
        A part is missing or not what the catalog says.
    """
    if check is not None:
        check()
    filled = _filled(catalog.home.index_dir(space.fingerprint), vectors, how, check)
    if filled is None:
        return None
    index, rowmap = filled
    old = how.generation
    added = Added(how.rows, lambda rows: _entered(catalog, space, rows))
    sample = Sample().of(len(how.rows))
    found = measure(
        vectors,
        rowmap,
        index,
        IndexSpec(old.factory, old.parameters),
        sample=sample,
        check=check,
        added=added,
    )
    now = replace(how.trained, recall=found, queries=sample.queries)
    return None if how.trained.recall - found > noise(how.trained, now) else (index, rowmap)


def _filled(
    folder: str, vectors: Rows, how: Extension, check: Callable[[], None] | None
) -> "tuple[faiss.Index, RowArray] | None":
    import faiss

    from storage.build import draw_on, pieces
    from storage.generation import load_generation

    try:
        loaded = load_generation(folder, how.generation, vectors.d)
        # Not that one: FAISS aborts the process where vectors are added to what is mapped.
        index = faiss.read_index(generation_paths(folder, how.generation.name)[0])
    except (IndexFileError, RuntimeError):
        return None
    draw_on(index)
    for xb in pieces(vectors, how.rows, check):
        try:
            index.add(xb)
        except RuntimeError:
            return None
    return index, np.concatenate([loaded.rowmap, how.rows])


def _entered(catalog: Catalog, space: SpaceInfo, rows: RowArray) -> RowArray:
    """Return which of some rows are some image's vector, ascending."""
    query = select(Vector.row).where(Vector.space_id == space.id)
    found: list[int] = []
    with catalog.read() as conn:
        for some in sliced(np.unique(rows[rows >= 0]).tolist()):
            found += conn.execute(query.where(Vector.row.in_(some))).scalars()
    return np.array(sorted(found), np.int64)
