"""Browsing by folder."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import Response

from search.browsing import Listing, listing
from search.pages.layout import Pages
from search.places import Place
from storage.catalog import Catalog

Number = Annotated[int | None, Query(ge=1, lt=1 << 63)]


def router(pages: Pages) -> APIRouter:
    """Return the routes of the roots and of all folders in them."""
    made = pages.router()

    @made.get("/folders")
    async def all_roots() -> Response:
        found = await pages.desk.look(lambda catalog: _listed(catalog, None))
        return pages.render("folders.html", **_values(found))

    @made.get("/folders/{place}")
    async def one_folder(
        place: str, after: Number = None, folders_after: Number = None
    ) -> Response:
        meant = Place.parse(place)
        found = await pages.desk.look(lambda catalog: _listed(catalog, meant, after, folders_after))
        begins = after is None and folders_after is None
        return pages.render("folders.html", **_values(found, begins=begins))

    return made


def _listed(
    catalog: Catalog,
    place: Place | None,
    after: int | None = None,
    folders_after: int | None = None,
) -> Listing:
    with catalog.read() as conn:
        return listing(conn, place, after, folders_after)


def _values(found: Listing, *, begins: bool = True) -> dict[str, Any]:
    return {"found": found, "begins": begins}
