"""What the last complete scans of a root say: where it lay, and which losses two of them saw."""

from collections.abc import Sequence
from urllib.parse import quote, unquote_to_bytes

from sqlalchemy import ColumnElement, Connection, not_, select, update

from storage.places import Place
from storage.roots import within
from storage.tables import File, Root

MAX_UNLISTED = 200
"""More places where a scan could not look are not kept: then nothing is pruned."""


def record_scan(
    conn: Connection, root_id: int, now: float, place: Place | None, unlisted: Sequence[bytes]
) -> None:
    """Record that a complete scan ends.

    Parameters
    ----------
    place
        Where the root lies; None for a manifest.
    unlisted
        Where it could not look, at most one more than `MAX_UNLISTED`.
    """
    paths = [quote(path) for path in unlisted] if len(unlisted) <= MAX_UNLISTED else None
    values = {
        "scanned_before_at": Root.scanned_at,
        "scanned_at": now,
        "place": None if place is None else place.to_json(),
        "unlisted": {"paths": paths} if unlisted else None,
    }
    conn.execute(update(Root).where(Root.id == root_id).values(values))


def missed_twice(conn: Connection, root_id: int) -> list[ColumnElement[bool]] | None:
    """Return the conditions that two complete scans missed a file of a root.

    It was marked no later than the last but one ended, and the last one could look where it lay.
    None says that nothing fulfils them.
    """
    query = select(Root.scanned_before_at, Root.unlisted).where(Root.id == root_id)
    scans = conn.execute(query).first()
    if scans is None or scans.scanned_before_at is None:
        return None
    paths = [] if scans.unlisted is None else scans.unlisted["paths"]
    if paths is None:
        return None
    looked = [not_(within(File.path, unquote_to_bytes(path))) for path in paths]
    return [File.missing_since <= scans.scanned_before_at, *looked]
