"""The weekly maintenance: verify, read files again, prune, compact, publish, delete what is old.

Ordinary functions on this process's threads, no Prefect.  ``maintain`` is for a terminal,
``run_maintenance`` for whoever has a stop of their own, as ``flows.maintenance``.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from flows.job.extraction import default_workers
from flows.job.opened import opened_run
from flows.job.orders import Place, PublishOrder
from flows.job.patience import patiently
from flows.job.progress import Progress, counted
from flows.job.rereading import Rereader
from flows.job.signals import stop_on_signals
from flows.job.upkeep_options import UpkeepOptions
from flows.job.upkeep_report import UpkeepReport
from flows.job.worker import Bench, bench_for, clear_bench, publish_step
from storage.catalog import Catalog
from storage.check import check
from storage.cleanup import delete_old_files
from storage.compact import compact
from storage.errors import (
    DiskFull,
    IndexFileError,
    LeaseHeld,
    PartError,
    RootUnavailable,
    SpaceError,
)
from storage.file_rows import prune_root
from storage.guard import preflight
from storage.leases import Lease
from storage.publish import publish_due
from storage.rehash import SLICES, count_slice, next_slice, rehash
from storage.roots import RootInfo, list_roots
from storage.spaces import SpaceInfo, list_spaces

Answer = TypeVar("Answer")

KIND = "maintenance"
"""Of the runs in the catalog."""


@dataclass
class Upkeep:
    """One maintenance while it runs."""

    options: UpkeepOptions
    progress: Progress
    bench: Bench
    lease: Lease
    report: UpkeepReport
    lost: set[int] = field(default_factory=set)
    """Roots that can't be trusted now."""

    @property
    def catalog(self) -> Catalog:
        """The open catalog."""
        return self.bench.catalog

    @property
    def stopped(self) -> bool:
        """Whether the run was asked to stop."""
        return self.bench.stop.is_set()

    def ask(self, question: Callable[[Catalog], Answer]) -> Answer:
        """Return what the catalog answers; it is asked again where it was busy or out of reach."""
        return patiently(self.bench.stop, lambda: question(self.catalog))

    def roots(self) -> Iterator[RootInfo]:
        """Yield the roots that can be trusted now; the others are reported once."""
        for root in self.ask(list_roots):
            if self.stopped:
                return
            try:
                preflight(self.catalog, root)
            except RootUnavailable as error:
                if root.id not in self.lost:
                    self.lost.add(root.id)
                    self.report.trouble(error.exit_code, str(error))
            else:
                yield root

    def spaces(self) -> Iterator[SpaceInfo]:
        """Yield the spaces, until the run is to stop."""
        for space in self.ask(list_spaces):
            if self.stopped:
                return
            yield space


def maintain(options: UpkeepOptions, progress: Progress) -> UpkeepReport:
    """Maintain a store from a terminal: the first Ctrl-C stops cleanly, the second at once."""
    try:
        with stop_on_signals(options, progress) as stop:
            try:
                return run_maintenance(options, progress)
            except Exception as error:
                if stop.is_set():  # what the stop broke off is no trouble of its own
                    raise KeyboardInterrupt from error
                raise
    finally:
        clear_bench(options.home, options.catalog_url)


def run_maintenance(options: UpkeepOptions, progress: Progress) -> UpkeepReport:
    """Take all steps, and return the report.

    Trouble with a root, a space or files is in the report; trouble with the catalog is raised
    after the run has given back what it held.
    """
    bench = bench_for(options.home, options.catalog_url)
    report = UpkeepReport()
    with opened_run(bench, report, KIND, options.flow_run, report.finish) as lease:
        _work(Upkeep(options, progress, bench, lease, report))
    return report


def _work(upkeep: Upkeep) -> None:
    steps: list[tuple[str, Callable[[Upkeep], None]]] = [("rehash", _rehash)]
    if upkeep.options.verify:
        steps.insert(0, ("verify", _verify))
    _take(upkeep, steps)
    if 5 in upkeep.report.troubles:
        upkeep.report.warnings.append(
            "nothing was pruned, compacted, published or deleted, because the store is in trouble: "
            "`lookalike maintain --repair` mends what can be mended"
        )
        return
    steps = [("prune", _prune), ("compact", _compact), ("publish", _publish), ("delete", _delete)]
    _take(upkeep, steps)


def _take(upkeep: Upkeep, steps: list[tuple[str, Callable[[Upkeep], None]]]) -> None:
    for name, step in steps:
        if upkeep.stopped:
            return
        started = time.perf_counter()
        try:
            step(upkeep)
        finally:
            upkeep.report.seconds[name] = time.perf_counter() - started


def _verify(upkeep: Upkeep) -> None:
    upkeep.progress.note("verifying catalog, vectors and indexes")
    catalog, repair = upkeep.catalog, upkeep.options.repair
    try:
        found = check(catalog, repair=repair, deep=True, lease=upkeep.lease)
    except LeaseHeld as error:
        upkeep.report.warnings.append(f"nothing was repaired: {error}")
        found = check(catalog, deep=True)
    upkeep.report.add_findings(found)


def _rehash(upkeep: Upkeep) -> None:
    roots = [root.id for root in upkeep.roots()]
    if not roots:
        return
    number = upkeep.ask(next_slice)
    files = upkeep.ask(lambda catalog: count_slice(catalog, number, roots))
    said = f"reading {counted(files, 'file')} again: slice {number + 1} of {SLICES}"
    upkeep.progress.note(said)
    upkeep.progress.pending(files)
    workers = upkeep.options.workers or default_workers()
    reader = Rereader(workers, upkeep.bench.stop, upkeep.progress.advance)
    found = rehash(upkeep.catalog, upkeep.lease, number, roots, reader.read)
    upkeep.report.add_rehash(found)


def _prune(upkeep: Upkeep) -> None:
    for root in upkeep.roots():
        try:
            upkeep.report.pruned += prune_root(upkeep.catalog, upkeep.lease, root)
        except LeaseHeld as error:  # the scan prunes it
            upkeep.report.warnings.append(str(error))


def _compact(upkeep: Upkeep) -> None:
    for space in upkeep.spaces():
        with _tolerant(upkeep):
            result = compact(upkeep.catalog, upkeep.lease, space)
            upkeep.report.add_compacted(space.name, result)


def _publish(upkeep: Upkeep) -> None:
    place = Place(upkeep.options.home, upkeep.options.catalog_url, upkeep.lease)
    for space in upkeep.spaces():
        reason = publish_due(upkeep.catalog, space, retrain=True)
        if reason is None:
            continue
        upkeep.progress.publishing(space.name, reason)
        with _tolerant(upkeep):
            made = publish_step(PublishOrder(place, space.name, None))
            if made:
                upkeep.report.add_published(reason, made)


def _delete(upkeep: Upkeep) -> None:
    upkeep.report.deleted = delete_old_files(upkeep.catalog, upkeep.lease)


@contextmanager
def _tolerant(upkeep: Upkeep) -> Iterator[None]:
    """Record the trouble of one space, so that the others are maintained."""
    try:
        yield
    except (LeaseHeld, SpaceError) as error:  # another run is at it, or has dropped it
        upkeep.report.warnings.append(str(error))
    except (PartError, IndexFileError, DiskFull) as error:
        upkeep.report.trouble(error.exit_code, str(error))
