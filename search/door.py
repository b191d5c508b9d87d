"""Who may ask the server: pure ASGI, before anything of a request's body is read."""

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from search.errors import ServeError
from search.login import is_logged_in, is_token
from search.refusals import Refused, Trouble

Respond = Callable[[Scope, Trouble], Response]

OPEN: Final = ("/healthz", "/login")
"""Paths that need no token."""
OPEN_BELOW: Final = "/static/"
LOCAL: Final = ("localhost", "127.0.0.1", "::1")
HEAD_BYTES: Final = 32 << 10
"""Of the first line and the headers of a request."""
SAFE: Final = ("GET", "HEAD")


@dataclass(frozen=True)
class Address:
    """Where a server listens; port 0 takes a free one.  Beyond this machine only with a token."""

    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = None
    allowed: tuple[str, ...] = ()
    """More names that it goes by, e.g. that of a proxy before it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "token", (self.token or "").strip() or None)

    def names(self) -> frozenset[str] | None:
        """Return the names that it may be asked by; None for all of them."""
        if not self.allowed and not is_loopback(self.host):
            return None
        own = (*LOCAL, self.host, *self.allowed)
        return frozenset(name.lower().strip("[]") for name in own)


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches what listens at ``host``, a name or an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def refuse_open(address: Address) -> None:
    """Raise ``ServeError`` where other machines would be let in without a token."""
    if not address.token and not is_loopback(address.host):
        raise ServeError(
            f"{address.host} can be reached from other machines: set LOOKALIKE_TOKEN to a secret"
            " that they must send, or leave --host out"
        )


class Door:
    """Lets in who asks by the server's name, from its own pages, and has the token.

    A page of another site can make its name lead to 127.0.0.1 and a browser ask there; the name
    that the browser then sends gives it away.  Where it asks by the server's own name instead,
    the browser says from where.

    Parameters
    ----------
    app
        What lies behind the door.
    address
        Where the server listens, by which names, and what token it wants.
    most
        Requests that are let in at once.
    respond
        Makes the answer of a refusal.
    """

    def __init__(self, app: ASGIApp, *, address: Address, most: int, respond: Respond) -> None:
        self.app = app
        self._names = address.names()
        self._token = address.token
        self._most = most
        self._inside = 0
        self._respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a refusal, or hand the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        self._inside += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._inside -= 1

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        try:
            check_size(scope)
            self._check_name(headers)
            check_origin(scope["method"], headers)
            if self._inside >= self._most and scope["path"] != "/healthz":
                raise Refused(503, "busy", "too many requests; ask again later", retry_after="1")
            if self._knows(scope["path"], headers):
                return None
            if scope["method"] == "GET" and wants_page(scope):
                after = scope["path"] + ("?" if scope["query_string"] else "")
                after += scope["query_string"].decode("latin-1")
                return RedirectResponse(f"/login?after={quote(after, safe='')}", 303)
            raise Refused(
                401,
                "unauthorized",
                "send the server's token: Authorization: Bearer TOKEN",
                www_authenticate="Bearer",
            )
        except Refused as refused:
            return self._respond(scope, refused.trouble)

    def _check_name(self, headers: Headers) -> None:
        name = headers.get("host", "")
        if self._names is not None and _host_name(name) not in self._names:
            said = f"this server does not go by the name {name!r}; --allow-host gives it one more"
            raise Refused(421, "wrong_host", said)

    def _knows(self, path: str, headers: Headers) -> bool:
        if self._token is None or path in OPEN or path.startswith(OPEN_BELOW):
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        sent = given.encode("latin-1").decode("utf-8", "surrogateescape")  # headers are bytes
        right = is_token(sent, self._token)
        return (right and kind.lower() == "bearer") or is_logged_in(headers, self._token)


def check_size(scope: Scope) -> None:
    """Refuse a head that is too large; where it came in one piece nobody else has; `Refused`."""
    size = len(scope["raw_path"]) + len(scope["query_string"])
    size += sum(len(name) + len(text) for name, text in scope["headers"])
    if size > HEAD_BYTES:
        raise large_headers()


def large_headers() -> Refused:
    """Return the refusal of a head that is too large."""
    return Refused(431, "large_headers", f"the headers have more than {HEAD_BYTES:,} bytes")


def check_origin(method: str, headers: Mapping[str, str]) -> None:
    """Refuse what the page of another site makes a browser ask; who is no browser says nothing.

    A link from there may lead here; nothing else of it is answered, and what changes something
    is wanted from the server's own pages alone.

    Raises
    ------
    Refused
        It comes from another origin.
    """
    origin = headers.get("origin")
    foreign = headers.get("sec-fetch-site", "none").lower() not in ("none", "same-origin")
    if origin is not None:
        foreign = foreign or _netloc(origin) != headers.get("host", "").lower()
    is_link = origin is None and headers.get("sec-fetch-mode", "").lower() == "navigate"
    if foreign and not (is_link and method in SAFE):
        raise Refused(403, "cross_origin", "pages of other sites may not ask this server")


def wants_page(scope: Scope) -> bool:
    """Return whether a person looks at what is answered: a browser asks for a page."""
    path: str = scope["path"]
    if path.startswith("/api/") and path != "/api/docs":
        return False
    return "text/html" in Headers(scope=scope).get("accept", "").lower()


def _netloc(origin: str) -> str | None:
    """Return host and port of an origin, in small letters; None for what is none."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _host_name(header: str) -> str | None:
    """Return the name in a Host header, without port and brackets."""
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None
