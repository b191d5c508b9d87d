"""Bring the catalog's files up to date with what lies in a root."""

import errno
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from storage.absence import Absence
from storage.catalog import Catalog
from storage.changes import GONE, Change, Known, Reason, diff, nothing, with_unlisted
from storage.errors import RootUnavailable
from storage.excludes import Excludes
from storage.file_rows import apply_changes, known_files, prune_missing
from storage.guard import (
    guard_losses,
    lost_message,
    preflight,
    refuse_unreachable,
    unmounted_inside,
    went_away,
)
from storage.leases import Lease, check_lease
from storage.manifest import read_manifest
from storage.places import Place
from storage.recognition import any_live, count_live
from storage.roots import RootInfo, display
from storage.runs import claim, release
from storage.scan import SEP, FileStat, Unreadable, walk
from storage.scanned import MAX_UNLISTED, record_scan
from storage.spool import Spool

__all__ = ["ScanResult", "apply_changes", "known_files", "scan_root"]

LOSSES = frozenset({Reason.MISSING, Reason.EXCLUDED})
MAX_UNREADABLE = 100
SAY_EVERY = 100
"""Files between two calls of ``progress``: often enough for a stop on a slow network disk."""
NOT_MOUNTED = "nothing is mounted there now"
FUTURE_MARGIN_NS = 60_000_000_000
"""A clock that runs a minute ahead is no picture from the future."""


@dataclass(frozen=True)
class ScanResult:
    """What one scan of one root saw."""

    root: str
    scanned: int
    """Files that were seen."""
    unchanged: int
    """Of these, files that are as they were and whose signature is trusted."""
    reasons: dict[str, int]
    """How many changes there are of each ``Reason``."""
    unreadable: list[tuple[str, str]]
    """Path and trouble, for the first 100."""
    unreadable_count: int
    future: int
    """Files dated more than a minute ahead; they are read again on every run."""
    duration_s: float


def scan_root(  # noqa: PLR0913 -- two say where, four how, one tells how far
    catalog: Catalog,
    root: RootInfo,
    *,
    confirm_missing: bool,
    skip: bytes | None,
    dry: bool = False,
    lease: Lease | None = None,
    progress: Callable[[int], None] | None = None,
) -> ScanResult:
    """Scan a root, or the sub-path of one, and bring the catalog's files up to date.

    Where losses are possible at all, nothing is written before the whole root was walked and found
    trustworthy; losses come last, after another look at the root and for each file.  A complete
    scan then prunes the files that two of them have missed, for longer than
    `storage.file_rows.GRACE_S`.

    Parameters
    ----------
    catalog
        Not used at all for a root with ``id`` 0.
    confirm_missing
        Believe that files are gone, however many; a root that is itself missing stays refused.
    skip
        Absolute path of the store's own home, which is never entered.
    dry
        Change nothing, and return what would be.
    lease
        The run's; it holds the root while it is scanned.
    progress
        Told how many files were seen so far, after every 100 of them, and again between those that
        are written.  What it raises ends the scan; what was written before stays.

    Raises
    ------
    RootUnavailable
        The root can't be trusted now; nothing of it was changed.
    LeaseHeld
        Another run is scanning it.
    ManifestError
        The manifest's lines are wrong.
    """
    scan = _Scan(catalog, root, confirm_missing, skip, progress)
    if dry or lease is None:
        return scan.run(dry=dry, lease=lease)
    claim(catalog, lease, "root", root.id)
    try:
        return scan.run(dry=False, lease=lease)
    finally:
        release(catalog, lease, "root", root.id)


@dataclass
class _Scan:
    """One pass over one root, with its counts."""

    catalog: Catalog
    root: RootInfo
    confirm: bool
    skip: bytes | None
    progress: Callable[[int], None] | None
    scanned: int = 0
    future: int = 0
    lost: int = 0
    unreadable_count: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    unmounted: list[bytes] = field(default_factory=list)
    unlisted: list[bytes] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def run(self, *, dry: bool, lease: Lease | None) -> ScanResult:
        started = time.monotonic()
        root, catalog = self.root, self.catalog
        place = preflight(catalog, root, confirm_missing=self.confirm)
        # Only a root that has something to lose waits for the end of the walk.
        wait = bool(root.id) and any_live(catalog, root)
        if place is not None and root.id and not self.confirm:
            self.unmounted = unmounted_inside(catalog, root, place)
        with Spool() as held:
            at_once = self._changes(held, wait=wait, dry=dry)
            if dry:
                self.reasons.update(change.reason.value for change in at_once)
            else:
                self.reasons.update(apply_changes(catalog, root, at_once, lease=lease))
            self._guard(place)
            if not dry:
                self.reasons.update(apply_changes(catalog, root, self._told(held), lease=lease))
                self._finish(lease, place)
            else:
                self.reasons.update(change.reason.value for change in held)
        return self._result(time.monotonic() - started)

    def _changes(self, held: Spool, *, wait: bool, dry: bool) -> Iterator[Change]:
        """Yield what may be written at once, and hold the rest."""
        for change in diff(self._known(), self._seen(), self._excluded(), self.root.under):
            if change.reason is Reason.MISSING and change.known and change.known.state == "live":
                self.lost += 1
            if not dry and (wait or change.reason in LOSSES):
                held.add(change)
            else:
                yield change

    def _known(self) -> Iterable[Known]:
        if not self.root.id:
            return ()
        lines = self.root.kind == "manifest"
        return known_files(self.catalog, self.root.id, self.root.under, lines=lines)

    def _excluded(self) -> Callable[[bytes], bool]:
        return nothing if self.root.kind == "manifest" else Excludes(self.root.excludes).hides

    def _seen(self) -> Iterator[FileStat | Unreadable]:
        root = self.root
        latest_ns = time.time_ns() + FUTURE_MARGIN_NS
        if root.kind == "manifest":
            items = read_manifest(root.path)
        else:
            items = walk(root.path, excludes=root.excludes, under=root.under, skip=self.skip)
            if self.unmounted:
                items = with_unlisted(items, self.unmounted)
        for item in items:
            if isinstance(item, FileStat):
                self.scanned += 1
                sig = item.sig
                if sig.mtime_ns > latest_ns or sig.ctime_ns > latest_ns:
                    self.future += 1
                if not self.scanned % SAY_EVERY:
                    self._say()
            else:
                self._note(item)
            yield item

    def _told(self, held: Spool) -> Iterator[Change]:
        """Yield what was held, without what proves to be there after all."""
        absence = None if self.root.kind == "manifest" else Absence(self.root.path)
        for change in held:
            self._say()
            if change.reason is Reason.MISSING and absence and not absence.confirms(change.path):
                continue
            yield change

    def _say(self) -> None:
        if self.progress is not None:
            self.progress(self.scanned)

    def _note(self, item: Unreadable) -> None:
        trouble = NOT_MOUNTED if item.errno == errno.ENODEV else os.strerror(item.errno)
        if item.is_dir and item.path == self.root.under:
            raise RootUnavailable(
                f"{self.root.display} can't be read ({trouble}); nothing of it was changed"
            )
        self.unreadable_count += 1
        if item.is_dir or item.errno not in GONE:
            self.unlisted = [*self.unlisted[:MAX_UNLISTED], item.path]  # one too many says so
        if len(self.unreadable) < MAX_UNREADABLE:
            joint = b": " if self.root.kind == "manifest" else SEP
            self.unreadable.append((display(self.root.path + joint + item.path), trouble))

    def _guard(self, place: Place | None) -> None:
        """Look at the root once more, and at what it lost."""
        name = self.root.display
        known_live = count_live(self.catalog, self.root) if self.lost else 0
        if self.lost and not self.scanned and not self.confirm:
            raise RootUnavailable(lost_message(name, self.lost, known_live))
        guard_losses(known_live, self.lost, self.confirm, name=name)
        refuse_unreachable(self.catalog, self.root, confirm_missing=self.confirm)
        if place is not None and went_away(self.root, place):
            raise RootUnavailable(
                f"{name} was replaced or mounted while it was scanned; nothing of it was changed. "
                "Run again"
            )

    def _finish(self, lease: Lease | None, place: Place | None) -> None:
        if self.root.under:
            return
        with self.catalog.write() as conn:
            if lease is not None:
                check_lease(conn, lease)
            now = self.catalog.now(conn)
            record_scan(conn, self.root.id, now, self._recorded(place), self.unlisted)
            prune_missing(conn, self.root.id, now)

    def _recorded(self, place: Place | None) -> Place | None:
        """Return the place for the next scan; what is not mounted now is still awaited."""
        if place is None:
            return None
        return replace(place, inner=tuple(sorted({*place.inner, *self.unmounted})))

    def _result(self, duration_s: float) -> ScanResult:
        losses = sum(self.reasons[reason.value] for reason in LOSSES)
        return ScanResult(
            root=self.root.display,
            scanned=self.scanned,
            unchanged=self.scanned - (self.reasons.total() - losses),
            reasons=dict(self.reasons),
            unreadable=self.unreadable,
            unreadable_count=self.unreadable_count,
            future=self.future,
            duration_s=duration_s,
        )
