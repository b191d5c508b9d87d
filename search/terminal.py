"""Pictures in terminals: which way of drawing one knows, and a picture's text in each of them.

What a terminal can do is told by its environment alone: asking it would mean waiting for an answer
that may never come.

========= ===================================================================================
``kitty`` https://sw.kovidgoyal.net/kitty/graphics-protocol (kitty, Ghostty, Konsole)
``iterm`` https://iterm2.com/documentation-images.html (iTerm2, WezTerm, mintty)
``sixel`` DEC's (foot, mlterm, contour, and xterm where it was made so)
========= ===================================================================================
"""

import base64
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Final

from PIL import Image

from search.sixel import sixel

PROTOCOLS: Final = ("kitty", "iterm", "sixel")
_BY_PROGRAM: Final = {
    "ghostty": "kitty",
    "kitty": "kitty",
    "iTerm.app": "iterm",
    "WezTerm": "iterm",
    "mintty": "iterm",
    "contour": "sixel",
}
"""What ``TERM_PROGRAM`` says."""
_BY_TERM: Final = {
    "xterm-kitty": "kitty",
    "xterm-ghostty": "kitty",
    "foot": "sixel",
    "foot-extra": "sixel",
    "mlterm": "sixel",
    "contour": "sixel",
    "yaft-256color": "sixel",
}
_KONSOLE: Final = 220400
"""The first Konsole that draws pictures, 22.04."""
_PIECE: Final = 4096
"""Letters of one of kitty's commands, at most."""


@dataclass(frozen=True, slots=True)
class Screen:
    """How wide a terminal is, in columns, and how large its cells are, in pixels."""

    columns: int = 80
    cell_width: int = 10
    cell_height: int = 20


def protocol_of(environment: Mapping[str, str]) -> str | None:
    """Return which of `PROTOCOLS` the terminal draws, as its environment says; None for none.

    Inside tmux and screen none: they pass on only what they know.
    """
    term = environment.get("TERM", "")
    if "TMUX" in environment or "STY" in environment or term.startswith(("screen", "tmux")):
        return None
    program = _BY_PROGRAM.get(environment.get("TERM_PROGRAM", ""))
    if found := program or _BY_TERM.get(term):
        return found
    if environment.get("LC_TERMINAL") == "iTerm2":  # which ssh passes on
        return "iterm"
    if "KITTY_WINDOW_ID" in environment or _konsole(environment) >= _KONSOLE:
        return "kitty"
    return "sixel" if "sixel" in term else None


def screen_of(descriptor: int) -> Screen:
    """Return the size of the terminal that is open there, as the system knows it."""
    try:
        import fcntl
        import termios

        told = fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(8))
    except (ImportError, OSError):
        return Screen()
    rows, columns, width, height = struct.unpack("HHHH", told)
    if not columns:
        return Screen()
    if not (rows and width >= columns and height >= rows):  # many terminals don't say
        return Screen(columns)
    return Screen(columns, width // columns, height // rows)


def drawn(picture: Image.Image, protocol: str, columns: int) -> str:
    """Return the text that draws a picture where the cursor is; the cursor ends in its last row.

    Parameters
    ----------
    picture
        Mode ``RGBA``.
    protocol
        One of `PROTOCOLS`.
    columns
        How many cells it is wide; sixels are as wide as their pixels.
    """
    if protocol == "sixel":
        return sixel(picture)
    file = BytesIO()
    picture.save(file, "PNG")
    return (_kitty if protocol == "kitty" else _iterm)(file.getvalue(), columns)


def _konsole(environment: Mapping[str, str]) -> int:
    version = environment.get("KONSOLE_VERSION", "")
    return int(version) if version.isascii() and version.isdigit() else 0


def _kitty(png: bytes, columns: int) -> str:
    text = base64.b64encode(png).decode("ascii")
    pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
    # q=2: no answer, which nobody would read
    keys = [f"a=T,f=100,q=2,c={columns},m=1"] + ["q=2,m=1"] * (len(pieces) - 1)
    keys[-1] = keys[-1].replace("m=1", "m=0")
    return "".join(f"\x1b_G{key};{piece}\x1b\\" for key, piece in zip(keys, pieces, strict=True))


def _iterm(png: bytes, columns: int) -> str:
    text = base64.b64encode(png).decode("ascii")
    return f"\x1b]1337;File=inline=1;size={len(png)};width={columns}:{text}\x07"
