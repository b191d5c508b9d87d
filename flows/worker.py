"""What one worker does: scan a root, extract and commit one chunk, publish a space.

Each step takes a small order of plain values and returns a plain dict, so that the same functions
run on this process's threads, as Prefect tasks, or on another host.  A ``Bench`` keeps what is
dear between orders: the open catalog and the engine with its loaded model.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from storage.catalog import Catalog
from storage.chunks import Chunk, give_back, known_digest
from storage.clocks import Clocks
from storage.commit import CommitResult, FailedItem, FileRead, commit_chunk
from storage.errors import LeaseHeld
from storage.files import scan_root
from storage.home import Home
from storage.publish import publish
from storage.roots import RootInfo
from storage.runs import Lease
from storage.scan import Signature
from storage.spaces import SpaceInfo, get_space
from storage.vectors import VectorStore

ROOT_WAIT_S = 30.0
POLL_S = 0.5


@dataclass(frozen=True)
class Place:
    """Where a worker finds the store, and in whose name it works."""

    home: str
    catalog_url: str | None
    lease: Lease


@dataclass(frozen=True)
class ScanOrder:
    """Scan one root."""

    place: Place
    root: RootInfo
    confirm_missing: bool


@dataclass(frozen=True)
class ChunkOrder:
    """Extract and commit one claimed chunk."""

    place: Place
    space: str
    chunk: Chunk
    device: str
    batch_size: int | None
    workers: int | None


@dataclass(frozen=True)
class PublishOrder:
    """Publish an index of a space; ``factory`` overrides the kind that would be chosen."""

    place: Place
    space: str
    factory: str | None


@dataclass
class Bench:
    """What a worker keeps between orders; one for each store and process."""

    catalog: Catalog
    engines: dict[tuple[int, str, int | None], Any] = field(default_factory=dict)
    models: dict[int, Any] = field(default_factory=dict)
    """Models that were opened to make their space, by its id; the engine takes them over."""
    stop: threading.Event = field(default_factory=threading.Event)
    on_image: Callable[[int, int], None] = lambda _done, _failed: None
    on_scan: Callable[[str, int], None] = lambda _root, _files: None

    def engine(self, space: SpaceInfo, order: ChunkOrder) -> Any:
        """Return the engine of ``space``, built the first time that it is asked for."""
        key = (space.id, order.device, order.batch_size)
        if key not in self.engines:
            from search.query import open_engine

            self.engines.clear()  # one model in memory: a device has room for one
            self.engines[key] = open_engine(
                space, order.device, order.batch_size, model=self.models.pop(space.id, None)
            )
        return self.engines[key]


_benches: dict[tuple[str, str | None], Bench] = {}
_benches_lock = threading.Lock()


def bench_for(home: str, catalog_url: str | None) -> Bench:
    """Return this process's bench for a store."""
    with _benches_lock:
        key = (home, catalog_url)
        if key not in _benches:
            _benches[key] = Bench(Catalog.open(Home(home, catalog_url), write=True))
        return _benches[key]


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
            result = scan_root(
                bench.catalog,
                order.root,
                confirm_missing=order.confirm_missing,
                skip=os.fsencode(order.place.home),
                lease=order.place.lease,
                progress=partial(bench.on_scan, order.root.display),
            )
        except LeaseHeld:  # another run scans it: its end is usually near
            if time.monotonic() > deadline or bench.stop.wait(POLL_S):
                raise
        else:
            return asdict(result)


def publish_step(order: PublishOrder) -> dict[str, Any]:
    """Build and publish an index.  Raises ``LeaseHeld`` where another run is at it."""
    bench = bench_for(order.place.home, order.place.catalog_url)
    started = time.perf_counter()
    space = get_space(bench.catalog, order.space)
    generation = publish(bench.catalog, order.place.lease, space, factory=order.factory)
    return {
        "generation": generation.id,
        "factory": generation.factory,
        "n": generation.n,
        "row_end": generation.row_end,
        "size_bytes": generation.size_bytes,
        "duration_s": time.perf_counter() - started,
    }


def extract_step(order: ChunkOrder) -> dict[str, Any]:
    """Extract the chunk's wanted images and commit all of it in one transaction.

    What was not finished (a stop was asked for) is given back.  Returns the outcomes, failures by
    class, seconds by stage and the facts of the computation.
    """
    from extractor.extract import extract
    from extractor.loader import Source
    from extractor.preprocess import Preprocess

    bench = bench_for(order.place.home, order.place.catalog_url)
    space = get_space(bench.catalog, order.space)
    sources = [Source(key=work.file_id, path=work.path) for work in order.chunk.work]
    built: list[Any] = []

    def engine() -> Any:
        built.append(bench.engine(space, order))
        return built[-1]

    extracted = extract(
        sources,
        wants=lambda digest: known_digest(bench.catalog, space, digest) == "unknown",
        preprocess=Preprocess.from_json(space.spec["preprocess"]),
        engine=engine,
        workers=order.workers or default_workers(),
        stop=bench.stop,
        progress=bench.on_image,
    )
    seconds = {stage: s for stage, s in extracted.seconds.items() if stage != "total"}
    facts = dict(built[-1].facts) if built else {}
    part = None
    if len(extracted.digests):
        store = VectorStore(bench.catalog.home.space_dir(space.fingerprint), space.dim, space.dtype)
        with timed(seconds, "write"):
            part = store.append(
                order.place.lease.run_id, extracted.vectors, extracted.digests, facts=facts
            )
    with timed(seconds, "commit"):
        result = commit_chunk(
            bench.catalog,
            order.place.lease,
            space,
            order.chunk,
            reads=_reads(order.chunk, extracted.reads),
            failures=_failures(extracted.failures),
            part=part,
        )
    return _chunk_result(result, seconds, facts, len(order.chunk.work))


def default_workers() -> int:
    """Return how many loader threads to use: one for each core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(2, cores or 1)


def give_back_chunk(order: ChunkOrder) -> None:
    """Return the claims of a chunk that could not be worked on."""
    bench = bench_for(order.place.home, order.place.catalog_url)
    ids = [work.file_id for work in order.chunk.work]
    give_back(bench.catalog, order.place.lease, ids)


class timed:  # noqa: N801 - reads like a statement
    """Add the seconds spent inside to ``seconds[stage]``."""

    def __init__(self, seconds: dict[str, float], stage: str) -> None:
        self._seconds, self._stage = seconds, stage

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        spent = time.perf_counter() - self._started
        self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + spent


def _reads(chunk: Chunk, reads: Sequence[Any]) -> list[FileRead]:
    paths = {work.file_id: work.path for work in chunk.work}
    clocks = Clocks()
    result = []
    for read in reads:
        sig = Signature(*read.sig)
        trusted = clocks.trusted(paths[read.key], sig, read.read_at_ns)
        result.append(FileRead(file_id=read.key, digest=read.digest, sig=sig, trusted=trusted))
    return result


def _failures(failures: Sequence[Any]) -> list[FailedItem]:
    return [
        FailedItem(
            stage=failed.failure.stage,
            failure_class=failed.failure.failure_class,
            message=failed.failure.message,
            transient=failed.failure.transient,
            file_id=failed.key,
            digest=failed.digest,
            sig=Signature(*failed.sig) if failed.sig is not None else None,
        )
        for failed in failures
    ]


def _chunk_result(
    result: CommitResult, seconds: dict[str, float], facts: dict[str, Any], claimed: int
) -> dict[str, Any]:
    done = {outcome: n for outcome, n in result.outcomes.items() if outcome != "pending"}
    return {
        "outcomes": done,
        "failures": dict(result.failures_by_class),
        "seconds": seconds,
        "facts": facts,
        "claimed": claimed,
    }
