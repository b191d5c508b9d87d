"""Extend a published index by the rows that came after it, without a look at the older parts.

What is trained stays as it was: the lists of IVF and the ranges of SQ8.  So the new vectors must
be few beside those that it was trained with, and the dead few beside all; else it is built anew.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, func, select

from storage.dead import DEAD_SHARE
from storage.errors import IndexFileError
from storage.kinds import IndexSpec, wanted
from storage.reading import GenerationInfo, Rows, Snapshot, generation_paths
from storage.recall import of_training, series_in
from storage.tables import Vector

if TYPE_CHECKING:
    import faiss

RowArray = npt.NDArray[np.int64]

GROWTH = 0.5
"""An index that would hold so many more vectors than it was trained with is trained anew."""


@dataclass(frozen=True, slots=True)
class Extension:
    """Which index is extended, and by which rows, shape ``(m,)``, int64, ascending, ``m > 0``."""

    generation: GenerationInfo
    rows: RowArray


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
    spec = wanted(asked, kept + len(rows), view.space.dim)
    same = spec == IndexSpec(newest.factory, newest.parameters)
    few_dead = newest.n - DEAD_SHARE * newest.n <= kept <= newest.n
    grown = newest.n + len(rows) > (1 + GROWTH) * trained.n
    return Extension(newest, rows) if len(rows) and same and few_dead and not grown else None


def extended(
    folder: str,
    vectors: Rows,
    how: Extension,
    check: Callable[[], None] | None = None,
) -> "tuple[faiss.Index, RowArray] | None":
    """Load a published index, after a check of every byte, and add the newer rows' vectors.

    Parameters
    ----------
    folder
        Where the index's files are; they stay as they are.
    vectors
        The space's vectors.
    how
        What `extension` returned.
    check
        Called before the index is read, and before every 8,192 vectors; what it raises ends this.

    Returns
    -------
    index, rowmap
        Filled, in memory, and the rows in the order of its positions, shape ``(n,)``, int64; None
        where the published index is missing, damaged or takes no more vectors.

    Raises
    ------
    PartError
        A part that holds newer rows is missing or not what the catalog says.
    """
    import faiss

    from storage.build import draw_on, pieces
    from storage.generation import load_generation

    if check is not None:
        check()
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
