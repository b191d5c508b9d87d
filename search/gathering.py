"""Questions that come at the same time are answered together.

The first threads that ask go ahead at once.  Those that come while these are at work wait and are
then taken together, by one of them; so nobody who asks alone waits for anybody, and the more
threads ask, the more questions share one transaction, one call of the index, one forward pass.
"""

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
R = TypeVar("R")

MOST: Final = 64
"""Items that are worked on together; a thread that brings more has them to itself."""


class _Job(Generic[T, R]):
    """What one thread brought, and what became of it."""

    __slots__ = ("called", "items", "leads", "results")

    def __init__(self, items: Sequence[T]) -> None:
        self.items = items
        self.results: Sequence[R] | None = None
        self.leads = False
        """Whether its thread is to do the work, for others too."""
        self.called = threading.Event()
        """Set once there are results, or none will come, or the thread is to lead."""


class _Kind(Generic[T, R]):
    """How many threads are at work on a kind, and who waits for them."""

    __slots__ = ("at_work", "waiting")

    def __init__(self) -> None:
        self.at_work = 0
        self.waiting: list[_Job[T, R]] = []


class Gathering(Generic[K, T, R]):
    """Works on what threads bring, on all of one kind that come meanwhile at once.

    Parameters
    ----------
    work
        Takes a kind and items, and returns a result for each, in their order.  It runs in any
        thread, and for different kinds in several at once.
    most
        Items that are worked on together, unless one thread brings more.
    lanes
        Threads at work on one kind at once.  With two of them the cores have something to do while
        one thread is where only one can be, such as in Python.
    """

    def __init__(
        self, work: Callable[[K, Sequence[T]], Sequence[R]], *, most: int = MOST, lanes: int = 1
    ) -> None:
        self._work = work
        self._most = most
        self._lanes = lanes
        self._lock = threading.Lock()
        self._kinds: dict[K, _Kind[T, R]] = {}
        """Those that somebody is at work on."""

    def waiting(self, kind: K) -> int:
        """Return how many threads wait for their turn with a kind."""
        with self._lock:
            return len(self._kinds[kind].waiting) if kind in self._kinds else 0

    def ask(self, kind: K, items: Sequence[T]) -> Sequence[R]:
        """Return what the work returns for these items, as if they were asked for alone.

        Raises
        ------
        Exception
            What the work raises for these items alone: where it fails for several threads'
            together, each of them tries its own again.
        """
        job: _Job[T, R] = _Job(items)
        with self._lock:
            here = self._kinds.setdefault(kind, _Kind())
            if here.at_work < self._lanes:
                here.at_work += 1
                job.leads = True
            else:
                here.waiting.append(job)
        if not job.leads:
            self._wait(kind, job)
        if job.leads:
            self._lead(kind, job)
        return self._work(kind, items) if job.results is None else job.results

    def _wait(self, kind: K, job: _Job[T, R]) -> None:
        try:
            job.called.wait()
        except BaseException:  # a signal, in the main thread
            with self._lock:
                leads = job.leads
                if kind in self._kinds and job in self._kinds[kind].waiting:
                    self._kinds[kind].waiting.remove(job)
            if leads:
                self._hand_over(kind)
            raise

    def _lead(self, kind: K, job: _Job[T, R]) -> None:
        """Work on a job and on those that wait; then let the next one of these lead."""
        jobs = self._taken(kind, job)
        try:
            results = self._work(kind, [item for one in jobs for item in one.items])
            start = 0
            for one in jobs:
                one.results = results[start : start + len(one.items)]
                start += len(one.items)
        except Exception:
            if len(jobs) == 1:
                raise
        finally:
            self._hand_over(kind)
            for one in jobs[1:]:
                one.called.set()

    def _taken(self, kind: K, job: _Job[T, R]) -> list[_Job[T, R]]:
        """Take the job, and of those that wait as many as fit, the first ones first."""
        jobs, room = [job], self._most - len(job.items)
        with self._lock:
            waiting = self._kinds[kind].waiting
            while waiting and len(waiting[0].items) <= room:
                jobs.append(waiting.pop(0))
                room -= len(jobs[-1].items)
        return jobs

    def _hand_over(self, kind: K) -> None:
        with self._lock:
            here = self._kinds[kind]
            if not here.waiting:
                here.at_work -= 1
                if not here.at_work:
                    del self._kinds[kind]
                return
            job = here.waiting.pop(0)
            job.leads = True
        job.called.set()
