"""What lies in a folder, found by seeks in the index of paths.

The catalog has no folders, only files by root and path.  A seek finds the first file of the next
folder, whatever number of files lies in between; nothing walks over all files below a folder.  What
a seek can't jump over, files that have no live picture or none of the kind that is wanted, is
looked at one by one, and no more of it than `MOST_ROWS` for one page.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, exists, func, literal, select

from storage.roots import AFTER_SEP
from storage.scan import SEP
from storage.slices import sliced
from storage.tables import File, Vector

MOST_ROWS = 200_000
"""Files that the database looks at for one page of folders."""
MOST_PASSED = 100_000
"""Files that are passed by for one page of pictures; each seek counts as `SEEK` of them."""
SEEK = 50
_FEW = 8
_GROWTH = 8
_COVER_ROWS = 200


@dataclass(frozen=True, slots=True)
class Folder:
    """Those files of a root whose paths begin with ``prefix``: nothing, or what ends in ``/``."""

    root_id: int
    prefix: bytes = b""

    def beyond(self, path: bytes) -> bytes:
        """Return where what follows a path begins: the folder in here that holds it, or itself."""
        at = path.find(SEP, len(self.prefix))
        return path + b"\0" if at < 0 else path[:at] + AFTER_SEP

    def holds(self, path: bytes) -> bool:
        """Return whether a path lies directly in this folder, and in no other in here."""
        return path.find(SEP, len(self.prefix)) < 0

    def inner(self, path: bytes) -> "Folder":
        """Return the folder in here that holds a path; it must not lie directly in here."""
        return Folder(self.root_id, path[: path.index(SEP, len(self.prefix)) + 1])

    def rows(self, start: bytes) -> Select[Any]:
        """Return the query for all files from a path on, in the order of their paths."""
        files = select(File.id, File.path, File.image_id, File.state)
        files = files.where(File.root_id == self.root_id, File.path >= max(start, self.prefix))
        if self.prefix:
            files = files.where(File.path < self.prefix[:-1] + AFTER_SEP)
        return files.order_by(File.path)


@dataclass(frozen=True, slots=True)
class Entry:
    """A live file; ``path`` is relative to its root."""

    file_id: int
    path: bytes
    image_id: int | None


@dataclass(frozen=True, slots=True)
class Page:
    """Entries in the order of their paths.

    ``after`` is the file to go on after; None where there is nothing more.  There can be more where
    a page has no entry at all: then looking for one was given up.
    """

    entries: Sequence[Entry]
    after: int | None


def subfolders(conn: Connection, folder: Folder, start: bytes, limit: int) -> Page:
    """Return the first live file of each folder in a folder.

    Parameters
    ----------
    conn
        Open transaction.
    folder
        Where to look.
    start
        Only folders from this path on; ``b""`` is the beginning.
    limit
        Most folders.
    """
    entries: list[Entry] = []
    after, looked, span = None, 0, _FEW
    while looked < MOST_ROWS:
        looked += span
        found = _first_inside(conn, folder, start, span)
        if found is not None:
            if len(entries) == limit:
                return Page(entries, after)
            entries.append(found)
            after, start, span = found.file_id, folder.beyond(found.path), _FEW
            continue
        last = conn.execute(folder.rows(start).offset(span - 1).limit(1)).first()
        if last is None:
            return Page(entries, None)
        after, start = last.id, last.path + b"\0"
        span = min(span * _GROWTH, max(MOST_ROWS - looked, 1))
    return Page(entries, after)


def pictures(
    conn: Connection, folder: Folder, start: bytes, limit: int, *, below: bool = False
) -> Page:
    """Return the live files of a folder whose image is known.

    Parameters
    ----------
    conn, folder, start, limit
        As `subfolders`.
    below
        Those in folders inside as well, whatever their depth.
    """
    entries: list[Entry] = []
    after, passed, ask = None, 0, limit + 1
    while passed < MOST_PASSED:
        rows = conn.execute(folder.rows(start).limit(ask)).all()
        passed += len(rows) + SEEK
        ask = min(ask * _GROWTH, MOST_PASSED) if len(rows) == ask else 0
        for row in rows:
            if not below and not folder.holds(row.path):
                after, start, ask = row.id, folder.beyond(row.path), _FEW
                break
            if row.state == "live" and row.image_id is not None:
                if len(entries) == limit:
                    return Page(entries, after)
                entries.append(Entry(row.id, row.path, row.image_id))
            after, start = row.id, row.path + b"\0"
        if not ask:
            return Page(entries, None)
    return Page(entries, after)


def cover(conn: Connection, folder: Folder) -> int | None:
    """Return an image of one of the first files at or below a folder.

    It has a vector, so it could be decoded; None where none of them has.
    """
    seen = folder.rows(b"").limit(_COVER_ROWS).subquery()
    decoded = exists().where(Vector.image_id == seen.c.image_id)
    images = select(seen.c.image_id).where(seen.c.state == "live", decoded)
    return conn.execute(images.order_by(seen.c.path).limit(1)).scalar()


def with_vectors(conn: Connection, image_ids: Iterable[int]) -> set[int]:
    """Return those of some images that have a vector in any space: they could be decoded."""
    found: set[int] = set()
    for some in sliced(image_ids):
        found.update(
            conn.execute(select(Vector.image_id).where(Vector.image_id.in_(some))).scalars()
        )
    return found


def _first_inside(conn: Connection, folder: Folder, start: bytes, span: int) -> Entry | None:
    """Return the first live file in any folder inside, among the next ``span`` files."""
    seen = folder.rows(start).limit(span).subquery()
    inside = _at_separator(conn.dialect.name, seen.c.path, len(folder.prefix)) > 0
    query = select(seen.c.id, seen.c.path, seen.c.image_id).where(seen.c.state == "live", inside)
    row = conn.execute(query.order_by(seen.c.path).limit(1)).first()
    return Entry(*row) if row is not None else None


def _at_separator(dialect: str, path: Any, after: int) -> ColumnElement[int]:
    """Return the place of the first ``/`` behind so many bytes, 0 where there is none."""
    if dialect == "postgresql":
        rest = func.substring(path, after + 1)
        return func.position(literal(SEP).op("IN")(rest))
    return func.instr(func.substr(path, after + 1), SEP)
