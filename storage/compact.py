"""Rewrite parts without their dead rows, and merge small ones.

Rows keep their numbers: a part that leaves rows out says so in its rows sidecar.  The new parts are
durable before one transaction swaps them in; the old files stay for a day, for readers that hold
them open.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Connection, delete, exists, func, insert, select, update

from storage.catalog import Catalog
from storage.reading import open_store, snapshot_in
from storage.runs import Lease, check_lease, claim, release
from storage.slices import sliced
from storage.spaces import SpaceInfo
from storage.tables import File, Part, Vector
from storage.vectors import PartInfo, PartWritten, VectorStore

DEAD_SHARE = 0.10
SMALL_ROWS = 4096
GROUP_BYTES = 128 << 20


@dataclass(frozen=True)
class CompactResult:
    """What a compaction did."""

    parts_before: int
    parts_after: int
    rows_dropped: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class _Group:
    """Neighbouring parts that become one, or none where no row of theirs is live."""

    parts: tuple[PartInfo, ...]
    live: tuple[int, ...]


def compact(
    catalog: Catalog, lease: Lease, space: SpaceInfo, *, force: bool = False
) -> CompactResult:
    """Rewrite the parts of ``space`` that are worth it.

    Parts are rewritten when more than a tenth of the space's rows is dead, and small neighbours
    are merged; with ``force`` every dead row goes.  Publish afterwards: rows that are gone should
    leave the index too.

    Raises
    ------
    LeaseHeld
        Another run publishes, compacts or repairs this space.
    """
    claim(catalog, lease, "space", space.id, space.id)
    try:
        with catalog.read() as conn:
            parts = list(snapshot_in(conn, space).parts)
            groups = _plan(conn, space, parts, force=force)
        return _rewrite(catalog, lease, space, parts, groups)
    finally:
        release(catalog, lease, "space", space.id, space.id)


def compact_rows(catalog: Catalog, lease: Lease, space: SpaceInfo, rows: Sequence[int]) -> None:
    """Rewrite the parts that hold ``rows``, whose vectors are forgotten, and nothing else."""
    with catalog.read() as conn:
        parts = list(snapshot_in(conn, space).parts)
        hit = [part for part in parts if any(part.row_start <= r < part.row_end for r in rows)]
        groups = [_Group((part,), live_rows_between(conn, space.id, (part,))) for part in hit]
    _rewrite(catalog, lease, space, parts, groups)


def live_rows_between(
    conn: Connection, space_id: int, parts: Sequence[PartInfo]
) -> tuple[int, ...]:
    """Return the live rows within neighbouring parts, ascending."""
    held = exists().where(File.image_id == Vector.image_id, File.state == "live")
    query = (
        select(Vector.row)
        .where(
            Vector.space_id == space_id,
            Vector.row >= parts[0].row_start,
            Vector.row < parts[-1].row_end,
            held,
        )
        .order_by(Vector.row)
    )
    return tuple(conn.execute(query).scalars())


def _plan(
    conn: Connection, space: SpaceInfo, parts: list[PartInfo], *, force: bool
) -> list[_Group]:
    item = space.dim * (2 if space.dtype == "float16" else 4)
    live = {part.id: live_rows_between(conn, space.id, (part,)) for part in parts}
    total = sum(part.n for part in parts)
    dead = total - sum(len(rows) for rows in live.values())
    drop = bool(dead) and (force or dead > DEAD_SHARE * total)

    def worth(part: PartInfo) -> bool:
        return part.n < SMALL_ROWS or (drop and len(live[part.id]) < part.n)

    groups = []
    for group in _neighbours(parts, worth, GROUP_BYTES // item):
        rows = tuple(row for part in group for row in live[part.id])
        if len(group) > 1 or (drop and len(rows) < group[0].n):
            groups.append(_Group(group, rows))
    return groups


def _neighbours(
    parts: Iterable[PartInfo], worth: Callable[[PartInfo], bool], most_rows: int
) -> Iterator[tuple[PartInfo, ...]]:
    """Yield runs of neighbouring parts that are worth rewriting, each within ``most_rows``."""
    group: list[PartInfo] = []
    for part in parts:
        full = sum(p.n for p in group) + part.n > most_rows
        if group and (full or not worth(part)):
            yield tuple(group)
            group = []
        if worth(part):
            group.append(part)
    if group:
        yield tuple(group)


def _rewrite(
    catalog: Catalog,
    lease: Lease,
    space: SpaceInfo,
    parts: list[PartInfo],
    groups: list[_Group],
) -> CompactResult:
    store = open_store(catalog, space)
    dropped, saved, after = 0, 0, len(parts)
    for group in groups:
        written = _write(store, lease, group) if group.live else None
        _swap(catalog, lease, space, group, written)
        dropped += sum(part.n for part in group.parts) - len(group.live)
        saved += sum(part.size_bytes for part in group.parts) - (
            written.size_bytes if written else 0
        )
        after += (1 if written else 0) - len(group.parts)
    before = sum(part.size_bytes for part in parts)
    return CompactResult(len(parts), after, dropped, before, before - saved)


def _write(store: VectorStore, lease: Lease, group: _Group) -> PartWritten:
    live = np.asarray(group.live, np.int64)
    vectors, digests = [], []
    for part in group.parts:
        inside = np.flatnonzero(np.isin(store.rows(part), live, assume_unique=True))
        vectors.append(np.asarray(store.open(part)[inside], np.float32))
        digests += [bytes(digest) for digest in store.digests(part)[inside]]
    first, end = group.parts[0].row_start, group.parts[-1].row_end
    dense = len(live) == end - first
    return store.append(
        lease.run_id,
        np.concatenate(vectors),
        digests,
        facts={"compacted_from": [part.name for part in group.parts]},
        offsets=None if dense else live - first,
    )


def _swap(
    catalog: Catalog, lease: Lease, space: SpaceInfo, group: _Group, written: PartWritten | None
) -> None:
    """Put the new part in the place of the old ones, in one transaction.

    A dropped row loses its entry: should its image come back meanwhile, it is pending again.
    """
    first, end = group.parts[0].row_start, group.parts[-1].row_end
    with catalog.write() as conn:
        check_lease(conn, lease)
        now = catalog.now(conn)
        for ids in sliced([part.id for part in group.parts]):
            gone = {"state": "replaced", "replaced_at": now}
            conn.execute(update(Part).where(Part.id.in_(ids)).values(gone))
        within = (Vector.space_id == space.id, Vector.row >= first, Vector.row < end)
        kept = set(group.live)
        entered = conn.execute(select(Vector.row).where(*within)).scalars()
        for rows in sliced([row for row in entered if row not in kept]):
            conn.execute(delete(Vector).where(Vector.space_id == space.id, Vector.row.in_(rows)))
        if written is not None:
            conn.execute(insert(Part).values(_part_row(space, lease, group, written, now)))


def _part_row(
    space: SpaceInfo, lease: Lease, group: _Group, written: PartWritten, now: float
) -> dict[str, object]:
    return {
        "space_id": space.id,
        "name": written.name,
        "state": "live",
        "row_start": group.parts[0].row_start,
        "row_end": group.parts[-1].row_end,
        "n": written.n,
        "size_bytes": written.size_bytes,
        "checksum": written.checksum,
        "ids_checksum": written.ids_checksum,
        "rows_checksum": written.rows_checksum,
        "run_id": lease.run_id,
        "facts": dict(written.facts),
        "created_at": now,
    }


def dead_share(catalog: Catalog, space: SpaceInfo) -> float:
    """Return the share of the rows in the live parts whose image is not live."""
    with catalog.read() as conn:
        total = conn.execute(
            select(func.coalesce(func.sum(Part.n), 0)).where(
                Part.space_id == space.id, Part.state == "live"
            )
        ).scalar_one()
        held = exists().where(File.image_id == Vector.image_id, File.state == "live")
        live = conn.execute(
            select(func.count()).select_from(Vector).where(Vector.space_id == space.id, held)
        ).scalar_one()
    return 1 - live / total if total else 0.0
