"""The process of Prefect's own server: how it is started, waited for and ended.

It keeps its database in a folder of its own, listens on the loopback alone and sits in a session
of its own, so that a Ctrl-C at the terminal reaches the run and not the server that records it.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from threading import Event

from flows.engine.environment import TAMED
from flows.errors import FlowError
from flows.server import child as server_child

HOST = "127.0.0.1"
LOG = "server.log"
LOCK = "server.lock"
START_S = 180.0
"""The first start of all migrates a database, on a loaded machine with patience."""
ANSWER_S = 1.0
REMOTE_ANSWER_S = 5.0
STOP_S = 5.0
POLL_S = 0.1

Say = Callable[[str], None]


def nobody(_line: str) -> None:
    """Say nothing."""


class ServerError(FlowError):
    """Prefect's server can't be started, stopped or reached; the message says what to do."""


class PortTaken(ServerError):
    """Another server was faster to take the port; a free one helps."""

    def __init__(self, port: int) -> None:
        super().__init__(f"another server has just taken port {port}; start this one again")


@dataclass(frozen=True)
class Start:
    """How to start a server.

    Parameters
    ----------
    folder
        Its home: database, log and lock.
    port
        Port on the loopback; 0 while none is chosen.
    flags
        More arguments of ``prefect server start``.
    tied
        Whether it ends with this process, however that ends.
    """

    folder: str
    port: int = 0
    flags: tuple[str, ...] = ()
    tied: bool = True

    @property
    def url(self) -> str:
        """The API's URL."""
        return f"http://{HOST}:{self.port}/api"


def launch(start: Start, lock: int | None = None) -> subprocess.Popen[bytes]:
    """Start a server and return its process at once.

    ``lock`` is a descriptor that the server inherits, so that the lock of its folder lasts exactly
    as long as it lives.
    """
    script = [server_child.__file__] if start.tied else ["-m", "prefect", "server", "start"]
    command = [sys.executable, "-P", *script, "--host", HOST, "--port", str(start.port)]
    with open(os.path.join(start.folder, LOG), "wb") as log:
        return subprocess.Popen(
            [*command, *start.flags],
            stdin=subprocess.PIPE if start.tied else subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=start.folder,
            env=_environment(start),
            start_new_session=True,
            pass_fds=() if lock is None else (lock,),
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )


def wait_until_up(
    start: Start, process: subprocess.Popen[bytes], stop: Event | None = None
) -> None:
    """Wait until the server answers.

    Raises
    ------
    PortTaken
        Another one was faster to take its port.
    ServerError
        It ended, or does not answer within `START_S`.
    KeyboardInterrupt
        ``stop`` was set.
    """
    deadline = time.monotonic() + START_S
    while (own := _is_its_own(start)) is None:
        if stop is not None and stop.is_set():
            raise KeyboardInterrupt
        if process.poll() is not None:
            if _bound(start.port) is None:
                raise PortTaken(start.port)
            raise ServerError(f"Prefect's server ended at its start: {_last_words(start.folder)}")
        if time.monotonic() > deadline:
            raise ServerError(
                f"Prefect's server does not answer after {START_S:.0f} s; "
                f"see {os.path.join(start.folder, LOG)}, or use --no-prefect"
            )
        time.sleep(POLL_S)
    if not own:
        raise PortTaken(start.port)


def _is_its_own(start: Start) -> bool | None:
    """Return whether the server that answers works in the folder of the one that was started.

    None where none answers.  Two that start at the same moment find the same port free; the later
    one ends by itself, after the other one has answered for it.
    """
    try:
        with _opener(start.url).open(f"{start.url}/admin/settings", timeout=ANSWER_S) as said:
            facts = json.load(said)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return True  # as far as can be known without its password
        return None if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR else False
    except OSError:
        return None
    except ValueError:
        return False
    home = facts.get("home") if isinstance(facts, dict) else None
    return os.path.realpath(str(home)) == os.path.realpath(start.folder)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server of this process: gently, and by force after `STOP_S`."""
    if process.stdin is not None:
        process.stdin.close()
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def answers(url: str, timeout_s: float = ANSWER_S) -> bool:
    """Return whether anything answers at an API's URL, be it that it asks for a password."""
    try:
        with _opener(url).open(f"{url}/health", timeout=timeout_s):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except (OSError, ValueError):
        return False


def _opener(url: str) -> urllib.request.OpenerDirector:
    """Return what opens a URL; no proxy leads to the loopback."""
    local = url.startswith(f"http://{HOST}:")
    return urllib.request.build_opener(urllib.request.ProxyHandler({} if local else None))


def free_port(ports: Iterable[int] = (0,)) -> int:
    """Return the first of ``ports`` that is free on the loopback; 0 is any free one.

    Raises
    ------
    ServerError
        None of them is free.
    """
    for port in ports:
        found = _bound(port)
        if found is not None:
            return found
    raise ServerError("no port is free for Prefect's server")


def _bound(port: int) -> int | None:
    """Return a port that could be bound for a moment, 0 being any; None where it is taken."""
    with socket.socket() as probe, suppress(OSError):
        if os.name != "nt":  # there it would take a port that is in use
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))
        return int(probe.getsockname()[1])
    return None


@contextmanager
def locked(folder: str, name: str = LOCK) -> Iterator[int | None]:
    """Hold the lock of a server's folder inside; its descriptor can be handed on to a child.

    Yields None where the system has no such lock.

    Raises
    ------
    BlockingIOError
        A server that lives has it, or another process.
    """
    if os.name == "nt":  # pragma: no cover - no flock there
        yield None
        return
    import fcntl

    lock = os.open(os.path.join(folder, name), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield lock
    finally:
        os.close(lock)


def _environment(start: Start) -> dict[str, str]:
    """Return the environment of a server: the user's Prefect is none of its business."""
    kept = {name: value for name, value in os.environ.items() if _concerns_a_server(name)}
    pages = (f"http://{host}:{start.port}" for host in (HOST, "localhost"))
    return {
        **TAMED,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(pages),  # Prefect lets every site's page in
        **kept,
        "PREFECT_HOME": start.folder,
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(start.port),  # the page in the browser asks there
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": os.path.join(start.folder, "ui"),
    }


def _concerns_a_server(name: str) -> bool:
    if not name.startswith("PREFECT_"):
        return True
    database = name.startswith("PREFECT_SERVER_DATABASE")
    return name in TAMED or (name.startswith("PREFECT_SERVER_") and not database)


def _last_words(folder: str) -> str:
    path = os.path.join(folder, LOG)
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in file if line.strip()]
    return f"{lines[-1] if lines else 'without a word'} (see {path})"
