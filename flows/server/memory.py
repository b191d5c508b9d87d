"""What a home remembers of the Prefect server that was started for it: address and process."""

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass

from flows.server.process import POLL_S, STOP_S, Say, ServerError, nobody
from storage.durable import write_durably
from storage.owner import Owner, is_alive, this_process

REMEMBERED = "server.json"


@dataclass(frozen=True)
class Server:
    """A server that ``lookalike up`` or ``lookalike nightly`` has started."""

    url: str
    owner: Owner

    @property
    def page(self) -> str:
        """Address of its web page."""
        return self.url.removesuffix("/api")

    def is_alive(self) -> bool:
        """Return whether its process is there, on this machine."""
        return self.owner.boot == this_process().boot and is_alive(self.owner)


def remembered(home: str, say: Say = nobody) -> Server | None:
    """Return the server that was started for this home, if its process still lives.

    A dead one is forgotten; one of another machine that shares the home is left alone.
    """
    try:
        with open(os.path.join(home, "prefect", REMEMBERED), "rb") as file:
            facts = json.load(file)
        server = Server(facts["url"], Owner(**facts["owner"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        forget(home)
        return None
    if server.is_alive():
        return server
    if server.owner.host == this_process().host:
        forget(home)
        say(f"Prefect's server at {server.page} is gone; `lookalike up` starts it anew")
    return None


def remember(home: str, server: Server) -> None:
    """Write down which server was started."""
    facts = json.dumps({"url": server.url, "owner": asdict(server.owner)}, indent=2)
    write_durably(os.path.join(home, "prefect", REMEMBERED), facts.encode() + b"\n")


def forget(home: str) -> None:
    """Remove the memory of a server, if there is one."""
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(home, "prefect", REMEMBERED))


def end_by_number(pid: int, alive: Callable[[], bool]) -> None:
    """End a server that another process started: gently, and by force after `STOP_S`.

    Raises
    ------
    ServerError
        It is still there, or belongs to another user.
    """
    for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        except OSError as error:
            raise ServerError(f"process {pid} can't be stopped: {error.strerror}") from None
        deadline = time.monotonic() + STOP_S
        while alive() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if not alive():
            return
    raise ServerError(f"process {pid} does not end")
