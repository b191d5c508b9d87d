"""What a run would do: changes by root, work by space; nothing is touched."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from flows.commands.show import printable
from flows.errors import NO_ROOT, FlowError
from flows.job.loop import IndexOptions
from flows.job.progress import counted
from flows.job.scanning import chosen_roots, looked_at, named_roots, scope_of
from flows.job.spaces import (
    SpaceChoice,
    disk_needed_bytes,
    find_spaces,
    new_space_dim,
    new_space_name,
    vectors_need_bytes,
)
from storage.catalog import Catalog
from storage.errors import ManifestError, RootUnavailable
from storage.files import ScanResult, scan_root
from storage.home import Home
from storage.pending import Scope, live_files, pending_counts
from storage.publish import publish_due
from storage.roots import RootInfo, list_roots
from storage.spaces import SpaceInfo

READING = ("new", "size", "mtime", "ctime", "inode")
"""Reasons for which a file is read again; the others are pending by the catalog already."""


@dataclass(frozen=True)
class Plan:
    """What ``index`` or ``backfill`` would do."""

    scans: list[dict[str, Any]]
    unavailable: dict[str, str]
    spaces: list[dict[str, Any]]

    @property
    def idle(self) -> bool:
        """Whether a run would find nothing at all to do."""
        changes = sum((Counter(scan["reasons"]) for scan in self.scans), Counter())
        work = any(space["new"] or space["pending"] or space["publish"] for space in self.spaces)
        return not (changes or work or self.unavailable)

    def to_json(self) -> dict[str, Any]:
        """Return the plan for scripts."""
        return {"scans": self.scans, "spaces": self.spaces, "unavailable": self.unavailable}

    def to_text(self) -> str:
        """Return the plan for people."""
        lines = [f"{name}: {why}" for name, why in self.unavailable.items()]
        for scan in self.scans:
            reasons = ", ".join(f"{n:,} {why}" for why, n in sorted(scan["reasons"].items()) if n)
            lines.append(
                f"{scan['root']}: {counted(scan['scanned'], 'file')}, {reasons or 'no changes'}"
            )
        lines += map(_line, self.spaces)
        return "\n".join([*map(printable, lines), "nothing was touched"])


def _line(space: dict[str, Any]) -> str:
    name, pending, size = space["space"], space["pending"], space["disk_bytes"]
    disk = None if size is None else f"{size / 1e6:,.1f} MB of disk"
    if not space["new"]:
        due = f"; index to publish ({space['publish']})" if space["publish"] else ""
        return f"space '{name}': at most {counted(pending, 'file')} to read, {disk}{due}"
    extract = f"new space '{name}': at most {counted(pending, 'image')} to extract"
    return f"{extract}, {disk or 'how much disk they take follows once the model is known'}"


def plan(options: IndexOptions) -> Plan:
    """Return what a run would do, without touching anything.

    A file that the scan finds changed counts as one to read; whether its content is new is known
    only when its bytes are hashed.

    Raises
    ------
    FlowError
        No root was named, and none is known.
    RootError
        A root that was named can't be one, or is none that a back-fill could know.
    """
    home = Home(options.home, options.catalog_url)
    if not home.is_made():
        if not options.scan:
            raise FlowError(NO_ROOT)
        return _plan(None, options)
    with Catalog.open(home, write=False) as catalog:
        return _plan(catalog, options) if options.scan else _plan_of_known(catalog, options)


def _plan(catalog: Catalog | None, options: IndexOptions) -> Plan:
    roots = _roots(catalog, options)
    if not roots:
        raise FlowError(NO_ROOT)
    scanned, unavailable = _scans(catalog, options, roots)
    fresh = sum(sum(scan.reasons.get(why, 0) for why in READING) for _, scan in scanned)
    scope = scope_of((root for root, _ in scanned if root.id), options)
    found = [] if catalog is None else find_spaces(catalog, options.choice)
    spaces = [_space(catalog, space, scope, fresh) for space in found if catalog is not None]
    if not spaces:
        spaces = [_new_space(catalog, options.choice, sum(scan.scanned for _, scan in scanned))]
    scans = [
        {"root": scan.root, "scanned": scan.scanned, "reasons": dict(scan.reasons)}
        for _, scan in scanned
    ]
    return Plan(scans, unavailable, spaces)


def _plan_of_known(catalog: Catalog, options: IndexOptions) -> Plan:
    there, unavailable = looked_at(catalog, chosen_roots(catalog, options))
    scope = scope_of(there, options)
    spaces = [_space(catalog, space, scope, 0) for space in find_spaces(catalog, options.choice)]
    if not spaces:
        spaces = [_new_space(catalog, options.choice, live_files(catalog, scope))]
    return Plan([], unavailable, spaces)


def _roots(catalog: Catalog | None, options: IndexOptions) -> list[RootInfo]:
    """Return the roots that a run would scan, as ``flows.job.loop`` finds them."""
    if options.roots:
        return named_roots(catalog, options)
    return list_roots(catalog) if catalog is not None else []


def _scans(
    catalog: Catalog | None, options: IndexOptions, roots: Sequence[RootInfo]
) -> tuple[list[tuple[RootInfo, ScanResult]], dict[str, str]]:
    found, unavailable = [], {}
    for root in roots:
        try:
            result = scan_root(
                cast(Catalog, catalog),  # without one no root is known, and nothing is asked of it
                root,
                confirm_missing=options.confirm_missing,
                skip=os.fsencode(options.home),
                dry=True,
            )
        except (RootUnavailable, ManifestError) as error:
            unavailable[root.display] = str(error)
        else:
            found.append((root, result))
    return found, unavailable


def _space(catalog: Catalog, space: SpaceInfo, scope: Scope, fresh: int) -> dict[str, Any]:
    if scope.failed:  # those that are not pending now are armed again
        pending = live_files(catalog, scope, space)
    else:
        pending = pending_counts(catalog, space, scope).total + fresh
    return {
        "space": space.name,
        "new": False,
        "pending": pending,
        "disk_bytes": disk_needed_bytes(space, pending),
        "publish": publish_due(catalog, space),
    }


def _new_space(catalog: Catalog | None, choice: SpaceChoice, images: int) -> dict[str, Any]:
    dim = None if catalog is None else new_space_dim(catalog, choice)
    dtype = choice.to_make.dtype or "float32"
    return {
        "space": new_space_name(choice),
        "new": True,
        "pending": images,
        "disk_bytes": None if dim is None else vectors_need_bytes(dim, dtype, images),
        "publish": None,
    }
