"""Questions that come at the same time are answered together.

The first thread that asks goes ahead at once.  Those that come while it is at work wait for it and
are then taken together, by one of them; so nobody who asks alone waits for anybody, and the more
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


class Gathering(Generic[K, T, R]):
    """Works on what threads bring, on all of one kind that come meanwhile at once.

    Parameters
    ----------
    work
        Takes a kind and items, and returns a result for each, in their order.  It runs in any
        thread, and for different kinds in several at once.
    most
        Items that are worked on together, unless one thread brings more.
    """

    def __init__(self, work: Callable[[K, Sequence[T]], Sequence[R]], *, most: int = MOST) -> None:
        self._work = work
        self._most = most
        self._lock = threading.Lock()
        self._waiting: dict[K, list[_Job[T, R]]] = {}
        """By kind, those who wait; a kind that nobody is at work on has no entry."""

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
            waiting = self._waiting.get(kind)
            if waiting is None:
                self._waiting[kind] = []
                job.leads = True
            else:
                waiting.append(job)
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
                waiting = self._waiting.get(kind, [])
                if job in waiting:
                    waiting.remove(job)
                leads = job.leads
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
            waiting = self._waiting[kind]
            while waiting and len(waiting[0].items) <= room:
                jobs.append(waiting.pop(0))
                room -= len(jobs[-1].items)
        return jobs

    def _hand_over(self, kind: K) -> None:
        with self._lock:
            waiting = self._waiting[kind]
            if not waiting:
                del self._waiting[kind]
                return
            job = waiting.pop(0)
            job.leads = True
        job.called.set()
