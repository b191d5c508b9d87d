"""What is pending, as a query, and which of it a run is about.

A live file is pending in a space when its bytes must be read (never hashed, changed since, or too
young when they were hashed), or when they are known and their image has no vector there.  A file
whose read failed for good under this very signature, and an image that can't be decoded or passed
forward, wait for a changed file, a new decode version or ``lookalike retry``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, exists, false, func, or_, select, true
from sqlalchemy.orm import aliased

from storage.catalog import Catalog
from storage.excludes import Globs
from storage.roots import within
from storage.slices import pages
from storage.spaces import SpaceInfo
from storage.tables import Failure, File, Image, Vector

SEEN = (File.seen_size_bytes, File.seen_mtime_ns, File.seen_ctime_ns, File.seen_inode)
HASHED = (File.digest_size_bytes, File.digest_mtime_ns, File.digest_ctime_ns, File.digest_inode)
FAILED = (Failure.size_bytes, Failure.mtime_ns, Failure.ctime_ns, Failure.inode)


@dataclass(frozen=True)
class Scope:
    """Which files a run is about; every condition narrows.  False where there is no place."""

    places: tuple[tuple[int, bytes], ...] | None = None
    """Root id, and a relative path: that file or what lies below it, ``b""`` for the whole root.
    None is everywhere."""
    globs: tuple[str, ...] = ()
    """The file's path below its root, or its key in a manifest, is one that ``excludes.Globs``
    means.  SQL can't tell, so whoever asks the catalog for files holds them against these."""
    since_ns: int | None = None
    """Last modified then or later, by the last scan."""
    until_ns: int | None = None
    """Last modified before."""
    failed: bool = False
    """A failure is recorded that keeps the file out of the space, or did until it was armed."""

    def __bool__(self) -> bool:
        """Say whether there is any place where files could be."""
        return self.places != ()


@dataclass(frozen=True)
class Pending:
    """How much is pending in a space.

    ``to_read`` files must be read to know their content, ``to_extract`` distinct images are known
    and have no vector.  ``total`` files would be claimed, with ``bytes`` bytes.
    """

    to_read: int
    to_extract: int
    total: int
    bytes: int


def settled() -> ColumnElement[bool]:
    """Return the condition that a file's bytes are known as they are now."""
    same = [seen == hashed for seen, hashed in zip(SEEN, HASHED, strict=True)]
    # The two that are not null come first: what is compared with null is neither true nor false.
    read = (File.image_id.is_not(None), File.digest_size_bytes.is_not(None))
    return and_(*read, File.trusted.is_(true()), *same)


def keeps_out(decode_version: int, space_id: int) -> ColumnElement[bool]:
    """Return the condition that a failure is about a digest, and about having it in a space."""
    return or_(
        and_(Failure.stage == "decode", Failure.decode_version == decode_version),
        and_(Failure.stage == "forward", Failure.space_id == space_id),
    )


def quarantined(decode_version: int, space_id: int) -> ColumnElement[bool]:
    """Return the condition that a failure for good stands between an image and its vector."""
    return and_(Failure.transient.is_not(true()), keeps_out(decode_version, space_id))


def pending(space: SpaceInfo, scope: Scope | None = None) -> Select[Any]:
    """Return the query for pending files, joined to their images; it selects no column yet.

    Parameters
    ----------
    space
        Where vectors are missing.
    scope
        Only these files, whatever the globs; None is everything.
    """
    unreadable = exists().where(
        Failure.stage == "read",
        Failure.file_id == File.id,
        Failure.transient.is_not(true()),
        *(failed == seen for failed, seen in zip(FAILED, SEEN, strict=True)),
    )
    has_vector = exists().where(Vector.space_id == space.id, Vector.image_id == File.image_id)
    # It finds the image by itself: so SQLite joins only those that are pending, not every file's.
    held = aliased(Image)
    hopeless = exists().where(
        held.id == File.image_id,
        Failure.digest == held.digest,
        quarantined(space.decode_version, space.id),
    )
    query = (
        select()
        .select_from(File)
        .outerjoin(Image, Image.id == File.image_id)
        .where(
            File.state == "live",
            or_(~settled(), and_(~has_vector, ~hopeless)),
            ~unreadable,
        )
    )
    return query if scope is None else query.where(*in_scope(scope, space))


def in_scope(scope: Scope, space: SpaceInfo) -> Iterator[ColumnElement[bool]]:
    """Yield the conditions for a file joined to its image, those of the globs left out."""
    yield from placed(scope)
    if scope.failed:
        yield or_(
            exists().where(Failure.stage == "read", Failure.file_id == File.id),
            exists().where(
                Failure.digest == Image.digest, keeps_out(space.decode_version, space.id)
            ),
        )


def placed(scope: Scope) -> Iterator[ColumnElement[bool]]:
    """Yield the conditions for where a file lies and how old it is."""
    if scope.places is not None:
        yield _in_places(scope.places)
    if scope.since_ns is not None:
        yield File.seen_mtime_ns >= scope.since_ns
    if scope.until_ns is not None:
        yield File.seen_mtime_ns < scope.until_ns


def pending_counts(catalog: Catalog, space: SpaceInfo, scope: Scope | None = None) -> Pending:
    """Count what is pending in a space: with one query, or in pages where there are globs.

    Raises
    ------
    RootError
        A glob is empty.
    """
    if scope is not None and scope.globs:
        return _counted_in_pages(catalog, space, scope)
    is_settled = settled()
    query = pending(space, scope).add_columns(
        func.count(case((~is_settled, 1))),
        func.count(case((is_settled, File.image_id)).distinct()),
        func.count(),
        func.coalesce(func.sum(File.seen_size_bytes), 0),
    )
    with catalog.read() as conn:
        to_read, to_extract, total, size = conn.execute(query).one()
    return Pending(to_read, to_extract, total, int(size))


def live_files(catalog: Catalog, scope: Scope, space: SpaceInfo | None = None) -> int:
    """Count the live files of a scope, with or without a vector.

    Parameters
    ----------
    scope
        Which files.
    space
        Where ``scope.failed`` looks for failures; None looks for none.

    Raises
    ------
    RootError
        A glob is empty.
    """
    conditions = placed(scope) if space is None else in_scope(scope, space)
    query = select().select_from(File).outerjoin(Image, Image.id == File.image_id)
    query = query.where(File.state == "live", *conditions)
    if not scope.globs:
        with catalog.read() as conn:
            return int(conn.execute(query.add_columns(func.count())).scalar_one())
    globs = Globs(scope.globs)
    named = query.add_columns(File.id, File.path)
    return sum(globs.match(path) for rows in pages(catalog, named, File.id) for _, path in rows)


def known_digest(catalog: Catalog, space: SpaceInfo, digest: bytes) -> str:
    """Say what a space knows of a content.

    Returns
    -------
    str
        ``vector``: it has one.  ``failed``: it can't have one with this decode version or in this
        space.  ``unknown``: it is worth decoding.
    """
    vector = (
        select(Vector.row)
        .join(Image, Image.id == Vector.image_id)
        .where(Image.digest == digest, Vector.space_id == space.id)
    )
    failure = select(Failure.id).where(
        Failure.digest == digest, quarantined(space.decode_version, space.id)
    )
    with catalog.read() as conn:
        if conn.execute(vector).first() is not None:
            return "vector"
        return "unknown" if conn.execute(failure).first() is None else "failed"


def _counted_in_pages(catalog: Catalog, space: SpaceInfo, scope: Scope) -> Pending:
    globs, met = Globs(scope.globs), bytearray()  # a bit for each image: copies lie far apart
    to_read = to_extract = total = size = 0
    image = case((settled(), File.image_id))
    query = pending(space, scope).add_columns(File.id, File.path, File.seen_size_bytes, image)
    for rows in pages(catalog, query, File.id):
        for _, path, size_bytes, image_id in rows:
            if globs.match(path):
                total, size = total + 1, size + size_bytes
                to_read += image_id is None
                to_extract += image_id is not None and _is_new(met, image_id)
    return Pending(to_read, to_extract, total, size)


def _is_new(met: bytearray, number: int) -> bool:
    """Say whether a number is met for the first time, and remember it."""
    place, bit = number >> 3, 1 << (number & 7)
    if place >= len(met):
        met.extend(bytes(place + 1 - len(met) + len(met) // 2))
    new = not met[place] & bit
    met[place] |= bit
    return new


def _in_places(places: tuple[tuple[int, bytes], ...]) -> ColumnElement[bool]:
    # The sum keeps SQLite from taking the index of roots: it would sort the whole root for a
    # chunk, where going along the ids stops at the last file of it.
    root_id = File.root_id + 0
    whole = [root for root, under in places if not under]
    below = [and_(root_id == root, within(File.path, under)) for root, under in places if under]
    return or_(root_id.in_(whole) if whole else false(), *below)
