"""Images of the catalog for pages: some to start from, and what to call each."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection, Select, bindparam, func, select

from storage.listed import binding, listed
from storage.prepared import Prepared
from storage.tables import File, Root, Vector


@dataclass(frozen=True, slots=True)
class Shown:
    """An image that has a live file; ``path`` is absolute."""

    image_id: int
    path: bytes


def paths_of(conn: Connection, image_ids: Iterable[int]) -> dict[int, bytes]:
    """Return the absolute path of one live file for each of some images that have one."""
    rows = _ONE_FILE.rows(conn, **binding(conn, image_ids))
    return {
        image_id: source or os.path.join(root, key)
        for image_id, root, key, source in rows
        if root is not None
    }


def some_images(conn: Connection, space_id: int, n: int, seed: int) -> list[Shown]:
    """Return images that have a vector in a space, from all over it; equal seeds, equal images.

    The cost does not grow with the space: each image is found by its number, or the next one's.

    Parameters
    ----------
    conn
        Open transaction.
    space_id
        The space.
    n
        How many, at most; fewer where many images have no live file.
    seed
        Another one gives others.
    """
    numbers = select(Vector.image_id).where(Vector.space_id == space_id)
    first = conn.execute(numbers.order_by(Vector.image_id).limit(1)).scalar()
    last = conn.execute(numbers.order_by(Vector.image_id.desc()).limit(1)).scalar()
    if first is None or last is None:
        return []
    points = np.random.default_rng(seed).integers(first, last, 3 * n, endpoint=True).tolist()
    nearby = dict(_FROM_ON.rows(conn, space_id=space_id, **binding(conn, points)))
    found = dict.fromkeys(nearby[point] for point in points)
    paths = paths_of(conn, found)
    return [Shown(image_id, paths[image_id]) for image_id in found if image_id in paths][:n]


def _one_file(dialect: str) -> Select[Any]:
    wanted = listed(dialect)
    first = (
        select(func.min(File.id))
        .where(File.image_id == wanted.c.value, File.state == "live")
        .correlate(wanted)
        .scalar_subquery()
    )
    # Outer joins keep their order: SQLite, which has no statistics, takes any other one too.
    joined = wanted.outerjoin(File, File.id == first).outerjoin(Root, Root.id == File.root_id)
    return select(wanted.c.value, Root.path, File.path, File.source).select_from(joined)


_ONE_FILE = Prepared(_one_file)


def _from_on(dialect: str) -> Select[Any]:
    wanted = listed(dialect)
    here = (Vector.space_id == bindparam("space_id"), Vector.image_id >= wanted.c.value)
    next_one = select(func.min(Vector.image_id)).where(*here).correlate(wanted).scalar_subquery()
    return select(wanted.c.value, next_one)


_FROM_ON = Prepared(_from_on)
