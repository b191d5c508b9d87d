"""One piece of a source: from its images to their regions."""

import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from copy import deepcopy
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from flows.batch.failing import Failed
from flows.batch.options import BatchOptions
from flows.batch.pictures import paths_of, picture_of
from flows.batch.pieces import Piece
from flows.batch.working import Done
from flows.errors import Stopped
from flows.job.engines import Engines, cores, opened
from storage.begun import Begun
from storage.roots import display
from storage.sources.items import Item, Source

if TYPE_CHECKING:
    from extractor.detectors import Detector
    from extractor.regions import Detected, RegionEngine, Regions

Array = NDArray[Any]
Wants = Callable[[int, bytes], bool]
NAMES = ("features", "boxes", "classes", "scores")
"""Arrays of an image's regions."""


class Finder:
    """Finds the regions of pieces, on as many devices as there are; any thread may call.

    Parameters
    ----------
    source
        What the pieces are of.
    begun
        Is told what is worked on, and knows what a process died with.
    detector
        Copied for each device where there are several.
    options
        Devices, batch size and workers.
    ending
        When set, the batches that run are finished and the rest is left.
    """

    def __init__(
        self,
        source: Source,
        begun: Begun,
        detector: "Detector",
        options: BatchOptions,
        ending: threading.Event,
    ) -> None:
        self._source = source
        self._begun = begun
        self._detector = detector
        self._options = options
        self._ending = ending
        self._engines = Engines()

    def found(
        self, items: Mapping[int, Item], wants: Wants, take: "Callable[[Detected], None]"
    ) -> dict[str, float]:
        """Hand each item's outcome to ``take``, as they end; return seconds by stage.

        Raises
        ------
        Stopped
            A stop came while a device was waited for.
        """
        from extractor.regions import detect

        network: Any = self._detector.network
        seconds: dict[str, float] = defaultdict(float)

        def spent(stage: str, more: float) -> None:
            seconds[stage] += more

        waited: list[float] = []
        with self._begun.at_work(paths_of(items.values())), ExitStack() as seats:
            detected = detect(
                [picture_of(self._source, key, item, self._begun) for key, item in items.items()],
                transform=network.transform,
                engine=lambda: self._engine(seats, waited),
                wants=wants,
                workers=self._options.workers or max(2, cores()),
                stop=self._ending,
                spent=spent,
            )
            with closing(cast("Generator[Detected]", detected)):
                for one in detected:
                    take(one)
        if waited:
            seconds["model"] -= waited[0]  # another piece's work, which that one counts
        return dict(seconds)

    def _engine(self, seats: ExitStack, waited: list[float]) -> "RegionEngine":
        options = self._options
        asked = time.perf_counter()
        seat = seats.enter_context(self._engines.seat(options.device, 0, 0, self._check))
        waited.append(time.perf_counter() - asked)
        engine: RegionEngine = opened(
            seat, (0, options.batch_size, "torch"), self._check, self._make
        )
        return engine

    def _make(self, device: str) -> "RegionEngine":
        from extractor.regions import RegionEngine

        detector = deepcopy(self._detector) if self._engines.several else self._detector
        return RegionEngine(detector, device, self._options.batch_size)

    def _check(self) -> None:
        if self._ending.is_set():
            raise Stopped


def items_of(piece: Piece) -> dict[int, Item]:
    """Return the items of a piece that can be looked at, by their number in it."""
    return {i: item for i, item in enumerate(piece.items) if isinstance(item, Item)}


def arrays_of(regions: "Regions") -> dict[str, Array]:
    """Return the arrays that an npz holds."""
    arrays: dict[str, Array] = {name: getattr(regions, name) for name in NAMES}
    return {**arrays, "image_size": np.array(regions.image_size, np.int64)}


def packed(
    piece: Piece,
    found: "Mapping[int, Detected]",
    dim: int,
    seconds: Mapping[str, float],
    inside: bytes | None,
) -> Done:
    """Put what was found in a piece into arrays, up to the first item that was not done.

    ``inside`` is the directory that the items are of.
    """
    texts: list[tuple[str, str | None, str | None]] = []
    done: list[Regions] = []
    failures: list[Failed] = []
    n = 0
    for i, item in enumerate(piece.items):
        one = found.get(i)
        if not isinstance(item, Item):
            failures.append(Failed.unseen(item, inside))
        elif one is None:
            break
        elif one.failure is not None:
            failures.append(Failed.of(item, one.failure))
        elif one.regions is not None:
            texts.append(_texts(item))
            done.append(one.regions)
        n += 1
    empty = {
        "features": np.empty((0, dim), np.float32),
        "boxes": np.empty((0, 4), np.float32),
        "classes": np.empty(0, np.int64),
        "scores": np.empty(0, np.float32),
    }
    arrays: dict[str, Array] = {
        "texts": as_bytes(texts),
        "failures": as_bytes(failures),
        "counts": np.array([len(one.scores) for one in done], np.int64),
        "sizes": np.array([one.image_size for one in done], np.int64).reshape(-1, 2),
    }
    for name in NAMES:
        arrays[name] = np.concatenate([empty[name], *(getattr(one, name) for one in done)])
    return Done(piece.until(n), arrays, [failed.failure_class for failed in failures], seconds)


def _texts(item: Item) -> tuple[str, str | None, str | None]:
    label = item.label
    return (
        display(item.id),
        display(item.path) if item.path else None,
        None if label is None else display(os.fsencode(label)),
    )


def as_bytes(rows: Sequence[Sequence[str | None]]) -> NDArray[np.uint8]:
    """Return rows of text as an array of numbers; `from_bytes` reads them."""
    return np.frombuffer(json.dumps(rows).encode("ascii"), np.uint8)


def from_bytes(array: Array) -> list[Any]:
    """Return the rows that `as_bytes` was given, as lists."""
    rows: list[Any] = json.loads(array.tobytes())
    return rows
