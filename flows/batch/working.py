"""Work through a source piece by piece, keeping what is finished."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from extractor.errors import WeightsError
from extractor.hub import watched
from flows.batch.flight import in_flight
from flows.batch.options import BatchOptions
from flows.batch.pieces import Piece, pieces_left
from flows.batch.told import BatchReport
from flows.errors import FlowError, Stopped
from flows.job.claiming import ChunkSize
from flows.job.extraction import told_of
from flows.job.progress import Progress
from flows.job.report import add_engines
from flows.job.signals import setting_on_signals
from flows.job.steps import MOST_SLOTS
from flows.job.worker import Ending
from storage.errors import DiskFull
from storage.home import free_bytes
from storage.sources.opening import Source
from storage.workfolder import Finished, WorkFolder

SAY_EVERY = 1000
"""Images of a source between two words of progress while they are counted."""
MOST_BYTES = 32 << 20
"""Bytes of a piece's vectors: two pieces and their copies are in memory at once."""


@dataclass(frozen=True)
class Done:
    """What a piece has come to.

    Attributes
    ----------
    piece
        As far as it was done: a stop leaves out what comes after the last image that was finished.
    arrays
        What is kept of it: arrays of numbers by name.
    failures
        Class of each failure.
    seconds
        By stage.
    told
        Of the engine, as ``flows.job.extraction.told_of`` has it.
    """

    piece: Piece
    arrays: Mapping[str, NDArray[Any]]
    failures: Sequence[str]
    seconds: Mapping[str, float]
    told: Mapping[str, Any] = field(default_factory=lambda: told_of(None, {}))


@dataclass
class BatchJob:
    """One run while it runs."""

    options: BatchOptions
    progress: Progress
    report: BatchReport
    stop: threading.Event = field(default_factory=threading.Event)
    """Set where a person wants the run to stop."""
    ending: Ending = field(init=False)
    """Set where pieces are to end, for a stop or because another one has failed."""

    def __post_init__(self) -> None:
        self.ending = Ending(self.stop)

    def check(self) -> None:
        """Raise ``Stopped`` where the run is to stop."""
        if self.ending.is_set():
            raise Stopped

    @contextmanager
    def spent(self, stage: str) -> Iterator[None]:
        """Add the seconds inside to a stage of the report."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.report.add_seconds({stage: time.perf_counter() - started})

    @contextmanager
    def fetching(self) -> Iterator[None]:
        """Follow what is downloaded inside, and raise ``Stopped`` where the run is to stop."""

        def follow(name: str, done: int, size: int | None) -> None:
            self.check()
            self.progress.downloading(name, done, size)

        try:
            with watched(follow):
                yield
        except WeightsError:
            self.check()  # the stop came while the other side was silent
            raise


@contextmanager
def running(options: BatchOptions, progress: Progress, report: BatchReport) -> Iterator[BatchJob]:
    """Carry out the body until a person stops it; a stop is told in the report.

    Raises
    ------
    KeyboardInterrupt
        Something failed after the stop, which has broken it off.
    """
    job = BatchJob(options, progress, report)
    started = time.perf_counter()
    with setting_on_signals(job.stop, progress):
        try:
            yield job
        except Stopped:
            report.interrupted = True
        except Exception as error:
            if job.stop.is_set():
                raise KeyboardInterrupt from error
            raise
    report.finish(time.perf_counter() - started, options.max_failures)


def work_through(
    job: BatchJob,
    source: Source,
    work: WorkFolder,
    item_bytes: int,
    do: Callable[[Piece], Done],
) -> None:
    """Work on all that is left of a source, and keep what is finished.

    Parameters
    ----------
    source
        Where the items come from; of the shard that the options name.
    work
        Where finished pieces are kept.
    item_bytes
        About how much is kept for an image.
    do
        Works on a piece, in several threads; tells the progress what it has done.

    Raises
    ------
    FlowError
        The source has no images.
    DiskFull
        What is left would not fit onto the disk.
    Stopped
        The run was asked to stop; everything finished is kept.
    """
    total = count_items(job, source)
    left = total - sum(chunk.n for chunk in work.finished.values())
    job.progress.pending(max(left, 0))
    _check_disk(job, (total + max(left, 0)) * item_bytes)
    size = ChunkSize(item_bytes, job.options.chunk_size, MOST_BYTES)

    def kept(chunk: Finished) -> None:
        job.check()
        job.report.kept += chunk.n

    pieces = pieces_left(source.items(job.options.shard), work, size, kept)
    with closing(in_flight(do, pieces, slots(job.options.device), job.ending)) as results:
        for done, seconds in results:
            _keep(job, work, done)
            if not job.ending.is_set():
                size.learn(len(done.piece.items), seconds)
    job.report.left = max(left - job.progress.done, 0)
    job.check()


def _keep(job: BatchJob, work: WorkFolder, done: Done) -> None:
    report, piece = job.report, done.piece
    report.add_seconds(done.seconds)
    add_engines(report, done.told)
    if not piece.items:
        return
    with job.spent("write"):
        work.write(piece.start, len(piece.items), piece.key, done.arrays)
    report.add_failures(done.failures)
    report.extracted += len(piece.items) - len(done.failures)


def count_items(job: BatchJob, source: Source) -> int:
    """Return how many items there are, looked through where the source does not know.

    Raises
    ------
    FlowError
        There are none.
    """
    shard, said = job.options.shard, source.description
    n = source.count_hint() if shard is None else None
    if n is None:
        n = 0
        with job.spent("scan"):
            for n, _ in enumerate(source.items(shard), 1):
                if n % SAY_EVERY == 0:
                    job.check()
                    job.progress.scanning(said, n)
        job.progress.scanned(said, n)
    if not n and shard is None:
        raise FlowError(f"{said}: no images are there")
    return n


def _check_disk(job: BatchJob, needed: int) -> None:
    free = free_bytes(os.path.abspath(job.options.out))
    if needed > free:
        raise DiskFull(
            f"the work and the output need about {needed / 1e9:,.2f} GB beside {job.options.out}, "
            f"{free / 1e9:,.2f} GB are free; free some, or split the source with --shard"
        )


def slots(device: str) -> int:
    """Return how many pieces may be worked on at once: one on each device."""
    from extractor.device import devices

    return min(len(devices(device)), MOST_SLOTS)
