"""What one worker does: scan a root, publish a space; ``flows.job.extraction`` has the chunks.

Each step takes a small order of plain values and returns a plain dict, so that the same functions
run on this process's threads or as Prefect tasks, that of a chunk also on another host; an empty
one where a stop has ended it in its middle.  A ``Bench`` keeps what is dear between orders: the
open catalog and the engines with their loaded models.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from extractor.errors import WeightsError
from extractor.hub import watched
from flows.errors import Stopped
from flows.job.digests import Digests
from flows.job.engines import Engines
from flows.job.orders import Place, PublishOrder, ScanOrder
from storage.catalog import Catalog
from storage.errors import CatalogError, LeaseHeld
from storage.files import ScanResult, scan_root
from storage.home import Home
from storage.owner import this_process
from storage.publish import publish
from storage.recall import fallen, latest
from storage.spaces import get_space

ROOT_WAIT_S = 30.0
POLL_S = 0.5
SAY_EVERY = 1000
"""Files of a scan between two words of progress."""


class Ending(threading.Event):
    """The end of the steps at work: set by itself, or with the stop of the run."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__()
        self._stop = stop

    def is_set(self) -> bool:
        """Return whether the steps are to end."""
        return super().is_set() or self._stop.is_set()


@dataclass
class Bench:
    """What a worker keeps between orders; one for each store and process."""

    catalog: Catalog
    engines: Engines = field(default_factory=Engines)
    models: dict[int, Any] = field(default_factory=dict)
    """Models that wait for an engine, or to be copied for several, by their space's id."""
    digests: Digests = field(default_factory=Digests)
    number: int = 0
    """Number of this worker among those of its machine."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Set where a person wants the run to stop."""
    ending: Ending = field(init=False)
    """Set where the steps are to end, for a stop or because another step has failed."""
    on_image: Callable[[int, int], None] = lambda _done, _failed: None
    on_scan: Callable[[str, int], None] = lambda _root, _files: None
    on_download: Callable[[str, int, int | None], None] = lambda _name, _done, _size: None

    def __post_init__(self) -> None:
        self.ending = Ending(self.stop)

    def check(self) -> None:
        """Raise ``Stopped`` where the steps are to end."""
        if self.ending.is_set():
            raise Stopped

    def seeing(self, root: str) -> Callable[[int], None]:
        """Return what a scan of ``root`` tells how many files it has seen.  Raises ``Stopped``."""
        said = 0

        def seen(files: int) -> None:
            nonlocal said
            self.check()
            if files - said >= SAY_EVERY:
                said = files
                self.on_scan(root, files)

        return seen

    @contextmanager
    def fetching(self) -> Iterator[None]:
        """Follow what is downloaded inside, and raise ``Stopped`` where the run is to stop."""

        def follow(name: str, done: int, size: int | None) -> None:
            self.check()
            self.on_download(name, done, size)

        try:
            with watched(follow):
                yield
        except WeightsError:
            self.check()  # the stop came while the other side was silent
            raise


_benches: dict[tuple[str, str | None], Bench] = {}
_benches_lock = threading.Lock()


def bench_for(home: str, catalog_url: str | None) -> Bench:
    """Return this process's bench for a store."""
    with _benches_lock:
        key = (home, catalog_url)
        if key not in _benches:
            _benches[key] = Bench(Catalog.open(Home(home, catalog_url), write=True))
        return _benches[key]


def bench_of(place: Place) -> Bench:
    """Return this process's bench for an order; the run that gave it has made the store.

    Raises
    ------
    CatalogError
        The store is not here, but on another host.
    """
    home = Home(place.home, place.catalog_url)
    known = (place.home, place.catalog_url) in _benches
    in_file = place.catalog_url is None and not os.path.exists(home.sqlite)
    if not known and (in_file or home.read_store_id() is None):
        raise CatalogError(
            f"no store is at {home.path} on {this_process().host}: all hosts of a cluster need the "
            "same --home, on a shared file system, and a Postgres catalog, LOOKALIKE_CATALOG_URL"
        )
    return bench_for(place.home, place.catalog_url)


def clear_bench(home: str, catalog_url: str | None) -> None:
    """Close and forget this process's bench for a store."""
    with _benches_lock:
        bench = _benches.pop((home, catalog_url), None)
    if bench is not None:
        bench.catalog.close()


def scan_step(order: ScanOrder) -> dict[str, Any]:
    """Scan one root and record its changes.  Raises ``RootUnavailable`` or ``LeaseHeld``."""
    bench = bench_for(order.place.home, order.place.catalog_url)
    deadline = time.monotonic() + ROOT_WAIT_S
    while True:
        try:
            return asdict(_scanned(bench, order))
        except LeaseHeld:  # another run scans it: its end is usually near
            if time.monotonic() > deadline:
                raise
            if bench.stop.wait(POLL_S):
                return {}
        except Stopped:
            return {}


def _scanned(bench: Bench, order: ScanOrder) -> ScanResult:
    bench.check()
    return scan_root(
        bench.catalog,
        order.root,
        confirm_missing=order.confirm_missing,
        skip=os.fsencode(order.place.home),
        lease=order.place.lease,
        progress=bench.seeing(order.root.display),
    )


def publish_step(order: PublishOrder) -> dict[str, Any]:
    """Build and publish an index.  Raises ``LeaseHeld`` where another run is at it."""
    try:
        return _published(bench_for(order.place.home, order.place.catalog_url), order)
    except Stopped:
        return {}


def _published(bench: Bench, order: PublishOrder) -> dict[str, Any]:
    bench.check()
    started = time.perf_counter()
    space = get_space(bench.catalog, order.space)
    lease = order.place.lease
    generation = publish(bench.catalog, lease, space, factory=order.factory, check=bench.check)
    newest, _ = latest(bench.catalog, space)
    if newest is not None and newest.generation != generation.name:
        newest = None  # it was extended, and is not measured
    return {
        "space": space.name,
        "generation": generation.id,
        "factory": generation.factory,
        "n": generation.n,
        "row_end": generation.row_end,
        "size_bytes": generation.size_bytes,
        "recall": newest.recall if newest is not None else None,
        "fallen": fallen(bench.catalog, space),
        "duration_s": time.perf_counter() - started,
    }
