"""Look into the catalog itself: SQLite's own file, and what its rows say about each other.

Postgres looks after both by itself.  None of it can be repaired from what else is there.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import func, select

from storage.backup_mark import read_mark
from storage.catalog import Catalog
from storage.database import DAMAGED, where
from storage.durable import file_checksum
from storage.home import Home
from storage.tables import Space


@dataclass(frozen=True)
class Finding:
    """One thing that the check found."""

    severity: str
    """``error``: something is wrong; ``info``: harmless, and said for completeness."""
    what: str
    repaired: bool = False


def file_findings(catalog: Catalog, *, deep: bool) -> list[Finding]:
    """Return what SQLite finds wrong with its file; with ``deep`` its indexes are compared too.

    With ``deep`` a backup's file is compared with its checksum as well: nobody writes there.
    """
    if catalog.dialect != "sqlite":
        return []
    with catalog.read() as conn:
        pragma = "integrity_check" if deep else "quick_check"
        said = conn.exec_driver_sql(f"PRAGMA {pragma}").scalars().all()
    if list(said) == ["ok"]:
        return _backup_findings(catalog.home) if deep else []
    first = " ".join(str(said[0]).split()) if said else "it says nothing"
    more = f", and {len(said) - 1} more" if len(said) > 1 else ""
    what = f"the catalog {where(catalog.home)} is damaged ({first}{more}); {DAMAGED}"
    return [Finding("error", what)]


def _backup_findings(home: Home) -> list[Finding]:
    for _ in range(2):  # another backup may come between mark and file
        mark = read_mark(home.path)
        if mark is None or file_checksum(home.sqlite) in mark.catalogs:
            return []
    what = "does not have the checksum of its backup.json: it is damaged; make the backup again"
    return [Finding("error", f"the backup's catalog {home.sqlite} {what}")]


def row_findings(catalog: Catalog) -> Iterator[Finding]:
    """Yield what the catalog's rows contradict each other in."""
    with catalog.read() as conn:
        spaces = conn.execute(select(func.count()).select_from(Space)).scalar_one()
        current = conn.execute(
            select(func.count()).select_from(Space).where(Space.current.is_(True))
        ).scalar_one()
        broken: Counter[tuple[str, str]] = Counter()
        if catalog.dialect == "sqlite":
            for table, _, parent, _ in conn.exec_driver_sql("PRAGMA foreign_key_check"):
                broken[table, parent] += 1
    for (table, parent), n in sorted(broken.items()):
        yield Finding(
            "error", f"{n:,} rows of {table} point at {parent} that are not there; {DAMAGED}"
        )
    if spaces and current != 1:
        yield Finding("error", f"{current} spaces are current instead of 1; `lookalike spaces use`")
