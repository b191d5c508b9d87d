"""Pictures in terminals, read back as a terminal reads them."""

import base64
import os
import re
from io import BytesIO

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from search.answers import Hit
from search.asked import MINUS, PLUS, Found, Term
from search.sixel import sixel
from search.strip import TILE_COLUMNS, TILE_ROWS, strips
from search.terminal import PROTOCOLS, Screen, drawn, protocol_of, screen_of
from tests.extractor.pictures import scene

Pixels = npt.NDArray[np.uint8]


def read_sixel(text: str) -> Pixels:
    """Return what a terminal would show, shape ``(H, W, 4)``; drawn after the VT340's manual."""
    found = re.fullmatch(r'\x1bP(\d+);(\d+);\d+q"1;1;(\d+);(\d+)(.*)\x1b\\', text, re.DOTALL)
    assert found is not None
    assert found[2] == "1"  # what is not drawn stays as it is
    width, height = int(found[3]), int(found[4])
    page = np.zeros((-(-height // 6) * 6, width, 4), np.uint8)
    colours: dict[int, list[int]] = {}
    x = band = colour = 0
    token = re.compile(r"#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|!(\d+)([?-~])|([?-~])|([$-])")
    at = 0
    while at < len(found[5]):
        one = token.match(found[5], at)
        assert one is not None, found[5][at : at + 20]
        at = one.end()
        if one[1]:
            colours[int(one[1])] = [round(int(part) * 2.55) for part in one.group(2, 3, 4)]
        elif one[5]:
            colour = int(one[5])
        elif one[9]:
            x, band = 0, band + (one[9] == "-")
        else:
            times, letter = int(one[6] or 1), one[7] or one[8]
            rows = [bit for bit in range(6) if (ord(letter) - ord("?")) >> bit & 1]
            assert x + times <= width
            for row in rows:
                page[band * 6 + row, x : x + times] = [*colours[colour], 255]
            x += times
    assert not page[height:].any()
    return page[:height]


def transparent(picture: Image.Image) -> Image.Image:
    """Return a picture with a hole."""
    clear = picture.convert("RGBA")
    clear.paste((0, 0, 0, 0), (10, 5, 30, 17))
    return clear


@pytest.mark.parametrize("size", [(40, 24), (97, 61), (1, 1), (7, 13), (300, 6)])
def test_sixels_are_the_picture_in_255_colours(size: tuple[int, int]) -> None:
    picture = scene(90, 60).resize(size).convert("RGBA")
    shown = read_sixel(sixel(picture))
    wanted = np.asarray(picture.convert("RGB").quantize(255).convert("RGB")).astype(int)
    assert shown.shape == (size[1], size[0], 4)
    assert (shown[..., 3] == 255).all()
    assert np.abs(shown[..., :3] - wanted).max() <= 2  # a part of a colour is a percentage


def test_what_is_transparent_is_not_drawn() -> None:
    picture = transparent(scene(50, 40))
    shown = read_sixel(sixel(picture))
    np.testing.assert_array_equal(shown[..., 3], np.asarray(picture.getchannel("A")))
    nothing = Image.new("RGBA", (9, 9))
    assert not read_sixel(sixel(nothing)).any()


def test_few_colours_are_exact_and_short() -> None:
    picture = Image.new("RGBA", (600, 12), (255, 0, 0, 255))
    picture.paste((0, 255, 51, 255), (0, 6, 600, 12))
    text = sixel(picture)
    np.testing.assert_array_equal(read_sixel(text), np.asarray(picture))
    assert len(text) < 100


def read_kitty(text: str) -> tuple[Image.Image, dict[str, str]]:
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text)
    assert "".join(f"\x1b_G{keys};{piece}\x1b\\" for keys, piece in pieces) == text
    keys = [dict(key.split("=") for key in keys.split(",")) for keys, _ in pieces]
    assert [key["m"] for key in keys] == ["1"] * (len(keys) - 1) + ["0"]
    assert all(key["q"] == "2" for key in keys)  # an answer would be typed into the shell
    assert all(set(key) == {"q", "m"} for key in keys[1:])
    assert max(len(piece) for _, piece in pieces) <= 4096
    assert all(len(piece) % 4 == 0 for _, piece in pieces)
    data = base64.b64decode("".join(piece for _, piece in pieces), validate=True)
    return Image.open(BytesIO(data)), keys[0]


def test_kitty_is_given_a_png_in_pieces() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 4), np.uint8)
    picture = Image.fromarray(noise, "RGBA")
    shown, keys = read_kitty(drawn(picture, "kitty", 9))
    np.testing.assert_array_equal(np.asarray(shown), noise)
    assert (keys["a"], keys["f"], keys["c"]) == ("T", "100", "9")
    small, keys = read_kitty(drawn(Image.new("RGBA", (4, 4)), "kitty", 1))
    assert (small.size, keys["m"]) == ((4, 4), "0")


def test_iterm_is_given_a_png_with_its_length() -> None:
    picture = transparent(scene(50, 40))
    text = drawn(picture, "iterm", 5)
    found = re.fullmatch(r"\x1b\]1337;File=inline=1;size=(\d+);width=5:([^\x07]*)\x07", text)
    assert found is not None
    data = base64.b64decode(found[2], validate=True)
    assert len(data) == int(found[1])
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(data))), np.asarray(picture))


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({}, None),
        ({"TERM": "dumb"}, None),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "linux"}, None),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "vscode"}, None),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "Apple_Terminal"}, None),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "KONSOLE_VERSION": "230804"}, "kitty"),
        ({"TERM": "xterm-256color", "KONSOLE_VERSION": "200800"}, None),
        ({"TERM": "xterm-256color", "KONSOLE_VERSION": "²"}, None),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "mintty"}, "iterm"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "mlterm"}, "sixel"),
        ({"TERM": "xterm-sixel"}, "sixel"),
        ({"TERM": "tmux-256color", "TMUX": "/tmp/x", "KITTY_WINDOW_ID": "1"}, None),
        ({"TERM": "screen.xterm-256color", "LC_TERMINAL": "iTerm2"}, None),
        ({"TERM": "xterm-kitty", "STY": "1.x"}, None),
    ],
)
def test_the_environment_says_what_a_terminal_draws(
    environment: dict[str, str], protocol: str | None
) -> None:
    assert protocol_of(environment) == protocol
    assert protocol in (None, *PROTOCOLS)


@pytest.mark.skipif(os.name == "nt", reason="terminals of POSIX")
def test_the_size_of_a_terminal_is_the_systems() -> None:
    import fcntl
    import pty
    import struct
    import termios

    master, slave = pty.openpty()
    try:
        for told, screen in (
            ((0, 0, 0, 0), Screen(80, 10, 20)),
            ((40, 132, 0, 0), Screen(132, 10, 20)),
            ((40, 100, 900, 800), Screen(100, 9, 20)),
        ):
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *told))
            assert screen_of(slave) == screen
    finally:
        os.close(master)
        os.close(slave)
    with open(os.devnull) as none:
        assert screen_of(none.fileno()) == Screen()


def test_rows_of_pictures_are_as_wide_as_the_terminal(tmp_path: os.PathLike[str]) -> None:
    paths = []
    for i, colour in enumerate([(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]):
        path = os.path.join(tmp_path, f"{i}.png")
        Image.new("RGB", (60, 60), colour).save(path)
        paths.append(os.fsencode(path))
    terms = (Term(paths[0]), Term("words", PLUS), Term(paths[1], MINUS))
    hits = tuple(Hit(0.9, path, (path,), i, i) for i, path in enumerate([*paths[2:], b"/none.png"]))
    screen = Screen(columns=40, cell_width=9, cell_height=18)
    rows = list(strips(Found(terms, "s", hits), screen))
    assert [columns for _, columns in rows] == [32, 32, 16]
    assert {row.mode for row, _ in rows} == {"RGBA"}
    sizes = [row.size for row, _ in rows]
    assert sizes == [(columns * 9, TILE_ROWS * 18) for _, columns in rows]
    middle = (TILE_COLUMNS * 9 // 2, TILE_ROWS * 9)
    shown = [
        row.getpixel((middle[0] + i * TILE_COLUMNS * 9, middle[1]))
        for row, columns in rows
        for i in range(columns // TILE_COLUMNS)
    ]
    wanted = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (190, 190, 190)]
    assert shown == [(*colour, 255) for colour in wanted]
    assert rows[0][0].getpixel((TILE_COLUMNS * 9 - 1, 10))[3] == 0  # the gap
    narrow = list(strips(Found(terms, "s", hits), Screen(columns=3)))
    assert len(narrow) == 5
