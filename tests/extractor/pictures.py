"""Pictures to test with."""

from io import BytesIO

import numpy as np
from PIL import ExifTags, Image


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return the bytes of a file."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def scene(width: int = 90, height: int = 60) -> Image.Image:
    """A smooth picture, different in each corner, that survives lossy formats."""
    y, x = np.mgrid[0:height, 0:width]
    red = 255 * x / (width - 1)
    green = 255 * y / (height - 1)
    blue = 255 * ((x > width / 2) & (y < height / 3))
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8))


def with_orientation(value: object) -> Image.Exif:
    """EXIF data that holds an orientation."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    return exif


def far(image: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of two pictures of one size, in levels of 255."""
    assert image.size == other.size
    a, b = (np.asarray(i.convert("RGB")).astype(float) for i in (image, other))
    return float(np.abs(a - b).mean())
