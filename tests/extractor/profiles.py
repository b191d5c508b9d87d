"""ICC profiles whose effect can be foretold, written byte by byte (ICC.1:2004)."""

import struct

from PIL import ImageCms


def _profile(space: bytes, pcs: bytes, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    """Lay out a version 2 profile: header, table of tags, tags."""
    tags = {b"wtpt": b"XYZ \0\0\0\0" + struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D), **tags}
    table, body, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + struct.pack(">II", offset + len(body), len(value))
        body += value
    size = offset + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, kind, space, pcs)
    header = header.ljust(36, b"\0") + b"acsp"
    header = header.ljust(68, b"\0") + struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def srgb() -> bytes:
    """The profile that changes nothing."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def red_is_green() -> bytes:
    """The sRGB profile with the primaries red and green exchanged."""
    profile = bytearray(srgb())
    places = {}
    for number in range(struct.unpack_from(">I", profile, 128)[0]):
        at = 132 + 12 * number
        places[bytes(profile[at : at + 4])] = at
    red, green = places[b"rXYZ"], places[b"gXYZ"]
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


def linear_grey() -> bytes:
    """Grey in proportion to the light: 128 is 50 % of white."""
    return _profile(b"GRAY", b"XYZ ", b"mntr", {b"kTRC": b"curv" + bytes(8)})


def negative_cmyk() -> bytes:
    """Ink makes it brighter: no ink is black, any full ink is white."""
    clut = b"".join(bytes([255 if node else 0, 128, 128]) for node in range(16))
    identity = bytes(range(256))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0])
    lut += struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x10000)
    lut += identity * 4 + clut + identity * 3
    return _profile(b"CMYK", b"Lab ", b"prtr", {b"A2B0": lut})
