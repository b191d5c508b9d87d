"""The steps of a run as Prefect tasks.

A task is a root, a chunk of about 30 s, or an index; never an image.  Nothing that a task takes or
returns is stored or compared by Prefect: the catalog is the only truth, its records are a view.
"""

import os
from typing import Any

from prefect import State, Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import TaskRun
from prefect.futures import PrefectFuture
from prefect.utilities.annotations import quote
from sqlalchemy.exc import InterfaceError, OperationalError

from flows.call import current_call
from flows.extraction import extract_step
from flows.orders import ChunkOrder, PublishOrder, ScanOrder
from flows.parameters import safe
from flows.worker import publish_step, scan_step

RETRY_AFTER_S = [5.0, 30.0]


def worth_retrying(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Return whether a task may succeed the next time: the catalog was busy or out of reach."""
    call = current_call()
    if call is not None and call.bench.stop.is_set():
        return False
    error = state.result(raise_on_failure=False)
    while isinstance(error, BaseException):
        if isinstance(error, OperationalError | InterfaceError):
            return True
        error = error.__cause__
    return False


TASK: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retries": len(RETRY_AFTER_S),
    "retry_delay_seconds": RETRY_AFTER_S,
    "retry_condition_fn": worth_retrying,
}


@task(name="scan", task_run_name="scan {root}", **TASK)
def scan(root: str, order: ScanOrder) -> dict[str, Any]:
    """Scan one root."""
    return scan_step(order)


@task(name="extract_chunk", task_run_name="chunk {number}", **TASK)
def extract_chunk(number: int, order: ChunkOrder) -> dict[str, Any]:
    """Extract and commit one chunk."""
    return extract_step(order)


@task(name="publish", task_run_name="index of {space}", **TASK)
def publish(space: str, order: PublishOrder) -> dict[str, Any]:
    """Build and publish the index of a space."""
    return publish_step(order)


class PrefectSteps:
    """Steps as tasks.  Orders are quoted, so that Prefect does not walk through their files."""

    def scan(self, order: ScanOrder) -> PrefectFuture[dict[str, Any]]:
        """Start a scan."""
        return scan.submit(safe(os.fsdecode(order.root.path)), _unseen(order))

    def extract(self, order: ChunkOrder) -> PrefectFuture[dict[str, Any]]:
        """Start a chunk."""
        return extract_chunk.submit(order.chunk.number, _unseen(order))

    def publish(self, order: PublishOrder) -> PrefectFuture[dict[str, Any]]:
        """Start publishing."""
        return publish.submit(order.space, _unseen(order))


def _unseen(order: object) -> Any:
    return quote(order)
