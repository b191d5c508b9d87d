"""JPEGs that a device may decode as well: known by their headers, before a pixel is decoded.

Plain are those that the canonical decode decodes at full size, turns and otherwise leaves alone:
baseline, 8 bits, YCbCr with the usual subsampling, of sRGB, whole to the end, neither
tiny nor large.  A GPU's decoder takes no others, or gains nothing by it: progressive ones are
unpacked on a core all the same.
"""

import struct
from dataclasses import dataclass
from typing import Final

from PIL import ExifTags, Image

from extractor.colour import moves_rgb
from extractor.quiet import quieten_pillow

_SEGMENT: Final = struct.Struct(">BBH")
_FRAME: Final = struct.Struct(">BHHB")  # bits, height, width, components
_BASELINE, _SCAN, _EXIF, _PROFILE, _ADOBE = 0xC0, 0xDA, 0xE1, 0xE2, 0xEE
_HARMLESS: Final = frozenset(
    {0xC4, 0xDB, 0xDD, 0xFE, 0xE0, *range(0xE3, 0xEE), 0xEF}
)  # tables, restart interval, comment, and what other programs leave
_LUMA: Final = frozenset({0x11, 0x21, 0x22})  # 4:4:4, 4:2:2, 4:2:0; chroma is 0x11
_IDS: Final = (b"\1\2\3", b"\0\1\2")  # "RGB" would mean that it is
_MOST_BYTES: Final = 2**20
_SIDES: Final = range(64, 2049)


@dataclass(frozen=True, slots=True)
class Jpeg:
    """A JPEG that is plain, not decoded.

    Attributes
    ----------
    data
        The whole file.
    width, height
        In pixels, as it is stored, before it is turned.
    orientation
        EXIF's, 1 to 8.
    coarse
        Whether its colours have half the width, and half the height, of its brightness.
    """

    data: bytes
    width: int
    height: int
    orientation: int = 1
    coarse: tuple[bool, bool] = (False, False)


def plain(data: bytes, target: int) -> Jpeg | None:
    """Return a file's bytes as a plain JPEG; None where they are anything else.

    Parameters
    ----------
    data
        The whole file.
    target
        As ``extractor.decode.decode`` takes it: what is larger is decoded at a part of its size.
    """
    if not (data.startswith(b"\xff\xd8\xff") and data.endswith(b"\xff\xd9")):
        return None
    if len(data) > _MOST_BYTES:
        return None
    segments = _segments(data)
    frame = segments and _size(data, segments.get(_BASELINE))
    if not segments or not frame:
        return None
    width, height, sampling = frame
    if width not in _SIDES or height not in _SIDES or min(width, height) >= 4 * target:
        return None
    if _ADOBE in segments and _transform(data, *segments[_ADOBE]) != 1:
        return None
    if _PROFILE in segments and not _is_srgb(data, *segments[_PROFILE]):
        return None
    orientation = _orientation(data, *segments[_EXIF]) if _EXIF in segments else 1
    if orientation is None:
        return None
    return Jpeg(data, width, height, orientation, (sampling >= 0x20, sampling & 0xF == 2))


def _segments(data: bytes) -> dict[int, tuple[int, int]] | None:
    """Return where each kind of segment before the scan lies; None if one is not harmless."""
    found: dict[int, tuple[int, int]] = {}
    at, end = 2, len(data) - _SEGMENT.size
    while at <= end:
        mark, code, length = _SEGMENT.unpack_from(data, at)
        if mark != 0xFF or length < 2:
            return None
        if code == _SCAN:
            return found
        if code in _HARMLESS:
            pass
        elif code in (_BASELINE, _EXIF, _PROFILE, _ADOBE) and code not in found:
            found[code] = at + _SEGMENT.size, at + 2 + length
        else:
            return None
        at += 2 + length
    return None


def _size(data: bytes, frame: tuple[int, int] | None) -> tuple[int, int, int] | None:
    """Return width, height and sampling of a frame of three components as they usually are."""
    if frame is None or frame[1] - frame[0] != 15:
        return None
    bits, height, width, components = _FRAME.unpack_from(data, frame[0])
    planes = data[frame[0] + _FRAME.size : frame[1]]  # id, sampling and table of each
    if (bits, components) != (8, 3) or planes[0::3] not in _IDS:
        return None
    if planes[1] not in _LUMA or planes[4::3] != b"\x11\x11":
        return None
    return width, height, planes[1]


def _transform(data: bytes, start: int, end: int) -> int:
    """Return which colours Adobe's segment says that there are, 1 being YCbCr."""
    segment = data[start:end]
    return segment[11] if segment.startswith(b"Adobe") and len(segment) >= 12 else -1


def _is_srgb(data: bytes, start: int, end: int) -> bool:
    """Whether a segment is a whole colour profile that changes nothing."""
    head = b"ICC_PROFILE\0\1\1"  # the first part of one
    return data.startswith(head, start) and not moves_rgb(data[start + len(head) : end])


def _orientation(data: bytes, start: int, end: int) -> int | None:
    """Return EXIF's orientation as ``extractor.decode`` understands it; None if it is not EXIF."""
    segment = data[start:end]
    if not segment.startswith(b"Exif\0\0"):
        return None  # XMP, which can hold an orientation too
    quieten_pillow()
    exif = Image.Exif()
    try:
        exif.load(segment)
        value = exif.get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - Pillow's parser raises nearly anything on bad bytes
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
