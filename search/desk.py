"""Where requests become questions: on threads, so many at once, so many waiting, so long each."""

import asyncio
import os
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

from starlette.responses import Response

from search.bodies import Limits, Reader
from search.engine import Searcher
from search.following import Follower
from search.refusals import Refused, Trouble, failed, trouble_of
from search.thumbnails import Thumbnails
from storage.catalog import Catalog
from storage.errors import SpaceError

T = TypeVar("T")
Say = Callable[[str], None]

THREADS: Final = 32
"""Questions without a picture, and thumbnails, that are answered at once; more of them wait."""
LOOKERS: Final = 4
"""Questions to the catalog alone that are answered at once: counting a large one takes a while."""


class Line:
    """Threads that answer, and who waits for them.

    Parameters
    ----------
    name
        What to call the threads.
    threads
        Questions answered at once.
    limits
        How many may wait, and how long each has.
    """

    def __init__(self, name: str, threads: int, limits: Limits) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._seconds = limits.answer_seconds
        self._most = threads + limits.waiting
        self._counting = threading.Lock()
        self._inside = 0
        self._running = 0

    @property
    def running(self) -> int:
        """Return how many questions are being answered."""
        return self._running

    @property
    def waiting(self) -> int:
        """Return how many questions wait for a thread."""
        return max(0, self._inside - self._running)

    async def answer(self, question: Callable[[], T]) -> T:
        """Return what ``question`` returns on a thread.

        One that is not answered in time is left alone: it keeps its thread until it ends.

        Raises
        ------
        Refused
            Too many wait, or the answer takes too long.
        Exception
            Whatever ``question`` raises.
        """
        if self._inside >= self._most:
            raise Refused(503, "busy", "too many questions wait; ask again later", retry_after="1")
        self._count(1)
        try:
            future = self._threads.submit(self._run, question)
        except BaseException:  # no thread can be started, or none is to be any more
            self._count(-1)
            raise
        future.add_done_callback(self._left)
        try:
            async with asyncio.timeout(self._seconds) as limit:
                return await asyncio.wrap_future(future)
        except TimeoutError:
            if not limit.expired():
                raise
            said = f"there is no answer within {self._seconds:g} s; ask again later"
            raise Refused(503, "too_long", said, retry_after="1") from None

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _run(self, question: Callable[[], T]) -> T:
        with self._counting:
            self._running += 1
        try:
            return question()
        finally:
            with self._counting:
                self._running -= 1

    def _left(self, _: Future[Any]) -> None:
        self._count(-1)

    def _count(self, n: int) -> None:
        with self._counting:
            self._inside += n


class Desk:
    """Answers requests: whoever serves one reads it on the event loop, and asks here.

    Parameters
    ----------
    follower
        Who knows the answers; the caller closes it.
    limits
        What a request may be, and take, at most.
    say
        Called with a line for whoever runs the server.

    Attributes
    ----------
    reader
        Reads the bodies of requests within the limits.
    lines
        The threads, by what they answer.
    """

    def __init__(self, follower: Follower, limits: Limits, say: Say) -> None:
        self.follower = follower
        self.limits = limits
        self.reader = Reader(limits)
        self._say = say
        self._told: set[str] = set()
        self._questions = Line("search", THREADS, limits)
        # Apart: pictures that hang must not keep other questions waiting.
        self._pictures = Line("picture", limits.pictures, limits)
        self._looks = Line("look", LOOKERS, limits)
        # Apart: who waits for the catalog's lock must not keep those waiting who only read.
        self._changes = Line("change", 1, limits)
        self._drawings = Line("thumbnail", THREADS, limits)
        self._checks = Line("health", 1, limits)
        self.lines = {
            "questions": self._questions,
            "pictures": self._pictures,
            "catalog": self._looks,
            "changes": self._changes,
            "thumbnails": self._drawings,
        }

    async def ask(self, question: Callable[[Searcher], T], *, picture: bool = False) -> T:
        """Return the answer of a searcher of the current space.

        Parameters
        ----------
        question
            Called on a thread; see `Follower.ask`.
        picture
            Whether it may need the space's network: then it waits with its like.

        Raises
        ------
        Refused
            Too many wait, or the answer takes too long.
        Exception
            Whatever ``question`` raises; `trouble` says what it means.
        """
        line = self._pictures if picture else self._questions
        return await line.answer(partial(self.follower.ask, partial(self._heard, question)))

    async def look(self, question: Callable[[Catalog], T]) -> T:
        """Return what ``question`` finds in the catalog, on a thread; raises as `ask` does."""
        return await self._looks.answer(partial(self.follower.look, question))

    async def change(self, work: Callable[[Catalog], T]) -> T:
        """Return what ``work`` does to the catalog, which it opens for writing, on a thread."""
        return await self._changes.answer(partial(self.follower.look, work))

    async def draw(self, work: Callable[[Thumbnails], T]) -> T:
        """Return what ``work`` makes of the thumbnails, on a thread; raises as `ask` does."""
        return await self._drawings.answer(partial(work, self.follower.thumbnails))

    async def pixel_size(self, image_id: int) -> tuple[int, int] | None:
        """Return width and height of an image; None where it can't be decoded now."""
        return await self.draw(lambda thumbnails: thumbnails.size_of(image_id))

    async def health(self) -> dict[str, Any]:
        """Return which space answers and how many vectors it has; waits for no other question."""
        try:
            space, vectors = await self._checks.answer(self.follower.health)
        except SpaceError:
            return {"space": None, "dim": None, "vectors": 0}
        return {"space": space.name, "dim": space.dim, "vectors": vectors}

    def trouble(self, error: Exception) -> Trouble:
        """Return what an exception means to whoever asked; tell who runs the server of their own.

        A bug's traceback goes to stderr where ``LOOKALIKE_DEBUG`` is set.
        """
        trouble = trouble_of(error)
        if trouble.code == "bug":
            if os.environ.get("LOOKALIKE_DEBUG"):
                traceback.print_exception(error)
            kind = type(error).__name__
            self._say(f"{kind}: {error} (a bug; LOOKALIKE_DEBUG=1 for the traceback)")
        elif trouble.status >= 500 and not isinstance(error, Refused):
            self._say(trouble.message)
        return trouble

    def failed(self, error: Exception) -> Response:
        """Return the error in its one shape, as JSON."""
        return failed(self.trouble(error))

    def close(self) -> None:
        """Let the threads end; the follower is the caller's."""
        for line in (*self.lines.values(), self._checks):
            line.close()

    def _heard(self, question: Callable[[Searcher], T], searcher: Searcher) -> T:
        """Ask, and tell what the searcher warns of: each line once."""
        answer = question(searcher)
        for line in searcher.warnings:
            if line not in self._told:
                self._told.add(line)
                self._say(line)
        return answer
