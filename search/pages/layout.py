"""What all pages share: their frame, how values are written on them, what they say in trouble."""

import hashlib
import os
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import Response

if TYPE_CHECKING:
    from search.desk import Desk
    from search.refusals import Trouble

HERE: Final = os.path.dirname(os.path.abspath(__file__))
STATIC: Final = os.path.join(HERE, "static")


class Pages:
    """Makes pages.

    Parameters
    ----------
    desk
        Answers what a page has to ask.
    """

    def __init__(self, desk: "Desk") -> None:
        self.desk = desk

    def render(self, template: str, *, status: int = 200, **values: Any) -> Response:
        """Return a page made of a template and all values that it names."""
        return _page(template, status, values)

    def router(self) -> APIRouter:
        """Return a router for pages; what its routes raise becomes an error page."""
        return APIRouter(include_in_schema=False)


def error_page(trouble: "Trouble") -> Response:
    """Return the page that says why there is no other."""
    page = _page("error.html", trouble.status, {"trouble": trouble})
    page.headers.update(trouble.headers)
    return page


def login_page(*, wrong: bool = False, after: str = "/", status: int = 200) -> Response:
    """Return the page that asks for the server's token.

    Parameters
    ----------
    wrong
        Whether one was given that is not the server's.
    after
        Path to go to once it is given; sent along as ``after``.
    """
    return _page("login.html", status, {"wrong": wrong, "after": after})


def path_text(path: bytes | str) -> str:
    r"""Return a path for people: what can't be shown, or turns text about, as ``\xe9``."""
    text = os.fsdecode(path)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    raw = os.fsencode(char)
    return f"\\x{raw[0]:02x}" if len(raw) == 1 else char.encode("unicode_escape").decode("ascii")


def coded(text: str) -> Markup:
    """Return a line for people in which what stands between backticks is code."""
    parts = text.split("`")
    shown = (
        Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts)
    )
    return Markup("").join(shown)


def base_name(path: bytes) -> str:
    """Return the last part of a path for people."""
    return path_text(os.path.basename(path.rstrip(b"/")) or path)


def folder_name(path: bytes) -> str:
    """Return the folder that a path lies in for people: its own name alone."""
    return base_name(os.path.dirname(path))


def score_text(score: float) -> str:
    """Return a cosine for people, with three digits."""
    return f"{score:.3f}".replace("-0.000", "0.000")


def bytes_text(size_bytes: int) -> str:
    """Return a number of bytes for people: ``812 B``, ``4.1 MB``."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    value = float(size_bytes)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 1000:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} TB"


def when_text(seconds: float | None) -> str:
    """Return a time, seconds since 1970, as the clock on the wall shows it here."""
    if seconds is None:
        return "never"
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def count_text(n: int, word: str) -> str:
    """Return a number with its word: ``1 file``, ``1,200 files``."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"


@cache
def asset(name: str) -> str:
    """Return the URL of a static file; another one when the file is another one."""
    with open(os.path.join(STATIC, name), "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    return f"/static/{name}?v={digest[:12]}"


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(os.path.join(HERE, "templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["asset"] = asset
    made.filters |= {
        "path": path_text,
        "name": base_name,
        "folder": folder_name,
        "score": score_text,
        "bytes": bytes_text,
        "when": when_text,
        "count": count_text,
        "coded": coded,
    }
    return made


_TEMPLATES: Final = _environment()


def _page(template: str, status: int, values: dict[str, Any]) -> Response:
    text = _TEMPLATES.get_template(template).render(values)
    # A manifest's ids and labels may hold what no UTF-8 has.
    body = text.encode("utf-8", "backslashreplace")
    headers = {"Cache-Control": "private, no-cache"}
    return Response(body, status, headers, "text/html; charset=utf-8")
