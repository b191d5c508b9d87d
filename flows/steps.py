"""How the steps of a run are carried out: here on threads, in ``flows.tasks`` as Prefect tasks."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from flows.extraction import extract_step
from flows.orders import ChunkOrder, PublishOrder, ScanOrder
from flows.worker import publish_step, scan_step


class Handle(Protocol):
    """A step under way."""

    def result(self) -> dict[str, Any]:
        """Wait for the step and return what it returned, or raise what it raised.

        What it returned is empty where a stop has ended it in its middle.
        """


class Steps(Protocol):
    """How the steps of a run are carried out."""

    def scan(self, order: ScanOrder) -> Handle:
        """Start a scan."""

    def extract(self, order: ChunkOrder) -> Handle:
        """Start a chunk."""

    def publish(self, order: PublishOrder) -> Handle:
        """Start publishing."""


class PlainSteps:
    """Steps on one thread of this process, so that the main thread stays free for signals."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="step")

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
