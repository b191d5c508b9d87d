"""Compare catalog, parts and indexes with each other, and mend what can be mended.

What is derived is rebuilt, what is lost becomes pending again: a part that is gone or damaged loses
its rows, and the next run extracts those images anew.
"""

from contextlib import suppress
from dataclasses import replace

from sqlalchemy import delete, update

from storage.catalog import Catalog
from storage.check_catalog import Finding, file_findings, row_findings
from storage.check_space import Bad, Depth, Looked, inspected
from storage.cleanup import delete_old_files
from storage.errors import SpaceError
from storage.leases import Lease, check_lease
from storage.publish import publish, withdraw
from storage.reading import snapshot
from storage.runs import claim, release
from storage.slices import sliced
from storage.spaces import SpaceInfo, list_spaces
from storage.tables import Part, Vector
from storage.whitenings import whitening_findings

__all__ = ["Depth", "Finding", "Looked", "check"]


def check(
    catalog: Catalog,
    *,
    repair: bool = False,
    deep: bool | Depth = False,
    lease: Lease | None = None,
) -> list[Finding]:
    """Return what is wrong with the store, repaired where that was asked for.

    Parameters
    ----------
    catalog
        Open; for writing if ``repair``.
    repair
        Mend what can be mended.  Needs ``lease``.
    deep
        How closely to look; True is every byte.
    lease
        The run that repairs.

    Raises
    ------
    LeaseHeld
        A repair meets another run that publishes or compacts the same space.
    """
    depth = deep if isinstance(deep, Depth) else Depth(deep=deep)
    findings = file_findings(catalog, deep=depth.deep)
    if findings:
        return findings  # what else a damaged catalog says is no ground for a repair
    findings += row_findings(catalog)
    findings += whitening_findings(catalog, deep=depth.deep)
    for space in list_spaces(catalog):
        with suppress(SpaceError):  # dropped meanwhile
            if repair and lease is not None:
                findings += _mend(catalog, lease, space, depth)
            else:
                findings += [finding for finding, _ in inspected(catalog, space, depth)]
    if repair and lease is not None:
        delete_old_files(catalog, lease)
    return findings


def _mend(catalog: Catalog, lease: Lease, space: SpaceInfo, depth: Depth) -> list[Finding]:
    claim(catalog, lease, "space", space.id, space.id)
    try:
        found = inspected(catalog, space, depth)
        bad = [about for _, about in found if about is not None]
        if bad:
            _give_up(catalog, lease, space, bad)
    finally:
        release(catalog, lease, "space", space.id, space.id)
    if bad and snapshot(catalog, space).n:
        publish(catalog, lease, space)
    return [
        replace(finding, repaired=True) if about is not None else finding
        for finding, about in found
    ]


def _give_up(catalog: Catalog, lease: Lease, space: SpaceInfo, bad: list[Bad]) -> None:
    """Drop damaged parts, rows that no part holds and the index; their images are pending again."""
    parts = [about.part.id for about in bad if about.part is not None]
    with catalog.write() as conn:
        check_lease(conn, lease)
        gone = {"state": "replaced", "replaced_at": catalog.now(conn)}
        for ids in sliced(parts):
            conn.execute(update(Part).where(Part.id.in_(ids)).values(gone))
        for rows in sliced([row for about in bad for row in about.rows]):
            conn.execute(delete(Vector).where(Vector.space_id == space.id, Vector.row.in_(rows)))
        withdraw(conn, space.id, catalog.now(conn))
