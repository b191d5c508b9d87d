"""The colour half of the canonical decode: any mode of Pillow's to 8-bit sRGB over white."""

from functools import cache, lru_cache
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

_SIXTEEN_BIT = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_STRAIGHT = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}  # the first two are multiplied by alpha
_SPACE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_FLAGS = {
    "RGB": ImageCms.Flags.NONE,
    "L": ImageCms.Flags.NOOPTIMIZE,  # lcms's table for grey is off by up to 10 levels in the dark
    "CMYK": ImageCms.Flags.NONE,
}
_SAME_COLOUR = 2  # levels of 255 that an identity profile may differ by, for lcms's own rounding
_BITS_PER_SAMPLE = 258  # tag of TIFF
_BLOCK_PIXELS = 2**20  # stretching works on this many pixels at a time


def eight_bit(image: Image.Image) -> Image.Image:
    """Return a picture with 8 bits a channel; ``image`` itself where it has them.

    Parameters
    ----------
    image
        Any mode, loaded.

    Returns
    -------
    Image
        ``L`` or ``LA`` for the modes ``I;16`` (scaled from its full range), ``I`` and ``F``
        (stretched from their smallest to their largest finite value).
    """
    if image.mode in _SIXTEEN_BIT:
        values = np.asarray(image)
        grey = Image.fromarray(_to_eight(_bits(image)).take(values, mode="clip"))
        clear = image.info.get("transparency")
        if isinstance(clear, int):
            grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
        return grey
    if image.mode in ("I", "F"):
        return Image.fromarray(_stretched(np.asarray(image)))
    return image


def over_white(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return an 8-bit picture as sRGB, its transparent parts over white.

    Parameters
    ----------
    image
        Any mode of 8 bits a channel or less, loaded.
    profile
        Its ICC profile.

    Returns
    -------
    Image
        Mode ``RGB``; ``image`` itself where nothing is to be done.
    """
    if image.mode in _STRAIGHT:
        image = image.convert(_STRAIGHT[image.mode])
    alpha = None
    if image.has_transparency_data:
        alpha = (image if "A" in image.getbands() else image.convert("RGBA")).getchannel("A")
    colour = _to_srgb(_without_alpha(image), profile)
    if alpha is None or alpha.getextrema() == (255, 255):
        return colour
    canvas = Image.new("RGB", image.size, (255, 255, 255))
    canvas.paste(colour, mask=alpha)
    return canvas


def moves_rgb(profile: bytes) -> bool:
    """Whether `over_white` changes the colours of an ``RGB`` picture that has the ICC profile."""
    known = _transform(profile)
    return known is not None and known[0] == "RGB" and known[1] is not None


def _bits(image: Image.Image) -> int:
    """Return how many of a 16-bit picture's bits are used: 12 in some TIFFs, else 16."""
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))
    return 12 if bits == (12,) else 16


@cache
def _to_eight(bits: int) -> NDArray[np.uint8]:
    """Return the table from values of so many bits to 0..255, rounded to nearest, uint8."""
    top = 2**bits - 1
    table: NDArray[np.int64] = (np.arange(top + 1, dtype=np.int64) * 510 + top) // (2 * top)
    return table.astype(np.uint8)


def _stretched(values: NDArray[np.int32] | NDArray[np.float32]) -> NDArray[np.uint8]:
    """Map the smallest finite value to 0 and the largest to 255; what is not finite becomes 0.

    ``values`` has shape ``(H, W)``; so has the result.  Block by block, to spare memory.
    """
    out = np.zeros(values.shape, np.uint8)
    step = max(1, _BLOCK_PIXELS // values.shape[1])
    blocks = [slice(start, start + step) for start in range(0, values.shape[0], step)]
    low, high = np.inf, -np.inf
    for rows in blocks:
        block = _as_doubles(values[rows])
        finite = np.isfinite(block)
        low = min(low, float(block.min(where=finite, initial=np.inf)))
        high = max(high, float(block.max(where=finite, initial=-np.inf)))
    if not low < high:
        return out
    for rows in blocks:
        block = _as_doubles(values[rows])
        block[~np.isfinite(block)] = low
        out[rows] = np.rint((block - low) * (255.0 / (high - low)))
    return out


def _as_doubles(values: NDArray[np.int32] | NDArray[np.float32]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # a signalling NaN would warn
        return values.astype(np.float64)


def _without_alpha(image: Image.Image) -> Image.Image:
    """Return the colours below the alpha, in a mode that an ICC profile can be meant for."""
    if image.mode in ("RGB", "L", "CMYK"):
        return image
    if image.mode in ("1", "LA"):
        return image.convert("L")
    return image.convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert ``L``, ``RGB`` or ``CMYK`` to sRGB, by the profile where it fits."""
    known = _transform(profile) if profile else None
    if known is not None:
        mode, transform = known
        if mode == "RGB" and image.mode == "L":  # grey scans often carry the scanner's profile
            image = image.convert("RGB")
        if transform is not None and mode == image.mode:
            return ImageCms.applyTransform(image, transform) or image
    return image if image.mode == "RGB" else image.convert("RGB")


@lru_cache(maxsize=64)
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None] | None:
    """Return the mode that a profile is for and the way from it to sRGB.

    ``None`` for a profile that can't be used; the way is ``None`` where it would change nothing.
    Few profiles are ever in use, and building the way costs more than going it.
    """
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        mode = _SPACE_MODES[source.profile.xcolor_space.strip()]
        transform = ImageCms.buildTransform(source, _srgb(), mode, "RGB", flags=_FLAGS[mode])
        return mode, None if _is_identity(transform, mode) else transform
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - a broken profile raises OSError, PyCMSError, KeyError...
        return None


def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _is_identity(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Tell whether colours all over the cube stay where they are."""
    if mode == "CMYK":
        return False
    levels = np.arange(0, 256, 15, dtype=np.uint8)  # 18 levels
    if mode == "L":
        probe = Image.fromarray(levels[None])
    else:
        cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(18, -1, 3)
        probe = Image.fromarray(cube)
    moved = np.asarray(ImageCms.applyTransform(probe, transform)).astype(int)
    return bool(np.abs(moved - np.asarray(probe.convert("RGB"))).max() <= _SAME_COLOUR)
