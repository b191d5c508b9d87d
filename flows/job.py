"""The job: scan the roots, extract what is pending, publish.  Ordinary functions, no Prefect.

``run_index`` is the one loop that serves both ways of running: it hands its steps to whatever
``Steps`` it was given, plain threads here or Prefect tasks in ``flows.index``.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from flows.claiming import ChunkSize, Claiming
from flows.progress import Progress
from flows.report import Report
from flows.spaces import SpaceChoice, disk_needed_bytes, find_spaces, make_space
from flows.steps import Steps
from flows.worker import (
    Bench,
    ChunkOrder,
    Place,
    PublishOrder,
    ScanOrder,
    bench_for,
    give_back_chunk,
)
from storage.catalog import Catalog
from storage.chunks import Scope, pending_counts
from storage.cleanup import delete_old_files
from storage.errors import (
    DiskFull,
    LeaseHeld,
    ManifestError,
    RootError,
    RootUnavailable,
    StorageError,
)
from storage.home import free_bytes
from storage.publish import publish_due
from storage.roots import RootInfo, add_root, find_root, list_roots
from storage.runs import Heartbeat, Lease, finish_run, reap, start_run
from storage.spaces import SpaceInfo


@dataclass(frozen=True)
class IndexOptions:
    """What one run of ``index`` was asked to do."""

    home: str
    catalog_url: str | None = None
    roots: tuple[str, ...] = ()
    """Directories or manifests (``os.fsdecode``); empty for all known roots."""
    choice: SpaceChoice = field(default_factory=SpaceChoice)
    excludes: tuple[str, ...] = ()
    confirm_missing: bool = False
    device: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    chunk_size: int | None = None
    index_spec: str | None = None
    max_failures: float | None = None
    """Share of the images of this run that may fail; None for no limit."""


@dataclass
class Job:
    """One run of ``index`` while it runs."""

    options: IndexOptions
    steps: Steps
    progress: Progress
    bench: Bench
    place: Place
    report: Report

    @property
    def catalog(self) -> Catalog:
        """The open catalog."""
        return self.bench.catalog

    @property
    def stopped(self) -> bool:
        """Whether the run was asked to stop."""
        return self.bench.stop.is_set()


def run_index(options: IndexOptions, *, steps: Steps, progress: Progress) -> Report:
    """Scan, extract and publish; return the report.

    Trouble with one root or with images is in the report; trouble with the store is raised after
    the run has given back what it held.
    """
    bench = bench_for(options.home, options.catalog_url)
    catalog = bench.catalog
    bench.on_image, bench.on_scan = progress.advance, progress.scanning
    started = time.perf_counter()
    reap(catalog)
    roots = chosen_roots(catalog, options)
    lease = start_run(catalog, "index")
    report = Report(run_id=lease.run_id)
    place = Place(options.home, options.catalog_url, lease)
    state = "failed"
    try:
        with Heartbeat(catalog, lease):
            job = Job(options, steps, progress, bench, place, report)
            _work(job, roots)
        state = "interrupted" if job.stopped else "done"
    finally:
        report.interrupted = bench.stop.is_set()
        report.finish(time.perf_counter() - started, options.max_failures)
        _close_run(catalog, lease, state, report)
    return report


def _close_run(catalog: Catalog, lease: Lease, state: str, report: Report) -> None:
    try:
        finish_run(catalog, lease, state, report.to_json())
    except StorageError as error:
        if state != "failed":  # else the first trouble is the one to tell
            raise
        report.warnings.append(str(error))


def chosen_roots(catalog: Catalog, options: IndexOptions) -> list[RootInfo]:
    """Return the roots to scan; those named for the first time are registered.

    A known root need not be there now: that is for the scan to say.
    """
    if not options.roots:
        return list_roots(catalog)
    paths = [os.fsencode(root) for root in options.roots]
    return [
        _known(catalog, path, options) or add_root(catalog, path, excludes=options.excludes)
        for path in paths
    ]


def _known(catalog: Catalog, path: bytes, options: IndexOptions) -> RootInfo | None:
    if options.excludes:
        return None
    try:
        return find_root(catalog, path)
    except RootError:
        return None


def _work(job: Job, roots: list[RootInfo]) -> None:
    with _spent(job, "scan"):
        for root in roots:
            if not job.stopped:
                _scan(job, root)
    for space in _spaces(job):
        if not job.stopped:
            scope = [(root.id, root.under) for root in roots] if job.options.roots else None
            _extract(job, space, scope)
        if not job.stopped:
            _publish(job, space)
    if job.report.extracted or job.report.index:  # what a working run leaves, a later one clears
        delete_old_files(job.catalog, job.place.lease)


def _scan(job: Job, root: RootInfo) -> None:
    job.progress.scanning(root.display, 0)
    order = ScanOrder(job.place, root, job.options.confirm_missing)
    try:
        job.report.add_scan(job.steps.scan(order).result())
    except (RootUnavailable, ManifestError) as error:
        job.report.add_unavailable(root.display, str(error))
    except LeaseHeld as error:
        job.report.add_held(root.display, str(error))


def _spaces(job: Job) -> list[SpaceInfo]:
    choice = job.options.choice
    found = find_spaces(job.catalog, choice)
    if not found and not job.stopped:
        job.progress.note("loading the model")
        with _spent(job, "model"):
            space, model = make_space(job.catalog, choice)
        job.bench.models[space.id] = model
        found = [space]
        if not found[0].current:
            job.progress.note(
                f"space '{found[0].name}' is made beside the current one; "
                f"`lookalike spaces use {found[0].name}` makes it the one that is searched"
            )
    job.report.space = ", ".join(space.name for space in found)
    return found


def _extract(job: Job, space: SpaceInfo, scope: Scope | None) -> None:
    with _spent(job, "plan"):
        pending = pending_counts(job.catalog, space, scope)
    if not pending.total:
        return
    job.progress.pending(pending.total)
    _check_disk(job, space, pending.total)
    options = job.options
    size = ChunkSize(space, options.chunk_size)
    claiming = Claiming(
        job.catalog, job.place.lease, space, scope, size, job.bench.stop, job.progress.note
    )
    for chunk in claiming.chunks():
        order = ChunkOrder(
            job.place, space.name, chunk, options.device, options.batch_size, options.workers
        )
        try:
            result = job.steps.extract(order).result()
        except BaseException:
            with suppress(StorageError):  # the first trouble is the one to tell
                give_back_chunk(order)
            raise
        job.report.add_chunk(result)


def _check_disk(job: Job, space: SpaceInfo, images: int) -> None:
    needed, free = disk_needed_bytes(space, images), free_bytes(job.options.home)
    job.progress.note(
        f"{images:,} files to read for space '{space.name}': at most {needed / 1e6:,.1f} MB of disk"
    )
    if needed > free:
        raise DiskFull(
            f"{images:,} images need about {needed / 1e9:.2f} GB in {job.options.home}, "
            f"{free / 1e9:.2f} GB are free; free some, or choose --dtype float16"
        )


def _publish(job: Job, space: SpaceInfo) -> None:
    reason = "requested" if job.options.index_spec else publish_due(job.catalog, space)
    if reason is None:
        return
    job.progress.publishing(f"index of '{space.name}' ({reason})")
    order = PublishOrder(job.place, space.name, job.options.index_spec)
    with _spent(job, "publish"):
        try:
            job.report.index = job.steps.publish(order).result()
        except LeaseHeld as error:  # whoever has it publishes; the tail serves until then
            job.report.warnings.append(str(error))


@contextmanager
def _spent(job: Job, stage: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        job.report.add_seconds({stage: time.perf_counter() - started})
