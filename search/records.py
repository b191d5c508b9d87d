"""What the catalog says about images: the row of a digest, the live files of an image."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from storage.paths import files_at
from storage.roots import inside
from storage.slices import sliced
from storage.tables import File, Image, Root, Vector


@dataclass(frozen=True, slots=True)
class Known:
    """An image that has a vector in a space."""

    image_id: int
    row: int


@dataclass(frozen=True, slots=True)
class Holder:
    """A live file that holds an image; ``path`` is absolute, id and label are a manifest's."""

    root: bytes
    """Path of the directory or manifest that knows it."""
    path: bytes
    id: str | None
    label: str | None

    def is_at(self, place: bytes) -> bool:
        """Return whether the file is at or below an absolute path, or in that manifest."""
        places = (os.path.abspath(place), os.path.realpath(place))
        return any(self.root == at or self.path == at or inside(self.path, at) for at in places)


def known_image(conn: Connection, space_id: int, digest: bytes) -> Known | None:
    """Return the image with this SHA-256 digest if it has a vector in the space."""
    found = conn.execute(
        select(Image.id, Vector.row)
        .join(Vector, Vector.image_id == Image.id)
        .where(Image.digest == digest, Vector.space_id == space_id)
    ).first()
    return None if found is None else Known(found.id, found.row)


def known_number(conn: Connection, space_id: int, image_id: int) -> Known | None:
    """Return the image of this number if it has a vector in the space."""
    row = conn.execute(
        select(Vector.row).where(Vector.space_id == space_id, Vector.image_id == image_id)
    ).scalar()
    return None if row is None else Known(image_id, row)


def vectors_in(conn: Connection, space_id: int) -> int:
    """Return how many images have a vector in a space."""
    count = select(func.count()).where(Vector.space_id == space_id)
    return conn.execute(count).scalar_one()


def is_known(conn: Connection, path: bytes) -> bool:
    """Return whether any root knows a live file at or below an absolute path."""
    query = select(File.id).where(File.state == "live", files_at(conn, path)).limit(1)
    return conn.execute(query).first() is not None


def holders(conn: Connection, image_ids: Iterable[int]) -> dict[int, list[Holder]]:
    """Return image id -> its live files in the order of their paths."""
    query = (
        select(
            File.image_id,
            Root.path,
            Root.kind,
            File.path.label("key"),
            File.source,
            File.label,
        )
        .join(Root, Root.id == File.root_id)
        .where(File.state == "live")
    )
    found: dict[int, list[Holder]] = {}
    for some in sliced(set(image_ids)):
        for row in conn.execute(query.where(File.image_id.in_(some))):
            path = row.source or os.path.join(row.path, row.key)
            key = os.fsdecode(row.key) if row.kind == "manifest" else None
            found.setdefault(row.image_id, []).append(Holder(row.path, path, key, row.label))
    for files in found.values():
        files.sort(key=lambda holder: holder.path)
    return found
