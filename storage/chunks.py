"""The chunks of pending files that runs claim; what is pending is said in ``storage.pending``."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, case, delete, exists, func, select

from storage.catalog import Catalog
from storage.database import insert_into
from storage.pending import Scope, in_scope, pending, quarantined, settled
from storage.runs import Lease, check_lease
from storage.spaces import SpaceInfo
from storage.tables import Claim, Failure, File, Image, Root, Run, Vector


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


def claims_of(lease: Lease, chunk: Chunk) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions for the claims of a chunk."""
    return (
        Claim.kind == "file",
        Claim.space_id == chunk.space_id,
        Claim.run_id == lease.run_id,
        Claim.chunk == chunk.number,
    )


def claim_chunk(  # noqa: PLR0913 -- three say where, four what
    catalog: Catalog,
    lease: Lease,
    space: SpaceInfo,
    *,
    number: int,
    limit: int,
    after_file_id: int = 0,
    scope: Scope | None = None,
    among: Sequence[int] | None = None,
    passed: list[int] | None = None,
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
    scope
        Only these files.
    among
        Only files with these ids, of those ``passed`` before.
    passed
        Receives the ids of files that were not taken, because another chunk has their image in
        work.

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
    query = pending(space, scope).where(~claimed).order_by(File.id).limit(limit)
    row = {"kind": "file", "space_id": space.id, "run_id": lease.run_id, "chunk": number}
    if among is not None:
        query = query.where(File.id.in_(among))
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
    catalog: Catalog, lease: Lease, space: SpaceInfo, scope: Scope | None = None
) -> int:
    """Count the files that other running runs have claimed in a space, of a scope or of all."""
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
    if scope is not None:
        query = (
            query.join(File, File.id == Claim.subject_id)
            .outerjoin(Image, Image.id == File.image_id)
            .where(*in_scope(scope, space))
        )
    with catalog.read() as conn:
        return conn.execute(query).scalar_one()


def give_back(catalog: Catalog, lease: Lease, chunk: Chunk) -> None:
    """Drop the claims of a chunk: its files are pending for everyone again."""
    with catalog.write() as conn:
        conn.execute(delete(Claim).where(*claims_of(lease, chunk)))


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
