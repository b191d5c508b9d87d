"""Rewrite parts without their dead rows, merge small ones, and drop images that nothing holds.

Rows keep their numbers: a part that leaves rows out says so in its rows sidecar.  The new parts are
durable before one transaction swaps them in; the old files stay for a day, for readers that hold
them open.

A row whose image only missing files hold is dead for the search, but it stays: until the files'
grace ends (``storage.file_rows``) they may come back, and then cost no extraction.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import ColumnElement, Connection, delete, exists, func, insert, select, update

from storage.catalog import Catalog
from storage.dead import DEAD_SHARE, entered_rows, held
from storage.leases import Lease, check_lease
from storage.publish import withdraw
from storage.reading import RowArray, open_store, snapshot_in
from storage.runs import claim, release
from storage.slices import sliced
from storage.spaces import SpaceInfo
from storage.tables import Failure, File, Image, Part, Space, Vector
from storage.vectors import PartInfo, PartWritten, VectorStore

KEPT = ("live", "missing")
"""Files in these states keep the rows of their images."""
SMALL_ROWS = 4096
PAGE = 5_000
"""Unused images that one transaction deletes."""
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
    """Neighbouring parts that become one, or none where no row of theirs is kept."""

    parts: tuple[PartInfo, ...]
    states: tuple[str, ...] | None
    """Rows are kept whose image a file in one of these states holds; None: every row."""
    precision: str
    """Of all the parts: each that is among them, or that one is not known."""


def compact(
    catalog: Catalog, lease: Lease, space: SpaceInfo, *, force: bool = False
) -> CompactResult:
    """Rewrite the parts of ``space`` that are worth it, and drop images that nothing refers to.

    Rows can be dropped that are no image's vector, or whose image no live or missing file holds.
    Parts are rewritten without these when they are more than a tenth of the space's rows; with
    ``force`` every dead row goes, those of missing files too.  Small neighbours are merged.
    Publish afterwards where that is due; the index of a space without any row is withdrawn.

    Raises
    ------
    LeaseHeld
        Another run publishes, compacts or repairs this space.
    PartError
        A part is damaged; it stays as it is.
    """
    claim(catalog, lease, "space", space.id, space.id)
    try:
        with catalog.read() as conn:
            parts = list(snapshot_in(conn, space).parts)
            groups = _plan(conn, space, parts, force=force)
        result = _rewrite(catalog, lease, space, parts, groups)
        _sweep(catalog, lease, space)
        return result
    finally:
        release(catalog, lease, "space", space.id, space.id)


def parts_with_unentered(
    conn: Connection, space: SpaceInfo, gone: Sequence[int] = ()
) -> list[PartInfo]:
    """Return the parts that hold rows which are no image's vector, or not without ``gone``."""
    entered = np.setdiff1d(entered_rows(conn, space.id), np.asarray(gone, np.int64))
    parts = snapshot_in(conn, space).parts
    ends = np.searchsorted(entered, [(part.row_start, part.row_end) for part in parts])
    return [part for part, (first, end) in zip(parts, ends, strict=True) if end - first < part.n]


def compact_unentered(catalog: Catalog, lease: Lease, space: SpaceInfo) -> int:
    """Rewrite the parts that hold rows which are no image's vector; return how many rows went."""
    with catalog.read() as conn:
        parts = parts_with_unentered(conn, space)
        groups = [_Group((part,), KEPT, _precision(conn, (part,))) for part in parts]
    return _rewrite(catalog, lease, space, parts, groups).rows_dropped


def _kept(
    space: SpaceInfo, parts: Sequence[PartInfo], states: Sequence[str]
) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions on neighbouring parts' rows: a file in one of the states holds it."""
    first, end = parts[0].row_start, parts[-1].row_end
    return Vector.space_id == space.id, Vector.row >= first, Vector.row < end, held(states)


def _precision(conn: Connection, parts: Sequence[PartInfo]) -> str:
    """Return the precision that all parts were computed with; where they differ, each of them."""
    found = set[str]()
    for ids in sliced([part.id for part in parts]):
        for facts in conn.execute(select(Part.facts).where(Part.id.in_(ids))).scalars():
            found |= set(str(facts.get("precision", "unknown")).split(", "))
    return ", ".join(sorted(found))


def _plan(
    conn: Connection, space: SpaceInfo, parts: list[PartInfo], *, force: bool
) -> list[_Group]:
    item = space.dim * (2 if space.dtype == "float16" else 4)
    states = ("live",) if force else KEPT
    kept = {
        part.id: conn.execute(
            select(func.count()).where(*_kept(space, (part,), states))
        ).scalar_one()
        for part in parts
    }
    total = sum(part.n for part in parts)
    dead = total - sum(kept.values())
    drop = bool(dead) and (force or dead > DEAD_SHARE * total)

    def worth(part: PartInfo) -> bool:
        return part.n < SMALL_ROWS or (drop and kept[part.id] < part.n)

    return [
        _Group(group, states if drop else None, _precision(conn, group))
        for group in _neighbours(parts, worth, GROUP_BYTES // item)
        if len(group) > 1 or (drop and kept[group[0].id] < group[0].n)
    ]


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
        kept = _kept_rows(catalog, space, group)
        written = _write(store, lease, group, kept) if kept is None or len(kept) else None
        _swap(catalog, lease, space, group, kept, written)
        dropped += sum(part.n for part in group.parts) - (written.n if written else 0)
        saved += sum(part.size_bytes for part in group.parts) - (
            written.size_bytes if written else 0
        )
        after += (1 if written else 0) - len(group.parts)
    before = sum(part.size_bytes for part in parts)
    return CompactResult(len(parts), after, dropped, before, before - saved)


def _kept_rows(catalog: Catalog, space: SpaceInfo, group: _Group) -> RowArray | None:
    """Return the rows that a group keeps, ascending; None is every row."""
    if group.states is None:
        return None
    with catalog.read() as conn:
        rows = select(Vector.row).where(*_kept(space, group.parts, group.states))
        return np.array(conn.execute(rows.order_by(Vector.row)).scalars().all(), np.int64)


def _write(store: VectorStore, lease: Lease, group: _Group, kept: RowArray | None) -> PartWritten:
    vectors, digests, rows = [], [], []
    for part in group.parts:
        store.refuse_damaged(part)  # the new part's checksum would vouch for what is wrong
        own = store.rows(part)
        inside = np.arange(len(own))
        if kept is not None:
            inside = np.flatnonzero(np.isin(own, kept, assume_unique=True))
        vectors.append(np.asarray(store.open(part)[inside], np.float32))
        digests += [bytes(digest) for digest in store.digests(part)[inside]]
        rows.append(own[inside])
    first, end = group.parts[0].row_start, group.parts[-1].row_end
    offsets = np.concatenate(rows) - first
    dense = len(offsets) == end - first
    return store.append(
        lease.run_id,
        np.concatenate(vectors),
        digests,
        facts={
            "compacted_from": [part.name for part in group.parts],
            "precision": group.precision,
        },
        offsets=None if dense else offsets,
    )


def _swap(
    catalog: Catalog,
    lease: Lease,
    space: SpaceInfo,
    group: _Group,
    kept: RowArray | None,
    written: PartWritten | None,
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
        if kept is not None:
            within = (Vector.space_id == space.id, Vector.row >= first, Vector.row < end)
            stay = set(kept.tolist())
            entered = conn.execute(select(Vector.row).where(*within)).scalars()
            for rows in sliced([row for row in entered if row not in stay]):
                gone_rows = (Vector.space_id == space.id, Vector.row.in_(rows))
                conn.execute(delete(Vector).where(*gone_rows))
        if written is not None:
            conn.execute(insert(Part).values(_part_row(space, lease, group, written, now)))


def _sweep(catalog: Catalog, lease: Lease, space: SpaceInfo) -> None:
    """Withdraw the index of a space without rows, and delete images that nothing refers to."""
    entered = select(Vector.row).where(Vector.space_id == space.id).limit(1)
    has_file = exists().where(File.image_id == Image.id)
    has_vector = exists().where(Vector.image_id == Image.id)
    unused = (~has_file, ~has_vector)
    with catalog.read() as conn:
        ids = list(conn.execute(select(Image.id).where(*unused)).scalars())
    with catalog.write() as conn:
        check_lease(conn, lease)
        if conn.execute(entered).first() is None:
            withdraw(conn, space.id, catalog.now(conn))
    for some in sliced(ids, PAGE):  # others wait for a moment, not for a million images
        with catalog.write() as conn:
            check_lease(conn, lease)
            # No commit in any space gives a file one of these images meanwhile.
            lock_spaces(conn)
            _delete_unused(conn, some, unused)


def _delete_unused(
    conn: Connection, images: Sequence[int], unused: Sequence[ColumnElement[bool]]
) -> None:
    for some in sliced(images):
        gone = select(Image.digest).where(Image.id.in_(some), *unused)
        of_digest = (Failure.stage != "read", Failure.digest.in_(gone))
        conn.execute(delete(Failure).where(*of_digest))
        conn.execute(delete(Image).where(Image.id.in_(some), *unused))


def lock_spaces(conn: Connection) -> None:
    """Let no commit in any space go on before this transaction ends."""
    conn.execute(select(Space.id).order_by(Space.id).with_for_update()).all()


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
