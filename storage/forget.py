"""Remove images for good: their records, their vectors, and the files that held these."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, or_, select

from storage.before import lock_files
from storage.catalog import Catalog
from storage.cleanup import delete_old_files
from storage.compact import compact_unentered, lock_spaces, parts_with_unentered
from storage.errors import LeaseHeld, RootError
from storage.leases import Lease, check_lease
from storage.paths import files_at
from storage.publish import publish, withdraw
from storage.reading import open_store, snapshot
from storage.roots import display
from storage.runs import claim, release
from storage.slices import sliced
from storage.spaces import SpaceInfo, list_spaces
from storage.tables import Claim, Failure, File, Image, Vector


@dataclass(frozen=True)
class ForgetResult:
    """What was removed; ``vectors`` counts those that left the parts."""

    images: int
    files: int
    vectors: int
    unknown: bytes | None = None
    """A path where nothing is known; the vectors then are what an earlier one left over."""


@dataclass(frozen=True)
class _Removed:
    images: int = 0
    files: int = 0
    unknown: bytes | None = None
    """The first path where nothing is known."""
    refused: bool = False
    """Whether nothing was removed for that."""


def forget(catalog: Catalog, lease: Lease, paths: Sequence[bytes]) -> ForgetResult:
    """Remove the images at or below ``paths`` (absolute) for good, wherever else they lie.

    Every file that holds one of these images loses its record, the parts with their vectors are
    rewritten and the old files deleted at once, without the day that readers usually have.  The
    pictures themselves are not touched: one that still lies under a root is found again by the
    next scan, so delete or exclude it first.

    Killed in its middle, it leaves vectors in the parts that are no image's any more.  Every later
    call finishes that, whatever its paths.

    Raises
    ------
    RootError
        Nothing is known at or below a path, and nothing was left to finish.
    LeaseHeld
        Another run publishes, compacts or repairs a space, or has one of the images in work.
    PartError
        A part that would be rewritten is damaged; nothing was removed.
    """
    spaces = list_spaces(catalog)
    for space in spaces:
        claim(catalog, lease, "space", space.id, space.id)
    try:
        _refuse_damaged(catalog, spaces, paths)
        removed = _remove_records(catalog, lease, spaces, paths)
        dropped = {space.id: compact_unentered(catalog, lease, space) for space in spaces}
    finally:
        for space in spaces:
            release(catalog, lease, "space", space.id, space.id)
    _publish_again(catalog, lease, [space for space in spaces if dropped[space.id]])
    delete_old_files(catalog, lease, keep_s=0.0)
    _checkpoint(catalog)
    vectors = sum(dropped.values())
    if removed.unknown is not None and (removed.refused or not vectors):
        where = display(removed.unknown)
        raise RootError(f"nothing is known at {where}; `lookalike roots` lists roots")
    return ForgetResult(removed.images, removed.files, vectors, removed.unknown)


def _refuse_damaged(catalog: Catalog, spaces: Sequence[SpaceInfo], paths: Sequence[bytes]) -> None:
    """Look at every byte of the parts to be rewritten, while nothing is removed yet."""
    with catalog.read() as conn:
        rows = _rows(conn, _meant(conn, paths)[1])
        hit = [parts_with_unentered(conn, space, rows.get(space.id, ())) for space in spaces]
    for space, parts in zip(spaces, hit, strict=True):
        store = open_store(catalog, space)
        for part in parts:
            store.refuse_damaged(part)


def _remove_records(
    catalog: Catalog, lease: Lease, spaces: Sequence[SpaceInfo], paths: Sequence[bytes]
) -> _Removed:
    with catalog.write() as conn:
        check_lease(conn, lease)
        lock_spaces(conn)
        if catalog.dialect == "sqlite":  # freed pages keep no copy of what stood there
            conn.exec_driver_sql("PRAGMA secure_delete = ON")
        files, images, unknown = _meant(conn, paths)
        if unknown is not None and (
            files or not any(parts_with_unentered(conn, each) for each in spaces)
        ):
            return _Removed(unknown=unknown, refused=True)  # mistyped: the other paths wait too
        _refuse_in_work(conn, files, images)
        rows = _rows(conn, images)
        removed = _remove(conn, files, images)
        for space_id in rows:  # the indexes hold forgotten vectors in coded form
            withdraw(conn, space_id, catalog.now(conn))
    return _Removed(len(images), removed, unknown)


def _refuse_in_work(conn: Connection, files: Sequence[int], images: Sequence[int]) -> None:
    """Refuse what a run has read and will commit: it would be there again at once, for good."""
    lock_files(conn, files)  # nobody claims one of them now
    for kind, subjects in (("file", files), ("image", images)):
        for some in sliced(subjects):
            claimed = (Claim.kind == kind, Claim.subject_id.in_(some))
            holder = conn.execute(select(Claim.run_id).where(*claimed).limit(1)).scalar()
            if holder is not None:
                raise LeaseHeld(
                    f"run {holder} has some of these images in work; "
                    "wait for it to end, or stop it, then forget them"
                )


def _meant(conn: Connection, paths: Sequence[bytes]) -> tuple[list[int], list[int], bytes | None]:
    """Return the files at or below the paths, the images that they held, and an unknown path."""
    files: set[int] = set()
    images: set[int] = set()
    unknown = None
    for path in paths:
        found = conn.execute(select(File.id, File.image_id).where(files_at(conn, path))).all()
        if not found and unknown is None:
            unknown = path
        files |= {row.id for row in found}
        images |= {row.image_id for row in found if row.image_id is not None}
    return sorted(files), sorted(images), unknown


def _rows(conn: Connection, images: Sequence[int]) -> dict[int, list[int]]:
    rows: dict[int, list[int]] = {}
    for ids in sliced(images):
        query = select(Vector.space_id, Vector.row).where(Vector.image_id.in_(ids))
        for space_id, row in conn.execute(query):
            rows.setdefault(space_id, []).append(row)
    return rows


def _remove(conn: Connection, files: Sequence[int], images: Sequence[int]) -> int:
    """Delete every record of the files and images; return how many files."""
    removed = 0
    for ids in sliced(images):
        digests = select(Image.digest).where(Image.id.in_(ids))
        holders = select(File.id).where(File.image_id.in_(ids))
        conn.execute(
            delete(Failure).where(or_(Failure.digest.in_(digests), Failure.file_id.in_(holders)))
        )
        conn.execute(delete(Vector).where(Vector.image_id.in_(ids)))
        removed += conn.execute(delete(File).where(File.image_id.in_(ids))).rowcount
        conn.execute(delete(Image).where(Image.id.in_(ids)))
    for ids in sliced(files):
        conn.execute(delete(Failure).where(Failure.file_id.in_(ids)))
        removed += conn.execute(delete(File).where(File.id.in_(ids))).rowcount
    return removed


def _publish_again(catalog: Catalog, lease: Lease, spaces: Sequence[SpaceInfo]) -> None:
    for space in spaces:
        view = snapshot(catalog, space)
        if view.n and view.generation is None:
            publish(catalog, lease, space)


def _checkpoint(catalog: Catalog) -> None:
    """Write SQLite's log back into the file and empty it: it holds pages as they were."""
    if catalog.dialect == "sqlite":
        with catalog.engine.connect() as conn:
            conn.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
