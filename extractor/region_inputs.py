"""Threads that read pictures whole and scale them as a detector wants them.

The picture is decoded at full size, so that its boxes are in its own pixels; then normalised and
resized as ``GeneralizedRCNNTransform`` does it.  A large picture is scaled one channel after the
other, which takes a third of the memory; where torch has one thread it rounds otherwise then, by
less than the 10th part of a level of 255.

A picture that the caller suspects, or that is not decoded in time, is decoded in a process of its
own, as `extractor.loader` does it.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from extractor import decode, guarded
from extractor.hanging import Decoding
from extractor.reading import Failure, Unread, opened
from extractor.threads import Room, Stopped, in_order

if TYPE_CHECKING:
    import torch

    from extractor.loader import Source

_MOST_BYTES: Final = 2**30  # of pictures being decoded and scaled at once
_WHOLE_PIXELS: Final = 16_000_000  # more are scaled channel by channel
_BYTES_A_PIXEL: Final = {True: 31, False: 16}  # Pillow's, its copy, floats and torch's copy of them
_ROOM: Final = Room(_MOST_BYTES)  # one for all that read in this process


@dataclass(frozen=True, slots=True)
class Prepared:
    """What became of one source.

    Attributes
    ----------
    key
        The source's.
    digest
        SHA-256 of the file's bytes, or of an array's shape and pixels; None where unread.
    mtime_ns
        When the file was last changed, by its own word; None for an array and where unread.
    pixels
        Shape (3, h, w), float32, normalised and resized; None on failure, or where unwanted.
    size
        Width and height of the upright picture, pixels.
    failure
        Why there are no pixels.
    """

    key: int
    digest: bytes | None
    mtime_ns: int | None = None
    pixels: "torch.Tensor | None" = None
    size: tuple[int, int] = (0, 0)
    failure: Failure | None = None


def prepare(
    sources: "Iterable[Source]",
    *,
    transform: Any,
    wants: Callable[[int, bytes], bool],
    workers: int,
    stop: threading.Event,
) -> Iterator[Prepared]:
    """Read, decode and scale pictures on threads.

    Parameters
    ----------
    sources
        The pictures; iterated in the caller's thread, a few further than what was yielded.
    transform
        The detector's ``GeneralizedRCNNTransform``, in inference mode.
    wants
        Told a source's key and its digest, says whether it is to be decoded.  Called from the
        threads.
    workers
        Number of threads.
    stop
        Ends it when set.

    Yields
    ------
    Prepared
        One for each source, in their order.
    """
    reader = _Reader(transform, wants)
    ahead = 2 * workers
    try:
        yield from in_order(
            reader.read, sources, workers=workers, ahead=ahead, stop=stop, hung=reader.hung
        )
    finally:
        reader.close()


class _Reader:
    """What the threads share, and what each does with a source."""

    def __init__(self, transform: Any, wants: Callable[[int, bytes], bool]) -> None:
        self._transform = transform
        self._wants = wants
        self._guarded = guarded.Guarded(guarded.BOUNDS)
        self._decoding = Decoding[Prepared]()

    def read(self, source: "Source", stopped: Callable[[], bool]) -> Prepared:
        made = source.picture
        if made is not None:
            make = partial(self._from_array, source.key, made)
        else:
            make = partial(self._from_file, source, stopped)
        return _settled(Prepared(source.key, None), make)

    def hung(self, thread: int) -> Callable[[], Prepared] | None:
        """Return what makes the result of a thread that has decoded one picture for too long."""
        instead = self._decoding.hung(thread)
        if instead is not None:
            _ROOM.give_up(thread)
        return instead

    def close(self) -> None:
        self._guarded.close()

    def _from_file(self, source: "Source", stopped: Callable[[], bool]) -> Prepared:
        with opened(source.path, decode.DEFAULT.size_bytes, source.inside) as file:
            data = file.read()
        digest = hashlib.sha256(data).digest()
        prepared = Prepared(source.key, digest, file.sig[1])
        if not self._wants(source.key, digest):
            return prepared
        aside = partial(_settled, prepared, partial(self._aside, prepared, data, stopped))
        if source.suspect:
            return aside()
        return _settled(prepared, partial(self._from_bytes, prepared, data, stopped, aside))

    def _from_bytes(
        self,
        prepared: Prepared,
        data: bytes,
        stopped: Callable[[], bool],
        instead: Callable[[], Prepared],
    ) -> Prepared:
        with self._decoding.timed(instead):
            image = decode.open_header(data)
        with _ROOM.hold(_bytes_for(image.width, image.height), stopped):
            with self._decoding.timed(instead):
                picture = np.array(decode.render(image))
            return self._done(prepared, picture)

    def _aside(self, prepared: Prepared, data: bytes, stopped: Callable[[], bool]) -> Prepared:
        got = self._guarded.decode(data, None, stopped)
        if isinstance(got, Failure):
            return replace(prepared, failure=got)
        with _ROOM.hold(_bytes_for(*got.shape[:2]), stopped):
            return self._done(prepared, got)

    def _done(self, prepared: Prepared, picture: NDArray[np.uint8]) -> Prepared:
        size = (picture.shape[1], picture.shape[0])
        return replace(prepared, pixels=self._scaled(picture), size=size)

    def _from_array(self, key: int, make: Callable[[], NDArray[np.uint8]]) -> Prepared:
        picture = make()
        digest = hashlib.sha256(repr(picture.shape).encode())
        digest.update(np.ascontiguousarray(picture).data)
        prepared = Prepared(key, digest.digest())
        if not self._wants(key, digest.digest()):
            return prepared
        return self._done(prepared, picture)

    def _scaled(self, picture: NDArray[np.uint8]) -> "torch.Tensor":
        """Return (3, h, w) of a picture (H, W, 3)."""
        import torch

        whole = picture.shape[0] * picture.shape[1] <= _WHOLE_PIXELS
        parts = [slice(0, 3)] if whole else [slice(n, n + 1) for n in range(3)]
        with torch.inference_mode():
            return torch.cat([self._part(picture, part) for part in parts])

    def _part(self, picture: NDArray[np.uint8], channels: slice) -> "torch.Tensor":
        import torch

        floats = picture[:, :, channels].transpose(2, 0, 1).astype(np.float32)
        mean, std = (
            torch.tensor(values[channels])[:, None, None]
            for values in (self._transform.image_mean, self._transform.image_std)
        )
        normal = torch.from_numpy(floats).div_(255).sub_(mean).div_(std)
        resized: torch.Tensor = self._transform.resize(normal)[0]
        return resized.contiguous()


def _settled(prepared: Prepared, make: Callable[[], Prepared]) -> Prepared:
    """Return what is made, or why nothing is."""
    try:
        return make()
    except Stopped:
        raise
    except Unread as error:
        failure = error.failure
    except decode.DecodeError as error:
        failure = Failure("decode", error.failure_class, error.message, error.transient)
    except MemoryError:
        failure = Failure("decode", "memory", "not enough memory to scale it", transient=True)
    except Exception as error:  # noqa: BLE001 - a bad picture must not end the run
        failure = Failure("decode", "error", repr(error)[:300], transient=False)
    return replace(prepared, failure=failure)


def _bytes_for(width: int, height: int) -> int:
    n = width * height
    return n * _BYTES_A_PIXEL[n <= _WHOLE_PIXELS]
