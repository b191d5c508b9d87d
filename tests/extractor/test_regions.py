import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.ops import batched_nms, roi_align
from torchvision.transforms.v2.functional import pil_to_tensor

from extractor import regions
from extractor.decode import decode
from extractor.loader import Source
from extractor.reading import Failure
from extractor.region_inputs import Prepared, prepare
from extractor.regions import Detected, RegionEngine, Regions
from tests.extractor.detectors import photo, plain_network, plain_regions, small_detector
from tests.extractor.pictures import saved, with_orientation

SIZES = ((120, 90), (90, 120), (200, 60), (64, 64), (121, 90))


@pytest.fixture(scope="module")
def engine() -> RegionEngine:
    return RegionEngine(small_detector(), "cpu")


def detect(sources: list[Source], *, engine: RegionEngine, **other: Any) -> Iterator[Detected]:
    return regions.detect(sources, transform=engine.transform, engine=lambda: engine, **other)


def written(folder: Path, pictures: dict[str, bytes]) -> list[Source]:
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    return [Source(i, os.fsencode(folder / name)) for i, name in enumerate(pictures)]


def regions_of(found: list[Detected]) -> dict[int, Regions]:
    return {one.key: one.regions for one in found if one.regions is not None}


def assert_same(one: Regions, other: Regions) -> None:
    assert one.image_size == other.image_size
    for name in ("features", "boxes", "classes", "scores"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def as_tensor(data: bytes) -> torch.Tensor:
    return pil_to_tensor(decode(data)).contiguous().float() / 255


@pytest.fixture(scope="module")
def examples(
    tmp_path_factory: pytest.TempPathFactory, engine: RegionEngine
) -> list[tuple[torch.Tensor, Regions]]:
    """Pictures as torchvision takes them, and what was found in their files."""
    pictures = {f"{i}.png": saved(photo(i, size), "PNG") for i, size in enumerate(SIZES)}
    sources = written(tmp_path_factory.mktemp("examples"), pictures)
    found = regions_of(list(detect(sources, engine=engine)))
    return [(as_tensor(data), found[key]) for key, data in enumerate(pictures.values())]


def test_regions_are_those_of_a_plain_use_of_the_network(
    examples: list[tuple[torch.Tensor, Regions]],
) -> None:
    network = small_detector().network
    for image, mine in examples:
        plain = plain_regions(network, image)
        assert len(mine.boxes) > 3
        for name, theirs in {"boxes": "boxes", "classes": "labels", "scores": "scores"}.items():
            np.testing.assert_array_equal(getattr(mine, name), plain[theirs])
        # The boxes went to the original picture and back, which rounds.
        np.testing.assert_allclose(mine.features, plain["features"], atol=1e-4)
        assert mine.features.std(axis=0).max() > 1
        assert mine.image_size == (image.shape[2], image.shape[1])


def test_regions_are_those_of_the_network_that_torchvision_builds(
    examples: list[tuple[torch.Tensor, Regions]],
) -> None:
    """Its batch norms are of another class there, and round in another way."""
    network = plain_network(small_detector())
    for image, mine in examples:
        plain = plain_regions(network, image)
        np.testing.assert_array_equal(mine.classes, plain["labels"])
        np.testing.assert_allclose(mine.boxes, plain["boxes"], atol=0.05)
        np.testing.assert_allclose(mine.scores, plain["scores"], atol=1e-3)
        np.testing.assert_allclose(mine.features, plain["features"], atol=0.05)


def test_a_box_holds_in_the_picture_what_the_network_saw_in_it(
    examples: list[tuple[torch.Tensor, Regions]],
) -> None:
    """Cut out of the original picture, and by RoIAlign out of what the network was given."""
    network = small_detector().network
    checked = 0
    for image, mine in examples:
        with torch.inference_mode():
            images, _ = network.transform([image])
            seen, _ = network.roi_heads(
                maps := network.backbone(images.tensors),
                network.rpn(images, maps)[0],
                images.image_sizes,
            )
            cuts = roi_align(images.tensors, [seen[0]["boxes"]], 16, aligned=True).numpy()
        picture = Image.fromarray((image.permute(1, 2, 0).numpy() * 255).astype(np.uint8))
        for box, cut in zip(mine.boxes.tolist(), cuts, strict=True):
            if box[2] - box[0] < 20 or box[3] - box[1] < 20:
                continue
            same = np.asarray(picture.resize((16, 16), Image.Resampling.BILINEAR, box=tuple(box)))
            for band in range(3):
                assert np.corrcoef(same[:, :, band].ravel(), cut[band].ravel())[0, 1] > 0.97
            checked += 1
    assert checked > 10


def test_shapes_types_and_order(tmp_path: Path, engine: RegionEngine) -> None:
    sources = written(tmp_path, {"a.png": saved(photo(1, (120, 90)), "PNG")})
    (mine,) = regions_of(list(detect(sources, engine=engine))).values()
    n = len(mine.boxes)
    assert 0 < n <= engine.spec.num_boxes
    assert (mine.features.dtype, mine.features.shape) == (np.float32, (n, engine.spec.dim))
    assert (mine.boxes.dtype, mine.classes.dtype) == (np.float32, np.int64)
    assert (np.diff(mine.scores) <= 0).all()
    assert mine.scores.min() > engine.spec.min_score
    assert mine.classes.min() >= 1
    left, top, right, bottom = mine.boxes.T
    assert np.all((left >= 0) & (left < right) & (right <= 120 + 1e-3))
    assert np.all((top >= 0) & (top < bottom) & (bottom <= 90 + 1e-3))


def test_no_two_of_a_class_overlap_by_more_than_asked(tmp_path: Path) -> None:
    sources = written(tmp_path, {"a.png": saved(photo(2, (120, 90)), "PNG")})
    counts = []
    for nms in (0.2, 0.9):
        engine = RegionEngine(small_detector(nms=nms, num_boxes=1000), "cpu")
        (mine,) = regions_of(list(detect(sources, engine=engine))).values()
        arrays = (torch.from_numpy(a) for a in (mine.boxes, mine.scores, mine.classes))
        assert len(batched_nms(*arrays, nms)) == len(mine.boxes)
        counts.append(len(mine.boxes))
    assert counts[0] < counts[1]


def test_the_features_are_those_of_the_final_boxes(tmp_path: Path, engine: RegionEngine) -> None:
    """Not those of the proposals, which the predictor has moved."""
    data = saved(photo(3, (120, 90)), "PNG")
    (mine,) = regions_of(list(detect(written(tmp_path, {"a.png": data}), engine=engine))).values()
    network = plain_network(small_detector())
    with torch.inference_mode():
        images, _ = network.transform([as_tensor(data)])
        maps = network.backbone(images.tensors)
        proposals, _ = network.rpn(images, maps)
        heads = network.roi_heads
        before = heads.box_head(heads.box_roi_pool(maps, proposals, images.image_sizes)).numpy()
    nearest = np.abs(mine.features[:, None] - before[None]).max(axis=-1).min(axis=1)
    assert (nearest > 1e-2).mean() > 0.5


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_neighbours_do_not_matter(tmp_path: Path, batch_size: int) -> None:
    pictures = {f"{i}.png": saved(photo(i, SIZES[i % 5]), "PNG") for i in range(11)}
    sources = written(tmp_path, pictures)
    engine = RegionEngine(small_detector(), "cpu", batch_size)
    together = regions_of(list(detect(sources, engine=engine)))
    assert sorted(together) == list(range(11))
    alone = RegionEngine(small_detector(), "cpu", 1)
    for source in sources:
        (mine,) = regions_of(list(detect([source], engine=alone))).values()
        if batch_size == 1:
            assert_same(together[source.key], mine)
        else:
            np.testing.assert_allclose(together[source.key].boxes, mine.boxes, atol=0.05)
            np.testing.assert_allclose(together[source.key].features, mine.features, atol=0.05)


def test_a_narrow_strip_first_changes_nothing_for_what_follows(tmp_path: Path) -> None:
    pictures = {
        "strip.png": saved(photo(1, (900, 5)), "PNG"),
        "photo.png": saved(photo(2, (120, 90)), "PNG"),
    }
    sources = written(tmp_path, pictures)
    after = regions_of(list(detect(sources, engine=RegionEngine(small_detector(), "cpu"))))
    first = regions_of(list(detect(sources[1:], engine=RegionEngine(small_detector(), "cpu"))))
    assert_same(after[1], first[1])


def test_a_bad_picture_is_a_failure_and_the_others_keep_their_regions(
    tmp_path: Path, engine: RegionEngine
) -> None:
    good = saved(photo(4, (120, 90)), "PNG")
    pictures = {
        "a.png": good,
        "b.png": good[: len(good) // 2],
        "c.txt": b"no picture",
        "d.png": good,
    }
    sources = [*written(tmp_path, pictures), Source(4, os.fsencode(tmp_path / "gone.png"))]
    found = {one.key: one for one in detect(sources, engine=engine)}
    assert found[0].regions is not None
    assert found[3].regions is not None
    assert_same(found[0].regions, found[3].regions)
    failures = {key: one.failure for key, one in found.items() if one.failure is not None}
    assert {key: (one.stage, one.failure_class) for key, one in failures.items()} == {
        1: ("decode", "truncated"),
        2: ("decode", "unsupported"),
        4: ("read", "vanished"),
    }


def test_boxes_are_in_pixels_of_the_upright_picture(tmp_path: Path, engine: RegionEngine) -> None:
    upright = photo(5, (160, 96))
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = with_orientation(6)
    pictures = {
        "upright.png": saved(upright, "PNG"),
        "turned.png": saved(turned, "PNG", exif=exif),
    }
    found = regions_of(list(detect(written(tmp_path, pictures), engine=engine)))
    assert found[1].image_size == (160, 96)
    assert_same(found[0], found[1])


def test_an_array_gives_what_its_file_gives(tmp_path: Path, engine: RegionEngine) -> None:
    picture = photo(7, (120, 90))
    file = written(tmp_path, {"a.png": saved(picture, "PNG")})
    array: NDArray[np.uint8] = np.asarray(picture)
    row = Source(0, b"", picture=lambda: array)
    found = [regions_of(list(detect(one, engine=engine)))[0] for one in (file, [row])]
    assert_same(found[0], found[1])


def test_what_is_not_wanted_is_not_decoded(tmp_path: Path, engine: RegionEngine) -> None:
    sources = written(tmp_path, {"a.png": saved(photo(8, (60, 60)), "PNG"), "b.txt": b"no picture"})
    asked = []

    def wants(key: int, digest: bytes) -> bool:
        asked.append((key, len(digest)))
        return False

    found = list(detect(sources, engine=engine, wants=wants))
    assert [one.key for one in found] == [0, 1]
    assert all(one.regions is None and one.failure is None for one in found)
    assert sorted(asked) == [(0, 32), (1, 32)]


def test_no_region_above_the_score(tmp_path: Path) -> None:
    engine = RegionEngine(small_detector(min_score=0.999), "cpu", 2)
    pictures = {f"{i}.png": saved(photo(i, (120, 90)), "PNG") for i in range(2)}
    found = regions_of(list(detect(written(tmp_path, pictures), engine=engine)))
    assert len(found) == 2
    for mine in found.values():
        assert mine.features.shape == (0, engine.spec.dim)
        assert mine.boxes.shape == (0, 4)


def test_a_stop_ends_it(tmp_path: Path, engine: RegionEngine, no_thread_left: None) -> None:
    stop = threading.Event()
    pictures = {f"{i}.png": saved(photo(i, (60, 60)), "PNG") for i in range(9)}
    found = []
    for one in detect(written(tmp_path, pictures), engine=engine, stop=stop):
        found.append(one)
        stop.set()
    assert len(found) == 1


def test_pictures_are_scaled_as_torchvision_does_it(tmp_path: Path, engine: RegionEngine) -> None:
    pictures = {f"{i}.jpg": saved(photo(i, size), "JPEG") for i, size in enumerate(SIZES)}
    prepared = prepare(
        written(tmp_path, pictures),
        transform=engine.transform,
        wants=lambda _key, _digest: True,
        workers=2,
        stop=threading.Event(),
    )
    for mine, data in zip(prepared, pictures.values(), strict=True):
        images, _ = engine.transform([as_tensor(data)])
        height, width = images.image_sizes[0]
        assert mine.pixels is not None
        np.testing.assert_array_equal(mine.pixels, images.tensors[0, :, :height, :width])


def test_a_large_picture_is_scaled_by_channels_to_nearly_the_same(
    tmp_path: Path, engine: RegionEngine
) -> None:
    data = saved(photo(1, (5000, 3300)), "PNG")
    (mine,) = prepare(
        written(tmp_path, {"a.png": data}),
        transform=engine.transform,
        wants=lambda _key, _digest: True,
        workers=1,
        stop=threading.Event(),
    )
    images, _ = engine.transform([as_tensor(data)])
    height, width = images.image_sizes[0]
    theirs = images.tensors[0, :, :height, :width].numpy()
    assert mine.pixels is not None
    ours = mine.pixels.numpy()
    assert ours.std() > 0.5
    assert np.median(np.abs(ours - theirs)) < 1e-4
    assert np.mean(np.abs(ours - theirs) < 0.1 / 255 / 0.225) > 0.99


class Fussy(torch.nn.Module):
    """A backbone that refuses what is bright, and batches of more than it has memory for."""

    def __init__(self, inner: torch.nn.Module, most: int) -> None:
        super().__init__()
        self.inner = inner
        self.most = most
        self.out_channels = inner.out_channels

    def forward(self, pixels: torch.Tensor) -> object:
        if len(pixels) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        if float(pixels.mean()) > 1.5:
            raise RuntimeError("too bright")
        return self.inner(pixels)


def test_memory_halves_the_batch_and_one_picture_fails_alone(tmp_path: Path) -> None:
    detector = small_detector()
    engine = RegionEngine(detector, "cpu", 4)
    before = {f"{i}.png": saved(photo(i, (120, 90)), "PNG") for i in range(4)}
    white = saved(Image.new("RGB", (120, 90), (255, 255, 255)), "PNG")
    sources = written(tmp_path, {**before, "white.png": white})
    detector.network.backbone = Fussy(detector.network.backbone, most=2)
    found = {one.key: one for one in detect(sources, engine=engine)}
    assert engine.batch_size == 2
    assert sorted(regions_of(list(found.values()))) == [0, 1, 2, 3]
    assert found[4].failure == Failure("forward", "error", "RuntimeError: too bright", False)


def test_a_network_that_always_fails_is_no_picture_s_fault() -> None:
    detector = small_detector()
    engine = RegionEngine(detector, "cpu")
    detector.network.backbone = Fussy(detector.network.backbone, most=0)
    short = engine.run([Prepared(0, None, None, torch.zeros(3, 96, 96), (96, 96))])
    assert isinstance(short[0], Failure)
    assert short[0].transient
    detector.network.backbone.most = 9
    bright = torch.full((3, 256, 256), 2.0)
    detector.network.rpn = None
    with pytest.raises(TypeError):
        engine.run([Prepared(0, None, None, bright * 0, (256, 256))])


class Broken(torch.nn.Module):
    """A box head whose second pass, that for the final boxes, gives no numbers."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.calls = 0

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        out: torch.Tensor = self.inner(pooled)
        return out if self.calls % 2 else out * float("nan")


def test_features_that_are_no_numbers_are_a_failure(tmp_path: Path) -> None:
    detector = small_detector()
    sources = written(tmp_path, {"a.png": saved(photo(1, (90, 90)), "PNG")})
    engine = RegionEngine(detector, "cpu")
    assert next(detect(sources, engine=engine)).regions is not None
    detector.network.roi_heads.box_head = Broken(detector.network.roi_heads.box_head)
    (one,) = detect(sources, engine=engine)
    assert one.failure is not None
    assert one.failure.failure_class == "nan"


def test_a_large_picture_takes_bounded_memory(tmp_path: Path) -> None:
    """60 megapixels, in a process of its own: torchvision's own way holds 2 GB of floats."""
    import subprocess
    import sys

    out = io.BytesIO()
    Image.new("RGB", (10_000, 6_000), (90, 120, 60)).save(out, "PNG")
    written(tmp_path, {"large.png": out.getvalue()})
    code = f"""
import resource
from extractor.loader import Source
from extractor.regions import RegionEngine
from tests.extractor.detectors import small_detector
from tests.extractor.test_regions import detect
engine = RegionEngine(small_detector(), "cpu")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sources = [Source(i, {os.fsencode(tmp_path / "large.png")!r}) for i in range(3)]
assert [one.failure for one in detect(sources, engine=engine, workers=3)] == [None] * 3
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1_100_000, done.stdout
