"""Pieces in flight: one at work on each device, and one that reads ahead."""

import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from flows.batch.pieces import Piece
from flows.errors import Stopped
from flows.job.worker import Ending

Result = TypeVar("Result")


def in_flight(
    work: Callable[[Piece], Result], pieces: Iterable[Piece], slots: int, ending: Ending
) -> Generator[tuple[Result, float]]:
    """Work on pieces in threads; yield what they come to as they end.

    Parameters
    ----------
    work
        Called in the threads.  What raises ``Stopped`` has come to nothing; any other exception
        is raised here, when the other pieces have ended early.
    pieces
        Taken in the caller's thread, as late as can be.
    slots
        How many can be worked on at once; one more is begun, so that it can read ahead.
    ending
        No more is begun when it is set.  Set here where the caller goes or something fails.

    Yields
    ------
    tuple
        A result, and the seconds since the one before it: what a piece costs.
    """
    flying: set[Future[Result]] = set()
    last = time.perf_counter()
    with ThreadPoolExecutor(slots + 1, thread_name_prefix="piece") as pool:
        try:
            for piece in _and_end(pieces, ending):
                while flying and (piece is None or len(flying) > slots):
                    landed, flying = wait(flying, return_when=FIRST_COMPLETED)
                    for future in landed:
                        if not isinstance(future.exception(), Stopped):
                            before, last = last, time.perf_counter()
                            yield future.result(), last - before
                if piece is not None and not ending.is_set():
                    flying.add(pool.submit(work, piece))
        except BaseException:
            ending.set()
            raise


def _and_end(pieces: Iterable[Piece], ending: Ending) -> Generator[Piece | None]:
    """Yield the pieces until the end is near, then None."""
    for piece in pieces:
        if ending.is_set():
            break
        yield piece
    yield None
