"""What a worker does with a chunk: extract its wanted images, write their vectors, commit."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from typing import Any

from flows.errors import Stopped
from flows.job.digests import Wanted
from flows.job.engines import Seat, cores, opened
from flows.job.orders import ChunkOrder
from flows.job.patience import patiently
from flows.job.remote import following
from flows.job.worker import Bench, bench_for, bench_of
from storage.chunks import Chunk, give_back, still_claimed
from storage.clocks import Clocks
from storage.commit import CommitResult, FailedItem, FileRead, commit_chunk
from storage.pending import known_digest
from storage.scan import Signature
from storage.spaces import SpaceInfo, get_space
from storage.vectors import VectorStore


def extract_step(order: ChunkOrder) -> dict[str, Any]:
    """Extract the chunk's wanted images and commit all of it in one transaction.

    What was not finished (a stop was asked for) is given back.  Returns the outcomes, failures by
    class, seconds by stage and in all, and the files that were ``left``: another chunk of this
    process had their image in work.  Empty after a stop; else because there was nothing to do any
    more, as a commit before has succeeded and its answer was lost, with a worker for example.
    """
    with following(bench_of(order.place), order.place) as bench:
        chunk = still_claimed(bench.catalog, order.place.lease, order.chunk)
        if chunk is None:
            return {}
        order = replace(order, chunk=chunk)
        try:
            return _extract(bench, order)
        except Stopped:  # in the middle of fetching the model
            give_back_chunk(order)
            return {}


def _extract(bench: Bench, order: ChunkOrder) -> dict[str, Any]:
    started = time.perf_counter()
    space = get_space(bench.catalog, order.space)
    with (
        Wanted(
            bench.digests,
            space.id,
            lambda digest: known_digest(bench.catalog, space, digest) == "unknown",
        ) as wanted,
        ExitStack() as seats,
    ):
        extracted, engine = _vectors(bench, order, space, wanted, seats)
        done = [read for read in extracted.reads if read.digest not in wanted.elsewhere]
        seconds = {stage: s for stage, s in extracted.seconds.items() if stage != "total"}
        told = told_of(engine, seconds)
        part = None
        if len(extracted.digests):
            folder = bench.catalog.home.space_dir(space.fingerprint)
            store = VectorStore(folder, space.dim, space.dtype)
            with timed(seconds, "write"):
                part = store.append(
                    order.place.lease.run_id,
                    extracted.vectors,
                    extracted.digests,
                    facts=engine.facts,
                )
        with timed(seconds, "commit"):
            result = _commit(
                bench,
                order,
                space,
                reads=_reads(order.chunk, done),
                failures=_failures(extracted.failures),
                part=part,
            )
    if result is None:
        return {}
    return {
        **_chunk_result(result, seconds),
        **told,
        "left": [read.key for read in extracted.reads if read.digest in wanted.elsewhere],
        "duration_s": time.perf_counter() - started,
    }


def _commit(bench: Bench, order: ChunkOrder, space: SpaceInfo, **what: Any) -> CommitResult | None:
    """Commit a chunk, also where the catalog is busy for long; None where the answer was lost."""
    tried = False

    def commit() -> CommitResult | None:
        nonlocal tried
        lease, chunk = order.place.lease, order.chunk
        if tried and still_claimed(bench.catalog, lease, chunk) is None:
            return None
        tried = True
        return commit_chunk(bench.catalog, lease, space, chunk, **what)

    return patiently(bench.stop, commit)


def _vectors(
    bench: Bench, order: ChunkOrder, space: SpaceInfo, wanted: Wanted, seats: ExitStack
) -> tuple[Any, Any]:
    """Return what became of the files, and the engine if one was needed; keeps its device."""
    from extractor.extract import extract
    from extractor.loader import Source
    from extractor.preprocess import Preprocess

    built: list[Any] = []

    def engine() -> Any:
        seat = seats.enter_context(
            bench.engines.seat(order.device, space.id, bench.number, bench.check)
        )
        with bench.fetching():
            built.append(_engine(bench, seat, space, order))
        built[-1].expect(lambda: order.left * wanted.share)
        return built[-1]

    extracted = extract(
        [
            Source(work.file_id, work.path, inside=work.inside, suspect=work.suspect)
            for work in order.chunk.work
        ],
        wants=wanted,
        preprocess=Preprocess.from_json(space.spec["preprocess"]),
        engine=engine,
        workers=order.workers or default_workers(),
        stop=bench.ending,
        progress=bench.on_image,
    )
    return extracted, built[-1] if built else None


def told_of(engine: Any, seconds: dict[str, float]) -> dict[str, Any]:
    """Return what a report tells of an engine since its last `expect`, None being none.

    What it took to make another one ready, in the midst of the forward passes, becomes a stage.
    """
    if engine is None:
        return {"engines": {}, "warnings": []}
    if engine.making_s:
        seconds["engine"] = engine.making_s
        seconds["forward"] -= engine.making_s
    return {"engines": dict(engine.used), "warnings": list(engine.notes)}


def _engine(bench: Bench, seat: Seat, space: SpaceInfo, order: ChunkOrder) -> Any:
    def make(device: str) -> Any:
        from search.query import open_engine

        home, model = bench.catalog.home, _model(bench, space)
        return open_engine(
            space, device, order.batch_size, model=model, home=home, engine=order.engine
        )

    return opened(seat, (space.id, order.batch_size, order.engine), bench.check, make)


def _model(bench: Bench, space: SpaceInfo) -> Any:
    """Return the model for one engine, None where it is to be opened for it alone.

    Several devices have copies of one: tracing a network changes torch for all threads, and would
    break the forward pass that another device is at.
    """
    if not bench.engines.several:
        return bench.models.pop(space.id, None)
    if space.id not in bench.models:
        from search.query import model_of

        bench.models.clear()
        bench.models[space.id] = model_of(space, bench.catalog.home)
    return deepcopy(bench.models[space.id])


def default_workers() -> int:
    """Return how many loader threads to use: one for each core that this process may use."""
    return max(2, cores())


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
