"""What the catalog says about images: the row of a digest, the live files of an image."""

import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, and_, bindparam, func, select

from storage.listed import binding, listed
from storage.paths import files_at
from storage.prepared import Prepared
from storage.roots import inside
from storage.slices import sliced
from storage.tables import File, Image, Part, Root, Space, Vector

_AT_ONCE = 50_000
"""Images looked up by one statement."""


@dataclass(frozen=True, slots=True)
class Known:
    """An image that has a vector in a space."""

    image_id: int
    row: int


class Holder(NamedTuple):
    """A live file that holds an image; ``path`` is absolute, id and label are a manifest's."""

    root: bytes
    """Path of the directory or manifest that knows it."""
    path: bytes
    id: str | None
    label: str | None

    def is_at(self, places: Iterable[bytes]) -> bool:
        """Return whether the file is at or below any of some `spellings`, or in such a manifest."""
        return any(self.root == at or self.path == at or inside(self.path, at) for at in places)


def spellings(places: Iterable[bytes]) -> tuple[bytes, ...]:
    """Return absolute paths as they are written, and as symbolic links resolve them."""
    both = ((os.path.abspath(place), os.path.realpath(place)) for place in places)
    return tuple(dict.fromkeys(itertools.chain.from_iterable(both)))


def known_images(conn: Connection, space_id: int, digests: Iterable[bytes]) -> dict[bytes, Known]:
    """Return the images of these SHA-256 digests that have a vector in the space, by digest."""
    query = (
        select(Image.digest, Image.id, Vector.row)
        .join(Vector, Vector.image_id == Image.id)
        .where(Vector.space_id == space_id)
    )
    found: dict[bytes, Known] = {}
    for some in sliced(set(digests)):
        for digest, image_id, row in conn.execute(query.where(Image.digest.in_(some))):
            found[digest] = Known(image_id, row)
    return found


def rows_of(conn: Connection, space_id: int, image_ids: Iterable[int]) -> dict[int, int]:
    """Return image id -> row of those images that have a vector in the space."""
    found: dict[int, int] = {}
    for some in sliced(image_ids, _AT_ONCE):
        asked = _ROWS_OF.rows(conn, space_id=space_id, **binding(conn, some))
        found.update((image, row) for image, row in asked if row is not None)
    return found


def _rows_of(dialect: str) -> Select[Any]:
    wanted = listed(dialect)
    of_image = (Vector.space_id == bindparam("space_id"), Vector.image_id == wanted.c.value)
    row = select(Vector.row).where(*of_image).correlate(wanted).scalar_subquery()
    return select(wanted.c.value, row)


_ROWS_OF = Prepared(_rows_of)


def space_number(conn: Connection, name: str | None) -> int | None:
    """Return the id of the space of this name, or of the current one; None without any."""
    found = _CURRENT.rows(conn) if name is None else _NAMED.rows(conn, name=name)
    return found[0][0] if found else None


_CURRENT = Prepared(lambda _: select(Space.id).where(Space.current))
_NAMED = Prepared(lambda _: select(Space.id).where(Space.name == bindparam("name")))


def vectors_in(conn: Connection, space_id: int) -> int:
    """Return how many vectors the parts of a space hold, dead ones included.

    At once, whatever their number: whoever watches a server asks every few seconds.
    """
    n = select(func.coalesce(func.sum(Part.n), 0))
    return int(conn.execute(n.where(Part.space_id == space_id, Part.state == "live")).scalar_one())


def is_known(conn: Connection, path: bytes) -> bool:
    """Return whether any root knows a live file at or below an absolute path."""
    query = select(File.id).where(File.state == "live", files_at(conn, path)).limit(1)
    return conn.execute(query).first() is not None


class Living:
    """Which rows live, asked by the search, and by the same statement the files that hold them.

    Attributes
    ----------
    files
        Image id -> its live files in the order of their paths.
    """

    def __init__(self, conn: Connection, space_id: int) -> None:
        self._conn = conn
        self._space_id = space_id
        self.files: dict[int, list[Holder]] = {}

    def __call__(self, rows: Iterable[int]) -> dict[int, int]:
        """Return row -> image id of those ``rows`` whose image has a live file."""
        living: dict[int, int] = {}
        files: dict[int, list[Holder]] = {}
        for some in sliced(rows, _AT_ONCE):
            asked = binding(self._conn, some)
            found = _HOLDERS.rows(self._conn, space_id=self._space_id, **asked)
            for row, image_id, root, *file in found:
                if root is not None:
                    living[row] = image_id
                    files.setdefault(image_id, []).append(_holder(root, *file))
        for held in files.values():
            if len(held) > 1:
                held.sort(key=lambda holder: holder.path)
        self.files |= files
        return living


def _holder(root: bytes, kind: str, key: bytes, source: bytes | None, label: str | None) -> Holder:
    name = os.fsdecode(key) if kind == "manifest" else None
    return Holder(root, source or _joined(root, key), name, label)


def _joined(root: bytes, path: bytes) -> bytes:
    """Return what ``os.path.join`` does, in a third of its time; the path is relative."""
    return root + path if root.endswith(b"/") else b"%b/%b" % (root, path)


def _holders(dialect: str) -> Select[Any]:
    wanted = listed(dialect)
    of_row = and_(Vector.space_id == bindparam("space_id"), Vector.row == wanted.c.value)
    holds = and_(File.image_id == Vector.image_id, File.state == "live")
    # Outer joins keep their order: SQLite, which has no statistics, takes any other one too.
    joined = wanted.outerjoin(Vector, of_row).outerjoin(File, holds)
    joined = joined.outerjoin(Root, Root.id == File.root_id)
    file = (Root.path, Root.kind, File.path, File.source, File.label)
    return select(wanted.c.value, Vector.image_id, *file).select_from(joined)


_HOLDERS = Prepared(_holders)
