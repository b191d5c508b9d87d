"""Regions of pictures: a detector's boxes with the features of its box head, batch after batch.

A batch holds pictures of one padded size only.  What a detector finds depends on how much a picture
is padded, so that it gives the same, up to rounding, whatever stands beside it; one picture a batch
gives the same to the last bit.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.models.detection.image_list import ImageList

from extractor.detectors import Detector
from extractor.device import choose_device, first_line, is_memory
from extractor.loader import Source
from extractor.reading import Failure
from extractor.region_inputs import Prepared, prepare

_Result = TypeVar("_Result")

_GPU_BATCH: Final = 8
_WAITING: Final = 4  # batches' worth of pictures that wait for others of their size
_PROBE: Final = 256  # side of a plain picture


@dataclass(frozen=True, slots=True, eq=False)
class Regions:
    """What a detector found in one picture, the best first.

    Attributes
    ----------
    features
        Shape (n, D), float32: the box head's output for exactly these boxes.
    boxes
        Shape (n, 4), float32: left, top, right, bottom in pixels of the upright picture.
    classes
        Shape (n,), int64; 0 would be the background.
    scores
        Shape (n,), float32, falling.
    image_size
        Width and height of the upright picture.
    """

    features: NDArray[np.float32]
    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    scores: NDArray[np.float32]
    image_size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Detected:
    """What became of one source: regions, a failure, or neither where it was not wanted.

    The other attributes are those of `Prepared`.
    """

    key: int
    digest: bytes | None
    mtime_ns: int | None
    regions: Regions | None
    failure: Failure | None


class RegionEngine:
    """Runs a detector over pictures of one padded size.

    Parameters
    ----------
    detector
        The network; it is moved to the device.
    device
        ``auto`` (CUDA, else Apple's GPU, else the CPU), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    batch_size
        Pictures in a forward pass; None is 1 on a CPU, where more gain nothing, else 8.

    Raises
    ------
    DeviceError
        The device is unknown, or this machine has none of its kind.
    """

    def __init__(
        self, detector: Detector, device: str = "auto", batch_size: int | None = None
    ) -> None:
        self.spec = detector.spec
        self.device = choose_device(device)
        self.batch_size = batch_size or (1 if self.device.type == "cpu" else _GPU_BATCH)
        self._network: Any = detector.network.eval().to(self.device)
        self._fix_scales()

    @property
    def transform(self) -> Any:
        """The network's ``GeneralizedRCNNTransform``, which scales pictures."""
        return self._network.transform

    @property
    def facts(self) -> dict[str, str | int]:
        """How the regions are made now: ``device``, ``engine``, ``batch_size``."""
        name = self.device.type
        if self.device.type == "cuda":  # pragma: no cover - needs CUDA
            name = torch.cuda.get_device_name(self.device)
        return {
            "device": name,
            "engine": f"torch {torch.__version__}",
            "batch_size": self.batch_size,
        }

    def padded(self, prepared: Prepared) -> tuple[int, int]:
        """Return height and width of a scaled picture with its padding."""
        step = int(self.transform.size_divisible)
        height, width = (0, 0) if prepared.pixels is None else prepared.pixels.shape[-2:]
        return -(-height // step) * step, -(-width // step) * step

    def run(self, pictures: Sequence[Prepared]) -> list[Regions | Failure]:
        """Find the regions of pictures of one padded size.

        Memory trouble halves the batch for good; a picture that fails alone is a failure.

        Raises
        ------
        RuntimeError
            The network fails whatever it is given.
        """
        size = self.batch_size
        found: list[Regions | Failure] = []
        for start in range(0, len(pictures), size):
            found += self._try(pictures[start : start + size])
        return found

    def _try(self, pictures: Sequence[Prepared]) -> "list[Regions | Failure]":
        try:
            return [_checked(one) for one in self.detect(pictures)]
        except Exception as error:  # noqa: BLE001 - sorted out below
            trouble = error
        short = is_memory(trouble)
        if len(pictures) > 1:
            del trouble  # it holds the tensors of the failed pass
            self._free()
            half = len(pictures) // 2
            if short:
                self.batch_size = max(1, min(self.batch_size, half))
            return self._try(pictures[:half]) + self._try(pictures[half:])
        text = first_line(trouble)
        if short:
            return [Failure("forward", "memory", text, transient=True)]
        self._probe(trouble)
        return [Failure("forward", "error", text, transient=False)]

    def _probe(self, trouble: Exception) -> None:
        """Raise ``trouble`` if a plain picture fails too: then the picture is not at fault."""
        plain = Prepared(0, None, None, torch.zeros(3, _PROBE, _PROBE), (_PROBE, _PROBE))
        try:
            self.detect([plain])
        except Exception:  # noqa: BLE001 - whatever it is, the first trouble says more
            raise trouble from None

    def _free(self) -> None:
        if self.device.type == "cuda":  # pragma: no cover - needs CUDA
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def detect(self, pictures: Sequence[Prepared]) -> list[Regions]:
        """Run one forward pass, as ``FasterRCNN.forward`` does, and then once more the box head."""
        network = self._network
        pixels = [one.pixels.to(self.device) for one in pictures if one.pixels is not None]
        sizes = [tuple(one.shape[-2:]) for one in pixels]
        batch = network.transform.batch_images(pixels, network.transform.size_divisible)
        maps = network.backbone(batch)
        proposals, _ = network.rpn(ImageList(batch, sizes), maps)
        found, _ = network.roi_heads(maps, proposals, sizes)
        boxes = [one["boxes"] for one in found]
        features = network.roi_heads.box_head(network.roi_heads.box_roi_pool(maps, boxes, sizes))
        upright = [(height, width) for width, height in (one.size for one in pictures)]
        found = network.transform.postprocess(found, sizes, upright)
        counts = [len(one) for one in boxes]
        return [
            Regions(
                features=of_picture.float().cpu().numpy(),
                boxes=one["boxes"].float().cpu().numpy(),
                classes=one["labels"].cpu().numpy(),
                scores=one["scores"].float().cpu().numpy(),
                image_size=picture.size,
            )
            for picture, one, of_picture in zip(
                pictures, found, features.split(counts), strict=True
            )
        ]

    @torch.inference_mode()
    def _fix_scales(self) -> None:
        """Let torchvision infer the scales of the maps from a plain picture.

        It infers them from the first one that it sees and keeps them; from a narrow strip it would
        infer wrong ones for all that follow.
        """
        pool = self._network.roi_heads.box_roi_pool
        pool.scales = pool.map_levels = None
        maps = self._network.backbone(torch.zeros(1, 3, _PROBE, _PROBE, device=self.device))
        box = torch.tensor([[0.0, 0.0, 16.0, 16.0]], device=self.device)
        pool(maps, [box], [(_PROBE, _PROBE)])


def detect(  # noqa: PLR0913 - each is one plain thing of the caller's
    sources: Iterable[Source],
    *,
    transform: Any,
    engine: Callable[[], RegionEngine],
    wants: Callable[[int, bytes], bool] = lambda _key, _digest: True,
    workers: int = 2,
    stop: threading.Event | None = None,
    spent: Callable[[str, float], None] = lambda _stage, _seconds: None,
) -> Iterator[Detected]:
    """Find the regions of many pictures, read on threads meanwhile.

    Parameters
    ----------
    sources
        The pictures; iterated as they are needed.
    transform
        The detector's ``GeneralizedRCNNTransform``.
    engine
        Returns the detector on its device.  Called on the first picture that is wanted, or never.
    wants
        Told a source's key and the digest of its content, says whether it is to be done.  Called
        from the threads.
    workers
        Number of threads that read, decode and scale.
    stop
        When set, the batch that runs is finished, and what is left is not yielded.
    spent
        Told seconds by stage: ``wait`` for the threads, ``model`` for the engine, ``forward``.

    Yields
    ------
    Detected
        One for each source, in an order that depends on their sizes; in their own order where the
        batch size is 1.
    """
    stop = stop or threading.Event()
    waiting: _Waiting | None = None
    loading = prepare(sources, transform=transform, wants=wants, workers=max(1, workers), stop=stop)
    with closing(cast("Generator[Prepared]", loading)):
        while prepared := _timed(spent, "wait", lambda: next(loading, None)):
            if prepared.pixels is None:
                yield _without(prepared, prepared.failure)
            else:
                waiting = waiting or _Waiting(_timed(spent, "model", engine), spent)
                yield from waiting.taken(prepared)
            if stop.is_set():
                return
    while waiting is not None and not stop.is_set() and (batch := waiting.largest()):
        yield from waiting.done(batch)


def _timed(spent: Callable[[str, float], None], stage: str, do: Callable[[], _Result]) -> _Result:
    started = time.perf_counter()
    try:
        return do()
    finally:
        spent(stage, time.perf_counter() - started)


def _without(prepared: Prepared, failure: Failure | None) -> Detected:
    return Detected(prepared.key, prepared.digest, prepared.mtime_ns, None, failure)


class _Waiting:
    """Pictures that wait until there are enough of their padded size for a batch."""

    def __init__(self, engine: RegionEngine, spent: Callable[[str, float], None]) -> None:
        self._engine = engine
        self._spent = spent
        self._groups: dict[tuple[int, int], list[Prepared]] = defaultdict(list)
        self._n = 0

    def taken(self, prepared: Prepared) -> Iterator[Detected]:
        """Take a picture; do a batch that is full, or the largest where too many wait."""
        size = self._engine.padded(prepared)
        self._groups[size].append(prepared)
        self._n += 1
        if len(self._groups[size]) >= self._engine.batch_size:
            yield from self.done(self._take(size))
        elif self._n >= _WAITING * self._engine.batch_size:
            yield from self.done(self.largest())

    def done(self, batch: Sequence[Prepared]) -> Iterator[Detected]:
        """Run a batch."""
        results = _timed(self._spent, "forward", lambda: self._engine.run(batch))
        for one, result in zip(batch, results, strict=True):
            if isinstance(result, Failure):
                yield _without(one, result)
            else:
                yield Detected(one.key, one.digest, one.mtime_ns, result, None)

    def largest(self) -> list[Prepared]:
        """Return the largest group that waits, empty where none does."""
        if not self._groups:
            return []
        return self._take(max(self._groups, key=lambda size: len(self._groups[size])))

    def _take(self, size: tuple[int, int]) -> list[Prepared]:
        group = self._groups.pop(size)
        self._n -= len(group)
        return group


def _checked(regions: Regions) -> Regions | Failure:
    """Refuse features that are no numbers."""
    if np.isfinite(regions.features).all():
        return regions
    return Failure("forward", "nan", "a feature is not a finite number", transient=False)
