"""Read files again on several threads, by the loader's own rules, for ``storage.rehash``."""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from extractor.reading import Unread, opened
from extractor.threads import Room, in_order
from storage.rehash import Again, Outcome, Settled, judge
from storage.scan import Signature

AHEAD = 64
MOST_BYTES = 128 << 20
"""Bytes of files in memory at once."""


@dataclass(frozen=True)
class Rereader:
    """Reads files again.

    Parameters
    ----------
    workers
        Number of threads.
    stop
        Ends the reading when it is set, each thread after the file that it is at.
    advance
        Told of each file that is done: 1, and 1 if it could not be read or has rotted.
    """

    workers: int
    stop: threading.Event
    advance: Callable[[int, int], None]

    def read(self, files: Iterable[Settled]) -> Iterator[Again]:
        """Yield what became of the files, in their order; fewer where a stop was asked for."""
        room = Room(MOST_BYTES)

        def work(known: Settled, stopped: Callable[[], bool]) -> Again:
            return reread(known, room, stopped)

        for again in in_order(work, files, workers=self.workers, ahead=AHEAD, stop=self.stop):
            self.advance(1, again.outcome in (Outcome.ROTTEN, Outcome.UNREADABLE))
            yield again


def reread(known: Settled, room: Room, stopped: Callable[[], bool]) -> Again:
    """Read a file and compare it with what is known of it."""
    try:
        # A file that has grown has another signature: there is no need to read it.
        with opened(known.path, known.sig.size_bytes) as file, room.hold(file.sig[0], stopped):
            digest = hashlib.sha256(file.read()).digest()
    except Unread as error:
        return _unread(known, error)
    return judge(known, digest, Signature(*file.sig))


def _unread(known: Settled, error: Unread) -> Again:
    failure = error.failure
    if failure.failure_class == "vanished":
        return Again(known, Outcome.VANISHED)
    differs = error.sig is not None and Signature(*error.sig) != known.sig
    if differs or failure.failure_class == "busy":
        return Again(known, Outcome.CHANGED)
    return Again(known, Outcome.UNREADABLE, message=failure.message)
