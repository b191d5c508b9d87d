import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import get_model
from torchvision.transforms import functional as vision

from extractor import weights
from extractor.device import choose_device, first_line, is_memory
from extractor.engine import Engine
from extractor.errors import DeviceError
from extractor.models import Model, ModelRequest, open_model
from extractor.unit import normalise
from tests.extractor.small import DIM, PREPROCESS, random_pixels, small_engine, small_model


class Picky(nn.Module):
    """The small network, which raises what ``trouble`` returns for a batch, if anything."""

    def __init__(self, trouble: Callable[[torch.Tensor], Exception | None]) -> None:
        super().__init__()
        self.inner = small_model().module
        self.trouble = trouble
        self.sizes: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        error = self.trouble(x)
        try:
            if error is not None:
                raise error
        finally:
            del error  # else it would hold this frame, and the frame it, until a collection
        out: torch.Tensor = self.inner(x)
        return out


def white(x: torch.Tensor) -> torch.Tensor:
    """Which pictures of a normalised batch are all white."""
    top = (1 - torch.tensor(PREPROCESS.mean)) / torch.tensor(PREPROCESS.std)
    return (x > top.view(1, 3, 1, 1) - 1e-3).all(dim=(1, 2, 3))


def test_vectors_are_unit_length_and_those_of_the_preset() -> None:
    model = small_model()
    pixels = random_pixels(5)
    found = Engine(model, "cpu").forward(pixels)
    x = vision.normalize(torch.from_numpy(pixels) / 255, PREPROCESS.mean, PREPROCESS.std)
    with torch.inference_mode():
        plain = nn.functional.normalize(model.module(x)).numpy()
    assert found.shape == (5, DIM)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found, plain, atol=2e-6)


def test_any_number_of_pictures() -> None:
    engine = small_engine(batch_size=4)
    assert engine.forward(random_pixels(0)).shape == (0, DIM)
    pixels = random_pixels(11)
    one_by_one = np.concatenate([engine.forward(pixels[i : i + 1]) for i in range(11)])
    np.testing.assert_allclose(engine.forward(pixels), one_by_one, atol=1e-6)
    np.testing.assert_allclose(engine.forward(pixels[::-1])[::-1], one_by_one, atol=1e-6)


def test_batches_are_no_larger_than_asked() -> None:
    module = Picky(lambda _x: None)
    Engine(small_model(module), "cpu", batch_size=4).forward(random_pixels(11))
    assert module.sizes == [4, 4, 3]


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((1, 3, 16, 16), np.float32),
        np.zeros((3, 16, 16), np.uint8),
        np.zeros((1, 16, 16, 3), np.uint8),
        np.zeros((1, 3, 17, 16), np.uint8),
    ],
)
def test_other_pixels_are_refused(pixels: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=r"takes uint8 \(N, 3, 16, 16\)"):
        small_engine().forward(pixels)


def test_facts() -> None:
    facts = small_engine(batch_size=3).facts
    assert facts == {
        "device": "cpu",
        "engine": f"torch {torch.__version__}",
        "precision": "float32",
        "batch_size": 3,
    }
    assert small_engine().batch_size == 16


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("MPS backend out of memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_batch_and_goes_on(error: Exception) -> None:
    module = Picky(lambda x: error if len(x) > 3 else None)
    engine = Engine(small_model(module), "cpu", batch_size=16)
    pixels = random_pixels(20)
    done = engine.run(pixels)
    assert done.faults == {}
    np.testing.assert_allclose(done.vectors, small_engine().forward(pixels), atol=1e-6)
    assert engine.batch_size == 2
    assert module.sizes[:4] == [16, 8, 4, 2]
    module.sizes.clear()
    engine.run(pixels)
    assert set(module.sizes) == {2}  # it stays small
    assert engine.facts["batch_size"] == 2


def test_no_memory_even_for_one_picture_is_transient() -> None:
    module = Picky(lambda x: torch.OutOfMemoryError("no more") if white(x).any() else None)
    engine = Engine(small_model(module), "cpu", batch_size=4)
    pixels = random_pixels(6)
    pixels[2] = 255
    done = engine.run(pixels)
    assert list(done.faults) == [2]
    assert done.faults[2].stage == "forward"
    assert done.faults[2].failure_class == "memory"
    assert done.faults[2].transient
    assert "no more" in done.faults[2].message
    assert np.isnan(done.vectors[2]).all()
    good = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(done.vectors[good], small_engine().forward(pixels[good]), atol=1e-6)


def test_the_memory_of_a_failed_pass_is_free_before_the_next() -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def trouble(x: torch.Tensor) -> Exception | None:
        alive.append(sum(ref() is not None for ref in held))
        held.append(weakref.ref(x))
        return torch.OutOfMemoryError("full") if len(x) > 1 else None

    Engine(small_model(Picky(trouble)), "cpu", batch_size=8).forward(random_pixels(8))
    assert alive == [0] * len(alive)


def test_a_picture_that_breaks_the_network_is_alone_to_blame() -> None:
    module = Picky(lambda x: ValueError("white!\nmore") if white(x).any() else None)
    engine = Engine(small_model(module), "cpu", batch_size=8)
    pixels = random_pixels(10)
    pixels[[3, 9]] = 255
    done = engine.run(pixels)
    assert sorted(done.faults) == [3, 9]
    for failure in done.faults.values():
        assert failure.failure_class == "error"
        assert failure.message == "ValueError: white!"
        assert not failure.transient
    good = [i for i in range(10) if i not in done.faults]
    np.testing.assert_allclose(done.vectors[good], small_engine().forward(pixels[good]), atol=1e-6)
    assert engine.batch_size == 8


def test_a_network_that_never_works_is_no_picture_s_fault() -> None:
    engine = Engine(small_model(Picky(lambda _x: RuntimeError("device lost"))), "cpu")
    with pytest.raises(RuntimeError, match="device lost"):
        engine.forward(random_pixels(4))


def test_rows_without_a_direction_are_faults() -> None:
    raw = np.ones((5, 3), np.float32)
    raw[0] = 0
    raw[1, 2] = np.nan
    raw[2, 0] = np.inf
    raw[3] = [1e-30, 0, 0]
    raw[4] = [3e38, 3e38, 0]
    vectors, faults = normalise(raw)
    assert {i: f.failure_class for i, f in faults.items()} == {0: "zero", 1: "nan", 2: "nan"}
    assert not any(f.transient for f in faults.values())
    assert np.isnan(vectors[:3]).all()
    np.testing.assert_allclose(vectors[3], [1, 0, 0])
    np.testing.assert_allclose(vectors[4], [0.5**0.5, 0.5**0.5, 0], rtol=1e-6)


def test_a_black_picture_without_features_is_a_fault() -> None:
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.ReLU())
    engine = Engine(small_model(module, dim=3), "cpu")
    pixels = random_pixels(3)
    pixels[0], pixels[1], pixels[2] = 255, 0, 255
    done = engine.run(pixels)
    assert {i: f.failure_class for i, f in done.faults.items()} == {1: "zero"}
    np.testing.assert_allclose(np.linalg.norm(done.vectors[[0, 2]], axis=1), 1, atol=1e-6)


class SideBySide(nn.Module):
    """The averages of red, green and blue, then twice those of green and blue, and a constant."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=(2, 3))
        return torch.cat([mean, mean[:, 1:] * 2, mean.new_full((len(x), 1), 100.0)], dim=1)


def layered(module: nn.Module, *dims: int) -> Model:
    spec = small_model().spec
    specs = tuple(replace(spec, node=str(n), dim=dim) for n, dim in enumerate(dims))
    return Model(specs, module, tuple(f"layer{n}" for n in range(len(dims))))


def test_each_layer_of_several_is_of_unit_length_by_itself() -> None:
    model, pixels = layered(SideBySide(), 3, 2, 1), random_pixels(5)
    engine = Engine(model, "cpu", batch_size=2)
    assert engine.spans == (slice(0, 3), slice(3, 5), slice(5, 6))
    found = engine.forward(pixels)
    mean, std = np.array(PREPROCESS.mean), np.array(PREPROCESS.std)
    colours = (pixels.mean(axis=(2, 3)) / 255 - mean) / std
    for span, plain in zip(engine.spans, (colours, colours[:, 1:], np.ones((5, 1))), strict=True):
        unit = plain / np.linalg.norm(plain, axis=1, keepdims=True)
        np.testing.assert_allclose(found[:, span], unit, atol=1e-5)


def test_one_layer_without_a_direction_leaves_the_picture_without_vectors() -> None:
    raw = np.ones((4, 5), np.float32)
    raw[0, :2] = 0
    raw[1, 3] = np.nan
    raw[2, :2] = [3e38, 3e38]
    vectors, faults = normalise(raw, (slice(0, 2), slice(2, 5)))
    assert {i: f.failure_class for i, f in faults.items()} == {0: "zero", 1: "nan"}
    assert np.isnan(vectors[:2]).all()
    np.testing.assert_allclose(vectors[2:], [[0.5**0.5] * 2 + [3**-0.5] * 3] * 2, rtol=1e-6)


def test_raw_features_are_those_of_the_network() -> None:
    class Relu(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mean = x.mean(dim=(2, 3))
            # Not finite for a white picture, all zero for a black one.
            return torch.where((mean > 2).all(dim=1, keepdim=True), mean / 0, mean.relu())

    pixels = random_pixels(4)
    pixels[1], pixels[3] = 0, 255
    done = Engine(layered(Relu(), 3), "cpu", normalize=False).run(pixels)
    assert {i: f.failure_class for i, f in done.faults.items()} == {3: "nan"}
    assert np.isnan(done.vectors[3]).all()
    assert not done.vectors[1].any()
    x = vision.normalize(torch.from_numpy(pixels) / 255, PREPROCESS.mean, PREPROCESS.std)
    plain = x.mean(dim=(2, 3)).relu().numpy()
    np.testing.assert_allclose(done.vectors[:3], plain[:3], atol=1e-5)
    assert done.vectors.dtype == np.float32
    assert sorted(Engine(layered(Relu(), 3), "cpu").run(pixels).faults) == [1, 3]


def test_raw_features_of_several_layers_equal_a_hook() -> None:
    model = open_model(ModelRequest("alexnet", weights="random:1"), ("fc6", "fc7", "fc8"))
    pixels = random_pixels(3, side=224)
    found = Engine(model, "cpu", normalize=False).forward(pixels)
    network = weights.build(lambda: get_model("alexnet", weights=None), 1).eval()
    caught: list[torch.Tensor] = []
    for name in ("classifier.2", "classifier.5", "classifier.6"):
        network.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, out: caught.append(out.clone())
        )
    preprocess = model.preprocess
    with torch.inference_mode():
        network(vision.normalize(torch.from_numpy(pixels) / 255, preprocess.mean, preprocess.std))
    np.testing.assert_allclose(found, torch.cat(caught, dim=1).numpy(), rtol=1e-4, atol=1e-5)
    assert not np.allclose(np.linalg.norm(found[:, :4096], axis=1), 1, atol=0.1)


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    best = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device("auto").type in (best, "mps")
    for name in ("tpu", "cpu:7", "cuda:64", "meta", ""):
        with pytest.raises(DeviceError, match=f"device '{name}'"):
            choose_device(name)


def test_what_counts_as_memory() -> None:
    assert not is_memory(ValueError("out of memory"))
    assert not is_memory(RuntimeError("shape mismatch"))
    assert first_line(MemoryError()) == "MemoryError"
    assert first_line(KeyError("x")) == "KeyError: 'x'"


def resnet18(weights: str) -> Model:
    return open_model(ModelRequest("resnet18", weights=weights))


def assert_independent(weights: str, how: list[tuple[int, int]]) -> None:
    """Compare batch sizes and numbers of threads with single pictures on one thread."""
    pixels = random_pixels(17, side=224)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        engine = Engine(resnet18(weights), "cpu", batch_size=1)
        alone = engine.forward(pixels)
        for number, size in how:
            torch.set_num_threads(number)
            engine.batch_size = size
            order = np.random.default_rng(size).permutation(len(pixels))
            found = engine.forward(pixels[order])
            assert np.abs(found - alone[order]).max() <= 1e-5
            cosine = np.einsum("nd,nd->n", found.astype(float), alone[order].astype(float))
            assert cosine.min() >= 0.999999
    finally:
        torch.set_num_threads(threads)


def test_a_vector_depends_on_its_picture_alone() -> None:
    assert_independent("random:1", [(2, 3), (2, 16)])


@pytest.mark.data
def test_a_real_vector_depends_on_its_picture_alone(data_dir: Path) -> None:
    file = str(data_dir / "weights" / "resnet18.pth")
    assert_independent(file, [(2, 1), (1, 3), (2, 8), (1, 16), (2, 16)])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("request_", "layers"),
    [
        (ModelRequest("resnet18", None, "random:1", pool="gem", scales=(1, 0.7071, 0.5)), None),
        (ModelRequest("resnet18", None, "random:1", pool="gem"), ("maps", "layer3")),
        (ModelRequest("alexnet", None, "random:1", relu=False), ("fc6", "fc7", "fc8")),
    ],
)
@pytest.mark.parametrize("normalize", [True, False])
def test_a_gpu_gives_the_pooled_and_layered_vectors_of_the_cpu(
    request_: ModelRequest, layers: tuple[str, ...] | None, normalize: bool
) -> None:
    pixels = random_pixels(20, side=224)
    on_cpu = Engine(open_model(request_, layers), "cpu", normalize=normalize).forward(pixels)
    engine = Engine(open_model(request_, layers), "cuda", normalize=normalize)
    done = engine.run(pixels)
    assert done.faults == {}
    for span in engine.spans:
        ours, theirs = done.vectors[:, span].astype(float), on_cpu[:, span].astype(float)
        lengths = np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=1)
        assert (np.einsum("nd,nd->n", ours, theirs) / (lengths[0] * lengths[1])).min() >= 0.9999
        np.testing.assert_allclose(lengths[0], lengths[1], rtol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_vectors_of_the_cpu() -> None:
    pixels = random_pixels(40, side=224)
    on_cpu = Engine(resnet18("random:1"), "cpu").forward(pixels)
    engine = Engine(resnet18("random:1"), "cuda")
    first = engine.submit(pixels[:20])
    second = engine.submit(pixels[20:])
    found = np.concatenate([first.result().vectors, second.result().vectors])
    assert np.einsum("nd,nd->n", found, on_cpu).min() >= 0.9999
    assert engine.facts["precision"] == "float16"
