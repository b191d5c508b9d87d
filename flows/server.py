"""Which Prefect API a run goes through, and the servers that are started here.

In this order: the API that the user has configured, the server that ``lookalike up`` has started
and that still answers, and where Prefect is insisted upon a temporary one, for that run alone.
Nothing here imports Prefect.

Both kinds of server keep their database in ``prefect/`` of the home, so that runs stay to be
looked at and only the first start of all is slow.  A lock that the server itself holds keeps a
second one out of that folder: a temporary server then works in a folder that is thrown away.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from threading import Event
from typing import TYPE_CHECKING

from flows.prefect_settings import API_URL, configured_api
from flows.server_process import (
    HOST,
    LOG,
    REMOTE_ANSWER_S,
    Say,
    ServerError,
    Start,
    answers,
    end,
    end_by_number,
    free_port,
    launch,
    locked,
    nobody,
    wait_until_up,
)
from storage.home import make_dir, write_durably
from storage.owner import Owner, is_alive, process, this_process

if TYPE_CHECKING:
    from flows.settings import Settings

REMEMBERED = "server.json"
PORTS = range(4200, 4300)
"""Ports that ``lookalike up`` tries; the first is where people look for Prefect."""
SMALL = ("--no-ui", "--no-scheduler", "--no-late-runs")
"""What a server needs not do that lives for one run."""


@dataclass(frozen=True)
class Server:
    """A server that ``lookalike up`` has started."""

    url: str
    owner: Owner

    @property
    def page(self) -> str:
        """Address of its web page."""
        return self.url.removesuffix("/api")

    def is_alive(self) -> bool:
        """Return whether its process is there, on this machine."""
        return self.owner.boot == this_process().boot and is_alive(self.owner)


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
def api(home: str, say: Say = nobody, stop: Event | None = None) -> Iterator[str]:
    """Yield the URL of an API, that of a temporary server if need be; Prefect uses it inside.

    Raises
    ------
    ServerError
        The API that is configured does not answer, or no server could be started.
    """
    configured = configured_api()
    if configured is not None and not answers(configured, REMOTE_ANSWER_S):
        raise ServerError(
            f"Prefect's API at {configured} does not answer; start it, or use --no-prefect"
        )
    with ExitStack() as stack:
        url = configured or find_api(home, say)
        url = url or stack.enter_context(temporary_server(home, say, stop))
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
    folder = _folder(settings.home)
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(locked(folder))
        except BlockingIOError:
            raise ServerError(
                f"a Prefect server works in {folder}, that of a run perhaps; try again after it"
            ) from None
        start = Start(folder, free_port(PORTS), tied=False)
        say("starting Prefect's server (5-40 s)")
        launched = launch(start, lock)
        _remember(settings.home, Server(start.url, process(launched.pid)))
        try:
            wait_until_up(start, launched)
        except BaseException:
            end(launched)
            _forget(settings.home)
            raise
        launched.returncode = 0  # it lives on: not ours to wait for
    return f"Prefect's server runs: {start.url.removesuffix('/api')} (log: {folder}/{LOG})"


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
    _forget(settings.home)
    return f"Prefect's server at {server.page} is stopped"


def remembered(home: str, say: Say = nobody) -> Server | None:
    """Return the server that `up` has started in this home, if its process still lives.

    A dead one is forgotten; one of another machine that shares the home is left alone.
    """
    try:
        with open(os.path.join(home, "prefect", REMEMBERED), "rb") as file:
            facts = json.load(file)
        server = Server(facts["url"], Owner(**facts["owner"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        _forget(home)
        return None
    if server.is_alive():
        return server
    if server.owner.host == this_process().host:
        _forget(home)
        say(f"Prefect's server at {server.page} is gone; `lookalike up` starts it anew")
    return None


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
        folder = _folder(home)
        try:
            lock = stack.enter_context(locked(folder))
        except BlockingIOError:
            lock = None
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="lookalike-", ignore_cleanup_errors=True)
            )
        start = Start(folder, free_port(), SMALL)
        say("starting a temporary Prefect server (10-30 s); `lookalike up` starts one that stays")
        launched = launch(start, lock)
        stack.callback(end, launched)
        wait_until_up(start, launched, stop)
        yield start.url


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


def _folder(home: str) -> str:
    folder = os.path.join(home, "prefect")
    make_dir(folder)
    return folder


def _remember(home: str, server: Server) -> None:
    facts = json.dumps({"url": server.url, "owner": asdict(server.owner)}, indent=2)
    write_durably(os.path.join(home, "prefect", REMEMBERED), facts.encode() + b"\n")


def _forget(home: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(home, "prefect", REMEMBERED))
