"""One page of browsing: the way to a folder, the folders and the pictures in it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from search.errors import UnknownPlace
from search.places import (
    Folder,
    FolderPage,
    Place,
    crumbs,
    find,
    folders,
    path_of,
    roots,
    start_of,
)
from storage import folders as found

PICTURES = 60
"""Pictures of one page."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A live file with its image."""

    image_id: int
    file_id: int
    name: bytes
    has_vector: bool
    """In any space; without one it may be no picture that can be shown."""

    def to_json(self) -> dict[str, Any]:
        """Return the values for scripts."""
        name = os.fsdecode(self.name)
        return {"image_id": self.image_id, "file_id": self.file_id, "name": name}


@dataclass(frozen=True, slots=True)
class PicturePage:
    """Some pictures; ``after`` goes on with the next ones, None: there are no more."""

    pictures: tuple[Picture, ...]
    after: int | None


@dataclass(frozen=True, slots=True)
class Listing:
    """What a page of browsing shows; without a place these are the roots."""

    place: Place | None
    crumbs: tuple[Folder, ...]
    """From the root to the place itself."""
    within: bool
    """Whether a search can be kept to it."""
    folders: tuple[Folder, ...]
    folders_after: int | None
    """Goes on with the next folders; None: there are no more."""
    pictures: tuple[Picture, ...]
    after: int | None
    """Goes on with the next pictures; None: there are no more."""

    def to_json(self) -> dict[str, Any]:
        """Return the values for scripts."""
        return {
            "place": None if self.place is None else str(self.place),
            "crumbs": [folder.to_json() for folder in self.crumbs],
            "within": self.within,
            "folders": [folder.to_json() for folder in self.folders],
            "folders_after": self.folders_after,
            "pictures": [picture.to_json() for picture in self.pictures],
            "after": self.after,
        }


def pictures(
    conn: Connection,
    place: Place,
    after: int | None = None,
    limit: int = PICTURES,
    *,
    below: bool = False,
) -> PicturePage:
    """Return the pictures in a folder, in the order of their names as bytes.

    Parameters
    ----------
    conn, place, after, limit
        As `search.places.folders`.
    below
        Those in folders inside as well; their names are then paths from the folder on.

    Raises
    ------
    UnknownPlace
        The place, or what ``after`` means in it, is gone.
    """
    folder = find(conn, place).folder
    start = start_of(conn, folder, after, below=below)
    page = found.pictures(conn, folder, start, limit, below=below)
    return PicturePage(_pictures(conn, folder, page.entries), page.after)


def listing(
    conn: Connection,
    place: Place | None,
    after: int | None = None,
    folders_after: int | None = None,
) -> Listing:
    """Return a page of browsing.

    Parameters
    ----------
    conn
        Open transaction.
    place
        The folder; None lists the roots.
    after, folders_after
        Of a page before: go on with pictures alone, or with folders alone.

    Raises
    ------
    UnknownPlace
        The place, or what is to be gone on after, is gone.
    """
    if place is None:
        return Listing(None, (), False, roots(conn), None, (), None)
    inside, held = FolderPage((), None), PicturePage((), None)
    if after is None:
        inside = folders(conn, place, folders_after)
    if folders_after is None:
        held = pictures(conn, place, after)
    return Listing(
        place=place,
        crumbs=crumbs(conn, place),
        within=_is_on_disk(conn, place),
        folders=inside.folders,
        folders_after=inside.after,
        pictures=held.pictures,
        after=held.after,
    )


def _is_on_disk(conn: Connection, place: Place) -> bool:
    try:
        path_of(conn, place)
    except UnknownPlace:
        return False
    return True


def _pictures(
    conn: Connection, folder: found.Folder, entries: Sequence[found.Entry]
) -> tuple[Picture, ...]:
    held = [(entry, entry.image_id) for entry in entries if entry.image_id is not None]
    known = found.with_vectors(conn, [image_id for _, image_id in held])
    return tuple(
        Picture(image_id, entry.file_id, entry.path[len(folder.prefix) :], image_id in known)
        for entry, image_id in held
    )
