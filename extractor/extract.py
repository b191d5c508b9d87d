"""Files in, vectors out: the loader's threads run ahead while batches go through the engine."""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from extractor.jpeg import Jpeg
from extractor.loader import Failure, Loaded, Seconds, Source, load
from extractor.preprocess import Preprocess

if TYPE_CHECKING:
    from extractor.device_decoder import DeviceDecoder
    from extractor.engine import Engine, Pending

Signature = tuple[int, int, int, int]

_AHEAD = 512  # two batches of the largest size
_AHEAD_BYTES = 128 * 2**20
_RUNNING = 2  # batches on a device beside the one that is filled: one is decoded, one computed


@dataclass(frozen=True, slots=True)
class Read:
    """A file whose bytes were read and hashed, and whose picture is settled.

    Attributes
    ----------
    sig
        ``(size_bytes, mtime_ns, ctime_ns, inode)`` of the open file.
    read_at_ns
        This machine's clock just before the file was opened.
    """

    key: int
    digest: bytes
    sig: Signature
    read_at_ns: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A file that could not be read (no digest), or an image that has no vector."""

    key: int
    digest: bytes | None
    sig: Signature | None
    failure: Failure


@dataclass
class Extracted:
    """What became of the sources.  A source in neither ``reads`` nor ``failures`` was not done.

    Attributes
    ----------
    reads
        Files that were read; those with a decode or forward failure are among them.
    failures
        What went wrong, at most one for a file, and one for an image.
    digests
        The images that have a vector now, each once.
    vectors
        Shape (n, D), float32, unit length, in the order of ``digests``; (0, 0) if there is none.
    seconds
        ``read``, ``hash``, ``decode`` in the loader's threads, added up; ``wait`` for them,
        ``model`` (building the engine) and ``forward`` in this thread; ``total``.
    """

    reads: list[Read] = field(default_factory=list)
    failures: list[Failed] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    vectors: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    seconds: dict[str, float] = field(default_factory=dict)


def extract(  # noqa: PLR0913 - each is one plain thing of the caller's
    sources: Iterable[Source],
    *,
    wants: Callable[[bytes], bool],
    preprocess: Preprocess,
    engine: "Callable[[], Engine]",
    workers: int,
    stop: threading.Event,
    progress: Callable[[int, int], None],
) -> Extracted:
    """Read files, and make one vector for each distinct image that is wanted.

    Parameters
    ----------
    sources
        The files.
    wants
        Told a SHA-256 digest, says whether its vector is wanted.  Called from several threads;
        equal content inside one call is asked about once.
    preprocess
        How a picture becomes pixels; that of the engine's model.
    engine
        Returns the engine.  Called on the first image that needs a forward pass, or never.
    workers
        Number of loader threads.
    stop
        When set, the batch that runs is finished and what is left is given back.
    progress
        Told how many more sources are done, and how many of those failed.

    Returns
    -------
    Extracted
        A file whose image is not settled, because of ``stop``, is in none of its lists.
    """
    started = time.perf_counter()
    job = _Job(wants, engine, progress)
    ahead = max(2 * workers, min(_AHEAD, _AHEAD_BYTES // (3 * preprocess.crop_size[0] ** 2)))
    loading = load(
        sources,
        wants=job.asks,
        preprocess=preprocess,
        keeps=job.keeps,
        workers=workers,
        ahead=ahead,
        stop=stop,
    )
    with closing(job):
        with closing(cast("Generator[Loaded]", loading)):
            while not stop.is_set() and (loaded := job.next(loading)):
                job.take(loaded)
        if not stop.is_set():
            job.submit()
        job.harvest(0)
    result = job.finish()
    result.seconds["total"] = time.perf_counter() - started
    return result


_Started = tuple["Pending", Mapping[int, Failure]]
"""A batch on its way, and what could not be decoded of it."""


def _decode_and_submit(
    engine: "Engine", decoder: "DeviceDecoder", batch: Sequence[Loaded]
) -> _Started:
    pixels, failures = decoder.pixels(batch)
    return engine.submit(pixels), failures


class _Job:
    """The state of one call of ``extract``."""

    def __init__(
        self,
        wants: Callable[[bytes], bool],
        engine: "Callable[[], Engine]",
        progress: Callable[[int, int], None],
    ) -> None:
        self.result = Extracted()
        self._seconds: dict[str, float] = defaultdict(float)
        self._reads: list[Read] = []
        self._wants = wants
        self._make_engine = engine
        self._progress = progress
        self._engine: Engine | None = None
        self._lock = threading.Lock()
        self._asked: dict[bytes, bool] = {}
        self._settled: set[bytes] = set()
        self._batch: list[Loaded] = []
        self._running: deque[tuple[list[Loaded], Callable[[], _Started]]] = deque()
        self._aside: ThreadPoolExecutor | None = None
        self._vectors: list[NDArray[np.float32]] = []

    def asks(self, digest: bytes) -> bool:
        """Ask the caller once for each content; further files of it need no pixels."""
        with self._lock:
            if digest in self._asked:
                return False
            self._asked[digest] = False
        wanted = self._wants(digest)
        self._asked[digest] = wanted
        return wanted

    def next(self, loading: Iterator[Loaded]) -> Loaded | None:
        with self._timed("wait"):
            return next(loading, None)

    def take(self, loaded: Loaded) -> None:
        """Note one source, and submit a batch if it is the last that was missing."""
        for stage, seconds in zip(Seconds._fields, loaded.seconds, strict=True):
            self._seconds[stage] += seconds
        if loaded.digest is not None and loaded.sig is not None:
            self._reads.append(Read(loaded.key, loaded.digest, loaded.sig, loaded.read_at_ns))
        if loaded.pixels is not None or loaded.jpeg is not None:
            self._batch.append(loaded)
            if len(self._batch) >= self._get_engine().batch_size:
                self.submit()
            return
        if loaded.failure is not None:
            self._fail(loaded, loaded.failure)
        self._progress(1, int(loaded.failure is not None))

    def keeps(self, data: bytes) -> Jpeg | None:
        """Say what the engine's device decodes, once there is one that does."""
        decoder = self._engine and self._engine.decoder
        return decoder.keeps(data) if decoder else None

    def submit(self) -> None:
        """Start the batch at hand, then collect those before it, which ran meanwhile."""
        batch, self._batch = self._batch, []
        if not batch:
            return
        engine = self._get_engine()
        with self._timed("forward"):
            started = self._start(engine, batch)
        # The pictures are in the engine's hands now.
        light = [Loaded(x.key, x.digest, x.sig, x.read_at_ns, None, None) for x in batch]
        self._running.append((light, started))
        self.harvest(1 if engine.decoder is None else _RUNNING)

    def harvest(self, left: int) -> None:
        """Collect the batches that are running, but for so many."""
        while len(self._running) > left:
            self._collect(*self._running.popleft())

    def close(self) -> None:
        """Wait for what is at work."""
        if self._aside is not None:
            self._aside.shutdown(cancel_futures=True)

    def _start(self, engine: "Engine", batch: Sequence[Loaded]) -> "Callable[[], _Started]":
        """Begin with a batch; return what waits until it is on its way, and says so."""
        if engine.decoder is None:
            pictures = [loaded.pixels for loaded in batch if loaded.pixels is not None]
            pending = engine.submit(np.stack(pictures))
            return lambda: (pending, {})
        # Decoding waits for the device; this thread takes from the loader meanwhile.
        self._aside = self._aside or ThreadPoolExecutor(1, "device")
        return self._aside.submit(_decode_and_submit, engine, engine.decoder, batch).result

    def _collect(self, batch: Sequence[Loaded], started: "Callable[[], _Started]") -> None:
        with self._timed("forward"):
            pending, undecoded = started()
            result = pending.result()
        vectors, faults = result.vectors, {**result.faults, **undecoded}
        good = [i for i in range(len(batch)) if i not in faults]
        for i, failure in faults.items():
            self._fail(batch[i], failure)
        self.result.digests += [self._settle(batch[i]) for i in good]
        self._vectors.append(vectors[good])
        self._progress(len(batch), len(faults))

    def finish(self) -> Extracted:
        """Leave out the files whose image a stop has left without vector or failure."""
        left = {digest for digest, wanted in self._asked.items() if wanted} - self._settled
        self.result.reads = [read for read in self._reads if read.digest not in left]
        if self._vectors:
            self.result.vectors = np.concatenate(self._vectors)
        self.result.seconds = dict(self._seconds)
        return self.result

    def _fail(self, loaded: Loaded, failure: Failure) -> None:
        self._settle(loaded)
        self.result.failures.append(Failed(loaded.key, loaded.digest, loaded.sig, failure))

    def _settle(self, loaded: Loaded) -> bytes:
        digest = loaded.digest or b""
        self._settled.add(digest)
        return digest

    def _get_engine(self) -> "Engine":
        if self._engine is None:
            with self._timed("model"):
                self._engine = self._make_engine()
        return self._engine

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[stage] += time.perf_counter() - started
