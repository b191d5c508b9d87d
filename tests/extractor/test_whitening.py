"""Whitening held against plain numpy, and in a network against the same done afterwards."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from extractor import whitening
from extractor.engine import Engine
from extractor.errors import WhiteningError
from extractor.models import ModelRequest, ModelSpec, open_model, request_key
from extractor.preprocess import Preprocess
from extractor.whitening import Moments, Whitening

TINY = {"model": "shufflenet_v2_x0_5", "weights": "random:0"}


def correlated(n: int, d: int, *, rank: int | None = None, seed: int = 0) -> np.ndarray:
    """Return unit vectors whose numbers correlate, shape ``(n, d)``, float32."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((n, rank or d)) @ rng.standard_normal((rank or d, d))
    x = mixed + (3 * rng.standard_normal(d) if rank is None else 0)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def learnt(x: np.ndarray, dim: int, stored: str = "float32") -> Whitening:
    moments = Moments(x.shape[1])
    for start in range(0, len(x), 97):
        moments.add(x[start : start + 97])
    return moments.whitening(dim, stored)


def saved(found: Whitening, folder: Path) -> str:
    path = folder / "white.npz"
    path.write_bytes(found.to_bytes())
    return str(path)


def test_moments_of_blocks_are_those_of_the_whole():
    x = correlated(500, 12) + np.float32(100)  # far from zero, where a sum of squares loses digits
    moments = Moments(12)
    for start, end in ((0, 1), (1, 1), (1, 300), (300, 500)):
        moments.add(x[start:end])
    assert moments.n == 500
    np.testing.assert_allclose(moments.mean, x.astype(np.float64).mean(axis=0), rtol=1e-12)
    due = np.cov(x.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(moments.covariance, due, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("dim", [12, 5, 1])
def test_the_whitened_sample_has_covariance_one(dim):
    x = correlated(500, 12)
    out = learnt(x, dim).project(x)
    assert out.shape == (500, dim)
    np.testing.assert_allclose(np.cov(out, rowvar=False).reshape(dim, dim), np.eye(dim), atol=1e-9)
    np.testing.assert_allclose(out.mean(axis=0), 0, atol=1e-9)


def test_the_directions_are_the_strongest_of_a_singular_value_decomposition():
    x = correlated(500, 12)
    found = learnt(x, 5)
    centred = x.astype(np.float64) - x.astype(np.float64).mean(axis=0)
    u, _, vt = np.linalg.svd(centred, full_matrices=False)
    due = u[:, :5] * np.sqrt(499)
    out = found.project(x)
    signs = np.sign((out * due).sum(axis=0))
    np.testing.assert_allclose(out, due * signs, atol=1e-9)
    cosines = np.einsum("kd,kd->k", found.projection, vt[:5])
    np.testing.assert_allclose(abs(cosines), np.linalg.norm(found.projection, axis=1), rtol=1e-9)
    largest = abs(found.projection).argmax(axis=1)
    assert (found.projection[np.arange(5), largest] > 0).all()


def test_transformed_vectors_have_unit_length_and_the_mean_has_no_direction():
    x = correlated(300, 8)
    found = learnt(x, 8)
    out = found.transform(x)
    assert out.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, atol=1e-6)
    raw = found.project(x)
    np.testing.assert_allclose(out, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-6)
    both = np.stack([found.mean, x[0].astype(np.float64)])
    lost = found.transform(both)
    assert np.isnan(lost[0]).all()
    assert np.isfinite(lost[1]).all()


def test_too_few_vectors_and_too_many_dimensions_are_refused_with_both_numbers():
    with pytest.raises(WhiteningError, match=r"^8 vectors are too few .* 8 dimensions.*below 8"):
        learnt(correlated(8, 12), 8)
    learnt(correlated(9, 12), 8)
    low = correlated(200, 12, rank=6)
    with pytest.raises(WhiteningError, match=r"^200 vectors span 6 dimensions, and 7 are asked"):
        learnt(low, 7)
    assert learnt(low, 6).dims == (12, 6)
    with pytest.raises(WhiteningError, match=r"span 0 dimensions.*all the same"):
        learnt(np.repeat(low[:1], 20, axis=0), 1)


def test_the_rounding_of_float16_is_no_dimension():
    low = correlated(400, 32, rank=6).astype(np.float16)
    with pytest.raises(WhiteningError, match="span 6 dimensions, and 7 are asked"):
        learnt(low, 7, "float16")


def test_a_file_is_read_back_and_equal_ones_have_equal_bytes(tmp_path):
    found = learnt(correlated(300, 8), 4)
    path = saved(found, tmp_path)
    assert found.to_bytes() == deepcopy(found).to_bytes()
    back = whitening.read(path)
    assert (back.digest, back.n, back.dims) == (whitening.digest(path), 300, (8, 4))
    np.testing.assert_array_equal(back.mean, found.mean)
    np.testing.assert_array_equal(back.projection, found.projection)


@pytest.mark.parametrize("what", ["missing", "cut", "text", "empty", "shape", "pickle", "folder"])
def test_what_is_no_whitening_is_told_in_one_line(tmp_path, what):
    found = learnt(correlated(300, 8), 4)
    path = tmp_path / "white.npz"
    if what == "folder":
        path.mkdir()
    elif what == "shape":
        path.write_bytes(Whitening(found.mean[:3], found.projection, 300).to_bytes())
    elif what == "pickle":
        np.savez(path, mean=np.array([{}], object), projection=found.projection, n=np.int64(1))
    elif what != "missing":
        data = found.to_bytes()
        path.write_bytes({"cut": data[:200], "text": b"no zip", "empty": b""}[what])
    with pytest.raises(WhiteningError, match=r"white\.npz") as caught:
        whitening.read(str(path))
    assert "\n" not in str(caught.value)


def test_a_module_whitens_what_another_gives():
    x = correlated(300, 8)
    found = learnt(x, 4)
    module = deepcopy(whitening.apply(nn.Identity(), found))
    features = torch.from_numpy(x) * torch.linspace(0.01, 50, 300)[:, None]
    features[7] = 0
    with torch.autocast("cpu", torch.bfloat16):
        out = module.to(memory_format=torch.channels_last)(features)
    assert out.dtype == torch.float64
    assert not out[7].any()
    keep = np.arange(300) != 7
    np.testing.assert_allclose(out.numpy()[keep], found.project(x)[keep], atol=1e-4)


@pytest.fixture(scope="module")
def usual():
    return open_model(ModelRequest(**TINY))


def test_a_forward_pass_gives_what_whitening_its_vectors_gives(tmp_path, usual):
    pixels = np.random.default_rng(1).integers(0, 256, (40, 3, 224, 224), np.uint8)
    pixels[::2] //= 4
    plain = Engine(usual, device="cpu").forward(pixels)
    path = saved(learnt(plain, 16), tmp_path)
    model = open_model(ModelRequest(**TINY, whitening=path))
    assert model.spec.to_json() == {
        **usual.spec.to_json(),
        "dim": 16,
        "whitening": whitening.digest(path),
    }
    assert (model.layer_name, model.preprocess) == (usual.layer_name, usual.preprocess)
    out = Engine(model, device="cpu").forward(pixels)
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(out, whitening.read(path).transform(plain), rtol=0, atol=1e-5)


def test_a_whitening_for_other_vectors_and_for_several_layers_is_refused(tmp_path):
    path = saved(learnt(correlated(300, 8), 4), tmp_path)
    request = ModelRequest(**TINY, whitening=path)
    with pytest.raises(WhiteningError, match=r"for vectors of 8 numbers.*'mean' gives 1,024"):
        open_model(request)
    with pytest.raises(WhiteningError, match="one layer, and 2 are asked for"):
        open_model(request, layers=["mean", "fc"])
    with pytest.raises(WhiteningError, match="missing"):
        open_model(ModelRequest(**TINY, whitening=str(tmp_path / "gone.npz")))


def test_requests_and_recipes_without_whitening_are_what_they_were(usual):
    request = ModelRequest(**TINY)
    assert "whitening" not in request.to_json()
    assert "whitening" not in request_key(request)
    assert "whitening" not in usual.spec.to_json()
    asked = ModelRequest(**TINY, whitening="/home/w.npz")
    assert ModelRequest(**asked.to_json()) == asked
    assert request_key(asked) != request_key(request)
    preprocess = Preprocess(
        resize=4, crop=4, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1)
    )
    spec = ModelSpec("a", "d", "n", "none", relu=False, preprocess=preprocess, dim=2)
    assert spec.to_json().keys() == {
        *("architecture", "weights_digest", "node", "pooling", "relu", "normalize"),
        *("preprocess", "decode_version", "dim"),
    }
