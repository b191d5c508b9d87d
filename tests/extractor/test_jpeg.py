"""Which JPEGs are plain, and that nothing else is taken for one."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from extractor import decode
from extractor.jpeg import Jpeg, plain
from tests.extractor.pictures import saved, scene, with_orientation
from tests.extractor.profiles import red_is_green, srgb

TARGET = 256


def jpeg(**options: object) -> bytes:
    return saved(scene(120, 90), "JPEG", **options)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_the_usual_ones_are_plain(subsampling: int) -> None:
    data = jpeg(subsampling=subsampling, comment=b"a comment", dpi=(300, 300))
    coarse = ((False, False), (True, False), (True, True))[subsampling]
    assert plain(data, TARGET) == Jpeg(data, 120, 90, 1, coarse)


@pytest.mark.parametrize("value", range(1, 9))
def test_the_orientation_is_that_of_the_canonical_decode(value: int) -> None:
    found = plain(jpeg(exif=with_orientation(value)), TARGET)
    assert found is not None
    assert found.orientation == value


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0", with_orientation(77)])
def test_malformed_exif_counts_as_none(exif: object) -> None:
    data = jpeg(exif=exif)
    found = plain(data, TARGET)
    assert found is not None
    assert found.orientation == 1
    assert decode.decode(data).size == (120, 90)


def test_a_profile_of_srgb_changes_nothing_and_another_does() -> None:
    assert plain(jpeg(icc_profile=srgb()), TARGET) is not None
    assert plain(jpeg(icc_profile=b"no profile at all"), TARGET) is not None  # it is ignored
    assert plain(jpeg(icc_profile=red_is_green()), TARGET) is None


def xmp(data: bytes) -> bytes:
    """Put an orientation into XMP, which Pillow reads too."""
    body = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'
    return data[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + data[2:]


def patched(old: bytes, new: bytes) -> bytes:
    data = jpeg()
    assert data.count(old) == 1
    return data.replace(old, new)


FRAME = b"\xff\xc0\x00\x11\x08\x00\x5a\x00\x78\x03"
OTHERS = {
    "png": saved(scene(), "PNG"),
    "nothing": b"",
    "progressive": jpeg(progressive=True),
    "grey": saved(scene(120, 90).convert("L"), "JPEG"),
    "cmyk": saved(scene(120, 90).convert("CMYK"), "JPEG"),
    "rgb": saved(scene(120, 90), "JPEG", keep_rgb=True),
    "xmp": xmp(jpeg()),
    "truncated": jpeg()[:-40],
    "cut in the header": jpeg()[:100] + b"\xff\xd9",
    "tiny": saved(scene(120, 63), "JPEG"),
    "long": saved(Image.new("RGB", (2049, 64)), "JPEG"),
    "decoded at half its size": saved(Image.new("RGB", (1024, 1024)), "JPEG"),
    "more after the end": jpeg() + b"more",
    "12 bits": patched(FRAME, FRAME.replace(b"\x08", b"\x0c", 1)),
    "two frames": patched(FRAME, FRAME + jpeg()[jpeg().index(FRAME) + 10 :][:9] + FRAME),
    "other sampling": patched(b"\x01\x22\x00\x02\x11\x01", b"\x01\x41\x00\x02\x11\x01"),
    "no segment": patched(FRAME, b"\x00" + FRAME),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_all_others_go_the_canonical_way(kind: str) -> None:
    assert plain(OTHERS[kind], TARGET) is None


def test_no_cut_or_changed_header_raises() -> None:
    data = jpeg(exif=with_orientation(6))
    start = data.index(b"\xff\xda")
    for at in range(start):
        plain(data[:at] + b"\xff\xd9", TARGET)
        plain(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :], TARGET)


@pytest.mark.data
def test_real_photos_are_plain_only_where_pillow_says_so(data_dir: Path) -> None:
    folder = data_dir / "torture"
    count = 0
    for path in sorted(folder.rglob("*.jp*g")):
        data = path.read_bytes()
        found = plain(data, TARGET)
        if found is None:
            continue
        count += 1
        image = Image.open(io.BytesIO(data))
        assert image.mode == "RGB"
        assert not image.info.get("progressive")
        assert image.size == (found.width, found.height)
        assert image.getexif().get(ExifTags.Base.Orientation, 1) in (found.orientation, 0, 9)
        upright = decode.decode(data, target=TARGET)
        turned = found.orientation >= 5
        assert upright.size == (image.size[::-1] if turned else image.size)
        raw = np.asarray(image)
        assert {raw.shape[1], raw.shape[0]} == set(upright.size)
    assert count > 10
