"""What the catalog knows of one image."""

import os
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, func, select

from search.errors import UnknownImage
from search.places import Place, folder_of
from search.records import rows_of
from storage.catalog import Catalog
from storage.spaces import SpaceInfo
from storage.tables import File, Image, Root

MOST_FILES: Final = 1000
"""Files of one image that are told; it may have any number."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A live file that holds an image; paths are absolute, id and label are a manifest's."""

    path: bytes
    root: bytes
    place: Place
    """The folder that it lies in."""
    id: str | None
    label: str | None
    first_seen: float

    def to_json(self) -> dict[str, Any]:
        """Return the values for scripts."""
        return {
            "path": os.fsdecode(self.path),
            "root": os.fsdecode(self.root),
            "place": str(self.place),
            "id": self.id,
            "label": self.label,
            "first_seen": self.first_seen,
        }


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image with its live files, the first ones by path; times are seconds since 1970."""

    image_id: int
    size_bytes: int
    first_seen: float
    copies: int
    """Live files in all."""
    files: tuple[ImageFile, ...]
    has_vector: bool
    """Whether it can be searched for in the space."""

    def to_json(self) -> dict[str, Any]:
        """Return the values for scripts."""
        return {
            "image_id": self.image_id,
            "size_bytes": self.size_bytes,
            "first_seen": self.first_seen,
            "copies": self.copies,
            "files": [file.to_json() for file in self.files],
            "has_vector": self.has_vector,
        }


def image_facts(catalog: Catalog, image_id: int, space: SpaceInfo | None) -> ImageFacts:
    """Return what the catalog knows of an image.

    Parameters
    ----------
    catalog
        Open, for reading at least.
    image_id
        Its number.
    space
        The space that is asked; None while there is none.

    Raises
    ------
    UnknownImage
        No live file holds an image of this number.
    """
    with catalog.read() as conn:
        copies = conn.execute(
            select(func.count()).where(File.image_id == image_id, File.state == "live")
        ).scalar_one()
        if not copies:
            raise UnknownImage(f"no image {image_id} is known")
        image = conn.execute(
            select(Image.size_bytes, Image.first_seen_at).where(Image.id == image_id)
        ).one()
        files = _files(conn, image_id)
        known = space is not None and image_id in rows_of(conn, space.id, [image_id])
    return ImageFacts(image_id, image.size_bytes, image.first_seen_at, copies, files, known)


def _files(conn: Connection, image_id: int) -> tuple[ImageFile, ...]:
    columns = (File.id, File.path, File.source, File.label, File.first_seen_at)
    query = (
        select(*columns, Root.id.label("root_id"), Root.path.label("root"), Root.kind)
        .join(Root, Root.id == File.root_id)
        .where(File.image_id == image_id, File.state == "live")
        .order_by(Root.path, File.path)
        .limit(MOST_FILES)
    )
    return tuple(
        ImageFile(
            path=row.source or os.path.join(row.root, row.path),
            root=row.root,
            place=folder_of(row.root_id, row.id, row.path),
            id=os.fsdecode(row.path) if row.kind == "manifest" else None,
            label=row.label,
            first_seen=row.first_seen_at,
        )
        for row in conn.execute(query)
    )
