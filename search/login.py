"""How a person gives the server's token: once, on a page, which a cookie then stands for.

The cookie holds no token: it holds the time until which it counts, and a code over that time which
only the token makes.  It is for this server alone, no script reads it, and no other site's page
makes a browser send it.
"""

import asyncio
import hmac
import time
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from search.bodies import Reader

COOKIE: Final = "lookalike"
DAYS: Final = 30
DELAY_S: Final = 0.5
"""How long a wrong token waits for its answer, so that guessing takes longer."""


def is_token(given: str, token: str) -> bool:
    """Return whether somebody gave the server's token; takes as long whatever they gave."""
    return hmac.compare_digest(_bytes(given.strip()), _bytes(token))


def is_logged_in(headers: Mapping[str, str], token: str) -> bool:
    """Return whether a request brings a cookie that this token made and that still counts."""
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return False
    if found is None:
        return False
    until, _, code = found.value.partition(".")
    right = hmac.compare_digest(code.encode(), _code(until, token).encode())
    return right and until.isdecimal() and int(until) > time.time()


def router(reader: Reader, token: str | None) -> APIRouter:
    """Return the routes of the login page.

    Parameters
    ----------
    reader
        Reads what the page's form sends.
    token
        What is asked for; None where nothing is.
    """
    made = APIRouter(include_in_schema=False)

    @made.get("/login")
    async def page(after: str = "/") -> Response:
        from search.pages.layout import login_page

        return login_page(after=local(after))

    @made.post("/login")
    async def log_in(request: Request) -> Response:
        from search.pages.layout import login_page

        form = await reader.fields(request)
        given, after = form.one("token") or "", local(form.one("after") or "/")
        if token is None:
            return RedirectResponse(after, 303)
        if not is_token(given, token):
            await asyncio.sleep(DELAY_S)
            return login_page(wrong=True, after=after, status=401)
        answer = RedirectResponse(after, 303)
        seconds = DAYS * 86400
        until = str(int(time.time()) + seconds)
        value = f"{until}.{_code(until, token)}"
        answer.set_cookie(COOKIE, value, max_age=seconds, httponly=True, samesite="strict")
        return answer

    return made


def local(address: str) -> str:
    """Return an address if it is a path of this server, else the first page."""
    inside = address.startswith("/") and not address.startswith(("//", "/\\"))
    return address if inside and address.isprintable() else "/"


def _code(until: str, token: str) -> str:
    return hmac.new(_bytes(token), f"login {until}".encode(), "sha256").hexdigest()


def _bytes(token: str) -> bytes:
    return token.encode("utf-8", "surrogatepass")  # whatever a form can hold
