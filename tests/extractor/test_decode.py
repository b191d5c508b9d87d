"""The canonical decode, trap by trap, each against what must come out."""

import hashlib
import os
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageFile

from extractor.decode import DecodeError, Limits, decode, memory_bytes, open_header
from tests.extractor import profiles
from tests.extractor.pictures import far, saved, scene, with_orientation

pillow_heif.register_heif_opener()
LOSSLESS = {
    "PNG": {},
    "BMP": {},
    "TIFF": {},
    "WEBP": {"lossless": True},
}
LOSSY = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "AVIF": {"quality": 95},
    "HEIF": {"quality": 95},
}
# What a stored picture must go through to be upright again (EXIF 2.3, tag 0x0112), in numpy.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


def array(data, **options):
    image = decode(data, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def failure(data, **options):
    with pytest.raises(DecodeError) as caught:
        decode(data, **options)
    return caught.value


def png(width, height, bits=8, colour=0, rows=b""):
    """A PNG of that header, with whatever rows."""

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


# Formats


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_lossless_format_comes_back_exactly(kind):
    image = scene()
    np.testing.assert_array_equal(array(saved(image, kind, **LOSSLESS[kind])), np.asarray(image))


@pytest.mark.parametrize("kind", LOSSY)
def test_a_lossy_format_comes_back_nearly(kind):
    assert far(decode(saved(scene(), kind, **LOSSY[kind])), scene()) < 4


def test_a_jpeg_is_what_pillow_makes_of_it():
    data = saved(scene(), "JPEG")
    with Image.open(BytesIO(data)) as image:
        np.testing.assert_array_equal(array(data), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_a_container_that_says_only_mif1_is_told_by_its_compatible_brands(kind):
    data = bytearray(saved(scene(), kind, **LOSSY[kind]))
    assert data[4:8] == b"ftyp"
    data[8:12] = b"mif1"
    assert far(decode(bytes(data)), scene()) < 4


def test_an_mpo_gives_its_first_picture():
    data = saved(scene(), "MPO", save_all=True, append_images=[Image.new("RGB", (90, 60))])
    assert far(decode(data), scene()) < 6


@pytest.mark.parametrize("kind", ["PPM", "TGA", "ICO", "PCX", "JPEG2000", "EPS", "PDF", "DDS"])
def test_other_formats_are_unsupported(kind):
    error = failure(saved(scene(), kind))
    assert error.failure_class == "unsupported"
    assert not error.transient


@pytest.mark.parametrize("data", [b"no picture", b"\0" * 100, b"\0\0\0\x18ftypmp42isomavi1" * 4])
def test_what_begins_like_no_format_is_unsupported(data):
    assert failure(data).failure_class == "unsupported"


def test_nothing_is_empty():
    assert failure(b"").failure_class == "empty"
    assert str(failure(b"")) == "empty: the file has no bytes"


def test_a_variant_that_pillow_does_not_know_is_unsupported():
    data = bytearray(saved(scene(), "BMP"))
    data[28:30] = struct.pack("<H", 13)  # bits a pixel
    assert failure(bytes(data)).failure_class == "unsupported"


# Broken files


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(kind, share):
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), kind)
    assert failure(data[: int(len(data) * share)]).failure_class == "truncated"


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "AVIF", "HEIF"])
def test_half_a_file_of_the_other_formats_is_refused_too(kind):
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), kind)
    assert failure(data[: len(data) // 2]).failure_class in ("truncated", "corrupt")


def test_a_header_with_nothing_behind_it_is_corrupt_and_the_message_is_stable():
    first, second = failure(b"\xff\xd8\xff\xe0"), failure(b"\xff\xd8\xff\xe0")
    assert first.failure_class == "corrupt"
    assert first.message == second.message == "begins like JPEG, but can't be read as it"


def test_end_of_file_is_truncated_whatever_it_says():
    from extractor.decode import _described

    assert _described(EOFError(), "HEIF") == ("truncated", "HEIF: EOFError")


# Limits


@pytest.mark.parametrize(
    ("size", "said"),
    [((10_001, 10_000), "in all"), ((50_001, 60), "a side"), ((10_010, 10), "1:1,000")],
)
def test_too_large_by_the_header_is_refused_before_decoding(size, said):
    error = failure(png(*size))
    assert error.failure_class == "too_large"
    assert said in error.message


def test_what_pillow_calls_a_bomb_is_too_large():
    assert failure(png(60_000, 60_000)).failure_class == "too_large"


def test_what_pillow_only_warns_of_is_within_the_limits():
    assert Image.MAX_IMAGE_PIXELS is not None
    assert Image.MAX_IMAGE_PIXELS < 9_800 * 9_800
    assert open_header(png(9_800, 9_800, bits=1)).size == (9_800, 9_800)


def test_the_limit_holds_for_the_header_not_for_a_jpeg_at_a_smaller_scale():
    data = saved(Image.new("RGB", (800, 800)), "JPEG")
    small = Limits(pixels=500_000)
    assert failure(data, target=50, limits=small).failure_class == "too_large"


def test_at_the_limit_is_fine():
    limits = Limits(size_bytes=10_000, pixels=1_000, side=1_000, aspect=1_000)
    assert decode(saved(Image.new("RGB", (1_000, 1)), "PNG"), limits=limits).size == (1_000, 1)


def test_too_many_bytes_are_refused_unseen():
    error = failure(b"x" * 11, limits=Limits(size_bytes=10))
    assert error.failure_class == "too_large"
    assert error.message == "11 bytes, limit 10"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_want_of_memory_is_transient(tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(saved(Image.new("L", (9_000, 9_000)), "PNG"))
    code = """
import resource, sys
from extractor.decode import DecodeError, decode
data = open(sys.argv[1], "rb").read()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20,) * 2)
try:
    decode(data)
except DecodeError as error:
    print(error.failure_class, error.transient)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, os.fspath(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "memory True\n"


# The scale of a JPEG


@pytest.mark.parametrize(
    ("target", "size"),
    [
        (None, (800, 1000)),
        (300, (800, 1000)),
        (200, (400, 500)),
        (100, (200, 250)),
        (9, (100, 125)),
    ],
)
def test_a_jpeg_is_decoded_at_least_at_twice_the_target(target, size):
    data = saved(scene(800, 1000), "JPEG", quality=90)
    image = decode(data, target=target)
    assert image.size == size
    assert far(image, scene(800, 1000).resize(size, Image.Resampling.BOX)) < 3


def test_the_scale_knows_how_a_picture_is_turned():
    data = saved(scene(1000, 800), "JPEG", exif=with_orientation(6))
    assert decode(data, target=200).size == (400, 500)


def test_no_other_format_is_scaled():
    data = saved(scene(1000, 800), "WEBP")
    assert decode(data, target=10).size == (1000, 800)


def test_memory_is_told_before_decoding():
    data = saved(scene(1000, 800), "JPEG")
    assert memory_bytes(open_header(data)) == 16 * memory_bytes(open_header(data, target=100))


# Orientation


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", sorted(LOSSLESS.keys() - {"BMP"}))
def test_orientation_is_applied(kind, value):
    image = scene(9, 5)
    data = saved(image, kind, exif=with_orientation(value), **LOSSLESS[kind])
    np.testing.assert_array_equal(array(data), UPRIGHT[value](np.asarray(image)))


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", LOSSY)
def test_orientation_is_applied_once_in_lossy_formats(kind, value):
    image = scene(96, 64)
    if kind == "HEIF":  # written turned by the container itself
        data = saved(image, kind, exif=with_orientation(value).tobytes(), **LOSSY[kind])
    else:
        data = saved(image, kind, exif=with_orientation(value), **LOSSY[kind])
    upright = np.ascontiguousarray(UPRIGHT[value](np.asarray(image)))
    assert far(decode(data), Image.fromarray(upright)) < 4


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_means_nothing_is_none(value):
    data = saved(scene(), "PNG", exif=with_orientation(value))
    np.testing.assert_array_equal(array(data), np.asarray(scene()))


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0no tiff at all",
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\x03\0\0\0\x01" * 3,
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0six\0\0\0\0\0",  # text, not a number
        b"\xff" * 50,
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_malformed_exif_does_not_fail_the_picture(kind, exif):
    plain = array(saved(scene(), kind))
    np.testing.assert_array_equal(array(saved(scene(), kind, exif=exif)), plain)


def test_memory_short_while_exif_is_read_is_not_taken_for_malformed_exif():
    from extractor.decode import _orientation

    class Picture(Image.Image):
        def getexif(self):
            raise MemoryError

    with pytest.raises(MemoryError):
        _orientation(Picture())


# Alpha, palettes, grey


def expect(picture, colours):
    assert np.abs(picture.reshape(-1, 3).astype(int) - np.array(colours)).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_goes_over_white_and_hides_the_colour_below(kind):
    image = Image.new("RGBA", (3, 1))
    image.putdata([(255, 0, 0, 0), (255, 0, 0, 255), (0, 0, 0, 128)])
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    expect(array(saved(image, kind, **options)), [(255, 255, 255), (255, 0, 0), (127, 127, 127)])


def test_alpha_that_is_solid_changes_nothing():
    image = scene()
    image.putalpha(255)
    np.testing.assert_array_equal(array(saved(image, "PNG")), np.asarray(scene()))


def test_grey_with_alpha():
    image = Image.new("LA", (3, 1))
    image.putdata([(0, 0), (100, 255), (0, 128)])
    expect(array(saved(image, "PNG")), [(255,) * 3, (100,) * 3, (127,) * 3])


@pytest.mark.parametrize(
    ("mode", "clear", "colours"),
    [
        ("L", 100, [(0, 0, 0), (255, 255, 255), (200, 200, 200)]),
        ("RGB", (100, 100, 100), [(0, 0, 0), (255, 255, 255), (200, 200, 200)]),
    ],
)
def test_one_colour_that_is_transparent(mode, clear, colours):
    image = Image.new("L", (3, 1))
    image.putdata([0, 100, 200])
    expect(array(saved(image.convert(mode), "PNG", transparency=clear)), colours)


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 255])])
@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_with_transparency(kind, transparency):
    if kind == "GIF":
        transparency = 1
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    data = saved(image, kind, transparency=transparency)
    expect(array(data), [(255, 0, 0), (255, 255, 255), (0, 0, 255)])


def test_palette_with_partial_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putdata([0, 1])
    expect(array(saved(image, "PNG", transparency=bytes([128, 255]))), [(127,) * 3, (255, 0, 0)])


def test_grey_and_bilevel_become_rgb():
    grey = scene().convert("L")
    np.testing.assert_array_equal(array(saved(grey, "PNG")), np.asarray(grey.convert("RGB")))
    bilevel = scene().convert("1")
    for kind in ("PNG", "BMP", "TIFF"):
        np.testing.assert_array_equal(
            array(saved(bilevel, kind)), np.asarray(bilevel.convert("RGB"))
        )


@pytest.mark.parametrize(
    ("mode", "stored", "shown"),
    [("RGBA", (64, 0, 0, 128), (191, 127, 127)), ("LA", (64, 128), (191, 191, 191))],
)
def test_alpha_that_is_multiplied_in_is_divided_out(mode, stored, shown):
    image = Image.new(mode, (2, 1))
    image.putpixel((0, 0), stored)  # half of 128 over nothing
    entry = struct.Struct("<HHIHH")  # ExtraSamples: 2 is an alpha apart, 1 one multiplied in
    apart, multiplied = entry.pack(338, 3, 1, 2, 0), entry.pack(338, 3, 1, 1, 0)
    data = saved(image, "TIFF")
    assert apart in data
    expect(array(data.replace(apart, multiplied)), [shown, (255, 255, 255)])


def test_palette_with_alpha_beside_it():
    image = Image.new("PA", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([(1, 255), (0, 0)])
    expect(array(saved(image, "TIFF")), [(0, 0, 255), (255, 255, 255)])


# 16 bits and more


def test_16_bit_grey_is_scaled_and_not_clipped():
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(ramp / 257).astype(np.uint8)
    for kind in ("PNG", "TIFF"):
        got = array(saved(Image.fromarray(ramp), kind))
        np.testing.assert_array_equal(got, np.repeat(expected[..., None], 3, axis=2))


def raw_tiff(values, bits, endian, sample_format=1):
    """An uncompressed grey TIFF of one row."""
    body = (
        values
        if isinstance(values, bytes)
        else b"".join(struct.pack(endian + "H", v) for v in values)
    )
    width = len(body) * 8 // bits
    tags = [(256, width), (257, 1), (258, bits), (259, 1), (262, 1), (273, 0), (277, 1), (278, 1)]
    tags += [(279, len(body)), (339, sample_format)]
    start = 8 + 2 + 12 * len(tags) + 4
    out = (b"II*\0" if endian == "<" else b"MM\0*") + struct.pack(endian + "IH", 8, len(tags))
    for number, value in tags:
        out += struct.pack(endian + "HHI", number, 4, 1)
        out += struct.pack(endian + "I", start if number == 273 else value)
    return out + bytes(4) + body


def test_16_bit_grey_of_the_other_byte_order():
    got = array(raw_tiff([0, 257, 32768, 65535], 16, ">"))
    assert got[0, :, 0].tolist() == [0, 1, 128, 255]


def test_12_bit_grey_is_scaled_from_its_own_range():
    got = array(raw_tiff(bytes([0x00, 0x08, 0x00, 0xFF, 0xFF, 0xFF]), 12, "<"))
    assert got[0, :, 0].tolist() == [0, 128, 255, 255]


def test_16_bit_grey_with_a_transparent_level():
    values = np.array([[0, 1000, 65535, 1001]], np.uint16)
    got = array(saved(Image.fromarray(values), "PNG", transparency=1000))
    assert got[0, :, 0].tolist() == [0, 255, 255, 4]


def test_16_bit_colour_keeps_its_upper_bytes():
    rows = b"\0" + struct.pack(">6H", 0, 0x80FF, 0xFFFF, 0x1234, 0x5678, 0x9ABC)
    got = array(png(2, 1, bits=16, colour=2, rows=rows))
    assert got.tolist() == [[[0, 0x80, 0xFF], [0x12, 0x56, 0x9A]]]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_integers_and_floats_are_stretched_from_least_to_largest(dtype):
    values = np.linspace(-3000, 90000, 6000).reshape(60, 100).astype(dtype)
    low, high = float(values.min()), float(values.max())
    expected = np.rint((values.astype(float) - low) / (high - low) * 255)
    got = array(saved(Image.fromarray(values), "TIFF"))
    assert np.abs(got[..., 1] - expected).max() <= 1
    assert got.min() == 0
    assert got.max() == 255


def test_what_is_not_finite_is_black_and_does_not_count():
    values = np.array([[np.nan, np.inf, -np.inf, 1.0, 2.0, 3.0]], np.float32)
    got = array(saved(Image.fromarray(values), "TIFF"))
    assert got[0, :, 0].tolist() == [0, 0, 0, 0, 128, 255]


def test_a_signalling_nan_raises_no_warning():
    signalling = struct.pack("<I", 0x7F800001)
    values = np.frombuffer(signalling + struct.pack("<2f", 1, 2), np.float32)[None]
    assert array(saved(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("value", [7.0, np.nan])
def test_a_flat_float_picture_is_black(value):
    data = saved(Image.fromarray(np.full((2, 3), value, np.float32)), "TIFF")
    assert not array(data).any()


# Colour


def test_cmyk_becomes_rgb():
    image = Image.new("CMYK", (4, 1))
    image.putdata([(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 255)])
    colours = [(255, 255, 255), (0, 255, 255), (255, 0, 0), (0, 0, 0)]
    expect(array(saved(image, "TIFF")), colours)
    wide = image.resize((64, 16), Image.Resampling.NEAREST)
    got = array(saved(wide, "JPEG", quality=100, subsampling=0))[8, 8::16]
    assert np.abs(got.astype(int) - colours).max() <= 4


def test_lab_becomes_rgb():
    image = Image.new("LAB", (2, 1))
    image.putdata([(255, 128, 128), (0, 128, 128)])
    assert np.abs(array(saved(image, "TIFF")).astype(int) - [[[255] * 3, [0] * 3]]).max() <= 3


def test_a_profile_is_followed():
    image = Image.new("RGB", (2, 1))
    image.putdata([(255, 0, 0), (0, 0, 255)])
    data = saved(image, "PNG", icc_profile=profiles.red_is_green())
    expect(array(data), [(0, 255, 0), (0, 0, 255)])


def test_a_profile_is_followed_below_alpha_and_in_a_palette():
    image = Image.new("RGBA", (2, 1))
    image.putdata([(255, 0, 0, 255), (255, 0, 0, 0)])
    data = saved(image, "PNG", icc_profile=profiles.red_is_green())
    expect(array(data), [(0, 255, 0), (255, 255, 255)])
    palette = Image.new("P", (1, 1))
    palette.putpalette([255, 0, 0])
    data = saved(palette, "PNG", icc_profile=profiles.red_is_green())
    expect(array(data), [(0, 255, 0)])


def test_the_profile_of_srgb_leaves_every_level_as_it_is():
    data = saved(scene(), "PNG", icc_profile=profiles.srgb())
    np.testing.assert_array_equal(array(data), np.asarray(scene()))


def test_a_grey_profile():
    ramp = np.arange(256, dtype=np.uint8)[None]
    got = array(saved(Image.fromarray(ramp), "PNG", icc_profile=profiles.linear_grey()))
    light = np.arange(256) / 255
    bright = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(got[0].astype(int) - np.rint(255 * bright)[:, None]).max() <= 2


def test_grey_with_alpha_and_a_grey_profile():
    image = Image.new("LA", (2, 1))
    image.putdata([(128, 255), (128, 0)])
    data = saved(image, "PNG", icc_profile=profiles.linear_grey())
    expect(array(data), [(188, 188, 188), (255, 255, 255)])


def test_a_cmyk_profile():
    image = Image.new("CMYK", (2, 1))
    image.putdata([(0, 0, 0, 0), (255, 0, 0, 0)])
    data = saved(image, "TIFF", icc_profile=profiles.negative_cmyk())
    expect(array(data), [(0, 0, 0), (255, 255, 255)])


def test_a_colour_profile_on_a_grey_picture():
    grey = scene().convert("L")
    data = saved(grey, "PNG", icc_profile=profiles.red_is_green())
    assert np.abs(array(data).astype(int) - np.asarray(grey)[..., None]).max() <= 1


@pytest.mark.parametrize(
    "profile",
    [b"no profile", b"\0" * 200, profiles.red_is_green()[:300], profiles.linear_grey(),
     profiles.negative_cmyk()],
    ids=["text", "zeros", "cut off", "grey", "cmyk"],
)  # fmt: skip
def test_a_profile_that_is_broken_or_of_another_space_is_ignored(profile):
    data = saved(scene(), "JPEG", icc_profile=profile)
    np.testing.assert_array_equal(array(data), array(saved(scene(), "JPEG")))


def test_memory_short_while_a_profile_is_read_is_not_remembered_as_a_broken_one(monkeypatch):
    from extractor import colour

    def short(*_):
        raise MemoryError

    data = saved(scene(7, 7), "PNG", icc_profile=profiles.red_is_green() + bytes(4))
    with monkeypatch.context() as patch:
        patch.setattr(colour.ImageCms, "ImageCmsProfile", short)
        assert failure(data).failure_class == "memory"
    assert array(data)[0, -1].tolist() != np.asarray(scene(7, 7))[0, -1].tolist()


# Frames


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_the_first_frame_counts(kind):
    red, blue = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (40, 30), "blue")
    data = saved(red, kind, save_all=True, append_images=[blue])
    with Image.open(BytesIO(data)) as image:
        assert image.n_frames == 2
    assert far(decode(data), red) < 2


# How it behaves among others


def test_every_thread_makes_the_same_pixels():
    files = [saved(scene(640, 480), kind) for kind in (*LOSSLESS, *LOSSY)]
    files.append(saved(scene(640, 480), "JPEG", icc_profile=profiles.red_is_green()))

    def digests(_):
        return [hashlib.sha256(decode(data, target=100).tobytes()).digest() for data in files]

    with ThreadPoolExecutor(4) as threads:
        assert len({tuple(found) for found in threads.map(digests, range(12))}) == 1


def test_warnings_of_pillow_neither_show_nor_decide():
    data = saved(
        scene(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x03\0\x1a\x01\x05\0\x01\0\0\0\0\xff\0\0"
    )
    plain = array(saved(scene(), "JPEG"))
    for action in ("error", "always"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter(action)
            np.testing.assert_array_equal(array(data), plain)
        assert caught == []


@pytest.mark.parametrize("error", [OSError, AttributeError])
def test_libtiff_stays_as_it_is_where_its_symbols_are_hidden(monkeypatch, error):
    from extractor import quiet

    tried = []

    def hidden(path):
        tried.append(path)
        raise error

    monkeypatch.setattr(quiet.ctypes, "CDLL", hidden)
    quiet.quieten_libtiff.__wrapped__()
    assert len(tried) == 1


def test_truncated_files_are_refused_though_pillow_could_be_lenient():
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_no_torch_is_imported():
    code = (
        "import sys, extractor.decode, extractor.preprocess, extractor.loader, extractor.errors;"
        "print([m for m in ('torch', 'torchvision', 'prefect') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
