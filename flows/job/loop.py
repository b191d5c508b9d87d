"""The job: scan the roots, extract what is pending, publish.  Ordinary functions, no Prefect.

``run_index`` is the one loop that serves both ways of running: it hands its steps to whatever
``Steps`` it was given, plain threads here or Prefect tasks in ``flows.engine.tasks``.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

from flows.job.claiming import Claiming, chunk_size
from flows.job.opened import opened_run
from flows.job.orders import Place, PublishOrder
from flows.job.patience import patiently
from flows.job.progress import Progress, counted
from flows.job.remote import passing_on
from flows.job.report import Report
from flows.job.scanning import chosen_roots, scan_roots
from flows.job.spaces import SpaceChoice, disk_needed_bytes, find_spaces, make_space
from flows.job.steps import Steps
from flows.job.window import Extraction
from flows.job.worker import Bench, bench_for
from storage.catalog import Catalog
from storage.cleanup import delete_old_files
from storage.errors import DiskFull, LeaseHeld
from storage.failures import retry
from storage.home import free_bytes
from storage.pending import Scope, pending_counts
from storage.publish import publish_due
from storage.roots import RootInfo
from storage.runs import work_in
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
    engine: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    chunk_size: int | None = None
    index_spec: str | None = None
    max_failures: float | None = None
    """Share of the images of this run that may fail; None for no limit."""
    kind: str = "index"
    """Kind of the run in the catalog: ``index`` or ``backfill``."""
    only: Scope = field(default_factory=Scope)
    """Which files of the roots the run is about; the roots are its places."""
    runner: str = "thread"
    """``thread``, or ``dask``."""
    cluster: str | None = None
    """With ``dask``: a scheduler's address, a number of local workers, or a YAML file."""
    flow_run: str | None = None
    """Id of the flow run in Prefect."""

    @property
    def scan(self) -> bool:
        """Whether the roots are walked; else they are looked at."""
        return self.kind != "backfill"

    @property
    def publish_always(self) -> bool:
        """Whether a run that extracted something publishes at its end, also where it is not due."""
        return self.kind == "backfill"


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
    bench.on_download = progress.downloading
    roots = chosen_roots(catalog, options)
    report = Report(kind=options.kind)

    def ending(seconds: float) -> None:
        report.finish(seconds, options.max_failures)

    with opened_run(bench, report, options.kind, options.flow_run, ending) as lease:
        place = Place(options.home, options.catalog_url, lease)
        with passing_on(bench.stop, catalog, lease) if steps.remote else nullcontext():
            _work(Job(options, steps, progress, bench, place, report), roots)
    return report


def _work(job: Job, roots: list[RootInfo]) -> None:
    with _spent(job, "scan"):
        scope = scan_roots(job, roots)
    all_scanned = not job.stopped
    spaces = _spaces(job)
    for space in spaces:
        before = job.report.extracted
        if scope and not job.stopped:
            _extract(job, space, scope)
        if not job.stopped:
            _publish(job, space, grown=job.report.extracted > before)
    if job.stopped and all_scanned:
        left = [pending_counts(job.catalog, space, scope).total for space in spaces]
        job.report.pending = sum(left)
    elif not job.stopped and (
        job.report.extracted or job.report.index
    ):  # what this run leaves, a later one clears
        delete_old_files(job.catalog, job.place.lease)


def _spaces(job: Job) -> list[SpaceInfo]:
    choice = job.options.choice
    found = find_spaces(job.catalog, choice)
    if not found and not job.stopped:
        _refuse_early(job)  # then no space is made
        job.progress.note("loading the model")
        with _spent(job, "model"), job.bench.fetching():
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


def _refuse_early(job: Job) -> None:
    """Refuse a device or an engine that is not here; other hosts refuse for themselves."""
    job.steps.slots(job.options.device)
    if not job.steps.remote:
        from extractor.device import choose_device
        from extractor.engines import check

        check(job.options.engine, choose_device(job.options.device))


def _extract(job: Job, space: SpaceInfo, scope: Scope) -> None:
    with _spent(job, "plan"):
        if scope.failed:  # only what is armed again is pending
            patiently(job.bench.stop, lambda: retry(job.catalog, scope=scope, space=space))
        pending = patiently(job.bench.stop, lambda: pending_counts(job.catalog, space, scope))
    if not pending.total:
        return
    job.progress.pending(pending.total)
    _check_disk(job, space, pending.total)
    patiently(job.bench.stop, lambda: work_in(job.catalog, job.place.lease, space))
    size = chunk_size(space, job.options.chunk_size)
    claiming = Claiming(
        job.catalog, job.place.lease, space, scope, size, job.bench.stop, job.progress.note
    )
    Extraction(job, space, claiming, pending.total).run()


def _check_disk(job: Job, space: SpaceInfo, images: int) -> None:
    needed, free = disk_needed_bytes(space, images), free_bytes(job.options.home)
    files, disk = counted(images, "file"), f"{needed / 1e6:,.1f} MB of disk"
    job.progress.note(f"{files} to read for space '{space.name}': at most {disk}")
    if needed > free:
        raise DiskFull(
            f"{images:,} images need about {needed / 1e9:.2f} GB in {job.options.home}, "
            f"{free / 1e9:.2f} GB are free; free some, or choose --dtype float16"
        )


def _publish(job: Job, space: SpaceInfo, *, grown: bool) -> None:
    reason = "requested" if job.options.index_spec else publish_due(job.catalog, space)
    if reason is None and job.options.publish_always and grown:
        reason = "end"
    if reason is None:
        return
    job.progress.publishing(space.name, reason)
    order = PublishOrder(job.place, space.name, job.options.index_spec)
    with _spent(job, "publish"):
        try:
            made = job.steps.publish(order).result()
            job.report.index = made or job.report.index
            job.report.warnings += filter(None, [made.get("fallen")])
        except LeaseHeld as error:  # whoever has it publishes; the tail serves until then
            job.report.warnings.append(str(error))


@contextmanager
def _spent(job: Job, stage: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        job.report.add_seconds({stage: time.perf_counter() - started})
