"""A way to Postgres that can be cut: what a client sees while it restarts."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import parse_qs, urlsplit, urlunsplit


class Gate:
    """Leads connections to its ``url`` on to a database, but for those that it refuses."""

    def __init__(self, to: str) -> None:
        self._to = urlsplit(to)
        self._listening = socket.create_server(("127.0.0.1", 0))
        who, port = self._to.netloc.rpartition("@")[0], self._listening.getsockname()[1]
        self.url = urlunsplit(self._to._replace(netloc=f"{who}@127.0.0.1:{port}", query=""))
        self._open: list[socket.socket] = []
        self._refused = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._threads[0].start()

    def restart(self, refused: int) -> None:
        """Hang up on all clients, and on the next ``refused`` ones."""
        with self._lock:
            self._refused = refused
            for end in self._open:
                _shut(end)
            self._open.clear()

    def left(self) -> int:
        """Return how many clients are still to be refused."""
        return self._refused

    def close(self) -> None:
        """Let nobody in any more."""
        _shut(self._listening)
        self._threads[0].join(10)
        self.restart(0)
        for thread in self._threads[1:]:
            thread.join(10)
        self._listening.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                with self._lock:
                    self._lead(client)

    def _lead(self, client: socket.socket) -> None:
        if self._refused:
            self._refused -= 1
            client.close()
            return
        server = self._server()
        self._open += [client, server]
        for ends in ((client, server), (server, client)):
            self._threads.append(threading.Thread(target=_pump, args=ends, daemon=True))
            self._threads[-1].start()

    def _server(self) -> socket.socket:
        folder = parse_qs(self._to.query).get("host")
        if folder is None:
            return socket.create_connection((self._to.hostname, self._to.port or 5432))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{folder[0]}/.s.PGSQL.5432")
        return server


def _pump(here: socket.socket, there: socket.socket) -> None:
    with suppress(OSError):
        while data := here.recv(65536):
            there.sendall(data)
    _shut(there)
    here.close()  # it is the other thread's to close `there`


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


@contextmanager
def gate(to: str) -> Iterator[Gate]:
    """Yield a gate to the database of a URL, and close it."""
    made = Gate(to)
    try:
        yield made
    finally:
        made.close()
