"""The files that hold images, read in pages: copies of one another where the image is one.

A file counts while it is as it was when its bytes were hashed; one that changed since is left to
the next `lookalike index`, which will say what it holds.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy import ColumnElement, Select, case, func, select

from storage.catalog import Catalog
from storage.paths import files_at
from storage.pending import HASHED, SEEN
from storage.roots import find_root
from storage.scan import SEP
from storage.slices import pages, sliced
from storage.tables import File, Image, Root

_KEY = (File.image_id, File.seen_mtime_ns, File.first_seen_at, File.id)
"""The files of one image lie together, the oldest of them first."""


@dataclass(frozen=True, slots=True)
class Held:
    """One live file and the image in it."""

    image_id: int
    mtime_ns: int
    first_seen_at: float
    file_id: int
    digest: bytes
    """SHA-256 of its bytes."""
    size_bytes: int
    path: bytes
    """Absolute."""


class Files:
    """The live files of a catalog, or those of them at or below a path.

    Parameters
    ----------
    catalog
        Open, for reading at least.
    under
        Absolute path; None is everywhere.

    Raises
    ------
    RootError
        No root knows ``under``.
    """

    def __init__(self, catalog: Catalog, under: bytes | None = None) -> None:
        self.catalog = catalog
        self.under = under
        unchanged = (seen == hashed for seen, hashed in zip(SEEN, HASHED, strict=True))
        self._wanted: list[ColumnElement[bool]] = [File.state == "live", *unchanged]
        if under is not None:
            with catalog.read() as conn:
                place = files_at(conn, under)
                known = conn.execute(select(File.id).where(File.state == "live", place).limit(1))
                if known.first() is None:
                    find_root(catalog, under)
            # Hidden from the planner: SQLite, without statistics, would rather go through all files
            # of the place, each time anew, than look those of some images up.
            self._wanted.append(case((place, 1), else_=0) == 1)

    def of_images(self, images: Sequence[int]) -> Iterator[tuple[int, Iterator[Held]]]:
        """Yield each image that has such files with them, the oldest first.

        Oldest is what was modified first; of those the one that the index saw first.  Images come
        by their numbers, in whatever order they are asked for.  A file that several roots know, or
        several lines of a manifest, comes once.  As with `itertools.groupby`, the files of an image
        are gone once the next one is asked for.
        """
        for some in sliced(sorted(set(images))):
            query = self._query().where(File.image_id.in_(some))
            found = (_held(row) for page in pages(self.catalog, query, *_KEY) for row in page)
            for image, held in groupby(found, key=_image):
                yield image, _each_once(held)

    def repeated(self) -> Iterator[list[int]]:
        """Yield the images that more than one live file holds, wherever these lie, in pages.

        Some of these files may be left out by `of_images`: elsewhere, or changed since.
        """
        query = (
            select(File.image_id)
            .where(File.state == "live", File.image_id.is_not(None))
            .group_by(File.image_id)
            .having(func.count() > 1)
        )
        for page in pages(self.catalog, query, File.image_id):
            yield [row.image_id for row in page]

    def last_image(self) -> int:
        """Return the highest number of an image, 0 where there are none."""
        with self.catalog.read() as conn:
            return conn.execute(select(func.max(Image.id))).scalar() or 0

    def _query(self) -> Select[Any]:
        file = (Image.digest, Image.size_bytes, Root.path.label("root"), File.path, File.source)
        joined = File.__table__.join(Image.__table__, Image.id == File.image_id)
        joined = joined.join(Root.__table__, Root.id == File.root_id)
        return select(*_KEY, *file).select_from(joined).where(*self._wanted)


def _held(row: Any) -> Held:
    image_id, mtime_ns, first_seen_at, file_id, digest, size_bytes, root, path, source = row
    absolute = source or root.rstrip(SEP) + SEP + path
    return Held(image_id, mtime_ns, first_seen_at, file_id, digest, size_bytes, absolute)


def _each_once(held: Iterable[Held]) -> Iterator[Held]:
    """Yield the files of one image, each path the first time that it comes."""
    seen: set[bytes] = set()
    for each in held:
        if each.path not in seen:
            seen.add(each.path)
            yield each


def _image(held: Held) -> int:
    return held.image_id
