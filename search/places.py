"""Folders by numbers, for addresses that name no path.

``r3`` is root 3, and ``f123-2`` the folder made of the first two components of file 123's path.
Several places can mean one folder.  A manifest's folders are those of its keys; where these are
ids and no paths, they can be browsed, but are no folder on disk to search in.
"""

import os
import re
from dataclasses import dataclass
from typing import Any, Self

from sqlalchemy import Connection, select

from search.errors import UnknownPlace
from storage import folders as found
from storage.scan import SEP
from storage.tables import File, Root

_TEXT = re.compile(
    r"r(?P<root>[1-9][0-9]{0,18})|f(?P<file>[1-9][0-9]{0,18})-(?P<depth>[1-9][0-9]{0,3})"
)
_MOST = (1 << 63) - 1

FOLDERS = 60
"""Folders of one page."""


@dataclass(frozen=True, slots=True)
class Place:
    """A root, or the folder ``depth`` components deep in its root that holds a file."""

    root_id: int | None = None
    file_id: int | None = None
    depth: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``str(place)`` writes.

        Raises
        ------
        UnknownPlace
            It is something else.
        """
        meant = _TEXT.fullmatch(text)
        if meant is not None and meant["root"] and int(meant["root"]) <= _MOST:
            return cls(root_id=int(meant["root"]))
        if meant is not None and meant["file"] and int(meant["file"]) <= _MOST:
            return cls(file_id=int(meant["file"]), depth=int(meant["depth"]))
        raise UnknownPlace(
            "a place is written like r1 or f12-3; the folders page shows all of them"
        )

    def __str__(self) -> str:
        return f"r{self.root_id}" if self.file_id is None else f"f{self.file_id}-{self.depth}"


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder for people: its name as bytes, of a root its path, and an image to show of it."""

    place: Place
    name: bytes
    cover: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the values for scripts."""
        return {"place": str(self.place), "name": os.fsdecode(self.name), "cover": self.cover}


@dataclass(frozen=True, slots=True)
class FolderPage:
    """Some folders; ``after`` goes on with the next ones, None: there are no more."""

    folders: tuple[Folder, ...]
    after: int | None


@dataclass(frozen=True, slots=True)
class Found:
    """What a place means now: its root, the folder in it, and a file that it was named by."""

    root: bytes
    kind: str
    folder: found.Folder
    key: bytes = b""
    source: bytes | None = None


def folder_of(root_id: int, file_id: int, path: bytes) -> Place:
    """Return the folder of a file, from what the catalog holds of it."""
    depth = path.count(SEP)
    return Place(file_id=file_id, depth=depth) if depth else Place(root_id=root_id)


def place_of_file(conn: Connection, file_id: int) -> Place:
    """Return the folder of a file; `UnknownPlace` where there is no such file."""
    row = conn.execute(select(File.root_id, File.path).where(File.id == file_id)).first()
    if row is None:
        raise UnknownPlace(f"there is no file {file_id} any more; the folders page shows all")
    return folder_of(row.root_id, file_id, row.path)


def path_of(conn: Connection, place: Place) -> bytes:
    """Return the absolute path of a folder, or of a manifest.

    Raises
    ------
    UnknownPlace
        It is gone, or it is made of a manifest's ids, which are no folder on disk.
    """
    meant = find(conn, place)
    inside = meant.folder.prefix[:-1]
    if not meant.folder.prefix:
        return meant.root
    if meant.kind != "manifest":
        return os.path.join(meant.root, inside)
    path = os.path.normpath(os.path.join(os.path.dirname(meant.root), inside or SEP))
    rest = meant.key[len(meant.folder.prefix) :]
    if os.path.normpath(os.path.join(path, rest)) != meant.source:
        raise UnknownPlace(
            f"{place} is made of ids and is no folder on disk: search within its manifest,"
            f" r{meant.folder.root_id}"
        )
    return path


def crumbs(conn: Connection, place: Place) -> tuple[Folder, ...]:
    """Return the folders that lead to a place: its root first, itself last; `UnknownPlace`."""
    meant = find(conn, place)
    above = [Folder(Place(root_id=meant.folder.root_id), meant.root)]
    if place.file_id is not None:
        names = meant.folder.prefix.split(SEP)[: place.depth]
        above += [
            Folder(Place(file_id=place.file_id, depth=depth), name or SEP)
            for depth, name in enumerate(names, 1)
        ]
    return tuple(above)


def roots(conn: Connection) -> tuple[Folder, ...]:
    """Return all roots in the order of their paths."""
    rows = conn.execute(select(Root.id, Root.path).order_by(Root.path)).all()
    return tuple(
        Folder(Place(root_id=row.id), row.path, found.cover(conn, found.Folder(row.id)))
        for row in rows
    )


def folders(
    conn: Connection, place: Place, after: int | None = None, limit: int = FOLDERS
) -> FolderPage:
    """Return the folders in a folder that hold a live file, in the order of their names as bytes.

    Parameters
    ----------
    conn
        Open transaction.
    place
        The folder.
    after
        Of the page before this one.
    limit
        Most folders.

    Raises
    ------
    UnknownPlace
        The place, or what ``after`` means in it, is gone.
    """
    folder = find(conn, place).folder
    page = found.subfolders(conn, folder, start_of(conn, folder, after), limit)
    return FolderPage(tuple(_shown(conn, folder, entry) for entry in page.entries), page.after)


def _shown(conn: Connection, folder: found.Folder, entry: found.Entry) -> Folder:
    inner = folder.inner(entry.path)
    place = Place(file_id=entry.file_id, depth=inner.prefix.count(SEP))
    name = inner.prefix[len(folder.prefix) : -1] or SEP
    return Folder(place, name, found.cover(conn, inner))


def start_of(
    conn: Connection, folder: found.Folder, after: int | None, *, below: bool = False
) -> bytes:
    """Return the path from which on a page begins; `UnknownPlace` where ``after`` is gone."""
    if after is None:
        return b""
    query = select(File.path, File.state).where(File.id == after, File.root_id == folder.root_id)
    file = conn.execute(query).first()
    if file is None or not file.path.startswith(folder.prefix):
        raise UnknownPlace(f"there is no file {after} in this folder any more; open it anew")
    # A folder whose first files are gone may have others.
    jumps = file.state == "live" and not below
    return folder.beyond(file.path) if jumps else file.path + b"\0"


def find(conn: Connection, place: Place) -> Found:
    """Return what a place means now; `UnknownPlace` where it is gone."""
    if place.file_id is None:
        query = select(Root.id, Root.path, Root.kind).where(Root.id == place.root_id)
        root = conn.execute(query).first()
        if root is not None:
            return Found(root.path, root.kind, found.Folder(root.id))
        raise UnknownPlace(f"there is no root {place.root_id} any more; the folders page shows all")
    file = conn.execute(
        select(File.root_id, File.path, File.source, Root.path.label("root"), Root.kind)
        .join(Root, Root.id == File.root_id)
        .where(File.id == place.file_id)
    ).first()
    if file is None or file.path.count(SEP) < place.depth:
        raise UnknownPlace(f"there is no folder {place} any more; the folders page shows all")
    prefix = b"".join(part + SEP for part in file.path.split(SEP)[: place.depth])
    return Found(file.root, file.kind, found.Folder(file.root_id, prefix), file.path, file.source)
