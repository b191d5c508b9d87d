"""Who may ask the server, and what a refusal looks like: pure ASGI, before anything is read."""

import hmac
import ipaddress
import json
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from search.errors import ServeError

OPEN = ("/healthz",)
"""Paths that need no token."""
LOCAL = ("localhost", "127.0.0.1", "::1")


def answer(value: Any, status: int = 200, **headers: str) -> Response:
    r"""Return JSON: ASCII alone, so that odd bytes of a path are ``\udcXX`` as in all commands."""
    body = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Response(body, status, named, "application/json")


def failed(status: int, code: str, message: str, **headers: str) -> Response:
    """Return an error in its one shape."""
    line = " ".join(message.split())
    return answer({"error": {"code": code, "message": line}}, status, **headers)


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches what listens at ``host``, a name or an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def refuse_open(host: str, token: str | None) -> None:
    """Raise ``ServeError`` where other machines would be let in without a token."""
    if not token and not is_loopback(host):
        raise ServeError(
            f"{host} can be reached from other machines: set LOOKALIKE_TOKEN to a secret that they"
            " must send, or leave --host out"
        )


class Door:
    """Lets in who has the token, and on a loopback address who asks for it by its own name.

    A page of another site can make its name lead to 127.0.0.1 and a browser ask there; the name
    that the browser then sends gives it away.

    Parameters
    ----------
    app
        What lies behind the door.
    host
        Where the server listens.
    token
        What ``Authorization: Bearer`` must hold; None for nothing.
    """

    def __init__(self, app: ASGIApp, *, host: str, token: str | None) -> None:
        self.app = app
        self._names = {*LOCAL, host.lower()} if is_loopback(host) else None
        self._token = token.encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a refusal, or hand the request on."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        name = headers.get("host", "")
        if self._names is not None and _host_name(name) not in self._names:
            return failed(421, "wrong_host", f"this server does not go by the name {name!r}")
        if scope["path"] in OPEN or self._token is None:
            return None
        kind, _, given = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode("latin-1"), self._token)
        if kind.lower() == "bearer" and right:
            return None
        return failed(
            401,
            "unauthorized",
            "send the server's token: Authorization: Bearer TOKEN",
            www_authenticate="Bearer",
        )


def _host_name(header: str) -> str | None:
    """Return the name in a Host header, without port and brackets."""
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None
