"""Hits side by side, as rows of pictures that are as wide as a terminal."""

from collections.abc import Iterator
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from search.asked import Found
from search.sheet import GREY, picture_at
from search.terminal import Screen

TILE_COLUMNS: Final = 16
"""Width of a picture and the gap beside it, in cells."""
TILE_ROWS: Final = 8
_CHIP: Final = (20, 20, 20, 255)
_QUERY_CHIP: Final = (200, 60, 20, 255)
_INK: Final = (255, 255, 255, 255)


def strips(found: Found, screen: Screen) -> Iterator[tuple[Image.Image, int]]:
    """Yield the pictures of one question: those it asks for, marked, then the hits by rank.

    Returns
    -------
    iterator
        A row of pictures each, mode ``RGBA``, whose ground is transparent, and its width in cells.
    """
    asked = [(term.what, term.sign) for term in found.terms if isinstance(term.what, bytes)]
    hits = [(hit.path, str(rank)) for rank, hit in found.ranked]
    tiles = [*asked, *hits]
    across = max(1, screen.columns // TILE_COLUMNS)
    for start in range(0, len(tiles), across):
        row = tiles[start : start + across]
        columns = len(row) * TILE_COLUMNS
        strip = Image.new("RGBA", (columns * screen.cell_width, TILE_ROWS * screen.cell_height))
        for i, (path, mark) in enumerate(row):
            tile = _tile(path, mark, screen, is_query=start + i < len(asked))
            strip.paste(tile, (i * TILE_COLUMNS * screen.cell_width, 0))
        yield strip, columns


def _tile(path: bytes, mark: str, screen: Screen, *, is_query: bool) -> Image.Image:
    width = (TILE_COLUMNS - 1) * screen.cell_width
    height = TILE_ROWS * screen.cell_height - screen.cell_height // 4
    side = min(width, height)
    picture = picture_at(path, side) or Image.new("RGB", (side, side * 3 // 4), GREY)
    tile = Image.new("RGBA", (width, height))
    tile.paste(picture, (0, height - picture.height))
    _mark(tile, mark, (0, height - picture.height), _QUERY_CHIP if is_query else _CHIP)
    return tile


def _mark(
    tile: Image.Image, text: str, corner: tuple[int, int], colour: tuple[int, int, int, int]
) -> None:
    """Draw a chip with a text over the corner of a picture."""
    font = ImageFont.load_default(14)
    draw = ImageDraw.Draw(tile)
    left, top = corner
    draw.rectangle((left, top, left + font.getlength(text) + 9, top + 18), fill=colour)
    draw.text((left + 5, top + 9), text, fill=_INK, font=font, anchor="lm")
