"""From a decoded picture to the numbers that a network sees, up to (not including) the floats.

Resizing and cropping are those of torchvision's ``ImageClassification`` preset
(``torchvision/transforms/_presets.py``, ``functional.resize`` and ``center_crop``) on a PIL
picture, bit for bit, but without torch.  Mean and standard deviation travel along; they are applied
on the device.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_FITS = ("cover", "contain")
# A strip of 1:1000 would grow to 500 megapixels under torchvision's rule.  Above this many, only
# the part that the crop keeps is resized, which differs from torchvision by the rounding alone.
_MOST_PIXELS = 40_000_000


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How a decoded picture becomes the input of a network.

    Parameters
    ----------
    resize
        Length of the shorter side in pixels, or ``(height, width)``.
    crop
        Side of the central square in pixels, or ``(height, width)``.  A smaller picture is padded
        with black.
    interpolation
        ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``.
    mean, std
        Three numbers for red, green and blue, on the scale from 0 to 1.
    fit
        How a ``(height, width)`` is met: exactly, whatever becomes of the proportions (nothing
        said); by the least picture of its own proportions that covers it (``cover``); or by the
        largest one inside it, on a ground of the mean colour (``contain``).  As timm has it.

    Raises
    ------
    ValueError
        A length that is not positive, an unknown interpolation or fit, or not three numbers.
    """

    resize: int | tuple[int, int] = 256
    crop: int | tuple[int, int] = 224
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    fit: str = ""

    def __post_init__(self) -> None:
        _check_sides("resize", self.resize)
        _check_sides("crop", self.crop)
        if self.interpolation not in _FILTERS:
            known = ", ".join(_FILTERS)
            raise ValueError(f"interpolation is {self.interpolation!r}, not one of {known}")
        if {len(self.mean), len(self.std)} != {3} or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean}, std {self.std}: not three numbers above 0 each")
        if self.fit and (self.fit not in _FITS or isinstance(self.resize, int)):
            raise ValueError(f"fit is {self.fit!r}, not cover or contain of a (height, width)")

    @property
    def crop_size(self) -> tuple[int, int]:
        """Height and width of what ``pixels`` returns."""
        return (self.crop, self.crop) if isinstance(self.crop, int) else self.crop

    @property
    def target(self) -> int:
        """The shorter side that ``decode`` must at least be able to give, in pixels."""
        return self.resize if isinstance(self.resize, int) else max(self.resize)

    def to_json(self) -> dict[str, Any]:
        """Return the values as JSON knows them; ``from_json`` takes them back.

        ``fit`` is left out where nothing is said of it: spaces are known by these values.
        """
        values: dict[str, Any] = {
            "resize": self.resize if isinstance(self.resize, int) else list(self.resize),
            "crop": self.crop if isinstance(self.crop, int) else list(self.crop),
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
        }
        return values | ({"fit": self.fit} if self.fit else {})

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Preprocess":
        """Return what ``to_json`` described.

        Raises
        ------
        ValueError
            A value is out of range.
        KeyError
            A value is missing.
        """
        resize, crop = values["resize"], values["crop"]
        return cls(
            resize=resize if isinstance(resize, int) else tuple(resize),
            crop=crop if isinstance(crop, int) else tuple(crop),
            interpolation=values["interpolation"],
            mean=tuple(values["mean"]),
            std=tuple(values["std"]),
            fit=values.get("fit", ""),
        )


def _check_sides(name: str, value: int | Sequence[int]) -> None:
    """Raise ``ValueError`` unless ``value`` is one length or two."""
    sides = (value,) if isinstance(value, int) else value
    if len(sides) != (1 if isinstance(value, int) else 2) or min(sides) < 1:
        raise ValueError(f"{name} is {value!r}, not a length or a (height, width)")


def pixels(image: Image.Image, p: Preprocess) -> NDArray[np.uint8]:
    """Resize and crop a picture.

    Parameters
    ----------
    image
        A picture of mode ``RGB``, as ``extractor.decode.decode`` gives it.
    p
        The sizes and the interpolation.

    Returns
    -------
    ndarray
        Shape ``(3, height, width)`` of ``p.crop_size``, uint8, contiguous.

    Raises
    ------
    ValueError
        ``image`` is not ``RGB``.
    """
    if image.mode != "RGB":
        raise ValueError(f"the picture has mode {image.mode}, not RGB")
    height, width = p.crop_size
    out = np.empty((3, height, width), np.uint8)
    cropped = _resized_crop(image, p)
    for band, plane in zip(cropped.split(), out, strict=True):  # faster than a transposition
        plane[:] = np.asarray(band)
    return out


def _resized_crop(image: Image.Image, p: Preprocess) -> Image.Image:
    """Resize ``image``, then cut out the centre; beyond its border is black, or the mean."""
    size = resized_size(image.size, p)
    height, width = p.crop_size
    left, top = crop_start(size[0], width), crop_start(size[1], height)
    box = (left, top, left + width, top + height)
    how = _FILTERS[p.interpolation]
    if size[0] * size[1] > _MOST_PIXELS:
        return _resized_part(image, size, box, how)
    if size != image.size:
        image = image.resize(size, how)
    if p.fit == "contain" and (size[0] < width or size[1] < height):
        ground = Image.new("RGB", (width, height), _colour(p.mean))
        ground.paste(image, (-left, -top))  # cuts off what is beyond
        return ground
    return image if box == (0, 0, *image.size) else image.crop(box)


def _resized_part(
    image: Image.Image,
    size: tuple[int, int],
    box: tuple[int, int, int, int],
    how: Image.Resampling,
) -> Image.Image:
    """Resize only what lies under ``box``, without making the whole of ``size``."""
    left, top, right, bottom = box
    inner = (max(left, 0), max(top, 0), min(right, size[0]), min(bottom, size[1]))
    x, y = image.width / size[0], image.height / size[1]
    part = image.resize(
        (inner[2] - inner[0], inner[3] - inner[1]),
        how,
        box=(inner[0] * x, inner[1] * y, inner[2] * x, inner[3] * y),
    )
    return part.crop(
        (left - inner[0], top - inner[1], right - inner[0], bottom - inner[1]),
    )


def _colour(mean: tuple[float, float, float]) -> tuple[int, int, int]:
    red, green, blue = (round(255 * value) for value in mean)
    return red, green, blue


def resized_size(size: tuple[int, int], p: Preprocess) -> tuple[int, int]:
    """Return torchvision's ``(width, height)`` for a picture of ``size`` (width, height)."""
    width, height = size
    resize = p.resize
    if not isinstance(resize, int):
        if not p.fit:
            return resize[1], resize[0]
        choose = min if p.fit == "cover" else max  # timm/data/transforms.py, ResizeKeepRatio
        ratio = choose(height / resize[0], width / resize[1])
        return max(1, round(width / ratio)), max(1, round(height / ratio))
    if width <= height:
        return resize, int(resize * height / width)
    return int(resize * width / height), resize


def crop_start(length: int, crop: int) -> int:
    """Return where a central crop begins; below zero where the picture is padded."""
    if crop > length:
        return -((crop - length) // 2)
    return round((length - crop) / 2.0)
