"""Which roots a run scans or only looks at, and what becomes of each of them."""

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from flows.errors import NO_ROOT, FlowError
from flows.job.orders import ScanOrder
from storage.catalog import Catalog
from storage.errors import LeaseHeld, ManifestError, RootError, RootUnavailable
from storage.guard import preflight
from storage.pending import Scope
from storage.roots import RootInfo, add_root, find_root, inside, list_roots

if TYPE_CHECKING:
    from flows.job.loop import IndexOptions, Job


def chosen_roots(catalog: Catalog, options: "IndexOptions") -> list[RootInfo]:
    """Return the roots of a run; one that scans registers those named for the first time.

    A known root need not be there now: that is for the scan to say.

    Raises
    ------
    FlowError
        No root was named, and none is known.
    RootError
        A root that was named can't be one; or the run does not scan, and it is none yet.
    """
    if not options.roots:
        known = list_roots(catalog)
        if not known:
            raise FlowError(NO_ROOT)
        return known
    paths = [os.fsencode(root) for root in options.roots]
    if not options.scan:
        return without_doubles(find_root(catalog, path) for path in paths)
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
    """Scan or look at one root after the other; return the scope of those that are there.

    Nothing of the others may change: their files are not there, or in other hands.
    """
    if job.options.scan:
        return scope_of(
            [root for root in roots if not job.stopped and _scan(job, root)], job.options
        )
    there, unavailable = looked_at(job.catalog, roots)
    for root in there:
        job.report.add_looked(root.display)
    for name, why in unavailable.items():
        job.report.add_unavailable(name, why)
    return scope_of(there, job.options)


def looked_at(catalog: Catalog, roots: Iterable[RootInfo]) -> tuple[list[RootInfo], dict[str, str]]:
    """Return the roots that are there, and why the others are not, by name.

    A disk that is not mounted must not fail file by file.
    """
    there, unavailable = [], {}
    for root in roots:
        try:
            preflight(catalog, root)
        except RootUnavailable as error:
            unavailable[root.display] = str(error)
        else:
            there.append(root)
    return there, unavailable


def scope_of(roots: Iterable[RootInfo], options: "IndexOptions") -> Scope:
    """Return which files of some roots a run is about."""
    return replace(options.only, places=tuple((root.id, root.under) for root in roots))


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
