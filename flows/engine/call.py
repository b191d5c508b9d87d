"""The run of a job that a flow in this process carries out.

Apart from the flows because Prefect may load ``flows/index.py`` under another name and hand it to
another process by value; what lies here is found by its name.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from prefect.settings import PREFECT_API_URL

from flows.job.progress import Progress
from flows.job.told import Asked, Told
from flows.job.worker import Bench, bench_for
from flows.server.process import REMOTE_ANSWER_S, answers


@dataclass
class Call:
    """A run of a job in this process: what is asked, and what came of it."""

    options: Asked
    progress: Progress
    on_sigterm: Any = None
    """The caller's handler, which stays in force while the job runs; None without a caller."""
    report: Told | None = None
    error: Exception | None = None

    @property
    def bench(self) -> Bench:
        """Bench of this process, on which the job works; its ``stop`` ends the run."""
        return bench_for(self.options.home, self.options.catalog_url)

    def api_answers(self) -> bool:
        """Return whether it is worth the time to tell Prefect more than the state."""
        return answers(str(PREFECT_API_URL.value()), REMOTE_ANSWER_S)


_current: ContextVar[Call | None] = ContextVar("_current", default=None)


def current_call() -> Call | None:
    """Return the run that this process is asked for; None where Prefect has started the flow."""
    return _current.get()


@contextmanager
def carrying_out(call: Call) -> Iterator[Call]:
    """Make ``call`` the current one inside, also on the threads of its tasks."""
    token = _current.set(call)
    try:
        yield call
    finally:
        _current.reset(token)
