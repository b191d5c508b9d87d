"""The catalog's rows of files: read in the order of their paths, and changed a page at a time."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import Connection, Select, and_, bindparam, case, delete, select, update

from storage.bulk import insert_rows
from storage.catalog import Catalog
from storage.changes import Change, Known, Reason
from storage.leases import Lease, check_lease
from storage.pending import HASHED, SEEN
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

NEW = (
    File.root_id,
    File.path,
    File.display,
    File.state,
    File.first_seen_at,
    File.source,
    File.label,
    *SEEN,
)
"""Columns of `_new_row`; the others are null, or false."""


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
    query = _comparable(root_id, lines=lines)
    if under:
        query = query.where(within(File.path, under))
    page, new = query, tuple.__new__
    while True:
        with catalog.read() as conn:
            rows = _plain(conn, page)
        for row in rows:
            file_id, path, size, mtime, ctime, inode, state, trusted, hashed = row[:9]
            sig = new(Signature, (size, mtime, ctime, inode))
            line = row[9:] if lines else None
            yield new(Known, (file_id, path, sig, state, trusted == 1, hashed == 1, line))
        if len(rows) < PAGE:
            return
        page = query.where(File.path > rows[-1][1])


def _comparable(root_id: int, *, lines: bool) -> Select[Any]:
    """Return the query for a page of what a scan compares, ordered by path."""
    hashed = and_(*(seen == read for seen, read in zip(SEEN, HASHED, strict=True)))
    columns = (File.id, File.path, *SEEN, File.state, File.trusted, case((hashed, 1), else_=0))
    told = (File.source, File.label) if lines else ()
    return select(*columns, *told).where(File.root_id == root_id).order_by(File.path).limit(PAGE)


def _plain(conn: Connection, query: Select[Any]) -> list[tuple[Any, ...]]:
    """Return what a query finds as the driver gives it: SQLAlchemy's rows take half as long again.

    So a truth value is 0 or 1 on SQLite.
    """
    with conn.execute(query) as found:
        return list(found.cursor.fetchall())


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
            assert change.seen is not None  # noqa: S101 -- what is not known was seen
            news.append(_new_row(root_id, change.seen, now))
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
        insert_rows(conn, NEW, news)
    if updates:
        conn.execute(this.values(state="live", missing_since=None), updates)
    if losses:
        conn.execute(this, losses)


def _new_row(root_id: int, seen: FileStat, now: float) -> tuple[Any, ...]:
    path, sig, source, label = seen
    return root_id, path, display(path), "live", now, source, label, *sig


def _seen_values(seen: FileStat) -> dict[str, Any]:
    return {
        "source": seen.source,
        "label": seen.label,
        "seen_size_bytes": seen.sig.size_bytes,
        "seen_mtime_ns": seen.sig.mtime_ns,
        "seen_ctime_ns": seen.sig.ctime_ns,
        "seen_inode": seen.sig.inode,
    }
