"""Serve what runs every night from one process, for whoever has no workers.

``lookalike nightly`` starts `flows.server.nightly_child`, where Prefect's own runner serves the
deployments, and a server for it where there is none.  Both live in sessions of their own and hold
the end of a pipe of this process: a Ctrl-C reaches this process alone, which closes the pipe of the
runner and waits for it; and however this process ends, neither outlives it.  A server of this
machine is watched, too: without it the runner would go on for minutes, for nothing.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from flows.engine.environment import TAMED, tame_environment
from flows.errors import NO_ROOT
from flows.job.signals import INTERRUPTED
from flows.server.local import api, server_folder, whole_server
from flows.server.memory import Server, remembered
from flows.server.process import Say, ServerError, locked

if TYPE_CHECKING:
    from flows.settings import Settings

LOCK = "nightly.lock"
LEVEL = "PREFECT_LOGGING_LEVEL"
PLACES = ("LOOKALIKE_SETTINGS", "LOOKALIKE_WEIGHTS", "LOOKALIKE_CLUSTER")
"""What may be the path of a file."""
WITHOUT = "leave it out of the configuration"
POLL_S = 0.1


@dataclass(frozen=True)
class Night:
    """What is served, and when."""

    home: str
    nightly: str
    """Cron expression."""
    maintenance: str | None
    """Cron expression; None for never."""
    timezone: str


class Service:
    """The processes that serve, and the signals that end them."""

    def __init__(self, say: Say) -> None:
        self.stop = Event()
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def heeding_signals(self) -> Iterator[None]:
        """Stop on the first SIGINT or SIGTERM inside, leave at once on the second."""

        def on_signal(_number: int, _frame: FrameType | None) -> None:
            if self.stop.is_set():
                self._leave()
            self.stop.set()
            self._say("stopping: finished images are kept; once more to leave at once")

        before = {name: signal.signal(name, on_signal) for name in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    def run(self, night: Night, environment: dict[str, str], server: Server | None) -> int:
        """Run the runner until it ends or a signal stops it; return its exit code.

        Raises
        ------
        ServerError
            The ``server`` that it needs has ended.
        """
        command = [
            sys.executable,
            "-P",
            "-m",
            "flows.server.nightly_child",
            json.dumps(asdict(night)),
        ]
        process = self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=sys.stderr,
            env=environment,
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        lost = False
        with process:  # which closes the pipe, too
            while process.poll() is None:
                lost = server is not None and not server.is_alive()
                if (lost or self.stop.is_set()) and process.stdin is not None:
                    process.stdin.close()
                time.sleep(POLL_S)
        if lost and server is not None and not self.stop.is_set():
            raise ServerError(
                f"Prefect's server at {server.page} has ended; start `lookalike nightly` again"
            )
        return process.returncode

    def _leave(self) -> NoReturn:
        """Leave at once.  What was committed is safe: the lease of a dead process is void."""
        if self._process is not None:
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)  # runs in progress are in it too
        os._exit(INTERRUPTED)


def serve_nights(settings: "Settings", night: Night, say: Say) -> int:
    """Serve until a signal; return the exit code: 0 where one has asked for the end.

    Raises
    ------
    ServerError
        Another process serves this home, there is no API, or it was lost.
    """
    tame_environment()
    service = Service(say)
    with ExitStack() as stack:
        stack.enter_context(service.heeding_signals())
        _hint(settings, say)
        _alone(stack, settings.home)
        try:
            url = stack.enter_context(
                api(settings.home, say, service.stop, server=whole_server, without=WITHOUT)
            )
        except KeyboardInterrupt:  # the stop came while the server started
            return 0
        server = remembered(settings.home)
        watched = server if server is not None and server.url == url else None
        code = service.run(night, _environment(settings), watched)
    if code < 0:
        raise ServerError(f"the process that serves the schedules was ended by signal {-code}")
    return 0 if service.stop.is_set() else code


def _alone(stack: ExitStack, home: str) -> None:
    """Refuse to serve a home twice: the first to stop would pause the other's schedules."""
    try:
        stack.enter_context(locked(server_folder(home), LOCK))
    except BlockingIOError:
        raise ServerError(f"another `lookalike nightly` serves {home} already") from None


def _hint(settings: "Settings", say: Say) -> None:
    """Say it where there is nothing to index yet; it can come later."""
    from storage.catalog import Catalog
    from storage.roots import list_roots

    home = settings.home_()
    if home.is_made():
        catalog = Catalog.open(home, write=False)
        try:
            if list_roots(catalog):
                return
        finally:
            catalog.close()
    say(NO_ROOT)


def _environment(settings: "Settings") -> dict[str, str]:
    """Return the environment of the runner, and so of the runs that it starts.

    Where the user has said nothing, their log goes to Prefect's page, and stderr is left to us.
    """
    environment = {**os.environ, "LOOKALIKE_HOME": settings.home}
    if settings.catalog_url:
        environment["LOOKALIKE_CATALOG_URL"] = settings.catalog_url
    if environment.get(LEVEL) == TAMED[LEVEL]:
        environment[LEVEL] = "INFO"
        environment.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
        environment.setdefault("PREFECT_INTERNAL_LOGGING_LEVEL", "CRITICAL")  # of a lost API
    for name in PLACES:  # for it moves to a folder of its own
        if os.path.exists(environment.get(name, "")):
            environment[name] = os.path.abspath(environment[name])
    environment["PYTHONSAFEPATH"] = "1"  # no folder `flows` where this was started is ours
    return environment
