"""A contact sheet: each query with its hits, their scores and file names, as one picture."""

import os
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

from extractor.decode import DEFAULT, DecodeError, decode
from extractor.reading import Unread, opened
from search.answers import Answer
from search.errors import SearchError

TILE = 160
"""Longer side of a picture on the sheet, pixels."""
GAP = 12
CAPTION = 34
"""Height of the two lines below a picture."""
COLUMNS = 5
FRAME = (200, 60, 20)
GREY = (190, 190, 190)
INK = (30, 30, 30)
PAPER = (255, 255, 255)
_SIZE = 13


def draw_sheet(answers: Sequence[Answer], path: str, *, columns: int = COLUMNS) -> None:
    """Write the sheet of some answers as a PNG file.

    Raises
    ------
    SearchError
        The file can't be written.
    """
    picture = sheet(answers, columns=columns)
    try:
        picture.save(path, format="PNG")
    except OSError as error:
        raise SearchError(f"the contact sheet {path} can't be written: {error}") from None


def sheet(answers: Sequence[Answer], *, columns: int = COLUMNS) -> Image.Image:
    """Return one picture, mode RGB: for each answer the framed query first, then its hits.

    A file that is gone or broken is a grey tile.
    """
    blocks = [_tiles(answer) for answer in answers]
    rows = sum(-(-len(block) // columns) for block in blocks)
    cell_w, cell_h = TILE + GAP, TILE + CAPTION + GAP
    width = min(columns, max(map(len, blocks), default=1)) * cell_w + GAP
    page = Image.new("RGB", (width, rows * cell_h + GAP), PAPER)
    top = GAP
    for block in blocks:
        for i, tile in enumerate(block):
            page.paste(tile, (GAP + i % columns * cell_w, top + i // columns * cell_h))
        top += -(-len(block) // columns) * cell_h
    return page


def _tiles(answer: Answer) -> list[Image.Image]:
    query = _tile(answer.query, "query", framed=True)
    return [query, *(_tile(hit.path, f"{hit.score:.3f}") for hit in answer.hits)]


def _tile(path: bytes, caption: str, *, framed: bool = False) -> Image.Image:
    """Return one picture with its caption, ``TILE`` wide and ``TILE + CAPTION`` high."""
    tile = Image.new("RGB", (TILE, TILE + CAPTION), PAPER)
    inner = TILE - 8 if framed else TILE
    picture = _thumbnail(path, inner)
    place = ((TILE - picture.width) // 2, (TILE - picture.height) // 2)
    tile.paste(picture, place)
    draw = ImageDraw.Draw(tile)
    if framed:
        draw.rectangle((0, 0, TILE - 1, TILE - 1), outline=FRAME, width=3)
    font = ImageFont.load_default(_SIZE)
    draw.text((TILE // 2, TILE + 2), caption, fill=INK, font=font, anchor="ma")
    name = _fitting(_name(path), font)
    draw.text((TILE // 2, TILE + 18), name, fill=INK, font=font, anchor="ma")
    return tile


def _thumbnail(path: bytes, side: int) -> Image.Image:
    try:
        with opened(path, DEFAULT.size_bytes) as file:
            picture = decode(file.read(), target=side)
    except (Unread, DecodeError):
        return Image.new("RGB", (side, side * 3 // 4), GREY)
    return ImageOps.contain(picture, (side, side))


def _name(path: bytes) -> str:
    text = os.path.basename(path).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else "?" for char in text)


def _fitting(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """Shorten a name in its middle until it fits below its picture."""
    if font.getlength(text) <= TILE:
        return text
    keep = len(text) - 1
    while keep > 2 and font.getlength(_cut(text, keep)) > TILE:
        keep -= 1
    return _cut(text, keep)


def _cut(text: str, keep: int) -> str:
    head = (keep + 1) // 2
    return f"{text[:head]}…{text[len(text) - keep // 2 :]}"
