"""A run in the catalog, from its beginning to its end."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from flows.errors import Stopped
from flows.job.patience import patiently
from flows.job.worker import Bench
from storage.errors import StorageError
from storage.leases import Lease, finish_run, reap, start_run
from storage.runs import Heartbeat


class Kept(Protocol):
    """A report that the catalog keeps with its run."""

    run_id: str
    interrupted: bool
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""


@contextmanager
def opened_run(
    bench: Bench,
    report: Kept,
    kind: str,
    flow_run: str | None,
    ending: Callable[[float], None],
) -> Iterator[Lease]:
    """Carry out the body as a run of its own, under a lease that is renewed until its end.

    ``Stopped`` ends the body, and is no trouble.  A catalog that is busy or out of reach when the
    run begins or ends is asked again.

    Parameters
    ----------
    bench
        Where the run works; its ``stop`` interrupts it.
    report
        What is kept with the run; its id and whether it was interrupted are set here.
    kind
        Of the run in the catalog.
    flow_run
        Id of the flow run in Prefect that carries it out.
    ending
        What completes the report, given the seconds that the run took.

    Raises
    ------
    StorageError
        The run can't be begun, or its end not recorded.
    """
    catalog, started = bench.catalog, time.perf_counter()
    patiently(bench.stop, lambda: reap(catalog))
    lease = patiently(bench.stop, lambda: start_run(catalog, kind, flow_run))
    report.run_id = lease.run_id
    state = "failed"
    try:
        with Heartbeat(catalog, lease), suppress(Stopped):
            yield lease
        state = "interrupted" if bench.stop.is_set() else "done"
    finally:
        report.interrupted = bench.stop.is_set()
        ending(time.perf_counter() - started)
        _close(bench, lease, state, report)


def _close(bench: Bench, lease: Lease, state: str, report: Kept) -> None:
    told = report.to_json()
    try:
        patiently(bench.stop, lambda: finish_run(bench.catalog, lease, state, told))
    except StorageError as error:
        if state != "failed":  # else the first trouble is the one to tell
            raise
        report.warnings.append(str(error))
