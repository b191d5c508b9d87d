"""The steps of a run as Prefect tasks; those on a cluster are the chunks alone.

A task is a root, a chunk of about 30 s, or an index; never an image.  Nothing that a task takes or
returns is stored or compared by Prefect: the catalog is the only truth, its records are a view.
"""

import os
from typing import Any, Generic, TypeVar

from prefect import State, Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import TaskRun
from prefect.task_runners import TaskRunner

from flows.engine.call import current_call
from flows.engine.crew import Crew, crew_of
from flows.job.extraction import extract_step
from flows.job.orders import ChunkOrder, PublishOrder, ScanOrder
from flows.job.parameters import safe
from flows.job.patience import passing
from flows.job.steps import Handle, ThreadSlots
from flows.job.worker import publish_step, scan_step
from flows.server.process import Say, nobody

Order = TypeVar("Order")

RETRY_AFTER_S = [5.0, 30.0]


def worth_retrying(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Return whether a task may succeed the next time: the catalog was busy or out of reach."""
    call = current_call()
    if call is not None and call.bench.ending.is_set():
        return False
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and passing(error)


TASK: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retries": len(RETRY_AFTER_S),
    "retry_delay_seconds": RETRY_AFTER_S,
    "retry_condition_fn": worth_retrying,
}


class Sealed(Generic[Order]):
    """An order, closed to Prefect and Dask, which look for futures in all that they can open."""

    def __init__(self, order: Order) -> None:
        self.order = order


@task(name="scan", task_run_name="scan {root}", **TASK)
def scan(root: str, sealed: Sealed[ScanOrder]) -> dict[str, Any]:
    """Scan one root."""
    return scan_step(sealed.order)


@task(name="extract_chunk", task_run_name="chunk {number}", **TASK)
def extract_chunk(number: int, sealed: Sealed[ChunkOrder]) -> dict[str, Any]:
    """Extract and commit one chunk."""
    return extract_step(sealed.order)


@task(name="publish", task_run_name="index of {space}", **TASK)
def publish(space: str, sealed: Sealed[PublishOrder]) -> dict[str, Any]:
    """Build and publish the index of a space."""
    return publish_step(sealed.order)


class PrefectSteps:
    """Steps as tasks.

    Parameters
    ----------
    runner
        What carries the chunks out, already started.
    here
        What carries out a scan and the building of an index: threads of this process, started.
        A cluster may repeat what it has, and a scan can't be done twice at once.
    say
        Told where a cluster has no workers yet.

    Raises
    ------
    FlowError
        Its cluster can't be started or reached.
    """

    def __init__(self, runner: TaskRunner[Any], here: TaskRunner[Any], say: Say = nobody) -> None:
        self._runner, self._here = runner, here
        self._crew: Crew | None = crew_of(runner, say)
        self._threads = ThreadSlots()

    @property
    def remote(self) -> bool:
        """Whether the chunks run in other processes."""
        return self._crew is not None

    def slots(self, device: str) -> int:
        """Return how many chunks are worked on at once now."""
        return self._crew.slots() if self._crew else self._threads.slots(device)

    def neighbours(self, device: str) -> int:
        """Return how many chunks share this machine's cores, 0 where they are others' cores."""
        return self._crew.neighbours() if self._crew else self._threads.neighbours(device)

    def scan(self, order: ScanOrder) -> Handle:
        """Start a scan."""
        root = safe(os.fsdecode(order.root.path))
        begun: Handle = self._here.submit(scan, {"root": root, "sealed": Sealed(order)})
        return begun

    def extract(self, order: ChunkOrder) -> Handle:
        """Start a chunk."""
        parameters = {"number": order.chunk.number, "sealed": Sealed(order)}
        if self._crew:
            return self._crew.begin(extract_chunk, parameters)
        begun: Handle = self._runner.submit(extract_chunk, parameters)
        return begun

    def publish(self, order: PublishOrder) -> Handle:
        """Start publishing."""
        parameters = {"space": order.space, "sealed": Sealed(order)}
        begun: Handle = self._here.submit(publish, parameters)
        return begun
