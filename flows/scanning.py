"""Which roots a run scans, and what becomes of each of them."""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from flows.errors import NO_ROOT, FlowError
from flows.orders import ScanOrder
from storage.catalog import Catalog
from storage.errors import LeaseHeld, ManifestError, RootError, RootUnavailable
from storage.pending import Scope
from storage.roots import RootInfo, add_root, find_root, inside, list_roots

if TYPE_CHECKING:
    from flows.job import IndexOptions, Job


def chosen_roots(catalog: Catalog, options: "IndexOptions") -> list[RootInfo]:
    """Return the roots to scan; those named for the first time are registered.

    A known root need not be there now: that is for the scan to say.

    Raises
    ------
    FlowError
        No root was named, and none is known.
    """
    if not options.roots:
        known = list_roots(catalog)
        if not known:
            raise FlowError(NO_ROOT)
        return known
    paths = [os.fsencode(root) for root in options.roots]
    return without_doubles(
        known_root(catalog, path, options) or add_root(catalog, path, excludes=options.excludes)
        for path in paths
    )


def without_doubles(roots: Iterable[RootInfo]) -> list[RootInfo]:
    """Return the roots without those that are named twice or lie in another one that is named."""
    unique = {root.target: root for root in roots}
    return [
        root
        for root in unique.values()
        if not any(inside(root.target, other.target) for other in unique.values())
    ]


def known_root(catalog: Catalog, path: bytes, options: "IndexOptions") -> RootInfo | None:
    """Return a known root, which need not be there now; None where it has to be registered."""
    if options.excludes:
        return None
    try:
        return find_root(catalog, path)
    except RootError:
        return None


def scan_roots(job: "Job", roots: list[RootInfo]) -> Scope:
    """Scan one root after the other; return the scope of those that could be scanned.

    Nothing of the others may change: their files are not there, or in other hands.
    """
    scanned = [root for root in roots if not job.stopped and _scan(job, root)]
    return Scope(tuple((root.id, root.under) for root in scanned))


def _scan(job: "Job", root: RootInfo) -> bool:
    """Scan a root, and return whether it was scanned to its end."""
    job.progress.scanning(root.display, 0)
    order = ScanOrder(job.place, root, job.options.confirm_missing)
    found = None
    try:
        found = job.steps.scan(order).result()
    except (RootUnavailable, ManifestError) as error:
        job.report.add_unavailable(root.display, str(error))
    except LeaseHeld as error:
        job.report.add_held(root.display, str(error))
    job.progress.scanned(root.display, found["scanned"] if found else None)
    if found:
        job.report.add_scan(found)
    return bool(found)
