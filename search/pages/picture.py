"""A picture's own page: where it lies, how large it is, and what looks most like it."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final

from fastapi import APIRouter, Path
from starlette.responses import Response

from search.answers import Hit
from search.images import ImageFacts, image_facts
from search.pages.address import Asked
from search.pages.layout import Pages
from search.questions import Example, Question, Wanted

if TYPE_CHECKING:
    from search.engine import Searcher

NEIGHBOURS: Final = 24


def router(pages: Pages) -> APIRouter:
    """Return the route of a picture's own page."""
    made = pages.router()
    desk = pages.desk

    @made.api_route("/images/{image_id}", methods=["GET", "HEAD"])
    async def picture(image_id: Annotated[int, Path(ge=0, lt=1 << 63)]) -> Response:
        about = await desk.ask(partial(_about, image_id))
        pixels = await desk.draw(lambda thumbnails: thumbnails.size_of(image_id))
        asked = Asked(image=image_id)
        return pages.render(
            "picture.html", about=about.facts, pixels=pixels, asked=asked, hits=about.hits
        )

    return made


@dataclass(frozen=True, slots=True)
class _About:
    facts: ImageFacts
    hits: tuple[Hit, ...]


def _about(image_id: int, searcher: "Searcher") -> _About:
    facts = image_facts(searcher.catalog, image_id, searcher.space)
    if not facts.has_vector:
        return _About(facts, ())
    question = Question((Example(image_id=image_id),))
    return _About(facts, searcher.reply(question, Wanted(NEIGHBOURS, no_self=True)).hits)
