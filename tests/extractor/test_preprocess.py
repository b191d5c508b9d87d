"""Resizing and cropping equal torchvision's preset, bit for bit."""

import json

import numpy as np
import pytest
from PIL import Image

from extractor.preprocess import Preprocess, pixels

SIZES = [(1, 1), (7, 5), (224, 224), (255, 257), (256, 256), (300, 200), (201, 333), (640, 479)]
FILTERS = ["nearest", "bilinear", "bicubic", "lanczos"]


def noise(width, height, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def preset(image, p):
    """What torchvision's own functions make of the picture, in uint8."""
    from torchvision.transforms import InterpolationMode, functional

    resize = [p.resize] if isinstance(p.resize, int) else list(p.resize)
    image = functional.resize(image, resize, interpolation=InterpolationMode(p.interpolation))
    crop = [p.crop] if isinstance(p.crop, int) else list(p.crop)
    return functional.pil_to_tensor(functional.center_crop(image, crop)).numpy()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", FILTERS)
def test_equals_torchvision(size, interpolation):
    image = noise(*size)
    for resize, crop in ((256, 224), (232, 224), (224, 224), (64, 97), (35, (40, 21))):
        p = Preprocess(resize, crop, interpolation)
        got = pixels(image, p)
        assert got.dtype == np.uint8
        assert got.flags.c_contiguous
        assert got.shape == (3, *p.crop_size)
        np.testing.assert_array_equal(got, preset(image, p))


def test_equals_torchvision_for_a_fixed_size():
    p = Preprocess(resize=(91, 64), crop=(80, 70))
    image = noise(123, 77)
    np.testing.assert_array_equal(pixels(image, p), preset(image, p))
    assert p.target == 91


def test_the_whole_preset_follows_from_the_pixels_mean_and_std():
    import torch
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    image = noise(321, 234)
    p = Preprocess(resize=236, crop=224, interpolation="bicubic")
    theirs = ImageClassification(
        crop_size=224, resize_size=236, interpolation=InterpolationMode.BICUBIC
    )(image)
    mean, std = (torch.tensor(v)[:, None, None] for v in (p.mean, p.std))
    ours = (torch.from_numpy(pixels(image, p)) / 255 - mean) / std
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(1000, 1), (1, 1000), (2999, 3)])
def test_a_thin_strip_is_not_blown_up_and_still_looks_the_same(size):
    image = noise(*size)
    p = Preprocess(resize=256, crop=224)
    theirs = preset(image, p).astype(int)
    ours = pixels(image, p).astype(int)
    assert np.abs(ours - theirs).max() <= 2


def test_a_thin_strip_with_a_crop_beyond_its_shorter_side_is_padded():
    image = Image.new("RGB", (1000, 1), (10, 20, 30))
    got = pixels(image, Preprocess(resize=256, crop=300))
    assert (got[:, :22] == 0).all()
    assert (got[:, 278:] == 0).all()
    assert (got[:, 22:278] == np.array([10, 20, 30])[:, None, None]).all()


def test_refuses_a_picture_that_is_not_rgb():
    with pytest.raises(ValueError, match="mode L"):
        pixels(Image.new("L", (9, 9)), Preprocess())


@pytest.mark.parametrize(
    "p", [Preprocess(), Preprocess((40, 30), (20, 10), "lanczos", (0, 0, 0), (1, 1, 1))]
)
def test_json_both_ways(p):
    assert Preprocess.from_json(json.loads(json.dumps(p.to_json()))) == p


@pytest.mark.parametrize(
    "wrong",
    [
        {"resize": 0},
        {"crop": (10, -1)},
        {"resize": (1, 2, 3)},
        {"interpolation": "box"},
        {"mean": (0.5, 0.5)},
        {"std": (0.0, 1.0, 1.0)},
    ],
)
def test_refuses_values_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Preprocess(**wrong)
