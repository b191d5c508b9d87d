"""What a worker does with a chunk: extract its wanted images, write their vectors, commit."""

import os
import time
from collections.abc import Sequence
from typing import Any

from flows.errors import Stopped
from flows.orders import ChunkOrder
from flows.worker import bench_for
from storage.chunks import Chunk, give_back
from storage.clocks import Clocks
from storage.commit import CommitResult, FailedItem, FileRead, commit_chunk
from storage.pending import known_digest
from storage.scan import Signature
from storage.spaces import get_space
from storage.vectors import VectorStore


def extract_step(order: ChunkOrder) -> dict[str, Any]:
    """Extract the chunk's wanted images and commit all of it in one transaction.

    What was not finished (a stop was asked for) is given back.  Returns the outcomes, failures by
    class and seconds by stage.
    """
    try:
        return _extract(order)
    except Stopped:  # in the middle of fetching the model
        give_back_chunk(order)
        return {}


def _extract(order: ChunkOrder) -> dict[str, Any]:
    from extractor.extract import extract
    from extractor.loader import Source
    from extractor.preprocess import Preprocess

    bench = bench_for(order.place.home, order.place.catalog_url)
    space = get_space(bench.catalog, order.space)
    sources = [Source(key=work.file_id, path=work.path) for work in order.chunk.work]
    built: list[Any] = []

    def engine() -> Any:
        with bench.fetching():
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
    return _chunk_result(result, seconds)


def default_workers() -> int:
    """Return how many loader threads to use: one for each core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(2, cores or 1)


def give_back_chunk(order: ChunkOrder) -> None:
    """Return the claims of a chunk that could not be worked on."""
    bench = bench_for(order.place.home, order.place.catalog_url)
    give_back(bench.catalog, order.place.lease, order.chunk)


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


def _chunk_result(result: CommitResult, seconds: dict[str, float]) -> dict[str, Any]:
    done = {outcome: n for outcome, n in result.outcomes.items() if outcome != "pending"}
    return {
        "outcomes": done,
        "failures": dict(result.failures_by_class),
        "seconds": seconds,
    }
