"""One piece of a source: from its images to arrays that are kept."""

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flows.batch.failing import Failed, from_json
from flows.batch.pictures import paths_of, picture_of
from flows.batch.pieces import Piece
from flows.batch.working import Done
from flows.errors import Stopped
from flows.job.engines import Engines, cores, opened
from flows.job.extraction import told_of
from flows.job.progress import Progress
from storage.begun import Begun
from storage.exports.records import Records
from storage.sources.items import Item, Source

if TYPE_CHECKING:
    from extractor.engine import Engine
    from extractor.extract import Extracted
    from extractor.models import Model

Array = NDArray[Any]


@dataclass(frozen=True)
class Recipe:
    """How vectors are made, and on what."""

    model: "Model"
    normalize: bool = True
    device: str = "auto"
    engine: str = "auto"
    batch_size: int | None = None
    workers: int | None = None


class Extractor:
    """Makes the vectors of pieces, on as many devices as there are; any thread may call.

    Parameters
    ----------
    source
        What the pieces are of; its pixels are asked for from several threads.
    begun
        Is told what is worked on, and knows what a process died with.
    recipe
        How vectors are made.
    ending
        When set, the batches that run are finished and the rest is left.
    progress
        Told how many more images are done, and how many of those failed; knows how many are left.
    """

    def __init__(
        self,
        source: Source,
        begun: Begun,
        recipe: Recipe,
        ending: threading.Event,
        progress: Progress,
    ) -> None:
        self._source = source
        self._begun = begun
        self._recipe = recipe
        self._ending = ending
        self._progress = progress
        self._engines = Engines()

    def __call__(self, piece: Piece) -> Done:
        """Return what the images of a piece have come to.

        Raises
        ------
        Stopped
            A stop came while a device was waited for.
        """
        from extractor.extract import extract

        items = {i: item for i, item in enumerate(piece.items) if isinstance(item, Item)}
        unseen = len(piece.items) - len(items)
        if unseen:
            self._progress.advance(unseen, unseen)
        waited: list[float] = []
        built: list[Engine] = []
        with self._begun.at_work(paths_of(items.values())), ExitStack() as seats:
            extracted = extract(
                [picture_of(self._source, i, item, self._begun) for i, item in items.items()],
                wants=lambda _digest: True,
                preprocess=self._recipe.model.preprocess,
                engine=lambda: self._engine(seats, waited, built),
                workers=self._recipe.workers or max(2, cores()),
                stop=self._ending,
                progress=self._progress.advance,
            )
            seconds = {stage: s for stage, s in extracted.seconds.items() if stage != "total"}
            told = told_of(built[0] if built else None, seconds)
        if waited:
            seconds["model"] -= waited[0]
        done = _done(piece, extracted, seconds, self._spans(), self._source.inside)
        return replace(done, told=told)

    def _engine(self, seats: ExitStack, waited: list[float], built: "list[Engine]") -> "Engine":
        """Return the engine of a device that is free; the piece before may still have it."""
        asked = time.perf_counter()
        seat = seats.enter_context(self._engines.seat(self._recipe.device, 0, 0, self._check))
        waited.append(time.perf_counter() - asked)
        key = (0, self._recipe.batch_size, self._recipe.engine)
        engine: Engine = opened(seat, key, self._check, self._make)
        engine.expect(self._left)
        built.append(engine)
        return engine

    def _left(self) -> float:
        """Return how many images each device has still to come."""
        return (self._progress.total - self._progress.done) / self._engines.number

    def _make(self, device: str) -> "Engine":
        from extractor.engine import Engine

        recipe = self._recipe
        model = deepcopy(recipe.model) if self._engines.several else recipe.model
        return Engine(model, device, recipe.batch_size, recipe.normalize, recipe.engine)

    def _check(self) -> None:
        if self._ending.is_set():
            raise Stopped

    def _spans(self) -> list[slice]:
        ends = np.cumsum([spec.dim for spec in self._recipe.model.specs]).tolist()
        return list(map(slice, [0, *ends[:-1]], ends))


def _done(
    piece: Piece,
    extracted: "Extracted",
    seconds: Mapping[str, float],
    spans: Sequence[slice],
    inside: bytes | None,
) -> Done:
    """Give each item its vector or its failure; items of equal content share theirs."""
    rows = {digest: row for row, digest in enumerate(extracted.digests)}
    digests = {read.key: read.digest for read in extracted.reads}
    of_file = {failed.key: failed.failure for failed in extracted.failures}
    of_image = {failed.digest: failed.failure for failed in extracted.failures if failed.digest}
    records: list[tuple[str, str, str | None]] = []
    taken: list[int] = []
    failures: list[Failed] = []
    done = 0
    for i, item in enumerate(piece.items):
        digest = digests.get(i)
        if not isinstance(item, Item):
            failures.append(Failed.unseen(item, inside))
        elif digest in rows:
            records.append((os.fsdecode(item.id), os.fsdecode(item.path), item.label))
            taken.append(rows[digest])
        elif failure := of_file.get(i) or (digest and of_image.get(digest)):
            failures.append(Failed.of(item, failure))
        else:
            break
        done += 1
    vectors = extracted.vectors[taken] if taken else np.empty((0, spans[-1].stop), np.float32)
    arrays: dict[str, Array] = {
        "records": _packed(records),
        "failures": _packed(failures),
        **{f"vectors-{n}": vectors[:, span] for n, span in enumerate(spans)},
    }
    kinds = [failed.failure_class for failed in failures]
    return Done(piece.until(done), arrays, kinds, seconds)


def records_of(arrays: Mapping[str, Array], layers: Sequence[str]) -> Records:
    """Return the records that were kept of a piece."""
    records = _unpacked(arrays["records"])
    return Records(
        ids=[os.fsencode(id) for id, _, _ in records],
        paths=[os.fsencode(path) for _, path, _ in records],
        labels=[label for _, _, label in records],
        vectors={layer: arrays[f"vectors-{n}"] for n, layer in enumerate(layers)},
    )


def failures_of(arrays: Mapping[str, Array]) -> list[Failed]:
    """Return the failures that were kept of a piece."""
    return from_json(_unpacked(arrays["failures"]))


def _packed(rows: Sequence[Sequence[str | None]]) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(rows).encode("ascii"), np.uint8)


def _unpacked(array: Array) -> list[Any]:
    found: list[Any] = json.loads(array.tobytes())
    return found
