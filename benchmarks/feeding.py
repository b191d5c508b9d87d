"""A process that feeds a store while others ask it: files come and go, and an index is published.

Every round adds one vector beside each target, nearer than all that came before it, and takes away
half of what came two rounds earlier.  Folder, scan, claims, commits and publishing are real; the
files are empty, and what they hold is made up.
"""

import contextlib
import hashlib
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import numpy.typing as npt

from storage.catalog import Catalog
from storage.chunks import claim_chunk
from storage.commit import FileRead, commit_chunk
from storage.files import scan_root
from storage.home import Home
from storage.leases import Lease, finish_run, start_run
from storage.publish import publish
from storage.reading import open_store
from storage.roots import RootInfo, add_root
from storage.runs import Heartbeat
from storage.scan import Signature
from storage.spaces import SpaceInfo, get_space

FloatArray = npt.NDArray[np.float32]

APART = 0.3
"""Length of the noise between a target and the first vector that comes beside it."""
NEARER = 0.97
"""By how much the noise is shorter in each round."""
LAG = 2
"""Rounds after which half of what came goes."""


@dataclass(frozen=True)
class Feed:
    """What is fed: ``rounds`` of them, one every ``every_s``, into the current space of a home.

    ``folder`` is the root of what comes; ``targets`` are unit vectors, shape ``(n, d)``, float32.
    """

    home: Home
    folder: str
    targets: FloatArray
    rounds: int
    every_s: float

    def coming(self, number: int) -> FloatArray:
        """Return the vectors of a round, shape ``(n, d)``, float32, unit length, by target."""
        rng = np.random.default_rng([9, number])
        noise = rng.standard_normal(self.targets.shape, dtype=np.float32)
        noise *= APART * NEARER**number / np.linalg.norm(noise, axis=1, keepdims=True)
        x = self.targets + noise
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    def going(self, number: int) -> range:
        """Return which of the vectors that came in round ``number - LAG`` go in this one."""
        return range(0, len(self.targets) if number >= LAG else 0, 2)


@dataclass(frozen=True, slots=True)
class Event:
    """What became of the store, between two moments of ``time.monotonic``.

    ``kind``: vectors ``came``, from ``row`` on, images are ``gone``, or an index is ``published``.
    """

    kind: str
    round: int
    began_s: float
    ended_s: float
    row: int = 0


@contextlib.contextmanager
def feeding(feed: Feed) -> Iterator[Connection]:
    """Start the process; send it anything to begin, and receive its list of events at the end."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_feed, args=(feed, there), daemon=True)
    process.start()
    there.close()  # so that its end is seen here when it dies
    try:
        here.recv()
        yield here
    finally:
        here.close()
        process.terminate()
        process.join()


def _feed(feed: Feed, parent: Connection) -> None:
    with Catalog.open(feed.home, write=True) as catalog:
        feeder = Feeder(catalog, feed.folder)
        import storage.generation  # noqa: F401 - before the clock runs

        parent.send("ready")
        parent.recv()
        events: list[Event] = []
        started = time.monotonic()
        with Heartbeat(catalog, feeder.lease):
            for number in range(feed.rounds):
                time.sleep(max(0.0, started + number * feed.every_s - time.monotonic()))
                events += feeder.round(feed, number)
        feeder.close()
        parent.send(events)


class Feeder:
    """A run that brings a root's files and their vectors into the current space."""

    def __init__(self, catalog: Catalog, folder: str) -> None:
        self._catalog = catalog
        self._folder = Path(folder)
        self._folder.mkdir(exist_ok=True)
        self._space: SpaceInfo = get_space(catalog)
        self._root: RootInfo = add_root(catalog, os.fsencode(folder))
        self._chunks = self._last = 0
        self.lease: Lease = start_run(catalog, "feed")

    def round(self, feed: Feed, number: int) -> Iterator[Event]:
        """Do one round."""
        x = feed.coming(number)
        for at in range(len(x)):
            self._path(number, at).touch()
        for at in feed.going(number):
            self._path(number - LAG, at).unlink()
        began = time.monotonic()
        self.scan()
        yield Event("gone", number, began, time.monotonic())
        began = time.monotonic()
        row = self.come(x)
        yield Event("came", number, began, time.monotonic(), row)
        began = time.monotonic()
        self.publish()
        yield Event("published", number, began, time.monotonic())

    def fill(self, x: FloatArray) -> None:
        """Bring as many files as there are vectors, shape ``(n, d)``, float32, unit length."""
        for at in range(len(x)):
            (self._folder / f"{at:06}.jpg").touch()
        self.scan()
        self.come(x)
        self.publish()

    def scan(self) -> None:
        """Let the catalog know what lies in the folder."""
        scan_root(self._catalog, self._root, confirm_missing=True, skip=None, lease=self.lease)

    def come(self, x: FloatArray) -> int:
        """Commit vectors for the files that wait, in their order; return the row of the first."""
        catalog, lease, space = self._catalog, self.lease, self._space
        self._chunks += 1
        chunk = claim_chunk(
            catalog, lease, space, number=self._chunks, limit=len(x), after_file_id=self._last
        )
        if chunk is None or len(chunk.work) != len(x):
            raise SystemExit(f"{len(x)} files should wait for their vectors")
        self._last = chunk.work[-1].file_id
        digests = [hashlib.sha256(work.path).digest() for work in chunk.work]
        part = open_store(catalog, space).append(lease.run_id, x, digests)
        reads = [
            FileRead(work.file_id, digest, Signature.of(os.stat(work.path)), trusted=True)
            for work, digest in zip(chunk.work, digests, strict=True)
        ]
        done = commit_chunk(catalog, lease, space, chunk, reads=reads, failures=[], part=part)
        return done.row_start

    def publish(self) -> None:
        """Publish an index of all."""
        publish(self._catalog, self.lease, self._space)

    def close(self) -> None:
        """End the run."""
        finish_run(self._catalog, self.lease, "done", {})

    def _path(self, number: int, at: int) -> Path:
        return self._folder / f"{number:04}-{at:06}.jpg"
