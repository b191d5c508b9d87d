"""Processes that decode what clients send: a picture that ends one, or hangs, ends no server.

They are kept for the pictures that come later, and started anew where one has ended.
"""

import os
import threading
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from extractor.reading import Failure
from extractor.threads import Stopped

if TYPE_CHECKING:
    from extractor.guarded import Bounds, Guarded
    from extractor.preprocess import Preprocess
    from extractor.thumbnail import Small

TIME_S: Final = 30.0
"""For one try; who asks waits, so it is less than a run allows."""
MOST: Final = max(2, min(8, os.cpu_count() or 1))
"""Pictures decoded at once; more of them wait."""


def bounds() -> "Bounds":
    """Return what a picture may take."""
    from extractor.guarded import Bounds

    return Bounds(time_s=TIME_S)


class Decoders:
    """As many processes as were needed at once so far; any thread may ask."""

    def __init__(self) -> None:
        self._turns = threading.Semaphore(MOST)
        self._idle: list[Guarded] = []
        self._changing = threading.Lock()
        self._closed = threading.Event()

    def decode(self, data: bytes, preprocess: "Preprocess | Small") -> NDArray[np.uint8] | Failure:
        """Return what ``extractor.guarded`` makes of an image file's bytes, or why it can't.

        Raises
        ------
        Stopped
            They were closed meanwhile.
        """
        with self._turns:
            decoder = self._taken()
            try:
                return decoder.decode(data, preprocess, self._closed.is_set)
            finally:
                self._give_back(decoder)

    def close(self) -> None:
        """End the processes; a picture that is being decoded comes to nothing."""
        with self._changing:
            self._closed.set()
            idle, self._idle = self._idle, []
        for decoder in idle:
            decoder.close()

    def _taken(self) -> "Guarded":
        from extractor.guarded import Guarded  # and Pillow with it

        with self._changing:
            if self._closed.is_set():
                raise Stopped
            return self._idle.pop() if self._idle else Guarded(bounds())

    def _give_back(self, decoder: "Guarded") -> None:
        with self._changing:
            if not self._closed.is_set():
                self._idle.append(decoder)
                return
        decoder.close()
