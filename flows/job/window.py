"""The chunks of a run in flight: several at once, taken up in the order in which they end."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from flows.errors import WorkerLost
from flows.job.claiming import Claiming
from flows.job.extraction import default_workers, give_back_chunk
from flows.job.orders import ChunkOrder
from flows.job.patience import patiently
from flows.job.progress import counted
from flows.job.steps import Handle, Steps
from storage.chunks import Chunk
from storage.entered import entered_by
from storage.errors import StorageError
from storage.leases import ask_to_stop
from storage.spaces import SpaceInfo

if TYPE_CHECKING:
    from flows.job.loop import Job

POLL_S = 0.5
LAND_S = 30.0
"""How long a stop waits for workers in other processes, which end early by themselves."""


@dataclass(frozen=True)
class Landed:
    """A chunk that has ended: with a result, or an error."""

    order: ChunkOrder
    result: dict[str, Any] | None = None
    error: BaseException | None = None


class Window:
    """Chunks under way, each with a thread that waits for it."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._flying: dict[int, ChunkOrder] = {}
        self._landed: SimpleQueue[Landed] = SimpleQueue()

    def __len__(self) -> int:
        return len(self._flying)

    def begin(self, order: ChunkOrder) -> None:
        """Begin a chunk; one that can't be begun lands with its error."""
        self._flying[order.chunk.number] = order
        try:
            handle = self._steps.extract(order)
        except BaseException as error:  # noqa: BLE001 - raised where it is taken up
            self._landed.put(Landed(order, error=error))
            return
        waiting = threading.Thread(
            target=copy_context().run, args=(self._wait, order, handle), name="landing", daemon=True
        )
        waiting.start()

    def land(self, timeout_s: float) -> Landed | None:
        """Return a chunk that has ended; None where none does in time."""
        try:
            landed = self._landed.get(timeout=timeout_s)
        except Empty:
            return None
        del self._flying[landed.order.chunk.number]
        return landed

    def abandon(self) -> list[ChunkOrder]:
        """Return the chunks that are still under way; nobody waits for them any more."""
        orders, self._flying = list(self._flying.values()), {}
        self._landed = SimpleQueue()
        return orders

    def _wait(self, order: ChunkOrder, handle: Handle) -> None:
        landed = self._landed
        try:
            landed.put(Landed(order, handle.result()))
        except BaseException as error:  # noqa: BLE001 - raised where it is taken up
            landed.put(Landed(order, error=error))


class Extraction:
    """Works through all that a run can claim in one space."""

    def __init__(self, job: "Job", space: SpaceInfo, claiming: Claiming, pending: int) -> None:
        self._job = job
        self._space = space
        self._claiming = claiming
        self._window = Window(job.steps)
        self._extracted_before = job.report.extracted
        self._unanswered = 0
        self._left = pending
        # Where all fits into one chunk nobody needs to know the devices, which takes torch.
        self._alone = not job.steps.remote and pending <= claiming.size.limit

    def run(self) -> None:
        """Keep as many chunks in flight as there are slots, until nothing is left or the stop.

        Raises
        ------
        Exception
            What a chunk raised; those in flight then have ended early or are given back.
        """
        chunks = self._claiming.chunks()
        with self._landing():
            while True:
                while len(self._window) >= self._slots():
                    self._land()
                chunk = next(chunks, _END)
                if chunk is _END:
                    break
                if chunk is None:
                    self._land_all()
                else:
                    self._window.begin(self._order(chunk))
            self._land_all()
        self._make_up_for_lost_answers()

    @contextmanager
    def _landing(self) -> Iterator[None]:
        """Let nothing be in flight at the end, however it comes."""
        bench = self._job.bench
        try:
            yield
        except BaseException:
            bench.ending.set()
            if self._job.steps.remote:
                with suppress(StorageError):
                    ask_to_stop(self._job.catalog, self._job.place.lease)
            self._land_rest()
            raise
        finally:
            bench.ending.clear()

    def _land_rest(self) -> None:
        """Wait for what is in flight after an error: the first trouble is the one to tell."""
        deadline = time.monotonic() + LAND_S
        while len(self._window) and not (self._job.steps.remote and time.monotonic() > deadline):
            landed = self._window.land(POLL_S)
            if landed is not None and landed.error is not None:
                self._give_back(landed.order)
            elif landed is not None:
                self._add(landed)
        for order in self._window.abandon():
            self._give_back(order)

    def _land_all(self) -> None:
        """Wait for all that is in flight; for other processes only so long after a stop."""
        deadline = None
        while len(self._window):
            self._land()
            if self._job.stopped and self._job.steps.remote:
                deadline = deadline or time.monotonic() + LAND_S
                if time.monotonic() > deadline:
                    for order in self._window.abandon():
                        self._give_back(order)

    def _land(self) -> None:
        """Take up a chunk that has ended, if one does soon."""
        landed = self._window.land(POLL_S)
        if landed is None:
            return
        if landed.error is None:
            self._add(landed)
            return
        self._give_back(landed.order)
        if not isinstance(landed.error, WorkerLost):
            raise landed.error
        if not self._job.stopped:
            self._note_loss(landed.order.chunk, landed.error)

    def _add(self, landed: Landed) -> None:
        job, chunk, result = self._job, landed.order.chunk, landed.result
        if not result:
            if not job.bench.ending.is_set():
                self._unanswered += len(chunk.work)
                if job.steps.remote:
                    job.progress.advance(len(chunk.work))
            return
        job.report.add_chunk(result)
        left = result["left"]
        self._claiming.left(left)
        if not job.stopped:
            self._claiming.size.learn(len(chunk.work), result["duration_s"])
        if job.steps.remote:
            job.progress.advance(len(chunk.work), result["outcomes"].get("failed", 0))
        job.progress.advance(-len(left))  # they come again

    def _make_up_for_lost_answers(self) -> None:
        """Take from the catalog what was extracted without an answer: it was committed."""
        if not self._unanswered:
            return
        job = self._job
        entered = patiently(
            job.bench.stop, lambda: entered_by(job.catalog, job.place.lease, self._space)
        )
        found = max(entered - (job.report.extracted - self._extracted_before), 0)
        job.report.extracted += found
        job.report.warnings.append(
            f"{counted(self._unanswered, 'file')}: the answer of their worker was lost after the "
            f"commit; {found:,} extracted are counted from the catalog, the other numbers of this "
            "report lack these files"
        )

    def _note_loss(self, chunk: Chunk, error: WorkerLost) -> None:
        report, files = self._job.report, counted(len(chunk.work), "file")
        given_up = len(chunk.work) - self._claiming.lost(chunk)
        if not given_up:
            report.warnings.append(f"chunk {chunk.number}, {files}: {error}; they are tried again")
            return
        some = "" if given_up == len(chunk.work) else f"{given_up:,} of "
        report.trouble(
            3, f"{some}{files} were given up: {error}, each time; the next run tries them again"
        )

    def _give_back(self, order: ChunkOrder) -> None:
        with suppress(StorageError):
            give_back_chunk(order)

    def _slots(self) -> int:
        return 1 if self._alone else self._job.steps.slots(self._job.options.device)

    def _order(self, chunk: Chunk) -> ChunkOrder:
        job, options = self._job, self._job.options
        workers = options.workers
        if workers is None and not self._alone:
            neighbours = job.steps.neighbours(options.device)
            workers = max(2, default_workers() // neighbours) if neighbours > 1 else None
        share = max(self._left // max(self._slots(), 1), len(chunk.work))
        self._left -= len(chunk.work)
        return ChunkOrder(
            job.place,
            self._space.name,
            chunk,
            options.device,
            options.batch_size,
            workers,
            options.engine,
            share,
        )


_END = Chunk(0, 0, ())
