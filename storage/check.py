"""Compare catalog, parts and indexes with each other, and mend what can be mended.

What is derived is rebuilt, what is lost becomes pending again: a part that is gone or damaged loses
its rows, and the next run extracts those images anew.
"""

import re
from contextlib import suppress
from dataclasses import replace

from sqlalchemy import delete, update

from storage.backup_mark import is_backup
from storage.catalog import Catalog
from storage.check_brake import mass_loss
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

_ADVICE = re.compile(r"; (`lookalike check|nothing of it is given up).*")


def check(
    catalog: Catalog,
    *,
    repair: bool = False,
    deep: bool | Depth = False,
    lease: Lease | None = None,
    confirm_missing: bool = False,
) -> list[Finding]:
    """Return what is wrong with the store, repaired where that was asked for.

    Where most vectors of a space are missing, nothing of it is repaired unless that is confirmed:
    they may lie on a disk that is not there now.

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
    confirm_missing
        Give up most vectors of a space, if they are missing.

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
    findings += whitening_findings(catalog)
    for space in list_spaces(catalog):
        with suppress(SpaceError):  # dropped meanwhile
            if repair and lease is not None:
                findings += _mend(catalog, lease, space, depth, confirm_missing=confirm_missing)
            else:
                view, found = inspected(catalog, space, depth)
                told = mass_loss(catalog, view, found)
                findings += told or [finding for finding, _ in found]
    if repair and lease is not None:
        delete_old_files(catalog, lease)
    return [_of_backup(each) for each in findings] if is_backup(catalog.home.path) else findings


def _of_backup(finding: Finding) -> Finding:
    """Leave out advice that a backup refuses: to repair it, or to mount what it lacks."""
    return replace(finding, what=_ADVICE.sub("", finding.what))


def _mend(
    catalog: Catalog, lease: Lease, space: SpaceInfo, depth: Depth, *, confirm_missing: bool
) -> list[Finding]:
    claim(catalog, lease, "space", space.id, space.id)
    try:
        view, found = inspected(catalog, space, depth)
        told = [] if confirm_missing else mass_loss(catalog, view, found)
        if told:
            return told
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
