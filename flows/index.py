"""The Prefect flow ``index_images``, with its tasks: a thin coat around the job.

A deployment names it ``flows/index.py:index_images``; it then takes its settings from the
environment.  The command line calls it through `flows.prefect_run`.

A task is a root, a chunk of about 30 s, or an index; never an image.  Nothing that a task takes or
returns is stored or compared by Prefect: the catalog is the only truth, its records are a view.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from prefect import State, Task, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import TaskRun
from prefect.context import TagsContext
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote
from sqlalchemy.exc import InterfaceError, OperationalError

from flows.artifacts import ProgressArtifact, publish_report
from flows.call import Call, carrying_out, current_call
from flows.extraction import extract_step
from flows.job import run_index
from flows.orders import ChunkOrder, PublishOrder, ScanOrder
from flows.parameters import options_for, safe
from flows.progress import Progress
from flows.report import Report
from flows.signals import stop_on_signals
from flows.worker import clear_bench, publish_step, scan_step

FAILS = (7, 5, 4)
"""Exit codes that make a failed run of a flow."""
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


def run_name() -> str:
    """Return the name of a run: what is indexed, and how."""
    asked = flow_run.get_parameters()
    roots = [os.path.basename(root.rstrip("/")) or root for root in asked.get("roots") or ()]
    how = [asked.get("space") or "-".join(filter(None, (asked.get("model"), asked.get("layer"))))]
    return " ".join(filter(None, ["index", *roots[:3], "..." if roots[3:] else "", *how]))


@flow(
    name="index-images",
    flow_run_name=run_name,
    task_runner=ThreadPoolTaskRunner(max_workers=1),  # type: ignore[arg-type]
    persist_result=False,
)
def index_images(  # noqa: PLR0913 - each one is a field of Prefect's form and of a deployment
    roots: list[str] | None = None,
    space: str | None = None,
    model: str | None = None,
    layer: str | None = None,
    weights: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    chunk_size: int | None = None,
    excludes: list[str] | None = None,
    index_spec: str | None = None,
    max_failures: float | None = None,
    confirm_missing: bool = False,
    home: str | None = None,
) -> State[dict[str, Any]]:
    """Bring the index up to date with the roots, or with all known ones.

    What is left out comes from ``LOOKALIKE_*`` and the settings file.  The result is the run's
    report.  The run is *Failed* where a root or the store is in trouble or too many images failed,
    *Cancelled* where it was stopped; images that failed alone do not fail it.
    """
    call = current_call()
    if call is not None:
        with TagsContext(current_tags=set()):  # a task's tag costs it a question to the API
            return _carried_out(call)
    options, _ = options_for({name: value for name, value in locals().items() if name != "call"})
    with ExitStack() as stack:
        stack.callback(clear_bench, options.home, options.catalog_url)
        call = Call(options, stack.enter_context(Progress("silent")))
        stack.enter_context(carrying_out(call))
        if threading.current_thread() is threading.main_thread():
            stack.enter_context(stop_on_signals(options, call.progress))
        return _carried_out(call)


def _carried_out(call: Call) -> State[dict[str, Any]]:
    """Run the job inside the flow.

    Nothing is raised from here: Prefect would keep the exception in a pickle.
    """
    try:
        with _handler_kept(call), ProgressArtifact(call.progress) as shown:
            report = run_index(call.options, steps=PrefectSteps(), progress=call.progress)
            call.report = report
            if not report.interrupted and call.api_answers():
                shown.complete()
    except Exception as error:  # noqa: BLE001 - the caller raises it again
        call.error = error
        if getattr(error, "exit_code", None) is None:  # a bug
            get_run_logger().exception("The job has ended by an error that nobody expected")
        return Failed(message=safe(f"{type(error).__name__}: {error}"))
    if call.api_answers():
        publish_report(report, call.bench.catalog, call.progress.note)
    return final_state(report)


def final_state(report: Report) -> State[dict[str, Any]]:
    """Return the state that tells how a run ended."""
    said = safe(report.to_text()).splitlines()[0]
    if report.interrupted:
        return Cancelled(message=f"{said}; the next run goes on from here")
    troubles = [line for code in FAILS for line in report.troubles.get(code, ())]
    if report.exit_code() in FAILS:
        return Failed(message=safe("; ".join(troubles)))
    return Completed(message=said, data=report.to_json())


@contextmanager
def _handler_kept(call: Call) -> Iterator[None]:
    """Keep the caller's SIGTERM handler in force: Prefect's own ends the run in mid-commit."""
    if call.on_sigterm is None:
        yield
        return
    prefects = signal.signal(signal.SIGTERM, call.on_sigterm)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, prefects)
