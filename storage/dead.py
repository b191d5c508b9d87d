"""Which rows of a space are alive: queries, because what is live follows from the files."""

import os
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, exists, select

from storage.slices import sliced
from storage.tables import File, Part, Vector

RowArray = npt.NDArray[np.int64]

_LIVE_FILE = exists().where(File.image_id == Vector.image_id, File.state == "live")


def live_rows(conn: Connection, space_id: int, rows: Iterable[int]) -> dict[int, int]:
    """Return row -> image id of those ``rows`` whose image has a live file."""
    query = select(Vector.row, Vector.image_id).where(Vector.space_id == space_id, _LIVE_FILE)
    found: dict[int, int] = {}
    for some in sliced(int(row) for row in rows):
        found.update((row, image) for row, image in conn.execute(query.where(Vector.row.in_(some))))
    return found


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
        query = query.where(_LIVE_FILE)
    if below is not None:
        query = query.where(Vector.row < below)
    rows = np.fromiter(conn.execute(query).scalars(), dtype=np.int64)
    rows.sort()
    return rows


def dead_rows(conn: Connection, space_id: int, present: RowArray | None = None) -> RowArray:
    """Return the dead rows of a space's parts, shape ``(n,)``, int64, ascending.

    Dead are the rows that are no image's vector (duplicates, dead from birth) and those whose
    image has no live file.

    Parameters
    ----------
    conn, space_id
        Open transaction and space.
    present
        Every row that the parts hold, ``Rows.all_rows``.  Without it the catalog alone is asked:
        of a part that leaves rows out it knows only those that are some image's vector.
    """
    live = entered_rows(conn, space_id, live=True)
    if present is None:
        query = select(Part.row_start, Part.row_end).where(
            Part.space_id == space_id, Part.state == "live", Part.rows_checksum.is_(None)
        )
        dense = [np.arange(start, end, dtype=np.int64) for start, end in conn.execute(query)]
        present = np.unique(np.concatenate([*dense, entered_rows(conn, space_id)]))
    return np.setdiff1d(present, live, assume_unique=True)


def rows_under(conn: Connection, space_id: int, root_id: int, prefix: bytes) -> RowArray:
    """Return the rows whose image has a live file at or below a path of a root.

    Parameters
    ----------
    conn, space_id, root_id
        Open transaction, space and root.
    prefix
        Path relative to the root, without a separator at its end; empty for the whole root.

    Returns
    -------
    array
        Shape ``(n,)``, int64, ascending.
    """
    query = (
        select(Vector.row)
        .join(File, File.image_id == Vector.image_id)
        .where(Vector.space_id == space_id, File.root_id == root_id, File.state == "live")
    )
    if prefix:
        separator = os.fsencode(os.sep)
        # The first path after everything below the folder, in the order of bytes.
        after = prefix + bytes([separator[0] + 1])
        below = (File.path >= prefix + separator) & (File.path < after)
        query = query.where((File.path == prefix) | below)
    return np.unique(np.fromiter(conn.execute(query).scalars(), dtype=np.int64))
