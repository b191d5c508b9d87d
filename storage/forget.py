"""Remove images for good: their records, their vectors, and the files that held these."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, or_, select

from storage.catalog import Catalog
from storage.cleanup import delete_old_files
from storage.compact import compact_rows
from storage.errors import RootError
from storage.paths import files_at
from storage.publish import publish, withdraw
from storage.reading import snapshot
from storage.roots import display
from storage.runs import Lease, check_lease, claim, release
from storage.slices import sliced
from storage.spaces import SpaceInfo, list_spaces
from storage.tables import Failure, File, Image, Vector


@dataclass(frozen=True)
class ForgetResult:
    """What was removed."""

    images: int
    files: int
    vectors: int


def forget(catalog: Catalog, lease: Lease, paths: Sequence[bytes]) -> ForgetResult:
    """Remove the images at or below ``paths`` (absolute) for good, wherever else they lie.

    Every file that holds one of these images loses its record, the parts with their vectors are
    rewritten and the old files deleted at once, without the day that readers usually have.  The
    pictures themselves are not touched: one that still lies under a root is found again by the
    next scan, so delete or exclude it first.

    Raises
    ------
    RootError
        Nothing is known at or below a path.
    LeaseHeld
        Another run publishes, compacts or repairs a space.
    """
    spaces = list_spaces(catalog)
    for space in spaces:
        claim(catalog, lease, "space", space.id, space.id)
    try:
        with catalog.write() as conn:
            check_lease(conn, lease)
            if catalog.dialect == "sqlite":  # freed pages keep no copy of what stood there
                conn.exec_driver_sql("PRAGMA secure_delete = ON")
            files, images = _meant(conn, paths)
            rows = _rows(conn, images)
            removed = _remove(conn, files, images)
            for space_id in rows:  # the indexes hold forgotten vectors in coded form
                withdraw(conn, space_id, catalog.now(conn))
        for space in spaces:
            if rows.get(space.id):
                compact_rows(catalog, lease, space, rows[space.id])
    finally:
        for space in spaces:
            release(catalog, lease, "space", space.id, space.id)
    _publish_again(catalog, lease, [space for space in spaces if rows.get(space.id)])
    delete_old_files(catalog, lease, keep_s=0.0)
    _checkpoint(catalog)
    return ForgetResult(len(images), removed, sum(map(len, rows.values())))


def _meant(conn: Connection, paths: Sequence[bytes]) -> tuple[list[int], list[int]]:
    """Return the files at or below the paths, and the images that they held."""
    files: set[int] = set()
    images: set[int] = set()
    for path in paths:
        query = select(File.id, File.image_id).where(files_at(conn, path))
        found = conn.execute(query).all()
        if not found:
            raise RootError(f"nothing is known at {display(path)}; `lookalike roots` lists roots")
        files |= {row.id for row in found}
        images |= {row.image_id for row in found if row.image_id is not None}
    return sorted(files), sorted(images)


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
        if snapshot(catalog, space).n:
            publish(catalog, lease, space)


def _checkpoint(catalog: Catalog) -> None:
    """Write SQLite's log back into the file and empty it: it holds pages as they were."""
    if catalog.dialect == "sqlite":
        with catalog.engine.connect() as conn:
            conn.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
