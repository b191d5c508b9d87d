"""One page of browsing: the way to a folder, the folders and the pictures in it."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from search.errors import UnknownPlace
from search.places import (
    Folder,
    FolderPage,
    Picture,
    PicturePage,
    Place,
    crumbs,
    folders,
    path_of,
    pictures,
    roots,
)


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
