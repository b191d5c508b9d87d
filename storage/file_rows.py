"""The catalog's rows of files: read in the order of their paths, and changed a page at a time."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from storage.catalog import Catalog
from storage.changes import Change, Known, Reason
from storage.leases import Lease, check_lease
from storage.roots import RootInfo, display, within
from storage.runs import claim, release
from storage.scan import FileStat, Signature
from storage.scanned import missed_twice
from storage.slices import sliced
from storage.tables import Failure, File

PAGE = 5_000
"""Rows of one page read, and of one write transaction."""
GRACE_S = 30 * 24 * 3600.0
"""How long the catalog remembers a missing file, and keeps the vector of its image."""


def known_files(
    catalog: Catalog, root_id: int, under: bytes = b"", *, lines: bool = False
) -> Iterator[Known]:
    """Yield the files of a root ordered by path, in pages with no transaction open in between.

    Parameters
    ----------
    under
        Only this relative path and what lies below it.
    lines
        Whether to give source and label for comparison, as for a manifest.
    """
    query = (
        select(
            File.id,
            File.path,
            File.state,
            File.trusted,
            File.source,
            File.label,
            File.seen_size_bytes,
            File.seen_mtime_ns,
            File.seen_ctime_ns,
            File.seen_inode,
            File.digest_size_bytes,
            File.digest_mtime_ns,
            File.digest_ctime_ns,
            File.digest_inode,
        )
        .where(File.root_id == root_id)
        .order_by(File.path)
        .limit(PAGE)
    )
    if under:
        query = query.where(within(File.path, under))
    page = query
    while True:
        with catalog.read() as conn:
            rows = conn.execute(page).all()
        for file_id, path, state, trusted, source, label, *stats in rows:
            line = (source, label) if lines else None
            seen = Signature(*stats[:4])
            yield Known(file_id, path, seen, state, trusted, stats[:4] == stats[4:], line)
        if len(rows) < PAGE:
            return
        page = query.where(File.path > rows[-1].path)


def apply_changes(
    catalog: Catalog,
    root: RootInfo,
    changes: Iterable[Change],
    *,
    lease: Lease | None = None,
) -> Counter[str]:
    """Write changes to the catalog, one transaction for 5,000 of them.

    Parameters
    ----------
    changes
        All about ``root``; read lazily.
    lease
        Checked inside each transaction where it is given.

    Returns
    -------
    Counter
        The number of changes of each reason.

    Raises
    ------
    LeaseLost
        The run was declared dead; what was written before stays, and the next scan goes on there.
    """
    counts: Counter[str] = Counter()
    for page in sliced(changes, PAGE):
        counts.update(change.reason.value for change in page)
        writes = [change for change in page if _needs_writing(change)]
        if not writes:
            continue
        with catalog.write() as conn:
            if lease is not None:
                check_lease(conn, lease)
            _write(conn, root.id, writes, catalog.now(conn))
    return counts


def prune_missing(conn: Connection, root_id: int, now: float, most: int | None = None) -> int:
    """Delete the root's files that have been missing for longer than their grace; return how many.

    Two complete scans must have missed them, and the last one must have been able to look.  Their
    images stay: compaction drops those that nothing holds any more, with their vectors.

    Parameters
    ----------
    most
        No more files than this, those with the lowest ids; None is all.
    """
    seen = missed_twice(conn, root_id)
    if seen is None:
        return 0
    over = (
        File.root_id == root_id,
        File.state == "missing",
        File.missing_since < now - GRACE_S,
        *seen,
    )
    # In the order of their ids, as every writer of files locks them.
    query = select(File.id).where(*over).order_by(File.id).limit(most).with_for_update()
    pruned = 0
    for some in sliced(list(conn.execute(query).scalars())):
        conn.execute(delete(Failure).where(Failure.stage == "read", Failure.file_id.in_(some)))
        pruned += conn.execute(delete(File).where(File.id.in_(some))).rowcount
    return pruned


def prune_root(catalog: Catalog, lease: Lease, root: RootInfo) -> int:
    """Delete the files of a root that are missing past their grace, 5,000 of them a transaction.

    The run holds the root meanwhile, so that no scan finds one of them again.  Returns how many
    there were.

    Raises
    ------
    LeaseHeld
        Another run is scanning the root.
    LeaseLost
        The run was declared dead.
    """
    claim(catalog, lease, "root", root.id)
    pruned = 0
    try:
        while True:
            with catalog.write() as conn:
                check_lease(conn, lease)
                some = prune_missing(conn, root.id, catalog.now(conn), PAGE)
            pruned += some
            if some < PAGE:
                return pruned
    finally:
        release(catalog, lease, "root", root.id)


def _needs_writing(change: Change) -> bool:
    """Tell whether a change is more than what the query for pending work sees by itself."""
    known, seen = change.known, change.seen
    if change.reason is not Reason.RACY or known is None or seen is None:
        return True
    return known.line is not None and known.line != (seen.source, seen.label)


def _write(conn: Connection, root_id: int, changes: list[Change], now: float) -> None:
    news, updates, losses = [], [], []
    for change in changes:
        if change.known is None:
            news.append(_new_row(root_id, change, now))
        elif change.seen is not None:
            updates.append({"file": change.known.file_id, **_seen_values(change.seen)})
        else:
            missing = change.reason is Reason.MISSING
            losses.append(
                {
                    "file": change.known.file_id,
                    "state": "missing" if missing else "excluded",
                    "missing_since": now if missing else None,
                }
            )
    this = update(File).where(File.id == bindparam("file"))
    # Postgres: a commit locks its files in the order of their ids too, so neither waits for ever.
    for some in sliced(sorted(row["file"] for row in (*updates, *losses))):
        conn.execute(select(File.id).where(File.id.in_(some)).order_by(File.id).with_for_update())
    if news:
        conn.execute(insert(File), news)
    if updates:
        conn.execute(this.values(state="live", missing_since=None), updates)
    if losses:
        conn.execute(this, losses)


def _new_row(root_id: int, change: Change, now: float) -> dict[str, Any]:
    assert change.seen is not None  # noqa: S101 -- what is not known was seen
    return {
        "root_id": root_id,
        "path": change.path,
        "display": display(change.path),
        "state": "live",
        "first_seen_at": now,
        **_seen_values(change.seen),
    }


def _seen_values(seen: FileStat) -> dict[str, Any]:
    return {
        "source": seen.source,
        "label": seen.label,
        "seen_size_bytes": seen.sig.size_bytes,
        "seen_mtime_ns": seen.sig.mtime_ns,
        "seen_ctime_ns": seen.sig.ctime_ns,
        "seen_inode": seen.sig.inode,
    }
