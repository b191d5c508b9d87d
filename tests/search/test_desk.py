"""The lines in which questions wait for a thread."""

import asyncio
import threading
from dataclasses import replace

import pytest

from search.desk import Line
from tests.search.serving import SMALL


def test_a_thread_that_does_not_start_leaves_no_place_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")  # what Python says where there are too many

    line = Line("test", 1, replace(SMALL, waiting=1))
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refused)
        for _ in range(4):
            with pytest.raises(RuntimeError, match="can't start"):
                asyncio.run(line.answer(int))
    assert (line.waiting, line.running) == (0, 0)
    assert asyncio.run(line.answer(lambda: 7)) == 7
    line.close()
