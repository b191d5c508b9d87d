"""The search over HTTP: ``docs/http.md`` says what goes in and what comes out."""

import socket
import threading
from contextlib import suppress
from functools import cache, partial
from typing import Any, Final

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from search import api, login
from search.bodies import Limits
from search.desk import Desk, Say
from search.document import document
from search.door import HEAD_BYTES, Address, Door, refuse_open, wants_page
from search.errors import ServeError
from search.following import Follower
from search.garbage import settle
from search.headers import Outside
from search.metrics import Metrics
from search.pages import add_pages
from search.pages.layout import Pages, error_page
from search.refusals import Trouble, answer, failed
from search.thumbnail_files import drop_unknown
from search.wire import wire

GRACE_S: Final = 10
"""How long the last answers may take when the server ends."""


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
        What a request may be, and take, at most.

    Raises
    ------
    ServeError
        Others than this machine would be let in without a token.
    """
    refuse_open(address)
    limits = limits or Limits()
    desk = Desk(follower, limits, say)
    metrics = Metrics(desk)
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.state.desk = desk  # for whoever ends it
    app.include_router(api.router(desk))
    app.include_router(login.router(desk.reader, address.token))
    _tell_of_itself(app, address, desk, metrics)
    add_pages(app, desk)
    # The last one added is asked first.
    app.add_middleware(Refusing, desk=desk)
    app.add_middleware(Door, address=address, most=limits.requests, respond=respond)
    app.add_middleware(Outside, metrics=metrics)
    for kind in (HTTPException, RequestValidationError):
        app.add_exception_handler(kind, partial(_refused, desk))
    return app


def respond(scope: Scope, trouble: Trouble) -> Response:
    """Return a refusal: a page for people, JSON for programs."""
    return error_page(trouble) if wants_page(scope) else failed(trouble)


class Refusing:
    """Answers what no route could: whatever it raised, in the one shape.

    Parameters
    ----------
    app
        All routes.
    desk
        Says what an exception means.
    """

    def __init__(self, app: ASGIApp, *, desk: Desk) -> None:
        self.app = app
        self._desk = desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on."""
        has_begun = False

        async def sent(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, receive, sent)
        except Exception as error:
            if has_begun:
                raise
            await respond(scope, self._desk.trouble(error))(scope, receive, send)


async def _refused(desk: Desk, request: Request, error: Exception) -> Response:
    return respond(request.scope, desk.trouble(error))


def _tell_of_itself(app: FastAPI, address: Address, desk: Desk, metrics: Metrics) -> None:
    """Add the routes that tell of the server and not of the store."""

    @cache
    def told() -> dict[str, Any]:
        return document(app, token=bool(address.token))

    async def show_document() -> Response:
        return answer(told())

    async def show_docs() -> Response:
        return Pages(desk).render("docs.html", document=told())

    for path, call in (
        ("/api/openapi.json", show_document),
        ("/api/docs", show_docs),
        ("/metrics", metrics.answer),
    ):
        app.add_api_route(path, call, methods=["GET"], include_in_schema=False)


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
    limits = Limits()
    app = make_app(follower, address, say=say, limits=limits)
    listening = _listen(address)
    threading.Thread(target=_tidy, args=(follower,), daemon=True).start()
    settle()
    with listening:
        announce(_url(address.host, listening.getsockname()[1]))
        try:
            uvicorn.Server(configured(app, limits)).run(sockets=[listening])
        finally:
            app.state.desk.close()


def _tidy(follower: Follower) -> None:
    """Remove the thumbnails of images that were forgotten; the server does well without."""
    with suppress(Exception):
        follower.look(lambda catalog: drop_unknown(catalog, follower.thumbnails.files))


def configured(app: FastAPI, limits: Limits) -> uvicorn.Config:
    """Return how an application is served."""
    return uvicorn.Config(
        app,
        loop="asyncio",
        http=wire(limits),
        h11_max_incomplete_event_size=HEAD_BYTES,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
    )


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
