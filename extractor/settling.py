"""Pixels or the reason why there are none: what decoding a picture's bytes comes to."""

import time
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from extractor import decode
from extractor.jpeg import Jpeg
from extractor.reading import Failure
from extractor.threads import Stopped


class Decoded(NamedTuple):
    """Pixels, shape ``(3, H, W)``, uint8, or a failure, or neither where none were wanted.

    Or a JPEG that is left to the caller.
    """

    pixels: NDArray[np.uint8] | None = None
    failure: Failure | None = None
    decode_s: float = 0.0
    jpeg: Jpeg | None = None


NOT_WANTED: Final = Decoded()


def settled(make: Callable[[], tuple[NDArray[np.uint8], float]]) -> Decoded:
    """Return the pixels or why there are none.

    ``make`` tells the seconds that it waited for memory too; they are no part of the time.

    Raises
    ------
    Stopped
        The result is not wanted any more.
    """
    started = time.perf_counter()
    array: NDArray[np.uint8] | None = None
    failure: Failure | None = None
    waited = 0.0
    try:
        array, waited = make()
    except Stopped:
        raise
    except decode.DecodeError as error:
        failure = Failure("decode", error.failure_class, error.message, error.transient)
    except MemoryError:
        failure = Failure("decode", "memory", "not enough memory to resize", transient=True)
    except Exception as error:  # noqa: BLE001 - a bad picture must not end the run
        failure = Failure("decode", "error", repr(error)[:300], transient=False)
    return Decoded(array, failure, time.perf_counter() - started - waited)
