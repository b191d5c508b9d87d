"""Decoding on a device, shown on the CPU, where the same function runs."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from extractor import decode, gpu_decode
from extractor.device_decoder import DeviceDecoder
from extractor.engine import Engine
from extractor.extract import Extracted, extract
from extractor.jpeg import Jpeg, plain
from extractor.loader import Loaded, Source, load
from extractor.models import ModelRequest, open_model
from extractor.preprocess import Preprocess, pixels
from tests.extractor.pictures import saved, scene, with_orientation
from tests.extractor.small import PREPROCESS, small_engine

CPU = torch.device("cpu")
WAYS = [
    Preprocess(),
    Preprocess(resize=232, interpolation="bicubic"),
    Preprocess(resize=(150, 260), crop=(160, 200)),  # black above and below
    Preprocess(resize=(224, 224), crop=224, fit="cover"),
]


def photo(width: int, height: int, seed: int = 0, **options: object) -> bytes:
    """A JPEG with fine detail."""
    chance = np.random.default_rng(seed)
    noise = Image.fromarray(chance.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8))
    noise = noise.resize((width, height), Image.Resampling.BICUBIC)
    return saved(Image.blend(noise, scene(width, height), 0.5), "JPEG", quality=90, **options)


def plain_one(data: bytes, p: Preprocess = PREPROCESS) -> Jpeg:
    found = plain(data, p.target)
    assert found is not None
    return found


def canonical(data: bytes, p: Preprocess) -> NDArray[np.uint8]:
    return pixels(decode.decode(data, target=p.target), p)


def broken() -> bytes:
    """A JPEG with a sound header and a table of codes that no code fits."""
    data = bytearray(photo(120, 90))
    table = data.index(b"\xff\xc4") + 5
    data[table : table + 16] = b"\xff" * 16
    return bytes(data)


def decoder(engine: Engine, share: float | None) -> DeviceDecoder:
    made = DeviceDecoder(CPU, PREPROCESS, engine.forward)
    made.share = share
    return made


@pytest.mark.parametrize("p", WAYS)
def test_pixels_are_those_of_the_canonical_decode(p: Preprocess) -> None:
    files = [photo(300, 200, o, exif=with_orientation(o)) for o in range(1, 9)]
    files += [photo(256, 256), photo(257, 513, subsampling=0), photo(900, 70, subsampling=1)]
    found = gpu_decode.decoded([plain_one(data, p) for data in files], p, CPU).numpy()
    truth = np.stack([canonical(data, p) for data in files])
    assert found.dtype == np.uint8
    off = np.abs(found.astype(int) - truth)
    assert off.max() <= 2
    assert off.mean() < 0.2  # Pillow makes larger in another order of the sides


def test_the_pictures_of_a_large_canvas_are_taken_in_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    p = Preprocess()
    files = [plain_one(photo(200 + 10 * n, 200, n), p) for n in range(5)]
    at_once = gpu_decode.decoded(files, p, CPU)
    monkeypatch.setattr(gpu_decode, "_CANVAS", 2 * 3 * 256 * 256)
    assert torch.equal(gpu_decode.decoded(files, p, CPU), at_once)


def interpolated(colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """Twice as many rows, as libjpeg makes them: three quarters of one, a quarter of the next."""
    padded = np.pad(colours, ((1, 1), (0, 0)), "edge")
    out = np.repeat(0.75 * colours, 2, axis=0)
    out[0::2] += 0.25 * padded[:-2]
    out[1::2] += 0.25 * padded[2:]
    return out


def as_rgb(y: NDArray[np.float64], cb: NDArray[np.float64], cr: NDArray[np.float64]) -> Image.Image:
    height, width = y.shape
    cb, cr = cb[:height, :width] - 128, cr[:height, :width] - 128
    rgb = [y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb]
    return Image.fromarray(np.rint(np.stack(rgb, axis=-1)).astype(np.uint8))


@pytest.mark.parametrize(("width", "height"), [(300, 200), (299, 201)])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_colours_in_blocks_are_interpolated(
    monkeypatch: pytest.MonkeyPatch, width: int, height: int, orientation: int
) -> None:
    p, chance = Preprocess(), np.random.default_rng(width)
    y = chance.uniform(90, 160, (height, width))
    half = -(-height // 2), -(-width // 2)
    colours = [chance.uniform(100, 156, half) for _ in range(2)]
    blocks = as_rgb(y, *(c.repeat(2, axis=0).repeat(2, axis=1) for c in colours))
    smooth = as_rgb(y, *(interpolated(interpolated(c).T).T for c in colours))
    turned = saved(smooth, "PNG", exif=with_orientation(orientation))
    truth = canonical(turned, p).astype(int)
    monkeypatch.setattr(
        gpu_decode,
        "_raw",
        lambda _jpegs, _device: [torch.from_numpy(np.array(blocks)).permute(2, 0, 1)],
    )
    off = {}
    for said in (False, True):
        monkeypatch.setattr(gpu_decode, "leaves_blocks", lambda _device, said=said: said)
        jpeg = Jpeg(b"", width, height, orientation, (True, True))
        found = gpu_decode.decoded([jpeg], p, CPU)[0].numpy()
        off[said] = np.abs(found - truth).mean()
    assert off[True] < 0.5
    assert off[False] > 2


def test_this_decoder_interpolates_and_one_that_does_not_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not gpu_decode.leaves_blocks(CPU)
    raw = gpu_decode._raw

    def blocks(jpegs: Sequence[Jpeg], device: torch.device) -> list[torch.Tensor]:
        """Take one colour in each block: what is left of brightness is of no matter here."""
        return [
            x[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2)
            for x in raw(jpegs, device)
        ]

    monkeypatch.setattr(gpu_decode, "_raw", blocks)
    gpu_decode.leaves_blocks.cache_clear()
    assert gpu_decode.leaves_blocks(CPU)
    gpu_decode.leaves_blocks.cache_clear()


@pytest.mark.parametrize(
    "p",
    [
        Preprocess(interpolation="nearest"),
        Preprocess(interpolation="lanczos"),
        Preprocess(resize=(64, 64), fit="contain"),
    ],
)
def test_other_ways_to_resize_are_left_to_the_cores(p: Preprocess) -> None:
    made = DeviceDecoder(CPU, p, small_engine().forward)
    assert made.share == 0
    assert made.keeps(photo(120, 90)) is None
    assert made.fact == "cores"


def loaded(tmp_path: Path, files: Sequence[bytes], made: DeviceDecoder) -> list[Loaded]:
    paths = [tmp_path / f"{n}.jpg" for n in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    sources = [Source(n, os.fsencode(path)) for n, path in enumerate(paths)]
    return list(load(sources, wants=lambda _: True, preprocess=PREPROCESS, keeps=made.keeps))


def test_a_share_is_kept_for_the_device(tmp_path: Path) -> None:
    files = [photo(100, 80, seed) for seed in range(8)]
    for share, count in ((0.0, 0), (0.25, 2), (0.5, 4), (1.0, 8), (None, 8)):
        got = loaded(tmp_path, files, decoder(small_engine(), share))
        kept = [each for each in got if each.jpeg is not None]
        assert len(kept) == count
        assert all(each.pixels is None and each.failure is None for each in kept)
        assert all(each.pixels is not None for each in got if each not in kept)


def test_what_the_device_refuses_is_decoded_canonically(tmp_path: Path) -> None:
    files = [photo(120, 90, seed) for seed in range(5)]
    files[3] = broken()
    files.append(saved(scene(), "PNG"))
    with pytest.raises(RuntimeError):
        gpu_decode.decoded([plain_one(files[3])], PREPROCESS, CPU)
    with pytest.raises(decode.DecodeError) as told:
        decode.decode(files[3])
    made = decoder(small_engine(), 1.0)
    found, failures = made.pixels(loaded(tmp_path, files, made))
    assert list(failures) == [3]
    assert failures[3].stage == "decode"
    assert failures[3].failure_class == told.value.failure_class
    assert failures[3].message == told.value.message
    assert not found[3].any()
    for n in (0, 1, 2, 4, 5):
        off = np.abs(found[n].numpy().astype(int) - canonical(files[n], PREPROCESS))
        assert off.max() <= 2


def test_a_measurement_decides(tmp_path: Path) -> None:
    made = decoder(small_engine(), None)
    assert made.fact == "not measured"
    got = loaded(tmp_path, [photo(120, 90, seed) for seed in range(20)], made)
    made.pixels(got[:15])
    assert made.share is None  # too few to tell
    found, _ = made.pixels(got)
    assert made.share is not None
    assert 0 <= made.share <= 1
    assert made.fact != "not measured"
    assert made.measured["worst cosine"] >= 0.999
    assert len(found) == 20


def test_vectors_that_disagree_leave_everything_to_the_cores(tmp_path: Path) -> None:
    chance = np.random.default_rng(1)

    def vectors(some: torch.Tensor) -> NDArray[np.float32]:
        return chance.normal(size=(len(some), 8)).astype(np.float32)

    made = DeviceDecoder(CPU, PREPROCESS, vectors)
    made.pixels(loaded(tmp_path, [photo(120, 90, seed) for seed in range(20)], made))
    assert made.share == 0


def test_a_broken_picture_puts_the_measurement_off(tmp_path: Path) -> None:
    files = [photo(120, 90, seed) for seed in range(20)]
    made = decoder(small_engine(), None)
    got = loaded(tmp_path, [*files[:-1], broken()], made)
    _, failures = made.pixels(got)
    assert list(failures) == [19]
    assert made.share is None
    made.pixels(got[:19])
    assert made.share is not None


def run(paths: Sequence[Path], engine: Engine, p: Preprocess = PREPROCESS) -> Extracted:
    return extract(
        [Source(n, os.fsencode(path)) for n, path in enumerate(paths)],
        wants=lambda _: True,
        preprocess=p,
        engine=lambda: engine,
        workers=2,
        stop=threading.Event(),
        progress=lambda _done, _failed: None,
    )


@pytest.mark.parametrize("share", [1.0, 0.5, None])
@pytest.mark.usefixtures("no_thread_left")
def test_an_extraction_comes_to_the_same(tmp_path: Path, share: float | None) -> None:
    files = [photo(100 + n, 80, n, exif=with_orientation(n % 9)) for n in range(45)]
    files[7] = files[6]
    files[20], files[21], files[30] = broken(), b"\xff\xd8\xff nothing", saved(scene(), "PNG")
    for n, data in enumerate(files):
        (tmp_path / f"{n:02}.jpg").write_bytes(data)
    paths = [*sorted(tmp_path.glob("*.jpg")), tmp_path / "gone.jpg"]
    plain_way = run(paths, small_engine(batch_size=8))
    engine = small_engine(batch_size=8)
    engine.decoder = decoder(engine, share)
    ours = run(paths, engine)
    assert engine.facts["decode"] == engine.decoder.fact
    assert sorted(ours.digests) == sorted(plain_way.digests)
    assert len(ours.digests) == 42
    assert {r.key for r in ours.reads} == {r.key for r in plain_way.reads}
    by_key = {f.key: f.failure for f in plain_way.failures}
    assert {f.key: f.failure for f in ours.failures} == by_key
    assert sorted(by_key) == [20, 21, 45]
    truth = dict(zip(plain_way.digests, plain_way.vectors, strict=True))
    cosines = [v @ truth[d] for d, v in zip(ours.digests, ours.vectors, strict=True)]
    assert min(cosines) >= 0.9999


def test_what_the_network_says_is_raised(tmp_path: Path) -> None:
    class Lost(torch.nn.Module):
        def forward(self, _x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("device lost")

    path = tmp_path / "a.jpg"
    path.write_bytes(photo(100, 80))
    engine = small_engine(Lost())
    engine.decoder = decoder(engine, 1.0)
    with pytest.raises(RuntimeError, match="device lost"):
        run([path], engine)


@pytest.mark.data
def test_vectors_of_real_photos(data_dir: Path, tmp_path: Path) -> None:
    paths = sorted((data_dir / "photos" / "imagenet-sample").rglob("*.*"))[:24]
    for n, path in enumerate(paths[:4]):  # turned, and enlarged to 12 megapixels
        image = Image.open(path).convert("RGB")
        turned, large = tmp_path / f"turned{n}.jpg", tmp_path / f"large{n}.jpg"
        image.save(turned, quality=90, exif=with_orientation((3, 5, 6, 8)[n]))
        if n == 0:
            image.resize((4000, 3000), Image.Resampling.LANCZOS).save(large, quality=85)
    paths += sorted(tmp_path.glob("*.jpg"))
    weights = str(data_dir / "weights" / "resnet18.pth")
    model = open_model(ModelRequest("resnet18", weights=weights))
    plain_way = run(paths, Engine(model, "cpu"), model.preprocess)
    engine = Engine(model, "cpu")
    engine.decoder = DeviceDecoder(CPU, model.preprocess, engine.forward)
    engine.decoder.share = 1.0
    kept = [engine.decoder.keeps(path.read_bytes()) is not None for path in paths]
    assert sum(kept) >= 20
    assert not any(k for k, path in zip(kept, paths, strict=True) if path.name.startswith("large"))
    ours = run(paths, engine, model.preprocess)
    truth = dict(zip(plain_way.digests, plain_way.vectors, strict=True))
    cosines = [v @ truth[d] for d, v in zip(ours.digests, ours.vectors, strict=True)]
    assert len(cosines) == len(paths)
    assert min(cosines) >= 0.999
