"""Recorded reasons why an image has no vector: listed, counted and armed again.

``read`` is about a file under one signature, ``decode`` about a digest and the decode version,
``forward`` about a digest in one space.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    delete,
    exists,
    false,
    func,
    or_,
    select,
    true,
    update,
)

from storage.catalog import Catalog
from storage.excludes import Globs
from storage.paths import files_at
from storage.pending import Scope, keeps_out, placed
from storage.slices import pages, sliced
from storage.spaces import SpaceInfo
from storage.suspects import POISON
from storage.tables import Failure, File, Image, Root


@dataclass(frozen=True)
class FailureInfo:
    """One failure, with the first live file that it is about.

    ``path`` is absolute; ``copies`` counts the live files, of which a bad picture can have several.
    Times are seconds since 1970.
    """

    path: bytes
    copies: int
    stage: str
    failure_class: str
    message: str
    transient: bool
    attempts: int
    first_at: float
    last_at: float


def list_failures(
    catalog: Catalog,
    space: SpaceInfo | None = None,
    limit: int = 100,
    *,
    run_id: str | None = None,
) -> list[FailureInfo]:
    """Return the latest failures that concern a live file.

    Parameters
    ----------
    space
        Only what keeps a file out of this space; None is everything recorded.
    limit
        Most failures.
    run_id
        Only those whose latest attempt was this run's.
    """
    query = select(*Failure.__table__.c).where(_concerns(space))
    if run_id is not None:
        query = query.where(Failure.run_id == run_id)
    query = query.order_by(Failure.last_at.desc(), Failure.id.desc()).limit(limit)
    with catalog.read() as conn:
        failures = conn.execute(query).all()
        of_file = _paths(conn, [row.file_id for row in failures if row.stage == "read"])
        of_digest = _holders(conn, [row.digest for row in failures if row.stage != "read"])
        paths = _paths(conn, [file_id for file_id, _ in of_digest.values()])
    infos = []
    for row in failures:
        file_id, copies = (row.file_id, 1) if row.stage == "read" else of_digest[row.digest]
        infos.append(
            FailureInfo(
                path=of_file[file_id] if row.stage == "read" else paths[file_id],
                copies=copies,
                stage=row.stage,
                failure_class=row.failure_class,
                message=row.message,
                transient=row.transient,
                attempts=row.attempts,
                first_at=row.first_at,
                last_at=row.last_at,
            )
        )
    return infos


def counts_by_class(catalog: Catalog, space: SpaceInfo | None = None) -> Counter[str]:
    """Count the failures that concern a live file, by class."""
    query = (
        select(Failure.failure_class, func.count())
        .where(_concerns(space))
        .group_by(Failure.failure_class)
    )
    with catalog.read() as conn:
        return Counter({row.failure_class: row[1] for row in conn.execute(query)})


def retry(
    catalog: Catalog,
    *,
    failure_class: str | None = None,
    paths: Sequence[bytes] | None = None,
    scope: Scope | None = None,
    space: SpaceInfo | None = None,
) -> int:
    """Arm failures for good, so that their files are pending again.

    They are forgotten; but where a scope is given they stay, as failures that pass, until the next
    attempt: a run over failed files (``Scope.failed``) must still find these files by them.  So do
    those of poisonous pictures, which are to be decoded with care then too.

    Parameters
    ----------
    failure_class
        Only those of this class.
    paths
        Only those about these files, or about files below these folders.
    scope
        Only those about live files of this scope.
    space
        Only those that keep files out of this space.

    Returns
    -------
    int
        The number of records that were armed.  Passing failures are tried again anyway.

    Raises
    ------
    RootError
        A glob of the scope is empty.
    """
    which: list[ColumnElement[bool]] = [Failure.transient.is_not(true())]
    if failure_class is not None:
        which.append(Failure.failure_class == failure_class)
    if space is not None:
        which.append(_keeps_out_of(space))
    if paths is not None:
        with catalog.read() as conn:
            which.append(_about(or_(false(), *(files_at(conn, path) for path in paths))))
    if scope is not None:
        return sum(_let_pass(catalog, ids) for ids in _about_scope(catalog, which, scope) if ids)
    poison = and_(Failure.stage == "decode", Failure.failure_class.in_(POISON))
    with catalog.write() as conn:
        stay = conn.execute(update(Failure).where(*which, poison).values(transient=True)).rowcount
        return stay + conn.execute(delete(Failure).where(*which)).rowcount


def _let_pass(catalog: Catalog, ids: Iterable[int]) -> int:
    """Make failures for good such that pass; return how many there were."""
    armed = update(Failure).where(Failure.transient.is_not(true())).values(transient=True)
    with catalog.write() as conn:
        slices = [conn.execute(armed.where(Failure.id.in_(some))) for some in sliced(sorted(ids))]
        return sum(result.rowcount for result in slices)


def _about_scope(
    catalog: Catalog, which: Sequence[ColumnElement[bool]], scope: Scope
) -> Iterator[set[int]]:
    """Yield, page by page, those of some failures that are about a live file of a scope."""
    globs = Globs(scope.globs)
    found: Select[Any] = select().select_from(Failure).where(*which, *placed(scope))
    found = found.where(File.state == "live").add_columns(Failure.id, File.id, File.path)
    ways = (
        found.join(File, and_(Failure.stage == "read", File.id == Failure.file_id)),
        found.join(Image, and_(Failure.stage != "read", Image.digest == Failure.digest)).join(
            File, File.image_id == Image.id
        ),
    )
    for way in ways:
        for rows in pages(catalog, way, Failure.id, File.id):
            yield {failure_id for failure_id, _, path in rows if globs.match(path)}


def _about(meant: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return the condition that a failure is about one of some files, or about what it holds."""
    ids = select(File.id).where(meant)
    digests = select(Image.digest).join(File, File.image_id == Image.id).where(meant)
    return or_(
        and_(Failure.stage == "read", Failure.file_id.in_(ids)),
        and_(Failure.stage != "read", Failure.digest.in_(digests)),
    )


def _concerns(space: SpaceInfo | None) -> ColumnElement[bool]:
    """Return the condition that a failure is about a live file (and keeps it out of a space)."""
    live = File.state == "live"
    of_file = exists().where(live, File.id == Failure.file_id)
    holds = select(Image.id).where(Image.digest == Failure.digest).correlate(Failure)
    of_digest = exists().where(live, File.image_id == holds.scalar_subquery())
    concerns = or_(and_(Failure.stage == "read", of_file), and_(Failure.stage != "read", of_digest))
    if space is None:
        return concerns
    return and_(concerns, _keeps_out_of(space))


def _keeps_out_of(space: SpaceInfo) -> ColumnElement[bool]:
    return or_(Failure.stage == "read", keeps_out(space.decode_version, space.id))


def _holders(conn: Connection, digests: Sequence[bytes]) -> dict[bytes, tuple[int, int]]:
    """Return the first live file of each digest, and how many there are."""
    holders: dict[bytes, tuple[int, int]] = {}
    for some in sliced(dict.fromkeys(digests)):
        query = (
            select(Image.digest, func.min(File.id), func.count())
            .join(File, File.image_id == Image.id)
            .where(Image.digest.in_(some), File.state == "live")
            .group_by(Image.digest)
        )
        holders.update({digest: (first, n) for digest, first, n in conn.execute(query)})
    return holders


def _paths(conn: Connection, file_ids: Sequence[int]) -> dict[int, bytes]:
    """Return the absolute paths of files."""
    paths: dict[int, bytes] = {}
    for some in sliced(file_ids):
        query = (
            select(File.id, Root.path, File.path, File.source)
            .join(Root, Root.id == File.root_id)
            .where(File.id.in_(some))
        )
        for file_id, root, path, source in conn.execute(query):
            paths[file_id] = source or os.path.join(root, path)
    return paths
