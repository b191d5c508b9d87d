"""Sixel: pictures as text for terminals that know DEC's graphics of the VT340.

Six rows of pixels are a band.  A band is drawn colour by colour: for each column a letter whose six
bits, ``?`` for none of them, say which of its pixels have the colour; ``!12A`` is twelve letters.
"""

import re
from typing import Final

import numpy as np
from PIL import Image

COLOURS: Final = 255
_BAND: Final = 6
_NOTHING: Final = 255
"""In the place of a colour: the terminal's own ground is seen."""
_BITS: Final = np.array([1, 2, 4, 8, 16, 32], np.uint8)
_REPEATED: Final = re.compile(rb"(.)\1{3,}")


def sixel(picture: Image.Image) -> str:
    """Return the text that draws a picture.

    Parameters
    ----------
    picture
        Mode ``RGBA``; what is less than half opaque is not drawn.
    """
    opaque = np.asarray(picture.getchannel("A")) >= 128
    few = picture.convert("RGB").quantize(COLOURS)
    colours = np.array(few.getpalette() or [], np.uint8).reshape(-1, 3)
    index = np.where(opaque, np.asarray(few), _NOTHING)
    height, width = index.shape
    bands = np.full((-(-height // _BAND) * _BAND, width), _NOTHING, np.uint8)
    bands[:height] = index
    body = "-".join(_band(band) for band in bands.reshape(-1, _BAND, width))
    used = np.unique(index[opaque])
    return f'\x1bP0;1;0q"1;1;{width};{height}{_registers(colours, used.tolist())}{body}\x1b\\'


def _registers(colours: np.ndarray, used: list[int]) -> str:
    """Return what defines the colours, whose parts are percentages."""
    percent = np.rint(colours / 255 * 100).astype(int)
    return "".join("#{};2;{};{};{}".format(i, *percent[i]) for i in used)


def _band(band: np.ndarray) -> str:
    """Return six rows of pixels, shape ``(6, W)``, as their colours' letters."""
    drawn = []
    for colour in np.unique(band[band != _NOTHING]):
        bits = ((band == colour) * _BITS[:, None]).sum(axis=0, dtype=np.uint8)
        letters = (bits + ord("?")).astype(np.uint8).tobytes().rstrip(b"?")
        short = _REPEATED.sub(lambda run: b"!%d%b" % (len(run[0]), run[1]), letters)
        drawn.append(f"#{colour}{short.decode('ascii')}")
    return "$".join(drawn)
