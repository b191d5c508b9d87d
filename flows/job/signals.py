"""Stop a run cleanly when a person or the machine asks for it."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

from flows.job.progress import Progress
from flows.job.told import Asked
from flows.job.worker import bench_for

INTERRUPTED = 130


def stop_on_signals(options: Asked, progress: Progress) -> AbstractContextManager[threading.Event]:
    """Stop the run in a store as `setting_on_signals` says.

    Leaving at once loses nothing that was committed: the lease of a dead process is void.
    """
    return setting_on_signals(bench_for(options.home, options.catalog_url).stop, progress)


@contextmanager
def setting_on_signals(stop: threading.Event, progress: Progress) -> Iterator[threading.Event]:
    """Set the stop on the first SIGINT or SIGTERM, leave at once on the second; yield the stop."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            progress.abandon()
            os._exit(INTERRUPTED)
        stop.set()
        progress.note("stopping: finished images are kept; once more to leave at once")

    before = {name: signal.signal(name, on_signal) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
