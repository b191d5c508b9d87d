"""The API's routes: thin, since whoever answers is elsewhere.  The document describes each."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from search import api_answers as told
from search.api_answers import responses
from search.api_questions import ByText, answered
from search.api_reading import asked_in_json, asked_in_query, parsed, valid
from search.api_values import (
    IMAGE_ID,
    LISTED,
    PLACE,
    QUESTION,
    RETRY,
    SIZE,
    image_number,
    option,
    size_of,
)
from search.bodies import is_json
from search.browsing import listing
from search.collection import retry
from search.desk import Desk
from search.errors import QueryError
from search.images import image_facts
from search.map import map_of
from search.overview import overview
from search.places import Place
from search.refusals import Refused, answer
from search.thumbnails import Thumbnails
from storage.catalog import Catalog
from storage.errors import SpaceError
from storage.spaces import SpaceInfo, list_spaces

KEPT: Final = "private, max-age=3600"
"""For thumbnails: an image's number never means another image."""
_JPEG: Final = {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}


class Retry(BaseModel):
    """Which failures are tried again."""

    model_config = ConfigDict(extra="forbid", strict=True)

    space: str | None = None


class Api:
    """Answers the API's requests.

    Parameters
    ----------
    desk
        Where they become questions.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def search(self, request: Request) -> Response:
        """Return what looks like a picture, an image, a vector or words, or several of them."""
        desk = self._desk
        if is_json(request):
            body = await desk.reader.json(request)
            asked = asked_in_json(body, request.query_params)
            return answer(await desk.ask(partial(answered, asked), picture=type(asked) is ByText))
        asked = asked_in_query(request.query_params)
        async with desk.reader.turn():
            data = await desk.reader.picture(request)
            return answer(await desk.ask(partial(answered, asked, picture=data), picture=True))

    async def image(self, request: Request) -> Response:
        """Return what the catalog knows of an image."""
        number = image_number(request)
        facts = await self._desk.look(partial(self._facts, number))
        width, height = await self._desk.pixel_size(number) or (None, None)
        return answer({**facts, "width": width, "height": height})

    async def thumbnail(self, request: Request) -> Response:
        """Return a small JPEG of an image, made anew of its pixels alone."""
        number, size = image_number(request), size_of(request)
        known = request.headers.get("if-none-match", "")

        def made(thumbnails: Thumbnails) -> tuple[str, bytes | None]:
            tag = f'"{thumbnails.tag(number, size)}"'
            return tag, None if _is_known(tag, known) else thumbnails.of(number, size)

        try:
            tag, jpeg = await self._desk.draw(made)
        except QueryError as error:
            raise Refused(404, "no_thumbnail", str(error)) from None
        headers = {"ETag": tag, "Cache-Control": KEPT}
        if jpeg is None:
            return Response(None, 304, headers)
        return Response(jpeg, 200, headers, "image/jpeg")

    async def status(self, _: Request) -> Response:
        """Return the whole store, counted: roots, spaces, last runs."""
        return answer(await self._desk.look(overview))

    async def folders(self, _: Request) -> Response:
        """Return the roots."""
        return answer(await self._listed(None))

    async def folder(self, request: Request) -> Response:
        """Return what lies in a folder."""
        place = Place.parse(request.path_params["place"])
        return answer(
            await self._listed(place, option(request, "after"), option(request, "folders_after"))
        )

    async def map(self, request: Request) -> Response:
        """Return where the images of the space lie on a map of it."""
        found = await self._desk.ask(map_of)
        headers = {"ETag": f'"{found.tag}"'}
        if _is_known(headers["ETag"], request.headers.get("if-none-match", "")):
            return Response(None, 304, headers)
        return Response(found.json, 200, headers, "application/json")

    async def retry(self, request: Request) -> Response:
        """Arm recorded failures, so that the next run tries these images again."""
        body = await self._desk.reader.json(request)
        asked = valid(Retry, parsed(body))
        return answer({"armed": await self._desk.change(partial(_armed, asked.space))})

    async def health(self, _: Request) -> Response:
        """Say which space answers, and how many vectors it holds."""
        return answer(await self._desk.health())

    async def _listed(
        self, place: Place | None, after: int | None = None, folders_after: int | None = None
    ) -> dict[str, Any]:
        def look(catalog: Catalog) -> dict[str, Any]:
            with catalog.read() as conn:
                return listing(conn, place, after, folders_after).to_json()

        return await self._desk.look(look)

    def _facts(self, number: int, catalog: Catalog) -> dict[str, Any]:
        space: SpaceInfo | None
        try:
            space = self._desk.follower.space()
        except SpaceError:
            space = None
        return image_facts(catalog, number, space).to_json()


def router(desk: Desk) -> APIRouter:
    """Return the routes of the API, all but those that tell of the server itself."""
    api = Api(desk)
    made = APIRouter(default_response_class=Response)
    jpeg = responses(404, description="The thumbnail.", content=_JPEG)
    unchanged: dict[int | str, dict[str, Any]] = {304: {"description": "It is the same still."}}

    def add(method: str, path: str, call: Callable[..., Any], said: Any, **extra: Any) -> None:
        made.add_api_route(
            path,
            call,
            methods=[method],
            operation_id=call.__name__,
            responses=said,
            openapi_extra=extra or None,
        )

    add(
        "POST",
        "/api/search",
        api.search,
        responses(404, 415, model=told.Found, description="The hits."),
        **QUESTION,
    )
    image = responses(404, model=told.Image, description="The image.")
    add("GET", "/api/images/{image_id}", api.image, image, parameters=[IMAGE_ID])
    add(
        "GET",
        "/api/thumbnails/{image_id}",
        api.thumbnail,
        jpeg | unchanged,
        parameters=[IMAGE_ID, SIZE],
    )
    status = responses(model=told.Status, description="The store.")
    add("GET", "/api/status", api.status, status)
    folders = responses(model=told.Folders, description="The roots.")
    add("GET", "/api/folders", api.folders, folders)
    folder = responses(404, model=told.Folders, description="The folder.")
    add("GET", "/api/folders/{place}", api.folder, folder, parameters=[PLACE, *LISTED])
    add("GET", "/api/map", api.map, responses(model=told.Map, description="The map.") | unchanged)
    armed = responses(404, 415, model=told.Armed, description="How many are armed.")
    add("POST", "/api/retry", api.retry, armed, **RETRY)
    add("GET", "/healthz", api.health, responses(model=told.Health, description="It answers."))
    made.add_api_route("/healthz", api.health, methods=["HEAD"], include_in_schema=False)
    return made


def _armed(space: str | None, catalog: Catalog) -> int:
    if space is not None and space not in {each.name for each in list_spaces(catalog)}:
        raise Refused(404, "unknown_space", f"there is no space {space!r}; /api/status has all")
    return retry(catalog, space=space)


def _is_known(tag: str, known: str) -> bool:
    """Return whether ``If-None-Match`` has a tag, or any."""
    tags = [each.strip().removeprefix("W/") for each in known.split(",")]
    return tag in tags or "*" in tags
