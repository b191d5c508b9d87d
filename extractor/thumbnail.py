"""A picture made small: a JPEG that holds its pixels and nothing else of the file.

What is shown is what the networks see: upright, in sRGB, alpha laid over white
(``extractor.decode``), but in its own proportions and not cropped.
"""

import struct
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final, NamedTuple, Self

from PIL import Image

from extractor.decode import DEFAULT, Limits, open_header, render

THUMBNAIL_VERSION: Final = 1
"""Another number makes all thumbnails anew."""
QUALITY: Final = 82

_SIDES = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Small:
    """How large a thumbnail is: ``longest`` is its longer side, in pixels, at most."""

    longest: int

    def to_json(self) -> dict[str, Any]:
        """Return the value as JSON knows it."""
        return {"longest": self.longest}


class Thumbnail(NamedTuple):
    """A thumbnail, and the width and height of the upright picture that it was made of."""

    width: int
    height: int
    jpeg: bytes

    def to_bytes(self) -> bytes:
        """Return all of it as bytes; ``from_bytes`` takes them back."""
        return _SIDES.pack(self.width, self.height) + self.jpeg

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return what ``to_bytes`` wrote."""
        width, height = _SIDES.unpack_from(data)
        return cls(width, height, data[_SIDES.size :])


def thumbnail(data: bytes, longest: int, *, limits: Limits = DEFAULT) -> Thumbnail:
    """Make an image file's bytes a thumbnail.

    Parameters
    ----------
    data
        The whole file.
    longest
        Its longer side in pixels; a smaller picture keeps its size.
    limits
        Sizes above which the picture is refused.

    Raises
    ------
    DecodeError
        Whatever is wrong with the bytes.
    """
    image = open_header(data, limits=limits)
    header = image.size
    image.draft(None, fitted(header, 2 * longest))  # a JPEG is decoded small; all others are not
    drafted = image.size
    picture = render(image)
    turned = picture.size == drafted[::-1]
    width, height = header[::-1] if turned else header
    target = fitted((width, height), longest)
    if target != picture.size:
        picture = picture.resize(target, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return Thumbnail(width, height, jpeg_of(picture))


def fitted(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Return a width and height of the same proportions that pass ``longest`` on no side."""
    scale = min(1.0, longest / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def jpeg_of(picture: Image.Image) -> bytes:
    """Return a picture of mode ``RGB`` as a JPEG without metadata."""
    bare = Image.new("RGB", picture.size)
    bare.paste(picture)  # what Pillow keeps beside the pixels, a comment for one, would be written
    file = BytesIO()
    bare.save(file, "JPEG", quality=QUALITY, optimize=True)
    return file.getvalue()
