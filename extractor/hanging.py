"""Threads that decode, and which of them has been at one picture for too long."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from extractor import guarded

Result = TypeVar("Result")


class Decoding(Generic[Result]):
    """Since when each thread decodes, and what makes its result otherwise."""

    def __init__(self) -> None:
        self._since: dict[int, tuple[float, Callable[[], Result]]] = {}

    @contextmanager
    def timed(self, instead: Callable[[], Result]) -> Iterator[None]:
        """Note that this thread decodes, and since when."""
        me = threading.get_ident()
        self._since[me] = time.monotonic(), instead
        try:
            yield
        finally:
            del self._since[me]

    def hung(self, thread: int) -> Callable[[], Result] | None:
        """Return what makes the result of a thread that has decoded one picture for too long."""
        noted = self._since.get(thread)
        if noted is None or time.monotonic() - noted[0] < guarded.BOUNDS.time_s:
            return None
        return noted[1]
