"""Which rows of a space are alive: queries, because what is live follows from the files."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import ColumnElement, Connection, Select, bindparam, exists, select

from storage.listed import binding, listed
from storage.paths import files_at
from storage.prepared import Prepared
from storage.slices import sliced
from storage.tables import File, Vector

RowArray = npt.NDArray[np.int64]

DEAD_SHARE = 0.10
"""With more of it dead than this, a space is worth compacting, and an index building anew."""


_AT_ONCE = 50_000
"""Rows looked up by one statement."""


def held(states: Sequence[str] = ("live",)) -> ColumnElement[bool]:
    """Return the condition that a file in one of these states holds a vector's image."""
    return exists().where(File.image_id == Vector.image_id, File.state.in_(states))


def live_rows(conn: Connection, space_id: int, rows: Iterable[int]) -> dict[int, int]:
    """Return row -> image id of those ``rows`` whose image has a live file."""
    found: dict[int, int] = {}
    for some in sliced(map(int, rows), _AT_ONCE):
        asked = _LIVE_ROWS.rows(conn, space_id=space_id, **binding(conn, some))
        found.update((row, image) for row, image in asked if image is not None)
    return found


def _live_rows(dialect: str) -> Select[Any]:
    wanted = listed(dialect)
    of_row = (Vector.space_id == bindparam("space_id"), Vector.row == wanted.c.value)
    living = exists().where(File.image_id == Vector.image_id, File.state == "live")
    image = select(Vector.image_id).where(*of_row, living).correlate(wanted).scalar_subquery()
    return select(wanted.c.value, image)


_LIVE_ROWS = Prepared(_live_rows)


def entered_rows(
    conn: Connection, space_id: int, *, live: bool = False, below: int | None = None
) -> RowArray:
    """Return rows that are some image's vector, shape ``(n,)``, int64, ascending.

    Parameters
    ----------
    conn, space_id
        Open transaction and space.
    live
        Only those whose image has a live file.
    below
        Only rows below this one.
    """
    query = select(Vector.row).where(Vector.space_id == space_id)
    if live:
        query = query.where(held())
    if below is not None:
        query = query.where(Vector.row < below)
    rows = np.fromiter(conn.execute(query).scalars(), dtype=np.int64)
    rows.sort()
    return rows


def rows_at(conn: Connection, space_id: int, path: bytes) -> RowArray:
    """Return the rows whose image has a live file at or below a path.

    Parameters
    ----------
    conn, space_id
        Open transaction and space.
    path
        Absolute; ``storage.paths.files_at`` says what it means.

    Returns
    -------
    array
        Shape ``(n,)``, int64, ascending.
    """
    query = (
        select(Vector.row)
        .join(File, File.image_id == Vector.image_id)
        .where(Vector.space_id == space_id, File.state == "live", files_at(conn, path))
    )
    return np.unique(np.fromiter(conn.execute(query).scalars(), dtype=np.int64))
