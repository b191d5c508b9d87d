"""What every flow has in common: the job inside it, and the story that it leaves in Prefect."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from prefect import State, get_run_logger
from prefect.context import TagsContext
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from flows.commands.show import printable
from flows.engine.artifacts import ProgressArtifact, Table, publish_report
from flows.engine.call import Call, carrying_out, current_call
from flows.engine.labels import Tagging
from flows.job.patience import patiently
from flows.job.progress import Progress, counted
from flows.job.signals import stop_on_signals
from flows.job.told import Asked, Told
from flows.job.worker import bench_for, clear_bench
from storage.catalog import Catalog

FAILS = (7, 5, 4)
"""Exit codes that make a failed run of a flow."""
MOST = 500
"""Characters of what happened, and of a warning, in the message of a state."""


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

    Nothing is raised from here: Prefect would keep the exception in a pickle.  ``options_of`` is
    asked where Prefect has started the flow; else the caller has said what to do.
    """
    call = current_call()
    try:
        if call is None:
            return _on_its_own(options_of(), job)
        with TagsContext(current_tags=set()):  # a task's tag costs it a question to the API
            return _carried_out(call, job)
    except Exception as error:  # noqa: BLE001 - the caller raises it again
        if call is not None and call.report is None:
            call.error = error
        if getattr(error, "exit_code", None) is None:  # a bug
            get_run_logger().exception("The job has ended by an error that nobody expected")
        return Failed(message=_short(printable(f"{type(error).__name__}: {error}")))


def _on_its_own(options: Asked, job: FlowJob) -> State[dict[str, Any]]:
    """Carry out the job for nobody but Prefect, whose flow may begin while the catalog restarts."""
    with ExitStack() as stack:
        stack.callback(clear_bench, options.home, options.catalog_url)
        patiently(threading.Event(), lambda: bench_for(options.home, options.catalog_url))
        call = Call(options, stack.enter_context(Progress("silent")))
        stack.enter_context(carrying_out(call))
        if threading.current_thread() is threading.main_thread():
            stack.enter_context(stop_on_signals(options, call.progress))
        return _carried_out(call, job)


def _carried_out(call: Call, job: FlowJob) -> State[dict[str, Any]]:
    tagging = Tagging(job.kind, lambda: job.tags(call.options, call.bench.catalog))
    with _handler_kept(call), ProgressArtifact(job.kind, call.progress) as shown:
        tagging.send()
        report = job.carry_out(call.options, call.progress, flow_run.get_id())
        call.report = report
        if not report.interrupted and call.api_answers():
            shown.complete()
    log = get_run_logger()
    for warning in report.warnings:
        log.warning("%s", printable(warning))
    if call.api_answers():
        tagging.send()
        tables = lambda: job.tables(report, call.bench.catalog)  # noqa: E731
        publish_report(job.kind, report, tables, call.progress.note)
    return final_state(report, job.line(report))


def final_state(report: Told, line: str) -> State[dict[str, Any]]:
    """Return the state that tells how a run ended; ``line`` says it in short."""
    said = _short(printable(line))
    warned = _warned(report.warnings)
    if report.interrupted:
        return Cancelled(message=f"{said}; the next run goes on from here{warned}")
    if report.exit_code() in FAILS:
        troubles = _short("; ".join(report.trouble_lines()))
        return Failed(message=f"{troubles or said}{warned}")
    return Completed(message=f"{said}{warned}", data=report.to_json())


def _warned(warnings: Sequence[str]) -> str:
    """Return how many warnings there are, and the first of them."""
    if not warnings:
        return ""
    return f"; {counted(len(warnings), 'warning')}: {_short(printable(warnings[0]))}"


def _short(text: str) -> str:
    """Return a text that fits into a state, which lists show in one line."""
    return text if len(text) <= MOST else f"{text[: MOST - 3]}..."


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
