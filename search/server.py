"""The search over HTTP: ``docs/http.md`` says what goes in and what comes out."""

import asyncio
import os
import socket
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from extractor.errors import ExtractorError
from search.bodies import Ask, Limits, Reader, Refused, is_json
from search.door import Door, answer, failed, refuse_open
from search.engine import Searcher
from search.errors import NoMemory, QueryError, SearchError, ServeError, UnknownImage, VectorError
from search.following import Follower
from storage.errors import SpaceError, StorageError

Say = Callable[[str], None]

THREADS: Final = max(4, 2 * (os.cpu_count() or 1))
"""Questions without a picture that are answered at once; more of them wait."""
GRACE_S: Final = 10
"""How long the last answers may take when the server ends."""

# First match decides.
_TROUBLES: Final[tuple[tuple[type[Exception], int, str], ...]] = (
    (QueryError, 400, "unusable_picture"),
    (VectorError, 400, "wrong_vector"),
    (UnknownImage, 404, "unknown_image"),
    (NoMemory, 503, "no_memory"),
    (SearchError, 400, "bad_request"),
    (SpaceError, 503, "space"),
    (StorageError, 503, "store"),
    (ExtractorError, 503, "model"),
)
_CODES: Final = {404: "not_found", 405: "method_not_allowed"}


@dataclass(frozen=True)
class Address:
    """Where a server listens; port 0 takes a free one.  Beyond this machine only with a token."""

    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = None


class _Desk:
    """Answers requests: reads them on the event loop, and asks the searcher on threads."""

    def __init__(self, follower: Follower, limits: Limits, say: Say) -> None:
        self._follower = follower
        self._reader = Reader(limits)
        self._say = say
        self._told: set[str] = set()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="search")
        self._picture_threads = ThreadPoolExecutor(limits.pictures, thread_name_prefix="picture")
        """Apart: pictures that hang must not keep other questions waiting."""

    async def health(self) -> Response:
        """Say which space answers, and how many vectors it has."""
        try:
            return answer(await asyncio.to_thread(self._health))
        except Exception as error:  # noqa: BLE001 - each becomes an answer
            return self._trouble(error)

    async def search(self, request: Request) -> Response:
        """Answer a question."""
        try:
            if is_json(request):
                return await self._answered(await self._reader.question(request), self._threads)
            async with self._reader.pictures:
                ask = await self._reader.picture(request)
                return await self._answered(ask, self._picture_threads)
        except Exception as error:  # noqa: BLE001 - each becomes an answer
            return self._trouble(error)

    async def _answered(self, ask: Ask, threads: ThreadPoolExecutor) -> Response:
        loop = asyncio.get_running_loop()
        question = partial(self._hits, ask)
        return answer(await loop.run_in_executor(threads, self._follower.ask, question))

    def _hits(self, ask: Ask, searcher: Searcher) -> dict[str, Any]:
        hits = ask(searcher)
        for line in searcher.warnings:
            if line not in self._told:
                self._told.add(line)
                self._say(line)
        return {"space": searcher.space.name, "hits": [hit.to_json() for hit in hits]}

    def _health(self) -> dict[str, Any]:
        try:
            space, vectors = self._follower.health()
        except SpaceError:
            return {"space": None, "dim": None, "vectors": 0}
        return {"space": space.name, "dim": space.dim, "vectors": vectors}

    def _trouble(self, error: Exception) -> Response:
        if isinstance(error, Refused):
            return failed(error.status, error.code, str(error))
        if isinstance(error, ClientDisconnect):
            return failed(400, "gone", "the client went away")  # nobody reads it
        for kind, status, code in _TROUBLES:
            if isinstance(error, kind):
                if status >= 500:
                    self._say(str(error))
                return failed(status, code, str(error))
        if os.environ.get("LOOKALIKE_DEBUG"):
            traceback.print_exception(error)
        self._say(f"{type(error).__name__}: {error} (a bug; LOOKALIKE_DEBUG=1 for the traceback)")
        return failed(500, "bug", "a bug of the server, which has said more on its stderr")


def make_app(
    follower: Follower, address: Address, *, say: Say, limits: Limits | None = None
) -> FastAPI:
    """Return the application.

    Parameters
    ----------
    follower
        Who answers; the caller closes it.
    address
        Where it will listen.
    say
        Called with a line for whoever runs the server.
    limits
        What a request may be at most.

    Raises
    ------
    ServeError
        Others than this machine would be let in without a token.
    """
    refuse_open(address.host, address.token)
    desk = _Desk(follower, limits or Limits(), say)
    app = FastAPI(openapi_url=None)
    app.add_middleware(Door, host=address.host, token=address.token)
    app.add_api_route("/healthz", desk.health, methods=["GET", "HEAD"])
    app.add_api_route("/api/search", desk.search, methods=["POST"])
    app.add_exception_handler(HTTPException, _other)
    return app


def _other(_request: Request, error: Exception) -> Response:
    """Answer what no route is there for."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    return failed(status, _CODES.get(status, "http"), getattr(error, "detail", str(error)))


def serve(follower: Follower, address: Address, *, announce: Say, say: Say) -> None:
    """Serve until SIGINT or SIGTERM, which are raised again once the last answers are out.

    Parameters
    ----------
    follower, address, say
        As `make_app` takes them.
    announce
        Called with the URL as soon as it can be asked.

    Raises
    ------
    ServeError
        The address can't be had.
    """
    app = make_app(follower, address, say=say)
    listening = _listen(address)
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    with listening:
        announce(_url(address.host, listening.getsockname()[1]))
        uvicorn.Server(config).run(sockets=[listening])


def _listen(address: Address) -> socket.socket:
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, place = found[0]
        return socket.create_server(place[:2], family=family)
    except OSError as error:
        raise ServeError(
            f"can't listen at {address.host} port {address.port}: {error.strerror or error};"
            " --port 0 takes a free one"
        ) from error


def _url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
