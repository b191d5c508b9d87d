"""Work on threads with results in order, and a bound on what the threads hold at once."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from queue import SimpleQueue
from typing import Final, Generic, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_POLL_S: Final = 0.1  # how soon who waits notices a stop


class Stopped(Exception):
    """The results are not wanted any more; raised in a thread that waits for room."""


class Room:
    """A bound on bytes in flight.  What is larger than the whole of it goes in alone."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, n: int, stopped: Callable[[], bool]) -> Iterator[None]:
        """Wait for room for ``n`` bytes and hold it.

        Raises
        ------
        Stopped
            ``stopped`` became true while waiting.
        """
        n = min(n, self._size)
        with self._changed:
            while self._used + n > self._size:
                if stopped():
                    raise Stopped
                self._changed.wait(_POLL_S)
            self._used += n
        try:
            yield
        finally:
            with self._changed:
                self._used -= n
                self._changed.notify_all()


class _Task(Generic[_Item, _Result]):
    """One item on its way; ``results`` is empty until it is done."""

    __slots__ = ("item", "results")

    def __init__(self, item: _Item) -> None:
        self.item = item
        self.results: tuple[_Result, ...] = ()


class _Pool(Generic[_Item, _Result]):
    """The threads of one ``in_order`` and what they share."""

    def __init__(
        self, work: Callable[[_Item, Callable[[], bool]], _Result], stop: threading.Event
    ) -> None:
        self._work = work
        self._stop = stop
        self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._queue: SimpleQueue[_Task[_Item, _Result] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def start(self, workers: int) -> None:
        for number in range(workers):
            thread = threading.Thread(target=self._run, name=f"loader-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def put(self, item: _Item) -> _Task[_Item, _Result]:
        task = _Task[_Item, _Result](item)
        self._queue.put(task)
        return task

    def stopped(self) -> bool:
        return self._closed or self._stop.is_set()

    def wait(self, task: _Task[_Item, _Result]) -> tuple[_Result, ...]:
        """Return the one result, none when stopped; raise what a thread raised."""
        with self._changed:
            while not (task.results or self.stopped()):
                self._changed.wait(_POLL_S)
        if self._error is not None:
            raise self._error
        return () if self.stopped() else task.results

    def close(self) -> None:
        """End the threads, each after the item that it is at."""
        self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (task := self._queue.get()) is not None and not self.stopped():
            try:
                results = (self._work(task.item, self.stopped),)
            except Stopped:
                return
            except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
                with self._changed:
                    self._error = self._error or error
                    self._closed = True
                    self._changed.notify_all()
                return
            with self._changed:
                task.results = results
                self._changed.notify_all()


def in_order(
    work: Callable[[_Item, Callable[[], bool]], _Result],
    items: Iterable[_Item],
    *,
    workers: int,
    ahead: int,
    stop: threading.Event,
) -> Iterator[_Result]:
    """Yield ``work(item, stopped)`` for every item, in their order, made on threads.

    Parameters
    ----------
    work
        Called on the threads; an exception in it ends everything and is raised here.  ``stopped``
        tells it that its result is not wanted any more.
    items
        Iterated in the caller's thread, at most ``ahead`` further than what was yielded.
    workers
        Number of threads.
    ahead
        How many items may be in work or done, and not taken; at least one a thread.
    stop
        Ends it when set: nothing more is yielded.
    """
    pool = _Pool(work, stop)
    waiting: deque[_Task[_Item, _Result]] = deque()
    left = iter(items)
    try:
        pool.start(workers)
        while True:
            for item in islice(left, max(ahead, workers) - len(waiting)):
                waiting.append(pool.put(item))
            if not waiting:
                return
            results = pool.wait(waiting.popleft())
            if not results:
                return
            yield from results
    finally:
        pool.close()
