"""How the steps of a run are carried out: on threads here, as tasks in ``flows.engine.tasks``.

A scan and an index are always the own process's; chunks may be others'.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from flows.job.extraction import extract_step
from flows.job.orders import ChunkOrder, PublishOrder, ScanOrder
from flows.job.worker import publish_step, scan_step

MOST_SLOTS = 64
"""Threads that are made at most; how many chunks are begun is for ``slots`` to say."""


class Handle(Protocol):
    """A step under way."""

    def result(self) -> dict[str, Any]:
        """Wait for the step and return what it returned, or raise what it raised.

        What it returned is empty where a stop has ended it in its middle.

        Raises
        ------
        WorkerLost
            The worker that had the chunk is gone, and nobody else has it.
        """


class Steps(Protocol):
    """How the steps of a run are carried out."""

    @property
    def remote(self) -> bool:
        """Whether chunks run in other processes, which see in the catalog how the run goes."""

    def slots(self, device: str) -> int:
        """Return how many chunks are worked on at once now."""

    def neighbours(self, device: str) -> int:
        """Return how many chunks share the cores of this machine, 0 where they are others' cores.

        Raises ``DeviceError`` as ``slots`` does: a device is not here.
        """

    def scan(self, order: ScanOrder) -> Handle:
        """Start a scan."""

    def extract(self, order: ChunkOrder) -> Handle:
        """Start a chunk."""

    def publish(self, order: PublishOrder) -> Handle:
        """Start publishing."""


class ThreadSlots:
    """As many slots as there are devices, on threads of this process."""

    remote = False

    def __init__(self) -> None:
        self._counted: tuple[str, int] | None = None

    def slots(self, device: str) -> int:
        """Return the number of devices.  Imports torch."""
        if self._counted is None or self._counted[0] != device:
            from extractor.device import devices

            self._counted = device, min(len(devices(device)), MOST_SLOTS)
        return self._counted[1]

    def neighbours(self, device: str) -> int:
        """Return the number of devices."""
        return self.slots(device)


class PlainSteps(ThreadSlots):
    """Steps on threads of this process, so that the main thread stays free for signals."""

    def __init__(self) -> None:
        super().__init__()
        self._pool = ThreadPoolExecutor(max_workers=MOST_SLOTS, thread_name_prefix="step")

    def scan(self, order: ScanOrder) -> Future[dict[str, Any]]:
        """Start a scan."""
        return self._pool.submit(scan_step, order)

    def extract(self, order: ChunkOrder) -> Future[dict[str, Any]]:
        """Start a chunk."""
        return self._pool.submit(extract_step, order)

    def publish(self, order: PublishOrder) -> Future[dict[str, Any]]:
        """Start publishing."""
        return self._pool.submit(publish_step, order)

    def __enter__(self) -> "PlainSteps":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True)
