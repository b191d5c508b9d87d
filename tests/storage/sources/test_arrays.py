import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from storage.errors import SourceError
from storage.sources.items import BadPixels, Item
from storage.sources.opening import Source, SourceOptions, open_source
from storage.sources.shard import Shard
from tests.flows.terminal import CHECKOUT

Array = NDArray[Any]


def save(folder: Path, array: Array, name: str = "x.npy") -> str:
    np.save(folder / name, array)
    return str(folder / name)


def opened(folder: Path, array: Array, **options: Any) -> Source:
    return open_source(save(folder, array), SourceOptions(**options))


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8)


def pictures(source: Source) -> Array:
    return np.stack([source.pixels(row) for row in range(source.count_hint() or 0)])


# Shapes


def test_rgb_is_taken_as_it_is(tmp_path: Path) -> None:
    array = noise(6, 5, 4, 3)
    source = opened(tmp_path, array)
    assert source.count_hint() == 6
    assert list(source.items()) == [Item(b"%d" % row, b"", None, row) for row in range(6)]
    assert source.pixels(0).dtype == np.uint8
    assert np.array_equal(pictures(source), array)
    assert np.array_equal(source.pixels(np.int64(3)), array[3])


@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 5, 4, 1)])
def test_one_channel_is_grey(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = noise(*shape)
    expected = [np.asarray(Image.fromarray(row).convert("RGB")) for row in array.reshape(6, 5, 4)]
    assert np.array_equal(pictures(opened(tmp_path, array)), np.stack(expected))


def test_four_channels_are_laid_over_white(tmp_path: Path) -> None:
    array = noise(20, 9, 8, 4)
    array[0, ..., 3], array[1, ..., 3] = 255, 0
    found = pictures(opened(tmp_path, array))
    alpha = array[..., 3:].astype(float) / 255
    exact = array[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(found - exact).max() <= 0.5 + 1e-9
    assert np.array_equal(found[0], array[0, ..., :3])
    assert (found[1] == 255).all()
    for row, picture in zip(array, found, strict=True):  # as a picture file's alpha is
        image = Image.frombytes("RGBA", (8, 9), row.tobytes())
        canvas = Image.new("RGB", image.size, (255, 255, 255))
        canvas.paste(image.convert("RGB"), mask=image.getchannel("A"))
        assert np.array_equal(picture, np.asarray(canvas))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_rows_of_numbers_are_the_same_pictures(tmp_path: Path, channels: int) -> None:
    array = noise(6, 5, 4, channels)
    flat = save(tmp_path, array.reshape(6, -1), "flat.npy")
    options = SourceOptions(height=5, width=4, channels=channels)
    source = open_source(flat, options)
    assert np.array_equal(pictures(source), pictures(opened(tmp_path, array)))


def test_any_order_of_the_numbers_in_the_file(tmp_path: Path) -> None:
    array = noise(6, 5, 4, 3)
    fortran = opened(tmp_path, np.asfortranarray(array))
    assert np.array_equal(pictures(fortran), array)
    big = opened(tmp_path, array.astype(">f4"), values="byte")
    assert np.array_equal(pictures(big), array)


def test_an_array_is_known_by_its_first_bytes_too(tmp_path: Path) -> None:
    path = save(tmp_path, noise(2, 5, 4, 3))
    os.rename(path, tmp_path / "array")
    with open_source(str(tmp_path / "array")) as source:
        assert source.description.endswith("array: 2 pictures of 5x4, RGB, uint8")


def test_no_pictures_are_no_trouble(tmp_path: Path) -> None:
    source = opened(tmp_path, noise(0, 5, 4, 3))
    assert (list(source.items()), source.count_hint()) == ([], 0)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((6,), {}, r"has the shape \(6,\); pictures are"),
        ((6, 5, 4, 3, 1), {}, "pictures are"),
        ((6, 60), {}, "rows of 60 numbers: say --height, --width and --channels"),
        ((6, 60), {"height": 5, "width": 4}, "say --height, --width and --channels"),
        ((6, 60), {"height": 5, "width": 5, "channels": 3}, "60 numbers, .* are 75"),
        ((6, 40), {"height": 5, "width": 4, "channels": 2}, "2 channels, not 1, 3 or 4"),
        ((6, 3, 5, 4 + 3), {}, "7 channels, not 1, 3 or 4; channels come last, move axis 1"),
        ((6, 5, 4, 3), {"height": 4}, "differs from --height, --width and --channels"),
        ((6, 0, 4, 3), {}, "of no pixels"),
    ],
)
def test_shapes_that_are_no_pictures_are_refused(
    tmp_path: Path, shape: tuple[int, ...], options: dict[str, int], message: str
) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        opened(tmp_path, np.zeros(shape, np.uint8), **options)
    assert (caught.value.exit_code, "\n" in str(caught.value)) == (2, False)


# Numbers


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("values", ["unit", "byte"])
def test_floats_are_scaled_as_stated(
    tmp_path: Path, dtype: Any, values: Literal["unit", "byte"]
) -> None:
    bytes_ = noise(6, 5, 4, 3)
    array = (bytes_ / 255 if values == "unit" else bytes_).astype(dtype)
    assert np.array_equal(pictures(opened(tmp_path, array, values=values)), bytes_)


def test_what_lies_between_is_rounded_to_nearest(tmp_path: Path) -> None:
    array = np.random.default_rng(1).random((4, 5, 6, 3))
    found = pictures(opened(tmp_path, array, values="unit"))
    assert np.abs(found - array * 255).max() <= 0.5


def test_whole_numbers_are_taken_too(tmp_path: Path) -> None:
    array = noise(6, 5, 4, 3)
    assert np.array_equal(pictures(opened(tmp_path, array.astype(np.int64), values="byte")), array)


@pytest.mark.parametrize(
    ("values", "bad"),
    [
        ("unit", 1.001),
        ("unit", -0.001),
        ("byte", 255.1),
        ("byte", -1),
        ("unit", np.nan),
        ("byte", np.inf),
    ],
)
def test_a_value_outside_is_a_failure_of_its_row_alone(
    tmp_path: Path, values: str, bad: float
) -> None:
    array = np.full((3, 5, 4, 3), 0.5, np.float32)
    array[1, 2, 3, 1] = bad
    source = opened(tmp_path, array, values=values)
    assert len(list(source.items())) == 3
    with pytest.raises(BadPixels, match=r"range: values from .* outside of 0 to") as caught:
        source.pixels(1)
    assert caught.value.failure_class == "range"
    assert source.pixels(0).shape == source.pixels(2).shape == (5, 4, 3)


@pytest.mark.parametrize(
    ("dtype", "values", "message"),
    [
        ("f4", None, "holds float32: say --values unit where white is 1, or --values byte"),
        ("i8", None, "holds int64: say --values"),
        ("u1", "unit", "is uint8, whose white is 255: leave out --values unit"),
        ("c8", "unit", "complex64, which are no pixels"),
        ("U3", "byte", "which are no pixels"),
        ("M8[s]", "byte", "which are no pixels"),
    ],
)
def test_numbers_whose_white_is_unknown_are_refused(
    tmp_path: Path, dtype: str, values: str | None, message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        opened(tmp_path, np.zeros((2, 5, 4, 3), dtype), values=values)


# Labels


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.array([3, 1, 3]), ["3", "1", "3"]),
        (np.array([[3], [1], [3]], np.uint8), ["3", "1", "3"]),
        (np.array([3.0, 1.5, 3.0]), ["3", "1.5", "3"]),
        (np.array(["cat", "", "été"]), ["cat", None, "été"]),
        (np.array([b"cat", b"", b"\xff"]), ["cat", None, "\\xff"]),
        (np.array([True, False, True]), ["True", "False", "True"]),
    ],
)
def test_labels_are_told_as_text(tmp_path: Path, labels: Array, expected: list[str | None]) -> None:
    path = save(tmp_path, labels, "y.npy")
    source = opened(tmp_path, noise(3, 5, 4, 3), labels=path)
    assert [item.label for item in source.items() if isinstance(item, Item)] == expected


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(4), r"shape \(4,\); 3 pictures need \(3,\)"),
        (np.zeros((3, 10)), r"shape \(3, 10\)"),
        (np.zeros(3, complex), "labels are numbers or text"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: Array, message: str) -> None:
    path = save(tmp_path, labels, "y.npy")
    with pytest.raises(SourceError, match=message):
        opened(tmp_path, noise(3, 5, 4, 3), labels=path)


# Files


def test_python_objects_are_never_loaded(tmp_path: Path) -> None:
    path = str(tmp_path / "x.npy")
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(SourceError, match="holds Python objects, which are never loaded"):
        open_source(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "bytes instead of .*: damaged, or still being written"),
        (lambda data: data + b"x", "bytes instead of"),
        (lambda data: b"no" + data, "is no npy file"),
        (lambda data: b"", "is no npy file"),
        (lambda data: data[:20], "is no npy file"),
        (lambda data: data[:6] + b"\x09\x00" + data[8:], r"version \(9, 0\) is not known"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = Path(save(tmp_path, noise(3, 5, 4, 3)))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(SourceError, match=message) as caught:
        open_source(str(path))
    assert "\n" not in str(caught.value)


def test_a_path_of_odd_bytes_is_opened(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.npy"
    os.rename(save(tmp_path, noise(3, 5, 4, 3)), path)
    with open_source(os.fsdecode(path)) as source:
        assert "caf\\xe9.npy" in source.description


def test_identity_tells_another_array_from_the_same(tmp_path: Path) -> None:
    path, labels = save(tmp_path, noise(3, 5, 4, 3)), save(tmp_path, np.arange(3), "y.npy")
    first = open_source(path).identity
    assert json.loads(json.dumps(first)) == first == open_source(path).identity
    assert open_source(path, SourceOptions(labels=labels)).identity != first
    os.utime(path, ns=(1, 1))
    assert open_source(path).identity != first


def test_parts_together_are_the_whole(tmp_path: Path) -> None:
    labels = save(tmp_path, np.arange(300), "y.npy")
    source = opened(tmp_path, noise(300, 2, 2, 3), labels=labels)
    whole = [item for item in source.items() if isinstance(item, Item)]
    parts = [list(source.items(Shard(i, 3))) for i in (1, 2, 3)]
    assert sorted(item.row or 0 for part in parts for item in part if isinstance(item, Item)) == [
        item.row for item in whole
    ]
    assert all(part == [item for item in whole if item in part] for part in parts)


def test_threads_read_the_same_pictures(tmp_path: Path) -> None:
    array = noise(400, 8, 8, 3)
    source = opened(tmp_path, array)
    found: list[list[Array]] = [[] for _ in range(4)]

    def read(box: list[Array]) -> None:
        box.extend(source.pixels(row) for row in range(400))

    threads = [threading.Thread(target=read, args=(box,)) for box in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(np.stack(box), array) for box in found)


@pytest.mark.skipif(sys.platform != "linux", reason="tells resident memory as Linux does")
def test_an_array_is_read_in_constant_memory(tmp_path: Path) -> None:
    path = str(tmp_path / "x.npy")
    np.lib.format.open_memmap(path, "w+", np.uint8, (4000, 224, 224, 3))  # 600 MB of holes
    program = (
        "import resource, sys\n"
        "from storage.sources.opening import open_source\n"
        "source = open_source(sys.argv[1])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "n = sum(source.pixels(item.row).shape[0] for item in source.items())\n"
        "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    n, grown = map(int, done.stdout.split())
    assert (n, grown < 100 * 1024) == (4000 * 224, True), grown
