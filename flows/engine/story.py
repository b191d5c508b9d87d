"""What every flow has in common: the job inside it, and the story that it leaves in Prefect."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from prefect import State, get_run_logger
from prefect.context import TagsContext
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from flows.engine.artifacts import ProgressArtifact, Table, publish_report
from flows.engine.call import Call, carrying_out, current_call
from flows.engine.labels import Tagging
from flows.job.parameters import safe
from flows.job.progress import Progress
from flows.job.signals import stop_on_signals
from flows.job.told import Asked, Told
from flows.job.worker import clear_bench
from storage.catalog import Catalog

FAILS = (7, 5, 4)
"""Exit codes that make a failed run of a flow."""


@dataclass(frozen=True)
class FlowJob:
    """What one kind of flow does, and what it shows besides its report."""

    kind: str
    """``index``, ``backfill`` or ``maintenance``: a tag, and how the artifacts' keys begin."""
    carry_out: Callable[[Any, Progress, str | None], Told]
    """Does the work, given the options and the flow run's id."""
    tags: Callable[[Any, Catalog], Iterable[str]] = lambda _options, _catalog: ()
    """Tags by what the catalog knows now; asked before the work and after it."""
    tables: Callable[[Any, Catalog], list[Table]] = lambda _report, _catalog: []
    """Tables that belong to a report."""
    line: Callable[[Any], str] = lambda report: str(report.to_text()).partition("\n")[0]
    """A report in one line, for the state; else the first line of its text."""


def job_state(options_of: Callable[[], Asked], job: FlowJob) -> State[dict[str, Any]]:
    """Carry out the job inside a flow, and return the state that tells how it ended.

    ``options_of`` is asked where Prefect has started the flow; else the caller has said what to do.
    """
    call = current_call()
    if call is not None:
        with TagsContext(current_tags=set()):  # a task's tag costs it a question to the API
            return _carried_out(call, job)
    options = options_of()
    with ExitStack() as stack:
        stack.callback(clear_bench, options.home, options.catalog_url)
        call = Call(options, stack.enter_context(Progress("silent")))
        stack.enter_context(carrying_out(call))
        if threading.current_thread() is threading.main_thread():
            stack.enter_context(stop_on_signals(options, call.progress))
        return _carried_out(call, job)


def _carried_out(call: Call, job: FlowJob) -> State[dict[str, Any]]:
    """Run the job inside the flow.

    Nothing is raised from here: Prefect would keep the exception in a pickle.
    """
    tagging = Tagging(job.kind, lambda: job.tags(call.options, call.bench.catalog))
    try:
        with _handler_kept(call), ProgressArtifact(job.kind, call.progress) as shown:
            tagging.send()
            report = job.carry_out(call.options, call.progress, flow_run.get_id())
            call.report = report
            if not report.interrupted and call.api_answers():
                shown.complete()
    except Exception as error:  # noqa: BLE001 - the caller raises it again
        call.error = error
        if getattr(error, "exit_code", None) is None:  # a bug
            get_run_logger().exception("The job has ended by an error that nobody expected")
        return Failed(message=safe(f"{type(error).__name__}: {error}"))
    if call.api_answers():
        tagging.send()
        tables = lambda: job.tables(report, call.bench.catalog)  # noqa: E731
        publish_report(job.kind, report, tables, call.progress.note)
    return final_state(report, job.line(report))


def final_state(report: Told, line: str) -> State[dict[str, Any]]:
    """Return the state that tells how a run ended; ``line`` says it in short."""
    said = safe(line)
    if report.interrupted:
        return Cancelled(message=f"{said}; the next run goes on from here")
    if report.exit_code() in FAILS:
        return Failed(message=safe("; ".join(report.trouble_lines()) or said))
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
