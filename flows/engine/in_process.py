"""From the command line into Prefect's engine and back: the same job, with the same report.

Nothing here imports Prefect before it has been told how to behave.
"""

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, TextIO, cast

from flows.engine.environment import TAMED, tame_environment
from flows.job.loop import IndexOptions
from flows.job.parameters import parameters_of
from flows.job.progress import Progress
from flows.job.report import Report
from flows.job.told import Asked, Told
from flows.job.worker import bench_for
from flows.server.local import api
from flows.server.process import ServerError

if TYPE_CHECKING:
    from flows.engine.call import Call

DRAIN_S = 10.0
"""Time for sending the last events and log lines, before a temporary server ends."""
LEVEL = "PREFECT_LOGGING_LEVEL"
ATTEMPTS = 2
"""Prefect's own 5 and 10 make a run whose API is lost last for minutes after its work is done."""
TOLD = ("prefect.flow_runs", "prefect.task_runs", "prefect.engine")
LOST = ("prefect.events", "prefect._internal.concurrency", "EventsWorker", "APILogWorker")
"""Loggers of what our own lines tell: how a run went, and that the API was lost."""
ENTRY = {"index": "flows.index:index_images", "backfill": "flows.backfill:backfill_images"}
"""The flow for each kind of run."""


def run_with_prefect(options: IndexOptions, progress: Progress) -> Report:
    """Run the job as a flow in this process, and return its report.

    Parameters and errors are those of ``run_flow``.
    """
    report = run_flow(options, progress, ENTRY[options.kind], parameters_of(options))
    return cast(Report, report)


def run_flow(options: Asked, progress: Progress, entry: str, parameters: Mapping[str, Any]) -> Told:
    """Run a flow in this process for a caller who has said what to do, and return its report.

    The API is the one that is configured or remembered, else a temporary server's.

    Parameters
    ----------
    options
        What the flow's job is asked for.
    progress
        Where it says how far it is.
    entry
        The flow, ``MODULE:NAME``.
    parameters
        The flow's parameters, which show in Prefect what was asked for.

    Raises
    ------
    ServerError
        No API answers, or it does not take the run.
    KeyboardInterrupt
        The run was stopped before it had begun.
    Exception
        What the job raises, as itself.
    """
    tame_environment()
    stop = bench_for(options.home, options.catalog_url).stop
    with ExitStack() as stack:
        url = stack.enter_context(api(options.home, progress.note, stop))
        from flows.engine.call import Call

        call = Call(options, progress, on_sigterm=_sigterm_handler())
        stack.enter_context(_settings(url))
        stack.enter_context(_console(progress, quiet=os.environ.get(LEVEL) == TAMED[LEVEL]))
        stack.callback(_drain)
        _run(call, url, entry, parameters)
        if call.error is not None:
            raise call.error
        if call.report is None:  # Prefect stopped before our own handlers were in force
            raise KeyboardInterrupt
        return call.report


def _run(call: "Call", url: str, entry: str, parameters: Mapping[str, Any]) -> None:
    """Run the flow.  Trouble of Prefect's own counts only as long as the job has not ended."""
    from prefect import tags
    from prefect.exceptions import TerminationSignal

    from flows.engine.call import carrying_out

    module, _, name = entry.partition(":")
    flow = getattr(import_module(module), name)
    try:
        with carrying_out(call), tags("lookalike"):
            flow(**parameters, return_state=True)
    except TerminationSignal:
        call.progress.note("stopped")
    except Exception as error:  # no error of the job: those are in `call`
        if call.report is None and call.error is None:
            raise ServerError(f"Prefect's API at {url} does not take the run: {error}") from error
        call.progress.note(f"Prefect's API at {url} was lost, its view of the run is incomplete")


def _sigterm_handler() -> object:
    """Return the handler that is in force; None where this thread may not set it anew."""
    in_main = threading.current_thread() is threading.main_thread()
    return signal.getsignal(signal.SIGTERM) if in_main else None


@contextmanager
def _settings(url: str) -> Iterator[None]:
    """Point Prefect at the API, also where it was imported before, and bound its patience.

    It is spared its heartbeat, which makes each run last 1 s more: one that dies is found by its
    lease.
    """
    from prefect.events.clients import PrefectEventsClient
    from prefect.events.worker import EventsWorker
    from prefect.settings import (
        PREFECT_API_KEY,
        PREFECT_API_URL,
        PREFECT_CLIENT_MAX_RETRIES,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        temporary_settings,
    )

    settings = {
        PREFECT_API_URL: url,
        PREFECT_CLIENT_MAX_RETRIES: ATTEMPTS,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
    }
    with temporary_settings(settings):
        if PREFECT_API_KEY.value() is None:  # Prefect's cloud has a client of its own
            EventsWorker.set_client_override(PrefectEventsClient, reconnection_attempts=ATTEMPTS)
        try:
            yield
        finally:
            EventsWorker.set_client_override(None)


@contextmanager
def _console(progress: Progress, *, quiet: bool) -> Iterator[None]:
    """Let Prefect's log share the progress' console, so that they do not garble each other.

    ``quiet`` keeps back what it says about runs, tracebacks among it: our own line tells a person,
    and the log in Prefect has all of it.
    """
    from prefect.logging.handlers import PrefectConsoleHandler

    handlers = _handlers()
    shared = [handler for handler in handlers if isinstance(handler, PrefectConsoleHandler)]
    before = [handler.console for handler in shared]
    for console_handler in shared:
        console_handler.console = progress.console
    for handler in handlers if quiet else ():
        handler.addFilter(_is_news)
    try:
        yield
    finally:
        for console_handler, console in zip(shared, before, strict=True):
            console_handler.console = console
        for handler in handlers:
            handler.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.CRITICAL or not record.name.startswith((*TOLD, *LOST))


def _handlers() -> list[logging.StreamHandler[TextIO]]:
    """Return the handlers through which Prefect writes to the terminal."""
    import prefect.main  # noqa: F401 - sets them up; `import prefect` alone puts that off
    from prefect.logging.handlers import PrefectConsoleHandler

    found: dict[logging.StreamHandler[TextIO], None] = {}
    for name in ["", *logging.root.manager.loggerDict]:
        kind = logging.StreamHandler if name.startswith("prefect") else PrefectConsoleHandler
        handlers = logging.getLogger(name).handlers
        found.update({handler: None for handler in handlers if isinstance(handler, kind)})
    return list(found)


def _drain() -> None:
    """Send what Prefect still holds: it does so in the background, and the server may end next."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (EventsWorker, APILogWorker):
        worker.drain_all(timeout=DRAIN_S, at_exit=False)
