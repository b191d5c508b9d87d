"""Whether making another engine ready pays for itself in what is still to be extracted."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from extractor.device import first_line
from extractor.engines import Made, check
from extractor.errors import EngineError
from extractor.passes import Pass

LEAST_GAIN: Final = 1.05
"""An engine that turns out to be less than this many times as fast as torch is not used."""
_MARGIN: Final = 2.0
"""How many times what an engine costs it has to save: both are estimates."""
_RATED: Final = 5


@dataclass(frozen=True)
class Offer:
    """What an engine takes and gives, as it is expected.

    Attributes
    ----------
    seconds
        Until it is ready.
    gain
        How many times faster than torch it is then.
    compared
        How many images' time, at torch's rate, the comparison with torch takes besides.
    """

    seconds: float
    gain: float
    compared: int = 0


def best(left: float, rate: float, offers: Mapping[str, Offer]) -> str | None:
    """Return the engine that saves the most time, None where none pays for itself.

    Parameters
    ----------
    left
        Images still to come.
    rate
        Images in a second as it is now.
    offers
        By the engine's name.
    """
    costs = {name: offer.seconds + offer.compared / rate for name, offer in offers.items()}
    saved = {name: left / rate * (1 - 1 / offer.gain) for name, offer in offers.items()}
    paying = [name for name in offers if saved[name] > _MARGIN * costs[name]]
    return max(paying, key=lambda name: saved[name] - costs[name], default=None)


class Rate:
    """Images in a second, of the batches of late; the first batch warms up and does not count."""

    def __init__(self) -> None:
        self._seconds: list[float] | None = None

    def saw(self, images: int, seconds: float) -> None:
        """Take in a batch."""
        self._seconds = (
            [] if self._seconds is None else [*self._seconds, seconds / images][-_RATED:]
        )

    @property
    def value(self) -> float | None:
        """The rate, None before two batches counted."""
        if self._seconds is None or len(self._seconds) < 2:
            return None
        return 1 / statistics.median(self._seconds)


def offers_for(module: nn.Module) -> dict[str, Offer]:
    """Return what the engines that are here are expected to take and give for a network."""
    modules = sum(1 for _ in module.modules())
    megabytes = sum(p.numel() * p.element_size() for p in module.parameters()) / 1e6
    # CPU seconds of one thread, measured with torch 2.15 and ONNX Runtime 1.32 on an AMD EPYC: the
    # export and its session took 2.1 for resnet18, 3.1 for resnet50, 3.7 for vgg19, 5.4 for
    # mobilenet_v2 and 6.8 for vit_b_16; compiling took 17.5 for resnet18 and 20.2 for resnet50.
    # In these orders ONNX Runtime was 1.15, 1.91, 1.18 and 2.25 times as fast as torch (the last
    # network not measured), compiled code 1.03 and 1.12 times.
    offers = {
        "onnx": Offer(2.0 + 0.025 * modules + 0.003 * megabytes, 1.3, compared=16),
        "compile": Offer(15.0 + 0.06 * modules, 1.1, compared=64),
    }
    return {name: offer for name, offer in offers.items() if _is_here(name)}


def _is_here(name: str) -> bool:
    try:
        check(name, torch.device("cpu"))
    except EngineError:
        return False
    return True


class Choosing:
    """Knows the pass to use; with offers, takes another engine as soon as it pays for itself.

    Parameters
    ----------
    first
        The pass to begin with.
    make
        Makes the pass of an engine, by its name; raises ``EngineError``.
    offers
        The engines to choose from, if any.

    Attributes
    ----------
    run
        The pass to use now.
    notes
        What was said since `expect` against engines that were tried, a line each.
    seconds
        Time spent since then on making engines ready.
    """

    def __init__(
        self,
        first: Pass,
        make: Callable[[str], Made] | None = None,
        offers: Mapping[str, Offer] | None = None,
    ) -> None:
        self.run: Pass = first
        self.notes: list[str] = []
        self.seconds = 0.0
        self._left: Callable[[], float] = lambda: 0.0
        self._seen = 0
        self._make = make
        self._first = first
        self._offers = dict(offers or {})
        self._rate = Rate()

    def expect(self, left: Callable[[], float]) -> None:
        """Take in what returns how many images there are to come from now on; count anew."""
        self._left, self._seen = left, 0
        self.notes, self.seconds = [], 0.0

    def saw(self, images: int, seconds: float) -> None:
        """Take in how long a batch took, and change the engine if another one pays for itself."""
        if not self._offers or self.run is not self._first:
            return
        self._seen += images
        self._rate.saw(images, seconds)
        rate = self._rate.value
        name = rate and best(self._left() - self._seen, rate, self._offers)
        if name:
            self._try(name)

    def drops(self, error: Exception) -> bool:
        """Say whether the pass that failed was chosen on the way: then the first has its turn."""
        if self.run is self._first:
            return False
        self.notes.append(f"{self.run.name} failed: {first_line(error)}; torch went on")
        self.run, self._offers = self._first, {}
        return True

    def _try(self, name: str) -> None:
        if self._make is None:
            return
        del self._offers[name]
        started = time.perf_counter()
        try:
            made = self._make(name)
        except EngineError as error:
            self.notes.append(f"{error}; torch went on")
        else:
            if made.gain >= LEAST_GAIN:
                self.run = made.run
        self.seconds += time.perf_counter() - started
