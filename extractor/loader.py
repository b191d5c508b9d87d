"""Threads that read, hash and decode ahead of the device.

A file is opened once and read whole; digest and pixels come from the very same bytes.  Results come
in the order of the sources, at most ``ahead`` of them wait, and what is in flight is bounded in
bytes too.  A bad file or picture is a ``Failure`` in its own result and never disturbs another's.

A thread can't be ended.  One whose picture is not decoded in time is left behind, and another one
takes its place, which has that picture decoded in a process of its own (``extractor.guarded``); so
are those that the caller suspects.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from extractor import decode, guarded
from extractor.hanging import Decoding
from extractor.jpeg import Jpeg
from extractor.preprocess import Preprocess, pixels
from extractor.reading import Failure, Unread, opened
from extractor.settling import NOT_WANTED, Decoded, settled
from extractor.threads import Room, in_order

__all__ = ["Failure", "Loaded", "Seconds", "Source", "load"]

_MOST_BYTES: Final = 512 * 2**20  # bytes of files in memory at once
_MOST_PIXEL_BYTES: Final = 2**30  # bytes of pictures being decoded at once


@dataclass(frozen=True, slots=True)
class Source:
    """A picture to load.

    Parameters
    ----------
    key
        The caller's.
    path
        Absolute path of the file to open.
    picture
        Makes the picture instead, where it is in no file: shape ``(H, W, 3)``, uint8.  Called in a
        thread; may raise ``Unread``.  Its digest is that of shape and pixels, and of its signature
        only the size says something.
    inside
        As ``extractor.reading.opened`` takes it.
    suspect
        Decode it in a process of its own, as ``extractor.guarded`` does: a run died with it.
    """

    key: int
    path: bytes
    picture: Callable[[], NDArray[np.uint8]] | None = None
    inside: bytes | None = None
    suspect: bool = False


class Seconds(NamedTuple):
    """How long each step took in its thread, waiting for memory not counted."""

    read: float = 0.0
    hash: float = 0.0
    decode: float = 0.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """What became of one source.

    Parameters
    ----------
    key
        The source's.
    digest
        SHA-256 of the file's bytes; ``None`` when they couldn't be read.
    sig
        ``(size_bytes, mtime_ns, ctime_ns, inode)`` of the open file, the same before and after the
        read; before it when the file changed meanwhile, ``None`` when it couldn't be opened.
    read_at_ns
        This machine's clock just before the file was opened.
    pixels
        Shape ``(3, H, W)``, uint8; ``None`` when they weren't wanted, or on failure.
    failure
        Why there is no digest or, with one, why there are no pixels.
    seconds
        Where the time went.
    jpeg
        What the caller decodes itself, in the place of pixels.
    """

    key: int
    digest: bytes | None
    sig: tuple[int, int, int, int] | None
    read_at_ns: int
    pixels: NDArray[np.uint8] | None
    failure: Failure | None
    seconds: Seconds = field(default=Seconds(), compare=False)
    jpeg: Jpeg | None = None


class _Loader:
    """What the threads of one ``load`` share, and what each does with a source."""

    def __init__(
        self,
        wants: Callable[[bytes], bool],
        preprocess: Preprocess,
        keeps: Callable[[bytes], Jpeg | None],
    ) -> None:
        self._wants = wants
        self._keeps = keeps
        self._preprocess = preprocess
        self._files = Room(_MOST_BYTES)
        self._pictures = Room(_MOST_PIXEL_BYTES)
        self._guarded = guarded.Guarded(guarded.BOUNDS)
        self._decoding = Decoding[Loaded]()

    def load(self, source: Source, stopped: Callable[[], bool]) -> Loaded:
        if source.picture is not None:
            return self._loaded_picture(source.key, source.picture)
        return self._loaded_file(source, stopped)

    def hung(self, thread: int) -> Callable[[], Loaded] | None:
        """Return what makes the result of a thread that has decoded one picture for too long."""
        instead = self._decoding.hung(thread)
        if instead is not None:
            self._files.give_up(thread)
            self._pictures.give_up(thread)
        return instead

    def close(self) -> None:
        self._guarded.close()

    def _loaded_file(self, source: Source, stopped: Callable[[], bool]) -> Loaded:
        read_at_ns = time.time_ns()
        started = time.perf_counter()
        try:
            with opened(source.path, decode.DEFAULT.size_bytes, source.inside) as file:
                open_s = time.perf_counter() - started
                with self._files.hold(file.sig[0], stopped):
                    started = time.perf_counter()
                    data = file.read()
                    read_at = time.perf_counter()
                    digest = hashlib.sha256(data).digest()
                    hash_s = time.perf_counter() - read_at

                    def loaded(got: Decoded) -> Loaded:
                        seconds = Seconds(open_s + read_at - started, hash_s, got.decode_s)
                        facts = (source.key, digest, file.sig, read_at_ns)
                        return Loaded(*facts, got.pixels, got.failure, seconds, got.jpeg)

                    if not self._wants(digest):
                        return loaded(NOT_WANTED)
                    if source.suspect:
                        return loaded(self._decoded_aside(data, stopped))
                    if (jpeg := self._keeps(data)) is not None:
                        return loaded(Decoded(jpeg=jpeg))
                    instead = partial(self._decoded_aside, data, stopped)
                    return loaded(self._decoded(data, stopped, lambda: loaded(instead())))
        except Unread as error:
            return Loaded(source.key, None, error.sig, read_at_ns, None, error.failure)

    def _loaded_picture(self, key: int, picture: Callable[[], NDArray[np.uint8]]) -> Loaded:
        """Load what is in memory; it needs no room of the files, being small and the caller's."""
        read_at_ns, started = time.time_ns(), time.perf_counter()
        try:
            array = np.ascontiguousarray(picture())
        except Unread as error:
            return Loaded(key, None, error.sig, read_at_ns, None, error.failure)
        read_at = time.perf_counter()
        digest = hashlib.sha256(repr(array.shape).encode())
        digest.update(array.data)
        hashed_at = time.perf_counter()
        got = NOT_WANTED
        if self._wants(digest.digest()):
            got = settled(lambda: (pixels(Image.fromarray(array), self._preprocess), 0.0))
        seconds = Seconds(read_at - started, hashed_at - read_at, got.decode_s)
        sig = (array.nbytes, 0, 0, 0)
        return Loaded(key, digest.digest(), sig, read_at_ns, got.pixels, got.failure, seconds)

    def _decoded(
        self, data: bytes, stopped: Callable[[], bool], instead: Callable[[], Loaded]
    ) -> Decoded:
        def decoded() -> tuple[NDArray[np.uint8], float]:
            with self._decoding.timed(instead):
                image = decode.open_header(data, target=self._preprocess.target)
            asked = time.perf_counter()
            with self._pictures.hold(decode.memory_bytes(image), stopped):
                waited = time.perf_counter() - asked
                with self._decoding.timed(instead):
                    return pixels(decode.render(image), self._preprocess), waited

        return settled(decoded)

    def _decoded_aside(self, data: bytes, stopped: Callable[[], bool]) -> Decoded:
        started = time.perf_counter()
        got = self._guarded.decode(data, self._preprocess, stopped)
        spent = time.perf_counter() - started
        return Decoded(None, got, spent) if isinstance(got, Failure) else Decoded(got, None, spent)


def load(  # noqa: PLR0913 - each is one plain thing of the caller's
    sources: Iterable[Source],
    *,
    wants: Callable[[bytes], bool],
    preprocess: Preprocess,
    keeps: Callable[[bytes], Jpeg | None] = lambda _data: None,
    workers: int = 2,
    ahead: int = 64,
    stop: threading.Event | None = None,
) -> Iterator[Loaded]:
    """Read, hash and, where wanted, decode and resize files on threads.

    Parameters
    ----------
    sources
        The files; iterated in the caller's thread, never further than ``ahead``.
    wants
        Told a SHA-256 digest, says whether pixels are wanted.  Called from the threads, several at
        once.  What it raises ends the loading and is raised here.
    preprocess
        How a picture becomes pixels.
    keeps
        Told the bytes of a file whose pixels are wanted, says what the caller decodes itself.
        Called from the threads.
    workers
        Number of threads, at least 1.
    ahead
        How many results may wait to be taken, at least one a thread.
    stop
        Ends the loading when it is set: nothing more is yielded.

    Yields
    ------
    Loaded
        One for each source, in their order.  When the iterator is closed or ends, no thread is
        left; each finishes the file that it is at.
    """
    loader = _Loader(wants, preprocess, keeps)
    stop = stop or threading.Event()
    threads = max(1, workers)
    try:
        yield from in_order(
            loader.load, sources, workers=threads, ahead=ahead, stop=stop, hung=loader.hung
        )
    finally:
        loader.close()
