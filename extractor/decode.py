"""The canonical decode: bytes of an image file to an upright RGB picture, 8 bits a channel.

``DECODE_VERSION`` is part of a space's fingerprint, since a change here changes vectors.
Version 1:

- The format is told by the first bytes; the suffix plays no part.  JPEG (and MPO), PNG, WebP, GIF,
  BMP, TIFF, AVIF and HEIF are decoded, nothing else is even tried.
- Size limits are checked against the header, before a pixel is decoded.
- A JPEG is decoded at 1/2, 1/4 or 1/8 while its shorter side stays at least twice the target.
- The first frame counts; the primary image of a HEIF.  A truncated file is refused.
- 16-bit grey is scaled from its full range (12 bits from 4,095), rounded to nearest.  32-bit
  integers and floats have no known range: their smallest finite value becomes black and the largest
  white; a flat picture and what is not finite become black.
- An ICC profile that fits the picture is converted to sRGB (perceptual); a broken one, or one of
  another colour space, is ignored, and so is one that moves no colour by more than 2 levels.
- Alpha, whether a channel, a palette's or a transparent colour, is laid over white.
- EXIF orientation is applied; a malformed EXIF block counts as none.
"""

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Final

from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from extractor.colour import eight_bit, over_white
from extractor.quiet import quieten_libtiff, quieten_pillow

DECODE_VERSION: Final = 1

# The first bytes of a format -> what Pillow calls it and the module that knows it.
_FORMATS: Final = (
    (re.compile(rb"\xff\xd8\xff"), "JPEG", "PIL.JpegImagePlugin"),  # MPO too
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG", "PIL.PngImagePlugin"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "WEBP", "PIL.WebPImagePlugin"),
    (re.compile(rb"GIF8[79]a"), "GIF", "PIL.GifImagePlugin"),
    (re.compile(rb"BM"), "BMP", "PIL.BmpImagePlugin"),
    (re.compile(rb"II[*+]\0|MM\0[*+]|MM\*\0|II\0\*"), "TIFF", "PIL.TiffImagePlugin"),
    # mif1 and msf1 say only "some picture"; the compatible brands after them say whose.
    (
        re.compile(rb"....ftyp(avi[fs]|m[is]f1.{4}(....)*?avi[fs])", re.DOTALL),
        "AVIF",
        "PIL.AvifImagePlugin",
    ),
    (
        re.compile(rb"....ftyp(he[iv][cmsx]|m[is]f1)", re.DOTALL),
        "HEIF",
        "pillow_heif.HeifImagePlugin",
    ),
)
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TRUNCATED: Final = re.compile(
    r"truncated|end of file|unexpected end|not enough (image )?data", re.IGNORECASE
)
_UNSUPPORTED: Final = re.compile(r"unsupported|not supported|unknown pixel mode", re.IGNORECASE)


class DecodeError(Exception):
    """Bytes that are no picture.  Data, not trouble: the loader reports it as a ``Failure``.

    Parameters
    ----------
    failure_class
        ``empty`` (no bytes), ``unsupported`` (a format or a kind of it that is not decoded),
        ``too_large`` (a limit is passed), ``truncated``, ``corrupt``, or ``memory``.
    message
        One line for a person.
    """

    def __init__(self, failure_class: str, message: str) -> None:
        super().__init__(f"{failure_class}: {message}")
        self.failure_class = failure_class
        self.message = message

    @property
    def transient(self) -> bool:
        """Whether the same bytes may decode another time: memory was short."""
        return self.failure_class == "memory"


@dataclass(frozen=True, slots=True)
class Limits:
    """What is refused unread.  Pillow's own limit of 178 megapixels holds beside them."""

    size_bytes: int = 256 * 2**20
    pixels: int = 100_000_000
    side: int = 50_000
    aspect: int = 1_000


DEFAULT: Final = Limits()


def decode(data: bytes, *, target: int | None = None, limits: Limits = DEFAULT) -> Image.Image:
    """Decode the bytes of an image file.

    The same bytes and target give the same pixels, whatever the thread or the process.

    Parameters
    ----------
    data
        The whole file.
    target
        Shorter side in pixels that the caller will scale to; ``None`` decodes at full size.
    limits
        Sizes above which the picture is refused.

    Returns
    -------
    Image
        Mode ``RGB``, upright, loaded.

    Raises
    ------
    DecodeError
        Whatever is wrong with the bytes.
    """
    return render(open_header(data, target=target, limits=limits))


def open_header(
    data: bytes, *, target: int | None = None, limits: Limits = DEFAULT
) -> ImageFile.ImageFile:
    """Do the first half of ``decode``: identify, check the limits, choose a JPEG's scale.

    ``memory_bytes`` of the result says what ``render`` will need.  Parameters and errors are those
    of ``decode``.
    """
    if not data:
        raise DecodeError("empty", "the file has no bytes")
    if len(data) > limits.size_bytes:
        raise DecodeError("too_large", f"{len(data):,} bytes, limit {limits.size_bytes:,}")
    name, module = _format(data)
    quieten_pillow()
    with _as_decode_error(name):
        _register(module)
        image = Image.open(BytesIO(data), formats=(name,))
        _check_size(image.size, limits)
        if target is not None and name == "JPEG":
            image.draft(None, (2 * target, 2 * target))
    return image


def memory_bytes(image: ImageFile.ImageFile) -> int:
    """Return roughly how many bytes ``render`` holds at once for a picture that is opened."""
    return image.width * image.height * 8  # 4 bytes a pixel, before and after a conversion


def render(image: ImageFile.ImageFile) -> Image.Image:
    """Do the second half of ``decode`` for what ``open_header`` returned."""
    with _as_decode_error(image.format or "picture"):
        image.load()
        profile = image.info.get("icc_profile")
        picture = over_white(eight_bit(image), profile)
        turn = _UPRIGHT.get(_orientation(image))
        return picture if turn is None else picture.transpose(turn)


def _format(data: bytes) -> tuple[str, str]:
    """Return Pillow's name and the module for the format that the first bytes tell."""
    head = data[:64]
    for magic, name, module in _FORMATS:
        if magic.match(head):
            return name, module
    raise DecodeError("unsupported", f"no format that is decoded begins with {head[:8]!r}")


def _register(module: str) -> None:
    """Import Pillow's plugin of the format, and no other."""
    package, _, _ = module.partition(".")
    if package == "pillow_heif":
        import pillow_heif

        if "HEIF" not in Image.OPEN:
            pillow_heif.register_heif_opener()
        return
    importlib.import_module(module)
    if module == "PIL.TiffImagePlugin":
        quieten_libtiff()


def _check_size(size: tuple[int, int], limits: Limits) -> None:
    """Refuse what a header claims to be too large."""
    short, long = sorted(size)
    said = f"{size[0]:,} x {size[1]:,} pixels"
    if short * long > limits.pixels:
        raise DecodeError("too_large", f"{said}, limit {limits.pixels:,} in all")
    if long > limits.side:
        raise DecodeError("too_large", f"{said}, limit {limits.side:,} a side")
    if long > limits.aspect * short:
        raise DecodeError("too_large", f"{said}, limit 1:{limits.aspect:,}")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 where there is none or it can't be read.

    pillow-heif turns the picture itself and resets the tag; so does Pillow for TIFF.
    """
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - Pillow's EXIF parser raises nearly anything on bad bytes
        return 1
    return value if isinstance(value, int) else 1


@contextmanager
def _as_decode_error(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises on a bad picture into a ``DecodeError``."""
    try:
        yield
    except DecodeError:
        raise
    except MemoryError as error:
        raise DecodeError("memory", f"not enough memory to decode this {name}") from error
    except Image.DecompressionBombError as error:
        raise DecodeError("too_large", str(error)) from error
    except UnidentifiedImageError as error:  # its text holds an address in memory
        raise DecodeError("corrupt", f"begins like {name}, but can't be read as it") from error
    except Exception as error:  # Pillow's plugins raise nearly anything on bad bytes
        raise DecodeError(*_described(error, name)) from error


def _described(error: Exception, name: str) -> tuple[str, str]:
    """Return failure class and message for what Pillow raised."""
    text = " ".join(str(error).split()) or type(error).__name__
    message = f"{name}: {text[:200]}"
    if isinstance(error, EOFError) or _TRUNCATED.search(text):
        return "truncated", message
    if _UNSUPPORTED.search(text):
        return "unsupported", message
    return "corrupt", message
