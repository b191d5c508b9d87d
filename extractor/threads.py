"""Work on threads with results in order, and a bound on what the threads hold at once."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
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
        self._held: list[tuple[int, int]] = []
        """Which thread holds how many bytes."""
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
            while sum(size for _, size in self._held) + n > self._size:
                if stopped():
                    raise Stopped
                self._changed.wait(_POLL_S)
            mine = (threading.get_ident(), n)
            self._held.append(mine)
        try:
            yield
        finally:
            with self._changed:
                if mine in self._held:
                    self._held.remove(mine)
                self._changed.notify_all()

    def give_up(self, thread: int) -> None:
        """Count what a thread holds no longer: it hangs, and others need the room."""
        with self._changed:
            self._held = [held for held in self._held if held[0] != thread]
            self._changed.notify_all()


class _Task(Generic[_Item, _Result]):
    """One item on its way; ``results`` is empty until it is done, ``thread`` is at it."""

    __slots__ = ("item", "results", "thread")

    def __init__(self, item: _Item) -> None:
        self.item = item
        self.results: tuple[_Result, ...] = ()
        self.thread: threading.Thread | None = None


class _Pool(Generic[_Item, _Result]):
    """The threads of one ``in_order`` and what they share."""

    def __init__(
        self,
        work: Callable[[_Item, Callable[[], bool]], _Result],
        stop: threading.Event,
        hung: Callable[[int], Callable[[], _Result] | None],
    ) -> None:
        self._work = work
        self._stop = stop
        self._hung = hung
        self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._queue: SimpleQueue[_Task[_Item, _Result] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def start(self, workers: int) -> None:
        for _ in range(workers):
            self._start(self._run)

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
                self._look_after(task)
        if self._error is not None:
            raise self._error
        return () if self.stopped() else task.results

    def close(self) -> None:
        """End the threads, each after the item that it is at; nobody waits for one that hangs."""
        self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            while thread.is_alive() and self._instead(thread) is None:
                thread.join(_POLL_S)

    def _start(self, run: Callable[[], None]) -> None:
        name = f"loader-{len(self._threads)}"
        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _look_after(self, task: _Task[_Item, _Result]) -> None:
        """Put another thread in the place of one that hangs; it can't be ended."""
        thread = task.thread
        if task.results or thread is None or thread not in self._threads:
            return
        instead = self._instead(thread)
        if instead is not None:
            self._threads.remove(thread)
            self._start(lambda: self._run(task, instead))

    def _instead(self, thread: threading.Thread) -> Callable[[], _Result] | None:
        return self._hung(thread.ident or 0)

    def _run(
        self,
        task: _Task[_Item, _Result] | None = None,
        instead: Callable[[], _Result] | None = None,
    ) -> None:
        if task is not None and instead is not None and not self._do(task, instead):
            return
        while (task := self._queue.get()) is not None and not self.stopped():
            if not self._do(task, partial(self._work, task.item, self.stopped)):
                return

    def _do(self, task: _Task[_Item, _Result], make: Callable[[], _Result]) -> bool:
        """Make one result; return whether this thread is to go on."""
        me = task.thread = threading.current_thread()
        results: tuple[_Result, ...] = ()
        error: BaseException | None = None
        try:
            results = (make(),)
        except Stopped:
            return False
        except BaseException as raised:  # noqa: BLE001 - raised again where it is waited for
            error = raised
        with self._changed:
            if me not in self._threads:  # it hung for so long that another one was put here
                return False
            task.results = results
            if error is not None:
                self._error = self._error or error
                self._closed = True
            self._changed.notify_all()
        return error is None


def in_order(
    work: Callable[[_Item, Callable[[], bool]], _Result],
    items: Iterable[_Item],
    *,
    workers: int,
    ahead: int,
    stop: threading.Event,
    hung: Callable[[int], Callable[[], _Result] | None] = lambda _thread: None,
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
    hung
        Asked by a thread's number whether it hangs: None while all is well, else what makes the
        result in its stead, on a new thread.  The old one is left alone, whatever it does.
    """
    pool = _Pool(work, stop, hung)
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
