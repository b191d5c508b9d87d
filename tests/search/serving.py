"""A server that listens in this process, and a client that takes its answers apart."""

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import uvicorn

from search.bodies import Limits
from search.door import Address
from search.following import Follower
from search.server import configured, make_app

SMALL = Limits(
    picture_bytes=100_000,
    json_bytes=2_000,
    seconds=0.5,
    pictures=1,
    answer_seconds=20,
    waiting=40,
    requests=60,
    head_seconds=1.0,
    connections=80,
)


@dataclass(frozen=True)
class Answered:
    """An answer: names of headers are in small letters."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body or "null")

    @property
    def refusal(self) -> tuple[int, str, str]:
        """Status, code and message of an error, which has its one shape."""
        value = self.json
        assert list(value) == ["error"]
        assert list(value["error"]) == ["code", "message"]
        assert value["error"]["message"]
        assert "\n" not in value["error"]["message"]
        return self.status, value["error"]["code"], value["error"]["message"]


class Running:
    """A server that listens, and what it said to whoever runs it."""

    def __init__(self, url: str, said: list[str]) -> None:
        self.url = url
        self.said = said

    @property
    def place(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answered:
        """Return the answer to one request; an underscore in a header's name is a hyphen."""
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        with contextlib.closing(http.client.HTTPConnection(*self.place, timeout=30)) as conn:
            conn.request(method, path, body, named)
            response = conn.getresponse()
            found = {name.lower(): text for name, text in response.headers.items()}
            return Answered(response.status, found, response.read())

    def ask(
        self,
        body: Any = None,
        *,
        path: str = "/api/search",
        method: str | None = None,
        **headers: str,
    ) -> tuple[int, Any]:
        """Return status and JSON; a body that is not bytes goes as JSON."""
        answered = self._asked(body, path, method, headers)
        return answered.status, answered.json

    def refused(
        self,
        body: Any = None,
        *,
        path: str = "/api/search",
        method: str | None = None,
        **headers: str,
    ) -> tuple[int, str, str]:
        """Return status, code and message of an error, which has its one shape."""
        return self._asked(body, path, method, headers).refusal

    def raw(self, *pieces: bytes, timeout: float = 30) -> bytes:
        """Send bytes as they stand, and return the answer that comes."""
        with socket.create_connection(self.place, timeout=timeout) as conn:
            with contextlib.suppress(ConnectionError):
                for piece in pieces:
                    conn.sendall(piece)
            return received(conn)

    def _asked(self, body: Any, path: str, method: str | None, headers: dict[str, str]) -> Answered:
        kind = "image/png" if isinstance(body, bytes) else "application/json"
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        asked = method or ("GET" if body is None else "POST")
        return self.send(asked, path, data, **{"Content_Type": kind, **headers})


def received(conn: socket.socket) -> bytes:
    """Return the answer that comes, whole; less where the other side closes before."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while not _is_whole(got):
            more = conn.recv(65536)
            if not more:
                break
            got += more
    return got


def _is_whole(got: bytes) -> bool:
    """Say whether an answer with a Content-Length is all there."""
    head, _, body = got.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.partition(b":")[2])
    return False


def parsed(got: bytes) -> Answered:
    """Return an answer that came as bytes."""
    head, _, body = got.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    named = (line.partition(":") for line in lines)
    headers = {name.lower(): text.strip() for name, _, text in named}
    return Answered(int(first.split()[1]), headers, body)


@contextlib.contextmanager
def running(
    follower: Follower,
    token: str | None = None,
    *,
    limits: Limits = SMALL,
    allowed: tuple[str, ...] = (),
) -> Iterator[Running]:
    said: list[str] = []
    address = Address(token=token, allowed=allowed)
    app = make_app(follower, address, say=said.append, limits=limits)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(configured(app, limits))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}", said)
        finally:
            server.should_exit = True
            thread.join()
            app.state.desk.close()
