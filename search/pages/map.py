"""The page with the map: drawn on the server, and as a canvas where the browser can."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

from search.map import Map, map_of
from search.pages.layout import Pages

WIDTH: Final = 1000
LEAST_HEIGHT, MOST_HEIGHT = 420, 760
EDGE: Final = 40
"""Room around the points, for the pictures of the outermost."""
DOTS: Final = 5000
PICTURES: Final = 36
SIDE: Final = 64


@dataclass(frozen=True, slots=True)
class Shown:
    """An image whose picture is drawn at its place."""

    image_id: int
    x: int
    y: int


@dataclass(frozen=True, slots=True)
class Drawing:
    """The map as an SVG draws it: points of the first images, pictures of some of these."""

    height: int
    dots: str
    pictures: tuple[Shown, ...]
    width: int = WIDTH
    side: int = SIDE


def router(pages: Pages) -> APIRouter:
    """Return the route of the map."""
    made = pages.router()

    @made.get("/map")
    async def show() -> Response:
        found, drawing = await pages.desk.ask(lambda searcher: _with_drawing(map_of(searcher)))
        return pages.render("map.html", map=found, drawing=drawing)

    return made


def drawing_of(found: Map) -> Drawing:
    """Return how a map is drawn without a script."""
    across, down = found.size
    inner = WIDTH - 2 * EDGE
    height = round(inner * down / across) + 2 * EDGE if across else 0
    height = min(max(height, LEAST_HEIGHT), MOST_HEIGHT)
    scale = min(inner / max(across, 1), (height - 2 * EDGE) / max(down, 1))
    left, top = (WIDTH - scale * across) / 2, (height - scale * down) / 2
    placed = [
        Shown(image_id, round(left + scale * x), round(top + scale * y))
        for image_id, (x, y) in zip(
            found.images[:DOTS].tolist(), found.xy[:DOTS].tolist(), strict=True
        )
    ]
    dots = "".join(f"M{x} {y}h0" for x, y in dict.fromkeys((at.x, at.y) for at in placed))
    return Drawing(height, dots, tuple(_apart(placed)))


def _apart(placed: list[Shown]) -> Iterator[Shown]:
    """Yield the first images of which none hides another's picture."""
    taken: dict[tuple[int, int], Shown] = {}
    for at in placed:
        column, row = at.x // SIDE, at.y // SIDE
        near = (
            taken.get((column + right, row + below)) for right in (-1, 0, 1) for below in (-1, 0, 1)
        )
        if any(max(abs(at.x - other.x), abs(at.y - other.y)) < SIDE for other in near if other):
            continue
        taken[column, row] = at
        yield at
        if len(taken) == PICTURES:
            return


def _with_drawing(found: Map) -> tuple[Map, Drawing]:
    return found, drawing_of(found)
