"""Awkward and broken files: every one gives a picture or says why not, within limits."""

import csv
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from extractor.decode import DecodeError, decode
from tests.extractor import profiles
from tests.extractor.pictures import far, saved, scene, with_orientation

DECODED = {"JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"}
CLASSES = {"unsupported", "truncated", "corrupt", "too_large", "empty"}
# Pillow's load() refuses these and its convert() after that goes on with what it had.
BROKEN_ALL_THE_SAME = {
    "pillow/broken_data_stream.png": "corrupt",
    "pillow/truncated_end_chunk.png": "truncated",
    "pillow/apng/chunk_no_fctl.png": "corrupt",
}


def outcome(data, target=256):
    """Size of the picture or class of the failure."""
    try:
        image = decode(data, target=target)
    except DecodeError as error:
        return error.failure_class
    assert image.mode == "RGB"
    assert np.asarray(image).shape == (image.height, image.width, 3)
    return image.size


@pytest.fixture(scope="module")
def manifest(data_dir):
    folder = data_dir / "torture"
    if not folder.is_dir():
        pytest.skip(f"no torture files in {folder}")
    with open(folder / "MANIFEST.tsv", encoding="utf-8", newline="") as file:
        return [(folder / row["path"], row) for row in csv.DictReader(file, delimiter="\t")]


@pytest.fixture(scope="module")
def outcomes(manifest):
    def one(item):
        path, row = item
        data = path.read_bytes()
        started = time.perf_counter()
        return row, outcome(data), time.perf_counter() - started

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(one, manifest))


@pytest.mark.data
def test_every_file_gives_a_picture_or_a_class_in_bounded_time(outcomes):
    assert len(outcomes) == 1103
    assert {found for _, found, _ in outcomes if isinstance(found, str)} <= CLASSES
    assert max(seconds for _, _, seconds in outcomes) < 20


@pytest.mark.data
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tells memory as Linux does")
def test_no_file_needs_much_memory(manifest):
    code = """
import sys
from extractor.decode import DecodeError, decode
for path in sys.stdin.read().splitlines():
    try:
        with open(path, "rb") as file:
            decode(file.read(), target=256)
    except DecodeError:
        pass
# Not getrusage: it counts what the process that forked this one had.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    paths = "\n".join(str(path) for path, _ in manifest)
    done = subprocess.run(
        [sys.executable, "-c", code], input=paths, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 400 * 1024  # KiB
    assert done.stderr == ""


@pytest.mark.data
def test_what_pillow_reads_of_the_decoded_formats_is_decoded(outcomes):
    wrong = {
        row["path"]: found
        for row, found, _ in outcomes
        if row["pillow_result"] == "ok" and row["format"] in DECODED and isinstance(found, str)
    }
    assert wrong == BROKEN_ALL_THE_SAME


@pytest.mark.data
def test_sizes_are_those_of_the_manifest_but_for_turns_and_the_scale_of_a_jpeg(outcomes):
    checked = 0
    for row, found, _ in outcomes:
        if isinstance(found, str) or row["format"] in {"JPEG", "MPO", "TIFF", ""}:
            continue
        claimed = int(row["width"]), int(row["height"])
        turned = row["exif_orientation"] in {"5", "6", "7", "8"}
        assert found == (claimed[::-1] if turned else claimed), row["path"]
        checked += 1
    assert checked > 500


@pytest.mark.data
def test_other_formats_are_unsupported(outcomes):
    others = [found for row, found, _ in outcomes if row["format"] not in DECODED | {"", "DIB"}]
    assert len(others) > 200
    assert set(others) == {"unsupported"}


@pytest.mark.data
def test_what_pillow_cannot_read_is_a_failure(outcomes):
    good = [
        row["path"]
        for row, found, _ in outcomes
        if row["pillow_result"] != "ok" and not isinstance(found, str)
    ]
    assert good == ["pillow/avif/hopper.heif"]  # needs pillow-heif, which the manifest had not


@pytest.mark.data
@pytest.mark.parametrize("name", ["Landscape", "Portrait"])
def test_the_examples_of_orientation_all_show_the_same(manifest, name):
    found = [
        decode(path.read_bytes(), target=256)
        for path, _ in manifest
        if path.name.startswith(f"{name}_") and path.suffix == ".jpg"
    ]
    assert len(found) == 9
    assert len({image.size for image in found}) == 1
    assert max(far(found[1], image) for image in found) < 6
    upside_down = found[1].transpose(Image.Transpose.ROTATE_180)
    assert far(found[1], upside_down) > 30  # so the comparison can fail


def seeds():
    """Small good files of every format and of the trickier kinds."""
    image = scene(40, 30)
    yield from (saved(image, kind) for kind in ("PNG", "GIF", "BMP", "TIFF", "WEBP"))
    yield saved(image, "JPEG", exif=with_orientation(6), icc_profile=profiles.srgb())
    yield saved(image, "JPEG", progressive=True)
    yield saved(image.convert("CMYK"), "JPEG")
    yield saved(image, "PNG", exif=with_orientation(8), icc_profile=profiles.red_is_green())
    yield saved(image.quantize(16), "PNG", transparency=bytes(range(16)))
    yield saved(image.convert("RGBA"), "TIFF", compression="tiff_lzw")
    yield saved(image.convert("L"), "TIFF", compression="jpeg")
    yield saved(image.convert("F"), "TIFF")
    yield saved(image, "WEBP", exif=with_orientation(5), save_all=True, append_images=[image])
    yield saved(image, "GIF", save_all=True, append_images=[image.convert("L")])
    yield saved(image, "PNG", save_all=True, append_images=[image.rotate(90)])
    yield saved(image, "AVIF")


def mutated(data, rng):
    """Bytes changed, cut out, doubled or cut off."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(data))
        what = rng.randrange(5)
        if what < 3:
            data[at] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        elif what == 3:
            del data[at : at + rng.randint(1, 30)]
        else:
            data[at:at] = data[at : at + rng.randint(1, 30)]
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.1 else data)


def test_mutated_files_raise_nothing_but_decode_errors():
    rng = random.Random(1)
    found = [outcome(mutated(data, rng), 10) for _ in range(40) for data in seeds()]
    failures = [each for each in found if isinstance(each, str)]
    assert set(failures) <= CLASSES
    assert 100 < len(failures) < len(found) - 100
