"""Browsing by folder."""

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from search.browsing import Listing, listing
from search.pages.address import Asked
from search.pages.layout import Pages
from search.places import Place
from search.words import why_not
from storage.catalog import Catalog
from storage.errors import SpaceError

if TYPE_CHECKING:
    from search.engine import Searcher

Number = Annotated[int | None, Query(ge=1, lt=1 << 63)]


def router(pages: Pages) -> APIRouter:
    """Return the routes of the roots and of all folders in them."""
    made = pages.router()
    browsing = Browsing(pages)
    made.add_api_route("/folders", browsing.roots, methods=["GET", "HEAD"])
    made.add_api_route("/folders/{place}", browsing.folder, methods=["GET", "HEAD"])
    return made


class Browsing:
    """Answers with the pages of folders.

    Parameters
    ----------
    pages
        Makes them.
    """

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._desk = pages.desk

    async def roots(self) -> Response:
        """Show all roots."""
        found = await self._desk.look(lambda catalog: _listed(catalog, None))
        return self._pages.render("folders.html", found=found, begins=True, frame=None)

    async def folder(
        self, place: str, after: Number = None, folders_after: Number = None
    ) -> Response:
        """Show what lies in a folder, or what comes after a page of that."""
        meant = Place.parse(place)
        found = await self._desk.look(lambda catalog: _listed(catalog, meant, after, folders_after))
        return self._pages.render(
            "folders.html",
            found=found,
            begins=after is None and folders_after is None,
            asked=Asked(within=(place,)),
            frame=await self._frame() if found.within else None,
        )

    async def _frame(self) -> dict[str, str] | None:
        """Return what the form of a search has to know; None where nothing can be searched."""
        try:
            return {"wordless": await self._desk.ask(_wordless)}
        except SpaceError:
            return None


def _listed(
    catalog: Catalog,
    place: Place | None,
    after: int | None = None,
    folders_after: int | None = None,
) -> Listing:
    with catalog.read() as conn:
        return listing(conn, place, after, folders_after)


def _wordless(searcher: "Searcher") -> str:
    return why_not(searcher.space)
