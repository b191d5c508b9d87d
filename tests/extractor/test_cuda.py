"""The forward pass on CUDA; what of it needs none is shown on the CPU."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from extractor.choosing import Choosing
from extractor.cuda import Download, Upload, cuda_pass, halved
from extractor.device_decoder import DeviceDecoder
from extractor.engine import Engine
from extractor.extract import extract
from extractor.loader import Source
from extractor.models import ModelRequest, open_model
from extractor.passes import EagerPass
from extractor.preprocess import Preprocess
from tests.extractor.pictures import with_orientation
from tests.extractor.small import PREPROCESS, random_pixels, small_model
from tests.extractor.test_device_decoder import broken, canonical, photo, plain_one

CPU = torch.device("cpu")


def needs_cuda(test):  # type: ignore[no-untyped-def]
    skip = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    return pytest.mark.gpu(skip(test))


def cosines(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    found: NDArray[np.float64] = np.einsum("nd,nd->n", ours.astype(float), theirs) / lengths
    return found


class Loud(nn.Module):
    """Averages of colours, and of bright pictures their product with what half can't hold."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=(2, 3))
        return torch.cat([mean, mean.clamp(min=0.5) * 60000], dim=1)


def test_a_half_copy_pools_in_float32() -> None:
    request = ModelRequest("resnet18", None, "random:1", pool="gem", scales=(1, 0.7071))
    model = open_model(request)
    half = halved(model.module)
    assert {p.dtype for p in half.parameters()} == {torch.float16}
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    x = torch.from_numpy(random_pixels(1, side=64)).float() / 255
    with torch.inference_mode():
        found, plain = half(x), model.module(x)
    assert found.dtype == torch.float32
    assert cosines(found.numpy(), plain.numpy()).min() >= 0.999


def test_a_half_copy_of_a_module_of_another_make() -> None:
    model = small_model()
    half = halved(model.module)
    x = torch.rand(3, 3, 16, 16)
    with torch.inference_mode():
        found, plain = half(x), model.module(x)
    assert found.dtype == torch.float32
    assert cosines(found.numpy(), plain.numpy()).min() >= 0.9999
    assert not torch.equal(found, plain)


def test_what_overflows_in_half_is_done_again_in_float32() -> None:
    model = small_model(Loud(), dim=6)
    pixels = random_pixels(25)
    pixels[[3, 4, *range(10, 21)]] = 255
    exact = Engine(model, "cpu").run(pixels)
    assert exact.faults == {}
    engine = Engine(model, "cpu")
    run = EagerPass(halved(model.module), PREPROCESS, CPU)
    assert not np.isfinite(run(torch.from_numpy(pixels)).numpy()).all()
    engine._choosing = Choosing(run)
    engine.half = True
    done = engine.run(pixels)
    assert done.faults == {}
    assert cosines(done.vectors, exact.vectors).min() >= 0.999
    np.testing.assert_allclose(done.vectors[3], exact.vectors[3], rtol=1e-5)


def test_copies_of_a_cpu_are_the_thing_itself() -> None:
    pixels = random_pixels(3)
    there = Upload(CPU)(pixels[::-1])
    np.testing.assert_array_equal(there.numpy(), pixels[::-1])
    assert Upload(CPU)(there) is there
    back = Download(torch.ones(3, 2))
    assert len(back) == 3
    np.testing.assert_array_equal(back.numpy(), np.ones((3, 2), np.float32))


@needs_cuda
@pytest.mark.parametrize("compiled", [False, True])
def test_a_graph_gives_the_vectors_of_the_cpu(compiled: bool) -> None:
    model = open_model(ModelRequest("resnet18", weights="random:1"))
    pixels = random_pixels(100, side=224)
    on_cpu = Engine(model, "cpu").forward(pixels)
    engine = Engine(model, "cuda", batch_size=32, engine="compile" if compiled else "torch")
    for _ in range(2):  # 32, 32, 32 and 4: the second time recorded, the rest as it comes
        started = [engine.submit(pixels[i : i + 32]) for i in range(0, 100, 32)]
        found = np.concatenate([each.result().vectors for each in started])
        assert cosines(found, on_cpu).min() >= 0.999
    assert "CUDA graph" in str(engine.facts["engine"])
    few = engine.forward(pixels[:3])
    assert cosines(few, on_cpu[:3]).min() >= 0.999


@needs_cuda
def test_a_graph_overwrites_nothing() -> None:
    model = small_model()
    device = torch.device("cuda:0")
    run = cuda_pass(model.module.to(device), PREPROCESS, device)
    some = [torch.from_numpy(random_pixels(20, seed)).to(device) for seed in range(5)]
    found = [run(x) for x in some]
    again = [run(x) for x in some]
    for one, other in zip(found[1:], again[1:], strict=True):
        assert torch.allclose(one, other, rtol=1e-2, atol=1e-3)
    assert not torch.allclose(found[3], found[4], rtol=1e-2, atol=1e-3)


@needs_cuda
def test_overflow_and_memory_on_a_gpu() -> None:
    class Hungry(Loud):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > 20:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(x)

    pixels = random_pixels(200)
    pixels[50] = 255
    exact = Engine(small_model(Loud(), dim=6), "cpu").run(pixels)
    engine = Engine(small_model(Hungry(), dim=6), "cuda", batch_size=64)
    for _ in range(3):
        done = engine.run(pixels)
        assert done.faults == {}
        assert cosines(done.vectors, exact.vectors).min() >= 0.999
    assert engine.batch_size == 16


class Looks(nn.Module):
    """Looks at its numbers on the way, which no graph can hold."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=(2, 3))
        return mean + 1 if float(mean.sum()) > 1e9 else mean


class Mixed(nn.Module):
    """Makes float32 weights on the way."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.ones(4, 3, 1, 1, device=x.device) + torch.arange(4).view(4, 1, 1, 1).to(
            x.device
        )
        return nn.functional.conv2d(x, weights).mean(dim=(2, 3))


@needs_cuda
@pytest.mark.parametrize(("module", "dim"), [(Looks(), 3), (Mixed(), 4)])
def test_a_network_that_allows_less_runs_all_the_same(module: nn.Module, dim: int) -> None:
    pixels = random_pixels(96)
    on_cpu = Engine(small_model(module, dim), "cpu").forward(pixels)
    engine = Engine(small_model(module, dim), "cuda", batch_size=32)
    for _ in range(3):
        assert cosines(engine.forward(pixels), on_cpu).min() >= 0.999


@needs_cuda
@pytest.mark.data
@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "squeezenet1_0"])
def test_half_agrees_with_float32_on_real_photos(data_dir: Path, name: str) -> None:
    model = open_model(ModelRequest(name, weights=str(data_dir / "weights" / f"{name}.pth")))
    paths = sorted((data_dir / "photos" / "imagenet-sample").rglob("*.*"))[:64]
    pixels = np.stack([canonical(path.read_bytes(), model.preprocess) for path in paths])
    engine = Engine(model, "cuda", batch_size=16)
    exact = engine.features(pixels, precise=True).cpu().numpy()
    for _ in range(2):
        assert cosines(engine.forward(pixels), exact).min() >= 0.999


@needs_cuda
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_a_gpu_decodes_what_the_canonical_decode_does(subsampling: int) -> None:
    p = Preprocess()
    files = [
        photo(300 + n, 220, n, subsampling=subsampling, exif=with_orientation(n))
        for n in range(1, 9)
    ]
    model = open_model(ModelRequest("resnet18", weights="random:1"))
    engine = Engine(model, "cuda", batch_size=16)
    assert engine.decoder is not None
    found = engine.decoder._there([plain_one(data, p) for data in files])
    truth = np.stack([canonical(data, p) for data in files])
    off = np.abs(found.cpu().numpy().astype(int) - truth)
    assert off.mean() < 1
    assert cosines(engine.forward(found), engine.forward(truth)).min() >= 0.999


@needs_cuda
@pytest.mark.usefixtures("no_thread_left")
def test_an_extraction_on_a_gpu_comes_to_that_on_the_cpu(tmp_path: Path) -> None:
    files = [photo(200 + n, 180, n) for n in range(150)]
    files[70] = broken()
    paths = [tmp_path / f"{n:03}.jpg" for n in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    model = open_model(ModelRequest("resnet18", weights="random:1"))
    truth: dict[bytes, NDArray[np.float32]] = {}
    for device, share in (("cpu", 0.0), ("cuda", None), ("cuda", 1.0), ("cuda", 0.5)):
        engine = Engine(model, device, batch_size=16)
        if engine.decoder is not None:
            engine.decoder.share = share
        done = extract(
            [Source(n, os.fsencode(path)) for n, path in enumerate(paths)],
            wants=lambda _: True,
            preprocess=model.preprocess,
            engine=lambda engine=engine: engine,
            workers=4,
            stop=threading.Event(),
            progress=lambda _done, _failed: None,
        )
        assert [failed.key for failed in done.failures] == [70]
        assert len(done.digests) == 149
        truth = truth or dict(zip(done.digests, done.vectors, strict=True))
        there = np.stack([truth[digest] for digest in done.digests])
        assert cosines(done.vectors, there).min() >= 0.999
        assert isinstance(engine.decoder, DeviceDecoder) == (device == "cuda")
