"""The chunks of pending files that runs claim; what is pending is said in ``storage.pending``."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Exists,
    Select,
    and_,
    case,
    delete,
    exists,
    func,
    or_,
    select,
    union,
)
from sqlalchemy.orm import InstrumentedAttribute

from storage.catalog import Catalog
from storage.database import insert_into
from storage.errors import LeaseLost
from storage.excludes import Globs
from storage.leases import Lease, check_lease
from storage.pending import Scope, in_scope, pending, settled
from storage.slices import PAGE, pages, sliced
from storage.spaces import SpaceInfo
from storage.suspects import suspected
from storage.tables import Claim, File, Image, Root, Run


@dataclass(frozen=True)
class Work:
    """One file to read.

    ``path`` is absolute; ``digest`` is None unless the bytes are known already and only the vector
    is missing; ``size_bytes`` is that of the last scan.  ``inside`` is the directory that was
    scanned, below which no symbolic link is followed; None where a manifest names the file.
    ``suspect`` files are to be decoded with care (``storage.suspects``).
    """

    file_id: int
    path: bytes
    digest: bytes | None
    size_bytes: int
    inside: bytes | None = None
    suspect: bool = False


@dataclass(frozen=True)
class Chunk:
    """Files that a run has claimed in a space, in the order of their ids."""

    number: int
    space_id: int
    work: tuple[Work, ...]


def claims_of(lease: Lease, chunk: Chunk) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions for the claims of a chunk: its files, and their known images."""
    return (
        Claim.kind.in_(("file", "image")),
        Claim.space_id == chunk.space_id,
        Claim.run_id == lease.run_id,
        Claim.chunk == chunk.number,
    )


def claim_chunk(  # noqa: PLR0913 -- three say where, six what
    catalog: Catalog,
    lease: Lease,
    space: SpaceInfo,
    *,
    number: int,
    limit: int,
    after_file_id: int = 0,
    scope: Scope | None = None,
    among: Sequence[int] | None = None,
    sparing: bool = False,
    passed: list[int] | None = None,
) -> Chunk | None:
    """Claim the next pending files for a run; no two chunks of a space share a file.

    Nor do they share an image that files are known to hold: it is claimed with the first of them,
    and its other files are taken in the same chunk or left alone until that one is done.

    Parameters
    ----------
    number
        Number of the chunk inside its run, not used before.
    limit
        Files of the chunk, at most.
    after_file_id
        The last file of the run's chunk before: a run that passes it on tries each file once,
        also one that stays pending because it is busy.
    scope
        Only these files.
    among
        Only files with these ids: those that were ``passed`` before, in any order.
    sparing
        Leave suspect files alone.
    passed
        Receives the ids of pending files that were met and not taken, because another chunk has
        their image in work, because somebody was faster, or because they are suspect; an id can
        come twice.

    Returns
    -------
    Chunk or None
        None when nothing is left after ``after_file_id`` that no one has claimed.

    Raises
    ------
    LeaseLost
        The run was declared dead.
    RootError
        A glob of the scope is empty.
    """
    passed = [] if passed is None else passed
    free = File.id > after_file_id, ~_claimed("file", space, File.id)
    query = pending(space, scope).where(*free)
    looks = [query]
    if among is not None:
        looks = [query.where(File.id.in_(some)) for some in sliced(sorted(set(among)))]
    # Looked up without a lock first: passing over a million files that are not pending takes a
    # second, in which nobody else should have to wait.
    globs = scope.globs if scope else ()
    in_work = and_(settled(), _claimed("image", space, File.image_id))
    shunned = or_(in_work, suspected()) if sparing else in_work
    found = _look(catalog, looks, shunned, globs, passed, PAGE if globs else limit)
    while ids := list(islice(found, limit)):
        with catalog.write() as conn:
            check_lease(conn, lease)
            chunk = _take(conn, lease, Chunk(number, space.id, ()), query, ids)
        mine = {item.file_id for item in chunk.work}
        passed.extend(file_id for file_id in ids if file_id not in mine)
        if mine:
            return chunk
    return None


def still_claimed(catalog: Catalog, lease: Lease, chunk: Chunk) -> Chunk | None:
    """Return the chunk with those of its files that the run still has claimed for it.

    None where there are none, because the chunk was committed or given back already: to carry out
    an order twice then costs nothing.
    """
    query = select(Claim.kind, Claim.subject_id).where(*claims_of(lease, chunk))
    with catalog.read() as conn:
        claims = conn.execute(query).all()
    held = {subject_id for kind, subject_id in claims if kind == "file"}
    work = tuple(item for item in chunk.work if item.file_id in held)
    if work:
        return replace(chunk, work=work)
    if claims and not held:  # the files went with their root; nobody will commit their images
        give_back(catalog, lease, chunk)
    return None


def give_back(catalog: Catalog, lease: Lease, chunk: Chunk) -> None:
    """Drop the claims of a chunk: its files are pending for everyone again.

    Nothing happens where the lease is lost: the claims went with it.
    """
    with suppress(LeaseLost), catalog.write() as conn:
        check_lease(conn, lease)  # Postgres: locks the run before its claims, as `reap` does
        conn.execute(delete(Claim).where(*claims_of(lease, chunk)))


def pending_elsewhere(
    catalog: Catalog, lease: Lease, space: SpaceInfo, scope: Scope | None = None
) -> int:
    """Count the files of a scope, or all, that wait for other running runs.

    These have claimed them in the space, or an image that they are known to hold.
    """
    foreign = (
        Claim.space_id == space.id,
        Claim.run_id != lease.run_id,
        exists().where(Run.id == Claim.run_id, Run.state == "running"),
    )
    ways = (
        and_(Claim.kind == "file", Claim.subject_id == File.id),
        and_(Claim.kind == "image", Claim.subject_id == File.image_id, settled()),
    )
    files = select(File.id, File.path).select_from(Claim).where(*foreign, File.state == "live")
    if scope is not None:
        files = files.where(*in_scope(scope, space))
    found = union(
        *(files.join(File, way).outerjoin(Image, Image.id == File.image_id) for way in ways)
    )
    globs = Globs(scope.globs if scope else ())
    with catalog.read() as conn:
        if not globs:
            return conn.execute(select(func.count()).select_from(found.subquery())).scalar_one()
        return sum(globs.match(path) for _, path in conn.execute(found))


def _claimed(kind: str, space: SpaceInfo, subject: InstrumentedAttribute[Any]) -> Exists:
    claimed = (Claim.kind == kind, Claim.space_id == space.id, Claim.subject_id == subject)
    return exists().where(*claimed)


def _look(
    catalog: Catalog,
    looks: Iterable[Select[Any]],
    shunned: ColumnElement[bool],
    globs: Sequence[str],
    passed: list[int],
    page: int,
) -> Iterator[int]:
    """Yield the files that can be claimed, by id; those that are shunned are passed."""
    wanted = Globs(globs)
    for query in looks:
        columns = query.add_columns(File.id, File.path, shunned)
        for rows in pages(catalog, columns, File.id, size=page):
            for file_id, path, shun in rows:
                if not wanted.match(path):
                    continue
                if shun:
                    passed.append(file_id)
                else:
                    yield file_id


def _take(
    conn: Connection, lease: Lease, chunk: Chunk, query: Select[Any], ids: Sequence[int]
) -> Chunk:
    """Claim for a chunk those files that the query still finds, and return it with them."""
    columns = (File.id, Root.path, File.path, File.source, File.seen_size_bytes)
    known = (suspected(), case((settled(), Image.digest)), case((settled(), File.image_id)))
    query = query.join(Root, Root.id == File.root_id).add_columns(*columns, *known)
    query = query.order_by(File.id).with_for_update(of=File, skip_locked=True)
    found = [row for some in sliced(ids) for row in conn.execute(query.where(File.id.in_(some)))]
    # Postgres: a run that read before our neighbour's commit meets its claims only here.  All
    # insert in one order, images and then files by their ids, so that no two wait for each other.
    images = _insert(conn, lease, chunk, "image", {row[-1] for row in found} - {None})
    free = [row for row in found if row[-1] is None or row[-1] in images]
    files = _insert(conn, lease, chunk, "file", {row[0] for row in free})
    if not files:  # nobody will commit the images
        conn.execute(delete(Claim).where(*claims_of(lease, chunk)))
    work = tuple(
        _work(file_id, (root, path, source), digest, size_bytes, suspect=bool(suspect))
        for file_id, root, path, source, size_bytes, suspect, digest, _ in free
        if file_id in files
    )
    return replace(chunk, work=work)


def _work(
    file_id: int,
    place: tuple[bytes, bytes, bytes | None],
    digest: bytes | None,
    size_bytes: int,
    *,
    suspect: bool,
) -> Work:
    root, path, source = place
    if source is not None:
        return Work(file_id, source, digest, size_bytes, None, suspect)
    return Work(file_id, os.path.join(root, path), digest, size_bytes, root, suspect)


def _insert(
    conn: Connection, lease: Lease, chunk: Chunk, kind: str, subjects: Iterable[int]
) -> set[int]:
    """Claim for a chunk what is free, and return it."""
    claim = {"kind": kind, "space_id": chunk.space_id}
    claim |= {"run_id": lease.run_id, "chunk": chunk.number}
    rows = [{**claim, "subject_id": subject} for subject in sorted(subjects)]
    if not rows:
        return set()
    insert = insert_into(conn, Claim).on_conflict_do_nothing().returning(Claim.subject_id)
    return set(conn.execute(insert, rows).scalars())
