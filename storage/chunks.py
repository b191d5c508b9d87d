"""What is pending, as a query, and the chunks of it that runs claim.

A live file is pending in a space when its bytes must be read (never hashed, changed since, or too
young when they were hashed), or when they are known and their image has no vector there.  A file
whose read failed for good under this very signature, and an image that can't be decoded or passed
forward, wait for a changed file, a new decode version or ``lookalike retry``.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    case,
    delete,
    exists,
    func,
    or_,
    select,
    true,
)

from storage.catalog import Catalog
from storage.database import insert_into
from storage.roots import within
from storage.runs import Lease, check_lease
from storage.slices import sliced
from storage.spaces import SpaceInfo
from storage.tables import Claim, Failure, File, Image, Root, Run, Vector

Scope = Iterable[int | tuple[int, bytes]]
"""Root ids, or pairs of a root id and a relative path: that file, or what lies below it."""

SEEN = (File.seen_size_bytes, File.seen_mtime_ns, File.seen_ctime_ns, File.seen_inode)
HASHED = (File.digest_size_bytes, File.digest_mtime_ns, File.digest_ctime_ns, File.digest_inode)
FAILED = (Failure.size_bytes, Failure.mtime_ns, Failure.ctime_ns, Failure.inode)


@dataclass(frozen=True)
class Work:
    """One file to read.

    ``path`` is absolute; ``digest`` is None unless the bytes are known already and only the vector
    is missing; ``size_bytes`` is that of the last scan.
    """

    file_id: int
    path: bytes
    digest: bytes | None
    size_bytes: int


@dataclass(frozen=True)
class Chunk:
    """Files that a run has claimed in a space, in the order of their ids."""

    number: int
    space_id: int
    work: tuple[Work, ...]


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


def quarantined(decode_version: int, space_id: int) -> ColumnElement[bool]:
    """Return the condition that a failure for good stands between an image and its vector."""
    return and_(
        Failure.transient.is_not(true()),
        or_(
            and_(Failure.stage == "decode", Failure.decode_version == decode_version),
            and_(Failure.stage == "forward", Failure.space_id == space_id),
        ),
    )


def pending(space: SpaceInfo, scope: Scope | None = None) -> Select[Any]:
    """Return the query for pending files, joined to their images; it selects no column yet.

    Parameters
    ----------
    space
        Where vectors are missing.
    scope
        Only these roots and sub-paths; None is everything.
    """
    unreadable = exists().where(
        Failure.stage == "read",
        Failure.file_id == File.id,
        Failure.transient.is_not(true()),
        *(failed == seen for failed, seen in zip(FAILED, SEEN, strict=True)),
    )
    has_vector = exists().where(Vector.space_id == space.id, Vector.image_id == File.image_id)
    hopeless = exists().where(
        Failure.digest == Image.digest, quarantined(space.decode_version, space.id)
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
    return query if scope is None else query.where(_in_scope(scope))


def pending_counts(catalog: Catalog, space: SpaceInfo, roots: Scope | None = None) -> Pending:
    """Count what is pending in a space, with one query."""
    is_settled = settled()
    query = pending(space, roots).add_columns(
        func.count(case((~is_settled, 1))),
        func.count(case((is_settled, File.image_id)).distinct()),
        func.count(),
        func.coalesce(func.sum(File.seen_size_bytes), 0),
    )
    with catalog.read() as conn:
        to_read, to_extract, total, size = conn.execute(query).one()
    return Pending(to_read, to_extract, total, int(size))


def claim_chunk(  # noqa: PLR0913 -- three say where, four what
    catalog: Catalog,
    lease: Lease,
    space: SpaceInfo,
    *,
    number: int,
    limit: int,
    after_file_id: int = 0,
    roots: Scope | None = None,
) -> Chunk | None:
    """Claim the next pending files for a run; no two claims of a space share a file.

    Parameters
    ----------
    number
        Number of the chunk inside its run.
    limit
        Files of the chunk, at most.
    after_file_id
        The last file of the run's chunk before: a run that passes it on tries each file once,
        also one that stays pending because it is busy.
    roots
        Only these roots and sub-paths.

    Returns
    -------
    Chunk or None
        None when nothing is left after ``after_file_id`` that no one has claimed.

    Raises
    ------
    LeaseLost
        The run was declared dead.
    """
    claimed = exists().where(
        Claim.kind == "file", Claim.space_id == space.id, Claim.subject_id == File.id
    )
    query = pending(space, roots).where(~claimed).order_by(File.id).limit(limit)
    row = {"kind": "file", "space_id": space.id, "run_id": lease.run_id, "chunk": number}
    while True:
        # Looked up without a lock first: passing over a million files that are not pending takes
        # a second, in which nobody else should have to wait.
        with catalog.read() as conn:
            candidates = conn.execute(
                query.add_columns(File.id).where(File.id > after_file_id)
            ).scalars()
            ids = list(candidates)
        if not ids:
            return None
        with catalog.write() as conn:
            check_lease(conn, lease)
            work = _take(conn, query.where(File.id.between(ids[0], ids[-1])), row)
        if work:
            return Chunk(number, space.id, work)
        after_file_id = ids[-1]  # others were faster with all of these


def pending_elsewhere(
    catalog: Catalog, lease: Lease, space: SpaceInfo, roots: Scope | None = None
) -> int:
    """Count the files that other running runs have claimed in a space, of some roots or of all."""
    query = (
        select(func.count())
        .select_from(Claim)
        .join(Run, Run.id == Claim.run_id)
        .where(
            Claim.kind == "file",
            Claim.space_id == space.id,
            Claim.run_id != lease.run_id,
            Run.state == "running",
        )
    )
    if roots is not None:
        query = query.join(File, File.id == Claim.subject_id).where(_in_scope(list(roots)))
    with catalog.read() as conn:
        return conn.execute(query).scalar_one()


def give_back(catalog: Catalog, lease: Lease, file_ids: Iterable[int]) -> None:
    """Drop the run's claims of these files: they are pending for everyone again."""
    with catalog.write() as conn:
        for some in sliced(file_ids):
            conn.execute(
                delete(Claim).where(
                    Claim.kind == "file",
                    Claim.run_id == lease.run_id,
                    Claim.subject_id.in_(some),
                )
            )


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


def _in_scope(scope: Scope) -> ColumnElement[bool]:
    """Return the condition that a file lies in one of the roots or sub-paths."""
    # The sum keeps SQLite from taking the index of roots: it would sort the whole root for a
    # chunk, where going along the ids stops at the last file of it.
    root_id = File.root_id + 0
    scope = list(scope)
    whole = [item for item in scope if isinstance(item, int)]
    return or_(
        root_id.in_(whole),
        *(
            and_(root_id == item[0], within(File.path, item[1])) if item[1] else root_id == item[0]
            for item in scope
            if not isinstance(item, int)
        ),
    )


def _take(conn: Connection, query: Select[Any], row: dict[str, Any]) -> tuple[Work, ...]:
    """Claim what the query finds now, and return what became this run's."""
    found = conn.execute(
        query.join(Root, Root.id == File.root_id)
        .add_columns(
            File.id,
            Root.path,
            File.path,
            File.source,
            case((settled(), Image.digest)),
            File.seen_size_bytes,
        )
        .with_for_update(of=File, skip_locked=True)
    ).all()
    if not found:
        return ()
    # Postgres: a run that read before our neighbour's commit meets its claims only here.
    insert = insert_into(conn, Claim).on_conflict_do_nothing().returning(Claim.subject_id)
    rows = [{**row, "subject_id": item[0]} for item in found]
    mine = set(conn.execute(insert, rows).scalars())
    return tuple(
        Work(file_id, source or os.path.join(root, path), digest, size_bytes)
        for file_id, root, path, source, digest, size_bytes in found
        if file_id in mine
    )
