"""What every flow has in common: the job inside it, and the story that it leaves in Prefect."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from prefect import State, get_run_logger
from prefect.context import TagsContext
from prefect.states import Cancelled, Completed, Failed

from flows.artifacts import ProgressArtifact, publish_report
from flows.call import Call, carrying_out, current_call
from flows.job import IndexOptions, run_index
from flows.parameters import safe
from flows.progress import Progress
from flows.report import Report
from flows.signals import stop_on_signals
from flows.tasks import PrefectSteps
from flows.worker import clear_bench

FAILS = (7, 5, 4)
"""Exit codes that make a failed run of a flow."""


def job_state(options_of: Callable[[], IndexOptions]) -> State[dict[str, Any]]:
    """Carry out the job inside a flow, and return the state that tells how it ended.

    ``options_of`` is asked where Prefect has started the flow; else the caller has said what to do.
    """
    call = current_call()
    if call is not None:
        with TagsContext(current_tags=set()):  # a task's tag costs it a question to the API
            return _carried_out(call)
    options = options_of()
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
