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
from storage.roots import (
    RootInfo,
    add_root,
    display,
    find_root,
    inside,
    kind_of,
    list_roots,
    resolve_root,
)

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
    if not options.scan:
        return _without_doubles(_find_root(catalog, os.fsencode(root)) for root in options.roots)
    # None is registered before all are known not to be in each other's way.
    return [
        root
        if root.id and not options.excludes
        else add_root(catalog, root.target, kind=root.kind, excludes=options.excludes)
        for root in named_roots(catalog, options)
    ]


def named_roots(catalog: Catalog | None, options: "IndexOptions") -> list[RootInfo]:
    """Return the roots that were named to a run that scans; an id of 0 is none yet.

    Raises
    ------
    RootError
        One can't be a root.
    """
    known = list_roots(catalog) if catalog is not None else []
    home = catalog.home.path if catalog is not None else None
    paths = [os.fsencode(root) for root in options.roots]
    return _without_doubles(
        (catalog and _known_root(catalog, path, options))
        or resolve_root(known, path, excludes=options.excludes, home=home)
        for path in paths
    )


def _without_doubles(roots: Iterable[RootInfo]) -> list[RootInfo]:
    """Return the roots without those that are named twice or lie in another one that is named."""
    unique = {root.target: root for root in roots}
    folders = [root.target for root in unique.values() if root.kind == "directory"]
    return [
        root
        for root in unique.values()
        if root.kind == "manifest" or not any(inside(root.target, folder) for folder in folders)
    ]


def _known_root(catalog: Catalog, path: bytes, options: "IndexOptions") -> RootInfo | None:
    """Return a known root, which need not be there now; None where it has to be registered."""
    if options.excludes:
        return None
    try:
        return _find_root(catalog, path)
    except RootError:
        return None


def _find_root(catalog: Catalog, path: bytes) -> RootInfo:
    """Return the root that is meant; a manifest in a directory is none before it is registered."""
    root = find_root(catalog, path)
    if root.under and os.path.isfile(path) and kind_of(path) == "manifest":
        raise RootError(f"{display(path)} is no root yet; `lookalike index` makes it one")
    return root


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
