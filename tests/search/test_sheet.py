import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageFont

from search.answers import Answer, Hit
from search.asked import MINUS, PLUS, Found, Term
from search.errors import SearchError
from search.sheet import (
    CAPTION,
    FRAME,
    FRAME_MINUS,
    GAP,
    GREY,
    TILE,
    _fitting,
    draw_sheet,
    sheet,
)

RED, BLUE = (220, 10, 10), (10, 10, 220)


def flat(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (60, 40)) -> bytes:
    Image.new("RGB", size, colour).save(path)
    return os.fsencode(path)


def answer(query: bytes, *paths: bytes) -> Answer:
    hits = [Hit(0.9 - i / 10, path, (path,), i, i) for i, path in enumerate(paths)]
    return Answer(query, "s", tuple(hits))


def tile(page: Image.Image, column: int, row: int) -> Image.Image:
    """Return the picture of one place on the sheet, without its caption."""
    left, top = GAP + column * (TILE + GAP), GAP + row * (TILE + CAPTION + GAP)
    return page.crop((left, top, left + TILE, top + TILE))


def caption(page: Image.Image, column: int, row: int) -> Image.Image:
    left, top = GAP + column * (TILE + GAP), GAP + row * (TILE + CAPTION + GAP) + TILE
    return page.crop((left, top, left + TILE, top + CAPTION))


def centre(picture: Image.Image) -> tuple[int, ...]:
    pixel = picture.getpixel((picture.width // 2, picture.height // 2))
    assert isinstance(pixel, tuple)
    return pixel


def test_the_query_is_framed_and_first_then_the_hits(tmp_path: Path) -> None:
    red, blue = flat(tmp_path / "r.png", RED), flat(tmp_path / "b.png", BLUE)
    page = sheet([answer(red, red, blue)], columns=3)
    assert page.size == (3 * (TILE + GAP) + GAP, TILE + CAPTION + 2 * GAP)
    assert [centre(tile(page, column, 0)) for column in range(3)] == [RED, RED, BLUE]
    framed = [tile(page, column, 0).getpixel((0, TILE // 2)) == FRAME for column in range(3)]
    assert framed == [True, False, False]
    assert centre(tile(page, 1, 0).crop((0, 0, TILE, 8))) == (255, 255, 255)


def test_what_was_asked_beside_the_query_is_framed_too(tmp_path: Path) -> None:
    red, blue = flat(tmp_path / "r.png", RED), flat(tmp_path / "b.png", BLUE)
    terms = (Term(red), Term(blue, PLUS), Term(red, MINUS), Term("a word", PLUS))
    hits = answer(red, blue).hits
    page = sheet([Found(terms, "s", hits)])
    assert [centre(tile(page, column, 0)) for column in (0, 1, 2, 4)] == [RED, BLUE, RED, BLUE]
    assert page.height == TILE + CAPTION + 2 * GAP
    edges = [tile(page, column, 0).getpixel((0, TILE // 2)) for column in range(5)]
    assert edges == [FRAME, FRAME, FRAME_MINUS, FRAME, BLUE]


def test_words_are_written_where_a_picture_would_be() -> None:
    short, long, odd = ("red car", "very " * 200, "a\nb\x1b[31m")
    page = sheet([Found((Term(words),), "s", ()) for words in (short, long, odd)])
    inner = [tile(page, 0, row).crop((4, 4, TILE - 4, TILE - 4)) for row in range(3)]
    ink = [int((np.asarray(each) < 100).sum()) for each in inner]
    assert 0 < ink[0] < ink[1]
    assert ink[2] > 0
    edges = [np.asarray(each)[:, [0, -1]].min() for each in inner]
    assert min(edges) > 200  # nothing is cut off


def test_rows_wrap_and_each_answer_begins_a_new_one(tmp_path: Path) -> None:
    red, blue = flat(tmp_path / "r.png", RED), flat(tmp_path / "b.png", BLUE)
    page = sheet([answer(red, blue, blue), answer(blue, red)], columns=2)
    assert page.size == (2 * (TILE + GAP) + GAP, 3 * (TILE + CAPTION + GAP) + GAP)
    grid = [[centre(tile(page, column, row)) for column in range(2)] for row in range(3)]
    assert grid == [[RED, BLUE], [BLUE, (255, 255, 255)], [BLUE, RED]]


def test_captions_show_score_and_name(tmp_path: Path) -> None:
    red = flat(tmp_path / "r.png", RED)
    other = flat(tmp_path / "another-name.png", RED)
    page = sheet([answer(red, red, other)])
    one, two = caption(page, 1, 0), caption(page, 2, 0)
    scores = [c.crop((0, 0, TILE, CAPTION // 2)) for c in (one, two)]
    names = [c.crop((0, CAPTION // 2, TILE, CAPTION)) for c in (one, two)]
    for pair in (scores, names):
        assert ImageChops.difference(*pair).getbbox() is not None
        assert all(np.asarray(part).min() < 100 for part in pair)


@pytest.mark.parametrize("name", ["missing.png", "broken.png"])
def test_what_can_not_be_shown_is_grey(tmp_path: Path, name: str) -> None:
    red = flat(tmp_path / "r.png", RED)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page = sheet([answer(red, os.fsencode(tmp_path / name))])
    assert centre(tile(page, 1, 0)) == GREY


def test_the_orientation_of_the_camera_is_honoured(tmp_path: Path) -> None:
    upright = Image.new("RGB", (40, 80), RED)
    upright.paste(BLUE, (0, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = tmp_path / "turned.jpg"
    upright.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif, quality=95)
    shown = tile(sheet([answer(os.fsencode(turned))]), 0, 0)
    top = shown.getpixel((TILE // 2, 16))
    bottom = shown.getpixel((TILE // 2, TILE - 16))
    assert isinstance(top, tuple)
    assert isinstance(bottom, tuple)
    assert top[2] > 150 > top[0]
    assert bottom[0] > 150 > bottom[2]


def test_no_answers_to_draw_still_make_a_page() -> None:
    assert sheet([]).size == (TILE + 2 * GAP, GAP)


def test_long_and_odd_names_fit() -> None:
    font = ImageFont.load_default(13)
    name = "a-very-long-name-of-a-picture-from-the-camera-0001.jpeg"
    short = _fitting(name, font)
    assert font.getlength(short) <= TILE
    head, _, tail = short.partition("…")
    assert name.startswith(head)
    assert name.endswith(tail)
    assert abs(len(head) - len(tail)) <= 1
    assert _fitting("short.png", font) == "short.png"


def test_the_file_is_a_png_whatever_its_name(tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/\xe9\n.png"
    Image.new("RGB", (5, 5)).save(odd)
    target = tmp_path / "out.sheet"
    draw_sheet([answer(odd, odd)], str(target))
    with Image.open(target) as picture:
        assert picture.format == "PNG"
        assert picture.size == sheet([answer(odd, odd)]).size


def test_a_place_that_can_not_be_written_is_said(tmp_path: Path) -> None:
    red = flat(tmp_path / "r.png", RED)
    with pytest.raises(SearchError, match=r"contact sheet .*out\.png can't be written"):
        draw_sheet([answer(red)], str(tmp_path / "none" / "out.png"))
