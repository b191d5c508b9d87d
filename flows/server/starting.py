"""Start a server on a port that stays its own, be it that others start at the same moment."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Event

from flows.server.memory import Server, forget, remember
from flows.server.process import PortTaken, Start, end, free_port, launch, wait_until_up
from storage.owner import process

TRIES = 8
"""Ports that are tried; of servers that start at the same moment each brings up one at least."""


@dataclass(frozen=True)
class Running:
    """A server that answers, and the process of this one's that it is."""

    url: str
    process: subprocess.Popen[bytes]


def start_server(
    start: Start,
    ports: Sequence[int],
    lock: int | None,
    *,
    home: str | None = None,
    stop: Event | None = None,
) -> Running:
    """Start a server on the first free one of ``ports``, and wait until it answers.

    A port that another server takes meanwhile is left to it, for the next free one.

    Parameters
    ----------
    start
        How to start it, but for the port.
    ports
        What may be tried, in this order; 0 is any free port.
    lock
        Descriptor of the lock of its folder.
    home
        Where it is remembered, from before it answers on; None for nowhere.
    stop
        Asks to leave it.

    Raises
    ------
    ServerError
        It could not be started.
    KeyboardInterrupt
        ``stop`` was set before it was there.
    """
    tried: set[int] = set()
    while True:
        here = replace(start, port=free_port(port for port in ports if port not in tried))
        try:
            return Running(here.url, _attempt(here, lock, home, stop))
        except PortTaken:
            tried.add(here.port)
            if len(tried) == TRIES:
                raise


def _attempt(
    start: Start, lock: int | None, home: str | None, stop: Event | None
) -> subprocess.Popen[bytes]:
    """Return the process of a server that answers; of another one nothing is left."""
    launched = launch(start, lock)
    try:
        if home is not None:
            remember(home, Server(start.url, process(launched.pid)))
        wait_until_up(start, launched, stop)
    except BaseException:
        end(launched)
        if home is not None:
            forget(home)
        raise
    return launched
