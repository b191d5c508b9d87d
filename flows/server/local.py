"""Which Prefect API a run goes through, and the servers that are started here.

In this order: the API that the user has configured, the server that ``lookalike up`` has started
and that still answers, and where Prefect is insisted upon a temporary one, for that run alone.
``lookalike nightly`` starts a whole one for as long as it lives.  Nothing here imports Prefect.

All kinds of server keep their database in ``prefect/`` of the home, so that runs stay to be
looked at and only the first start of all is slow.  A lock that the server itself holds keeps a
second one out of that folder: a temporary server then works in a folder that is thrown away.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import Event
from typing import TYPE_CHECKING

from flows.engine.environment import API_URL, configured_api
from flows.server.memory import end_by_number, forget, remembered
from flows.server.process import (
    HOST,
    LOG,
    REMOTE_ANSWER_S,
    Say,
    ServerError,
    Start,
    answers,
    end,
    locked,
    nobody,
)
from flows.server.starting import start_server
from storage.durable import make_dir

if TYPE_CHECKING:
    from flows.settings import Settings

PORTS = range(4200, 4300)
"""Ports that ``lookalike up`` tries; the first is where people look for Prefect."""
ANY = (0,)
"""Ports that a temporary server tries: nobody looks for it."""
SMALL = ("--no-ui", "--no-scheduler", "--no-late-runs")
"""What a server needs not do that lives for one run."""
Serving = Callable[[str, Say, Event | None], AbstractContextManager[str]]
"""Starts a server for a home and ends it again; says what it does, and heeds a stop."""


def prefect_wanted(home: str, mode: str, say: Say = nobody) -> bool:
    """Return whether a run goes through Prefect.

    ``mode`` is ``always``, ``never``, or ``auto``: where an API is configured or was started by
    ``lookalike up``, and answers.
    """
    return mode == "always" or (mode == "auto" and find_api(home, say) is not None)


def find_api(home: str, say: Say = nobody) -> str | None:
    """Return the URL of a Prefect API that answers, or None."""
    configured = configured_api()
    if configured is not None:
        if answers(configured, REMOTE_ANSWER_S):
            return configured
        say(f"Prefect's API at {configured} does not answer: this run goes on without it")
        return None
    server = remembered(home, say)
    return server.url if server is not None and answers(server.url) else None


@contextmanager
def api(
    home: str,
    say: Say = nobody,
    stop: Event | None = None,
    *,
    server: Serving | None = None,
    without: str = "use --no-prefect",
) -> Iterator[str]:
    """Yield the URL of an API, that of a server of its own if need be; Prefect uses it inside.

    That server is a temporary one, or what ``server`` starts.  ``without`` says how to do without
    the API that is configured.

    Raises
    ------
    ServerError
        The API that is configured does not answer, or no server could be started.
    """
    configured = configured_api()
    if configured is not None and not answers(configured, REMOTE_ANSWER_S):
        raise ServerError(f"Prefect's API at {configured} does not answer; start it, or {without}")
    with ExitStack() as stack:
        url = configured or find_api(home, say)
        url = url or stack.enter_context((server or temporary_server)(home, say, stop))
        stack.enter_context(_use(url))
        yield url


def up(settings: "Settings", say: Say = nobody) -> str:
    """Start Prefect's server in the background, unless it runs; return a line that says where.

    Raises
    ------
    ServerError
        It could not be started.
    """
    server = remembered(settings.home, say)
    if server is not None:
        return f"Prefect's server runs already: {server.page}"
    folder = server_folder(settings.home)
    with ExitStack() as stack:
        lock = _only_server(stack, folder)
        say("starting Prefect's server (5-40 s)")
        started = start_server(Start(folder, tied=False), PORTS, lock, home=settings.home)
        started.process.returncode = 0  # it lives on: not ours to wait for
    return f"Prefect's server runs: {started.url.removesuffix('/api')} (log: {folder}/{LOG})"


def down(settings: "Settings", say: Say = nobody) -> str:
    """Stop the server that `up` has started; return a line that says what was done.

    Raises
    ------
    ServerError
        It can't be stopped.
    """
    server = remembered(settings.home, say)
    if server is None:
        return "no server to stop: `lookalike up` has started none that still runs"
    end_by_number(server.owner.pid, server.is_alive)
    forget(settings.home)
    return f"Prefect's server at {server.page} is stopped"


@contextmanager
def temporary_server(home: str, say: Say = nobody, stop: Event | None = None) -> Iterator[str]:
    """Run a server inside, and yield its API's URL.

    It ends with the body, and with this process however that ends.

    Raises
    ------
    ServerError
        It could not be started.
    KeyboardInterrupt
        ``stop`` was set before it was there.
    """
    with ExitStack() as stack:
        folder = server_folder(home)
        try:
            lock = stack.enter_context(locked(folder))
        except BlockingIOError:
            lock = None
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="lookalike-", ignore_cleanup_errors=True)
            )
        say("starting a temporary Prefect server (10-30 s); `lookalike up` starts one that stays")
        started = start_server(Start(folder, flags=SMALL), ANY, lock, stop=stop)
        stack.callback(end, started.process)
        yield started.url


@contextmanager
def whole_server(home: str, say: Say = nobody, stop: Event | None = None) -> Iterator[str]:
    """Run a server inside that does all that `up`'s does, and yield its API's URL.

    Other commands find it like `up`'s, but it ends with the body, and with this process however
    that ends.

    Raises
    ------
    ServerError
        It could not be started.
    KeyboardInterrupt
        ``stop`` was set before it was there.
    """
    with ExitStack() as stack:
        folder = server_folder(home)
        lock = _only_server(stack, folder)
        say("starting Prefect's server (5-40 s)")
        started = start_server(Start(folder), PORTS, lock, home=home, stop=stop)
        stack.callback(end, started.process)
        stack.callback(forget, home)
        yield started.url


def _only_server(stack: ExitStack, folder: str) -> int | None:
    try:
        return stack.enter_context(locked(folder))
    except BlockingIOError:
        raise ServerError(
            f"a Prefect server works in {folder}, that of a run perhaps; try again after it"
        ) from None


@contextmanager
def _use(url: str) -> Iterator[None]:
    """Let Prefect find the API: by the environment, from which it reads when it is imported."""
    before = {name: os.environ.get(name) for name in (API_URL, "NO_PROXY", "no_proxy")}
    os.environ[API_URL] = url
    if url.startswith(f"http://{HOST}:"):  # no proxy leads to the loopback
        for name in ("NO_PROXY", "no_proxy"):
            os.environ[name] = ",".join(filter(None, (before[name], HOST)))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def server_folder(home: str) -> str:
    """Return the folder of the servers of a home; it is made where it is missing."""
    folder = os.path.join(home, "prefect")
    make_dir(folder)
    return folder
