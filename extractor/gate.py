"""Forward passes go on side by side; while a network is being translated they wait.

What translates a network (a trace, an export, a compiler) changes how torch calls modules, for all
threads of the process.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_changed = threading.Condition()
_passing = 0
_translating = False


@contextmanager
def passing() -> Iterator[None]:
    """Let no translation begin inside; wait for the one that is at work."""
    global _passing
    with _changed:
        _changed.wait_for(lambda: not _translating)
        _passing += 1
    try:
        yield
    finally:
        with _changed:
            _passing -= 1
            _changed.notify_all()


@contextmanager
def translating() -> Iterator[None]:
    """Wait for the passes at work, and let none begin inside, nor another translation."""
    global _translating
    with _changed:
        _changed.wait_for(lambda: not _translating)
        _translating = True
        _changed.wait_for(lambda: not _passing)
    try:
        yield
    finally:
        with _changed:
            _translating = False
            _changed.notify_all()
