"""What a worker knows of a run whose chunk it has in another process.

The run's process says in the catalog that it wants to stop; its workers, on whatever host, look
there.  A worker whose run has stopped, ended or was declared dead ends its chunk early: what it has
finished is committed if the run still has its lease, and nothing else is.
"""

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flows.job.orders import Place
from storage.catalog import Catalog
from storage.errors import CatalogError, StorageError
from storage.leases import Lease, ask_to_stop, run_state
from storage.owner import Owner, this_process

if TYPE_CHECKING:
    from flows.job.worker import Bench

LOOK_EVERY_S = 2.0
POLL_S = 0.2
NOBODY = Owner("", "", 0, "")
"""Owner of a run that the catalog does not know."""


@contextmanager
def following(bench: "Bench", place: Place) -> Iterator["Bench"]:
    """Yield the bench for one chunk of a run; outside the run's process it stops with the run.

    Raises
    ------
    CatalogError
        The catalog is not that of the run, or can't be shared with the run's machine.
    """
    state, me = run_state(bench.catalog, place.lease), this_process()
    if state.owner == me:
        yield bench
        return
    if state.owner == NOBODY:
        raise CatalogError(
            f"the catalog that {me.host} has for {bench.catalog.home.path} knows no run "
            f"{place.lease.run_id}: all hosts of a cluster need the same --home, on a shared file "
            "system, and the same Postgres catalog, LOOKALIKE_CATALOG_URL"
        )
    if bench.catalog.dialect == "sqlite" and _machine(state.owner) != _machine(me):
        raise CatalogError(
            f"the run began on {state.owner.host}, this worker is on {me.host}: several hosts "
            "can't share a catalog in SQLite; give them all a Postgres one, LOOKALIKE_CATALOG_URL"
        )
    own = replace(bench, stop=threading.Event(), number=_number())
    if not state.going:
        own.stop.set()
    over = threading.Event()
    watch = threading.Thread(
        target=_watch, args=(own, place.lease, over), name="following", daemon=True
    )
    watch.start()
    try:
        yield own
    finally:
        over.set()
        watch.join()


@contextmanager
def passing_on(stop: threading.Event, catalog: Catalog, lease: Lease) -> Iterator[None]:
    """Tell the run's workers in other processes of a stop, as soon as it is asked for."""
    over = threading.Event()

    def pass_on() -> None:
        while not over.wait(POLL_S):
            if stop.is_set():
                with suppress(StorageError):  # busy: at the next look
                    ask_to_stop(catalog, lease)
                    return

    thread = threading.Thread(target=pass_on, name="passing-on", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(bench: "Bench", lease: Lease, over: threading.Event) -> None:
    while not bench.stop.is_set() and not over.wait(LOOK_EVERY_S):
        with suppress(StorageError):  # busy or out of reach: the commit will say so
            if not run_state(bench.catalog, lease).going:
                bench.stop.set()


def _machine(owner: Owner) -> str:
    return owner.boot.partition(" ")[0] or owner.host


def _number() -> int:
    """Return the number in the name of this worker of Dask's, 0 where there is none.

    A worker that was given no name has its address for one, and its port is as good as chance.
    """
    distributed: Any = sys.modules.get("distributed")
    if distributed is None:
        return 0
    with suppress(ValueError):  # no worker of Dask's
        found = re.findall(r"\d+", str(distributed.get_worker().name))
        return int(found[-1]) if found else 0
    return 0
