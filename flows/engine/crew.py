"""The workers of a Dask cluster, as a run sees them.

Dask hands a task out again when its worker is lost, to whichever worker is left; the claims of a
chunk are the run's, so that the same order can be carried out anywhere.  What Dask has given up is
a ``WorkerLost``.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

from prefect import Task
from prefect.exceptions import PrefectException
from prefect.task_runners import TaskRunner

from flows.engine.environment import TAMED
from flows.errors import ClusterLost, FlowError, WorkerLost
from flows.server.process import Say, nobody

AHEAD = 2
"""Chunks for each worker: one that it works on, and one that it finds when that has ended."""
LEAST = 2
"""Chunks that are begun where there is no worker yet: a cluster that grows asks how many wait."""
COUNT_EVERY_S = 2.0
NEVER = logging.CRITICAL + 10
"""Level of a log that says nothing."""


class Crew:
    """The workers that a ``DaskTaskRunner`` reaches.

    Raises
    ------
    FlowError
        The cluster can't be started, or its scheduler does not answer.
    """

    def __init__(self, runner: Any, say: Say = nobody) -> None:
        self._runner = runner
        self._counted_at = -COUNT_EVERY_S
        self._workers = 0
        with _deaf_to_ctrl_c(), _quietly(runner):
            try:
                self._client: Any = runner.client
            except Exception as error:
                raise FlowError(f"the Dask cluster can't be had: {_first_line(error)}") from error
        if not self._count():
            say("the cluster has no workers yet: the run waits for the first")

    def slots(self) -> int:
        """Return how many chunks are begun at once, by the workers that there are now.

        Raises
        ------
        ClusterLost
            The scheduler does not answer any more.
        """
        return max(LEAST, AHEAD * self._count())

    def neighbours(self) -> int:
        """Return how many workers share this machine's cores, 0 where their cores are others'."""
        from distributed import LocalCluster

        return self._count() if isinstance(self._client.cluster, LocalCluster) else 0

    def begin(self, step: Task[..., Any], parameters: dict[str, Any]) -> "Begun":
        """Begin a task on one of the workers.  Raises ``ClusterLost`` as `slots` does."""
        with _reached():
            return Begun(self._runner.submit(step, parameters))

    def _count(self) -> int:
        if time.monotonic() - self._counted_at >= COUNT_EVERY_S:
            with _reached():
                self._workers = len(self._client.nthreads())
            self._counted_at = time.monotonic()
        return self._workers


class Begun:
    """A task under way on a cluster."""

    def __init__(self, future: Any) -> None:
        self._future = future

    def result(self) -> dict[str, Any]:
        """Wait for the task; then let Dask forget it, which else repeats it for a dead worker.

        Raises
        ------
        WorkerLost
            Dask has given the task up.
        FlowError
            A worker does not reach Prefect's API.
        """
        try:
            with _losses():
                result: dict[str, Any] = self._future.result()
                return result
        finally:
            self._future.wrapped_future.release()


def crew_of(runner: TaskRunner[Any], say: Say = nobody) -> Crew | None:
    """Return the workers behind a task runner, started if need be; None for threads."""
    return Crew(runner, say) if hasattr(runner, "cluster_kwargs") else None


@contextmanager
def _losses() -> Iterator[None]:
    """Tell errors of the cluster from those of a step."""
    from distributed import CancelledError, KilledWorker
    from distributed.comm.core import CommClosedError

    try:
        yield
    except KilledWorker as error:
        raise WorkerLost("one worker after the other was lost with it") from error
    except (CancelledError, asyncio.CancelledError, CommClosedError, PrefectException) as error:
        raise WorkerLost(f"its worker was lost ({_first_line(error)})") from error
    except RuntimeError as error:
        if "reach API" not in str(error):
            raise
        raise FlowError(
            "a worker can't reach Prefect's API: set PREFECT_API_URL to an address that all hosts"
            " of the cluster reach"
        ) from error


@contextmanager
def _reached() -> Iterator[None]:
    """Tell in one line that the scheduler is gone."""
    try:
        with _losses():
            yield
    except (WorkerLost, OSError) as error:
        raise ClusterLost(
            f"the Dask cluster is lost ({_first_line(error.__cause__ or error)}): what was"
            " committed is kept, run the command again"
        ) from error


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Start processes inside that Ctrl-C in a terminal does not reach: the run tells them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which else lets the signal in again with the first process
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def is_tame() -> bool:
    """Return whether the logs of Prefect and Dask are to leave the telling to the run's own."""
    level = "PREFECT_LOGGING_LEVEL"
    return os.environ.get(level) == TAMED[level]


@contextmanager
def _quietly(runner: TaskRunner[Any]) -> Iterator[None]:
    """Keep a traceback of Prefect's back, and all that Dask says: our own lines tell it."""
    if is_tame():
        for name in ("distributed", "distributed.client", "distributed.gc"):
            logging.getLogger(name).setLevel(NEVER)
    before, runner.logger.disabled = runner.logger.disabled, True
    try:
        yield
    finally:
        runner.logger.disabled = before


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return lines[0] or type(error).__name__
