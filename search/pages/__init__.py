"""The pages that people look at: made on the server, of templates; a little script adds comfort."""

from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from search.pages import folders, map, picture, searching, status
from search.pages.layout import STATIC, Pages

if TYPE_CHECKING:
    from search.desk import Desk

ROUTERS = (searching.router, picture.router, folders.router, map.router, status.router)


def add_pages(app: FastAPI, desk: "Desk") -> None:
    """Let an application answer with all pages, and the files that they are drawn with.

    Parameters
    ----------
    app
        The application.
    desk
        Answers what a page has to ask.
    """
    pages = Pages(desk)
    for router in ROUTERS:
        app.include_router(router(pages))
    app.mount("/static", _Static(directory=STATIC))


class _Static(StaticFiles):
    """Files that a browser keeps for good where the URL names their content."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        named = scope["query_string"].startswith(b"v=")
        kept = "public, max-age=31536000, immutable" if named else "no-cache"
        response.headers["Cache-Control"] = kept
        return response
