"""A contact sheet: each question with its hits, their scores and file names, as one picture."""

import os
import textwrap
from collections.abc import Sequence
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont, ImageOps

from extractor.decode import DEFAULT, DecodeError, decode
from extractor.reading import Unread, opened
from search.answers import Answer
from search.asked import MEANING, MINUS, Found, Term
from search.written import write_file

TILE = 160
"""Longer side of a picture on the sheet, pixels."""
GAP = 12
CAPTION = 34
"""Height of the two lines below a picture."""
COLUMNS = 5
FRAME = (200, 60, 20)
FRAME_MINUS = (70, 90, 140)
"""Round what the hits shall be unlike."""
GREY = (190, 190, 190)
INK = (30, 30, 30)
PAPER = (255, 255, 255)
_SIZE = 13
_WORDS_SIZE = 18
_WORDS_COLUMNS = 15
_WORDS_LINES = 6


def draw_sheet(answers: Sequence[Answer | Found], path: str, *, columns: int = COLUMNS) -> None:
    """Write the sheet of some answers as a PNG file.

    Raises
    ------
    SearchError
        The file can't be written.
    """
    file = BytesIO()
    sheet(answers, columns=columns).save(file, format="PNG")
    write_file(path, file.getvalue(), "the contact sheet")


def sheet(answers: Sequence[Answer | Found], *, columns: int = COLUMNS) -> Image.Image:
    """Return one picture, mode RGB: for each answer what was asked, framed, then its hits.

    A file that is gone or broken is a grey tile.
    """
    blocks = [_tiles(each if isinstance(each, Found) else Found.of(each)) for each in answers]
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


def picture_at(path: bytes, side: int) -> Image.Image | None:
    """Return the picture of a file, mode RGB, its longer side ``side``; None where it has none."""
    try:
        with opened(path, DEFAULT.size_bytes) as file:
            picture = decode(file.read(), target=side)
    except (Unread, DecodeError):
        return None
    return ImageOps.contain(picture, (side, side))


def _tiles(found: Found) -> list[Image.Image]:
    asked = [_asked(term) for term in found.terms]
    return [*asked, *(_tile(hit.path, f"{hit.score:.3f}") for hit in found.hits)]


def _asked(term: Term) -> Image.Image:
    """Return the tile of something that was asked for, framed."""
    if isinstance(term.what, bytes):
        tile = _tile(term.what, MEANING[term.sign], side=TILE - 8)
    else:
        tile = _words(term.what, MEANING[term.sign])
    colour = FRAME_MINUS if term.sign == MINUS else FRAME
    ImageDraw.Draw(tile).rectangle((0, 0, TILE - 1, TILE - 1), outline=colour, width=3)
    return tile


def _tile(path: bytes, caption: str, side: int = TILE) -> Image.Image:
    """Return one picture with its caption, ``TILE`` wide and ``TILE + CAPTION`` high."""
    picture = picture_at(path, side) or Image.new("RGB", (side, side * 3 // 4), GREY)
    tile = _captioned(caption, _name(path))
    tile.paste(picture, ((TILE - picture.width) // 2, (TILE - picture.height) // 2))
    return tile


def _words(words: str, caption: str) -> Image.Image:
    tile = _captioned(caption, "words")
    text = textwrap.fill(_plain(words), _WORDS_COLUMNS, max_lines=_WORDS_LINES, placeholder="…")
    font = ImageFont.load_default(_WORDS_SIZE)
    middle = (TILE // 2, TILE // 2)
    draw = ImageDraw.Draw(tile)
    draw.multiline_text(middle, text, fill=INK, font=font, anchor="mm", align="center")
    return tile


def _captioned(caption: str, name: str) -> Image.Image:
    """Return a tile that has its two lines of text, and no picture yet."""
    tile = Image.new("RGB", (TILE, TILE + CAPTION), PAPER)
    draw = ImageDraw.Draw(tile)
    font = ImageFont.load_default(_SIZE)
    draw.text((TILE // 2, TILE + 2), caption, fill=INK, font=font, anchor="ma")
    draw.text((TILE // 2, TILE + 18), _fitting(name, font), fill=INK, font=font, anchor="ma")
    return tile


def _name(path: bytes) -> str:
    return _plain(os.path.basename(path).decode("utf-8", "backslashreplace"))


def _plain(text: str) -> str:
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
