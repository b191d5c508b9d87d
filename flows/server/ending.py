"""The end of the process that serves the nights: whoever asks for it, and whatever is gone by then.

A thread waits for the parent's pipe to close, then lets Prefect's runner stop what runs.  Where no
API is left to do that through, Prefect would try for minutes: the runs are asked directly then.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from flows.server.process import REMOTE_ANSWER_S, ServerError, answers

GRACE_S = 100.0
"""Prefect gives each run in progress 30 s, one after the other; there are three at most."""
LEFT_S = 20.0
"""Time for a run that Prefect could not ask to stop, because its API was gone."""
LOOK_S = 1.0
"""How often it is looked whether the API is still there while runs are asked to stop."""
SETTLE_S = 0.2
"""A process closes its pipes a moment before it is gone."""


def heed_no_signal() -> None:
    """Let SIGTERM pass: the parent's pipe asks for the end, and the signal is for the runs.

    They are in this process's group, and would inherit that it is ignored.
    """
    signal.signal(signal.SIGTERM, lambda *_: None)


def follow_parent(parent: int, url: str, ask: Callable[[], object]) -> None:
    """Wait for the end of standard input, ``ask`` for the end, and enforce it.

    Without the API at ``url``, which a parent that has died takes along, nothing is asked.
    """
    while os.read(sys.stdin.fileno(), 4096):
        pass
    time.sleep(SETTLE_S)
    deadline = time.monotonic() + GRACE_S
    while os.getppid() == parent and answers(url, REMOTE_ANSWER_S):
        if time.monotonic() > deadline:
            os.killpg(0, signal.SIGKILL)
        with suppress(RuntimeError):  # its loop is closed: it is over already
            ask()
        time.sleep(LOOK_S)
    _hush()
    end_what_is_left()
    os._exit(ServerError.exit_code)


def _hush() -> None:
    """Let nothing more be heard of Prefect, which tells of a lost API at length."""
    if not os.environ.get("LOOKALIKE_DEBUG"):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())


def end_what_is_left() -> None:
    """End runs that still live: gently, and by force after `LEFT_S`; usually there are none."""
    deadline = time.monotonic() + LEFT_S
    asked = False
    while True:
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not ended and not asked:
            os.killpg(
                0, signal.SIGTERM
            )  # which this process takes for nothing: see `heed_no_signal`
            asked = True
        if time.monotonic() > deadline:
            os.killpg(0, signal.SIGKILL)
        time.sleep(0.1)
