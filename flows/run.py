"""Run or plan ``index`` from a terminal: through Prefect, or on plain threads."""

import os
from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

from flows.job import IndexOptions, run_index
from flows.progress import Progress
from flows.report import Report
from flows.signals import stop_on_signals
from flows.spaces import disk_needed_bytes, find_spaces
from flows.steps import PlainSteps
from flows.worker import clear_bench
from storage.catalog import Catalog
from storage.chunks import pending_counts
from storage.errors import RootUnavailable
from storage.files import scan_root
from storage.home import Home
from storage.publish import publish_due
from storage.roots import RootInfo, list_roots, resolve_root
from storage.spaces import SpaceInfo


def run(options: IndexOptions, progress: Progress, *, prefect: str = "auto") -> Report:
    """Index, through Prefect's engine where there is one to talk to, else on plain threads.

    ``prefect`` is ``auto``, ``always`` or ``never``.  On ``auto`` a run that finds nothing to do
    never loads Prefect.
    """
    from flows.server import prefect_wanted

    try:
        with stop_on_signals(options, progress):
            if prefect_wanted(options.home, prefect, progress.note) and (
                prefect == "always" or not plan(options).idle
            ):
                from flows.prefect_run import run_with_prefect

                return run_with_prefect(options, progress)
            with PlainSteps() as steps:
                return run_index(options, steps=steps, progress=progress)
    finally:
        clear_bench(options.home, options.catalog_url)


@dataclass(frozen=True)
class Plan:
    """What ``index`` would do."""

    scans: list[dict[str, Any]]
    unavailable: dict[str, str]
    spaces: list[dict[str, Any]]

    @property
    def idle(self) -> bool:
        """Whether a run would find nothing at all to do."""
        changes = sum((Counter(scan["reasons"]) for scan in self.scans), Counter())
        work = any(space["pending"] or space["publish"] for space in self.spaces)
        return bool(self.spaces) and not (changes or work or self.unavailable)

    def to_json(self) -> dict[str, Any]:
        """Return the plan for scripts."""
        return {"scans": self.scans, "spaces": self.spaces, "unavailable": self.unavailable}

    def to_text(self) -> str:
        """Return the plan for people."""
        lines = [f"{name}: {why}" for name, why in self.unavailable.items()]
        for scan in self.scans:
            reasons = ", ".join(f"{n:,} {why}" for why, n in sorted(scan["reasons"].items()) if n)
            lines.append(f"{scan['root']}: {scan['scanned']:,} files, {reasons or 'no changes'}")
        lines += [
            f"space '{space['space']}': at most {space['pending']:,} files to read, "
            f"{space['disk_bytes'] / 1e6:,.1f} MB of disk"
            + (f"; index to publish ({space['publish']})" if space["publish"] else "")
            for space in self.spaces
        ]
        return "\n".join([*lines, "nothing was touched"])


def plan(options: IndexOptions) -> Plan:
    """Return what a run would do, without touching anything.

    A file that the scan finds changed counts as one to read; whether its content is new is known
    only when its bytes are hashed.
    """
    home = Home(options.home, options.catalog_url)
    if home.read_store_id() is None:
        return Plan(*_scans(None, options), spaces=[])
    with Catalog.open(home, write=False) as catalog:
        scans, unavailable = _scans(catalog, options)
        fresh = sum(sum(scan["reasons"].get(why, 0) for why in READING) for scan in scans)
        spaces = [_space(catalog, space, fresh) for space in find_spaces(catalog, options.choice)]
        return Plan(scans, unavailable, spaces)


def _scans(
    catalog: Catalog | None, options: IndexOptions
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    scans, unavailable = [], {}
    for root in _roots(catalog, options):
        try:
            result = scan_root(
                cast(Catalog, catalog),  # without one no root is known, and nothing is asked of it
                root,
                confirm_missing=options.confirm_missing,
                skip=os.fsencode(options.home),
                dry=True,
            )
        except RootUnavailable as error:
            unavailable[root.display] = str(error)
        else:
            reasons = dict(result.reasons)
            scans.append({"root": result.root, "scanned": result.scanned, "reasons": reasons})
    return scans, unavailable


def _space(catalog: Catalog, space: SpaceInfo, fresh: int) -> dict[str, Any]:
    pending = pending_counts(catalog, space).total + fresh
    return {
        "space": space.name,
        "pending": pending,
        "disk_bytes": disk_needed_bytes(space, pending),
        "publish": publish_due(catalog, space),
    }


READING = ("new", "size", "mtime", "ctime", "inode")
"""Reasons for which a file is read again; the others are pending by the catalog already."""


def _roots(catalog: Catalog | None, options: IndexOptions) -> list[RootInfo]:
    known = list_roots(catalog) if catalog is not None else []
    if not options.roots:
        return known
    paths = [os.fsencode(root) for root in options.roots]
    return [resolve_root(known, path, excludes=options.excludes) for path in paths]
