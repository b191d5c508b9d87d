"""The search page: a question of pictures, words and filters, and its hits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final

from fastapi import APIRouter, Query, Request
from sqlalchemy import Connection
from starlette.responses import Response

from search.errors import SearchError
from search.pages.address import DISTINCT, Asked, Values, text_of
from search.pages.layout import Pages, base_name, path_text
from search.pages.starting import Shown, paths_of, some_images
from search.places import Folder, Place, crumbs, folders, path_of, roots
from search.questions import Reply
from search.words import why_not
from storage.errors import SpaceError

if TYPE_CHECKING:
    from search.engine import Searcher

SOME: Final = 40
"""Pictures to start from."""
_MOST_SEED: Final = 2**31 - 1


def router(pages: Pages) -> APIRouter:
    """Return the routes of the search page."""
    made = pages.router()
    searching = Searching(pages)
    made.add_api_route("/", searching.start, methods=["GET", "HEAD"])
    made.add_api_route("/search", searching.search, methods=["GET", "HEAD"])
    made.add_api_route("/search", searching.send, methods=["POST"])
    return made


@dataclass(frozen=True, slots=True)
class Option:
    """A place that the search can be kept to; ``depth`` is how far inside the others it lies."""

    place: str
    name: str
    depth: int


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around the hits.

    Attributes
    ----------
    space
        Name of the space; empty while there is none.
    wordless
        Why words can't be asked for; empty where they can.
    options
        Places to choose from, beside everything.
    places
        Paths of the chosen ones, by place.
    names
        A path for each image that is an example.
    """

    space: str
    wordless: str
    options: Sequence[Option]
    places: dict[str, bytes]
    names: dict[int, bytes]


class Searching:
    """Answers with the search page.

    Parameters
    ----------
    pages
        Makes it.
    """

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._desk = pages.desk

    async def start(self, seed: Annotated[int, Query(ge=0, le=_MOST_SEED)] = 0) -> Response:
        """Show the empty question, and some pictures to start from."""
        frame, some, trouble = None, [], None
        try:
            frame = await self._desk.ask(partial(_frame, Asked()))
            some = await self._desk.ask(partial(_some, seed))
        except SpaceError as error:
            trouble = self._desk.trouble(error)
        return self._pages.render(
            "start.html",
            asked=Asked(),
            frame=frame,
            some=some,
            others=(seed + 1) % _MOST_SEED,
            trouble=trouble,
        )

    async def search(self, request: Request) -> Response:
        """Answer the question of an address."""
        values: dict[str, list[str]] = {}
        for name, value in request.query_params.multi_items():
            values.setdefault(name, []).append(value)
        return await self._answer(values)

    async def send(self, request: Request) -> Response:
        """Answer the question of a form, which may hold a picture that is kept nowhere."""
        async with self._desk.reader.turn():
            form = await self._desk.reader.form(request)
            return await self._answer(form.fields, form.picture)

    async def _answer(self, values: Values, picture: bytes | None = None) -> Response:
        asked = Asked.read(values)
        if picture is not None:
            asked = asked.anew()
        elif not asked.asks and not asked.minus:
            raise SearchError("choose a picture to search by, or type some words")
        frame = await self._desk.ask(partial(_frame, asked))
        reply, trouble = None, None
        try:
            slow = picture is not None or bool(asked.text)
            reply = await self._desk.ask(partial(_reply, asked, picture), picture=slow)
        except Exception as error:  # noqa: BLE001 - each is told on the page
            trouble = self._desk.trouble(error)
        if picture is not None and reply is not None:
            asked = replace(asked, vector=text_of(reply.vector))
        return self._pages.render(
            "search.html",
            status=trouble.status if trouble else 200,
            title=_title(asked, frame),
            asked=asked,
            frame=frame,
            reply=reply,
            trouble=trouble,
            distinct=DISTINCT if asked.distinct is None else asked.distinct,
        )


def _frame(asked: Asked, searcher: "Searcher") -> Frame:
    with searcher.catalog.read() as conn:
        places = {text: path_of(conn, Place.parse(text)) for text in asked.within}
        return Frame(
            space=searcher.space.name,
            wordless=why_not(searcher.space),
            options=_options(conn, asked.within),
            places=places,
            names=paths_of(conn, asked.examples),
        )


def _options(conn: Connection, within: Sequence[str]) -> list[Option]:
    """Return the places to choose from: the roots; or the chosen one, and those around it."""
    if len(within) > 1:
        return []  # each can be removed, and then another one chosen
    if not within:
        return [_option(folder, 0) for folder in roots(conn)]
    here = Place.parse(within[0])
    above = [_option(folder, depth) for depth, folder in enumerate(crumbs(conn, here))]
    return above + [_option(folder, len(above)) for folder in folders(conn, here).folders]


def _option(folder: Folder, depth: int) -> Option:
    return Option(str(folder.place), path_text(folder.name), depth)


def _some(seed: int, searcher: "Searcher") -> list[Shown]:
    with searcher.catalog.read() as conn:
        return some_images(conn, searcher.space.id, SOME, seed)


def _reply(asked: Asked, picture: bytes | None, searcher: "Searcher") -> Reply:
    with searcher.catalog.read() as conn:
        under = tuple(path_of(conn, Place.parse(text)) for text in asked.within)
    # Whoever sends a picture wants to know whether it is there already.
    wanted = asked.wanted(under, no_self=picture is None)
    return searcher.reply(asked.question(picture), wanted)


def _title(asked: Asked, frame: Frame) -> str:
    """Return what the hits are like, in words."""
    names = [base_name(frame.names[image]) for image in asked.liked if image in frame.names]
    names = [*(["your picture"] if asked.vector else []), *names]
    names = [*([f"“{asked.text}”"] if asked.text else []), *names]
    if not names:
        return "Search"
    like = f"Like {names[0]}" if len(names) == 1 else f"Like these {len(names)}"
    return f"{like}, unlike {len(asked.minus)}" if asked.minus else like
