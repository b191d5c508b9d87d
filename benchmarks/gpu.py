"""How fast images become vectors on a CUDA device, and what is left of that from JPEG files on.

For each network the rate of the forward pass alone, on pixels that lie on the device (operation by
operation in half precision, as a CUDA graph, compiled), then that of the whole extraction from
files, with the decoding where the measurement at its start puts it, on the cores alone and on the
device alone.  All turn about in one process.  The files are copies of photos of ImageNet's sizes,
each with a comment of its own; without photos, drawn ones.

    python benchmarks/gpu.py [--photos DIR] [--images N] [--models resnet50,vgg16] [--json OUT]

Without a CUDA device it says so and measures nothing.
"""

import io
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from photos import drawn
from report import DATA, Goal, cores, finish, in_turns, median_ratio, parser

sys.path.insert(0, str(Path(__file__).parents[1]))

from extractor.cuda import cuda_pass
from extractor.device_decoder import DeviceDecoder
from extractor.engine import Engine
from extractor.extract import Extracted, extract
from extractor.loader import Source, load
from extractor.models import Model, ModelRequest, open_model
from extractor.passes import EagerPass, Pass
from extractor.preprocess import Preprocess

_BATCH = 256
_LEAST_SHARE, _LEAST_RATE, _LEAST_COSINE = 0.90, 5000, 0.999
_RATED = "resnet50"


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write."""
    options = parser(__doc__)
    options.add_argument("--photos", type=Path, default=DATA / "photos" / "imagenet-sample")
    options.add_argument("--images", type=int, default=8192)
    options.add_argument("--models", default="resnet50,vgg16")
    options.add_argument("--rounds", type=int, default=5)
    chosen = options.parse_args(argv)
    if not torch.cuda.is_available():
        print("this machine has no CUDA device: nothing is measured")
        finish("gpu", [], {"skipped": "no CUDA device"}, chosen.json)
        return
    images, rounds = (1024, 2) if chosen.quick else (chosen.images, chosen.rounds)
    goals: list[Goal] = []
    figures: dict[str, Any] = {"images": images, "loader threads": cores()}
    with tempfile.TemporaryDirectory(prefix="lookalike-gpu-") as folder:
        sources = files(Path(folder), chosen.photos, images)
        for name in chosen.models.split(","):
            print(name, flush=True)
            figures[name] = measured(name, sources, rounds, not chosen.quick)
            goals += held(name, figures[name])
    finish("gpu", goals, figures, chosen.json)


def held(name: str, figures: dict[str, Any]) -> list[Goal]:
    """Return what is asked of one network's figures."""
    rates, note = figures["images/s"], f"decoded by: {figures['decode']}"
    goals = [
        Goal(
            f"{name} from files",
            "at least 0.90 of the forward pass alone",
            figures["files over forward"],
            _LEAST_SHARE,
            True,
            note,
        ),
        Goal(
            f"{name} in half precision",
            "cosine to float32 at least 0.999, the worst picture",
            figures["worst cosine, half to float32"],
            _LEAST_COSINE,
            True,
        ),
        Goal(
            f"{name} decoded there",
            "cosine to the canonical decode at least 0.999, the worst picture",
            figures["worst cosine, from files to float32"],
            _LEAST_COSINE,
            True,
            note,
        ),
    ]
    if name == _RATED:
        text = "at least 5,000 images/s"
        goals.append(Goal(f"{name} files a second", text, rates["files"], _LEAST_RATE, True, note))
    return goals


def measured(name: str, sources: list[Source], rounds: int, compiled: bool) -> dict[str, Any]:
    """Measure one network in every way."""
    model = opened(name)
    engine = Engine(model, "cuda", _BATCH)
    pixels = pixels_of(sources[:_BATCH], model.preprocess)
    half = EagerPass(engine.module, model.preprocess, engine.device, half=True)
    passes: dict[str, Pass] = {
        "autocast": half,
        "graph": cuda_pass(engine.module, model.preprocess, engine.device),
    }
    if compiled:
        passes["compiled graph"] = cuda_pass(
            engine.module, model.preprocess, engine.device, compiled=True
        )
    here = torch.from_numpy(pixels).to(engine.device)
    alone = {key: forward_rate(each, here) for key, each in passes.items()}
    first = from_files(engine, sources, model.preprocess)  # measures where to decode
    share = engine.decoder.share if engine.decoder else None
    ways: dict[str, Callable[[], float]] = dict(alone)
    for key, where in (
        ("files", share),
        ("files, cores decode", 0.0),
        ("files, device decodes", 1.0),
    ):
        ways[key] = rate_of(engine, sources, model.preprocess, where)
    for way in ways.values():
        way()  # graphs are recorded, files are in memory
    found = in_turns(ways, rounds)
    rates = {key: round(statistics.median(values), 1) for key, values in found.items()}
    if engine.decoder:
        engine.decoder.share = share
    truth = precise(engine, pixels)
    return {
        "images/s": rates,
        "files over forward": median_ratio(found["files"], found["graph"]),
        "decode": engine.facts.get("decode", "cores"),
        "share of the device": share,
        "measured at the start": engine.decoder.measured if engine.decoder else {},
        "worst cosine, half to float32": worst(engine.forward(pixels), truth),
        "worst cosine, from files to float32": worst(in_order(first, _BATCH), truth),
        "device alone": decode_rates(engine, sources, model.preprocess),
        **{key: value for key, value in engine.facts.items() if key != "decode"},
    }


def opened(name: str) -> Model:
    """Open a network with real weights where there are any."""
    file = DATA / "weights" / f"{name}.pth"
    return open_model(ModelRequest(name, weights=str(file) if file.is_file() else "random:0"))


def files(folder: Path, photos: Path, number: int) -> list[Source]:
    """Write distinct JPEGs: copies with a comment that no other has."""
    found = sorted(p for p in photos.rglob("*") if p.is_file()) if photos.is_dir() else []
    contents = [data for data in (p.read_bytes() for p in found) if data[:3] == b"\xff\xd8\xff"]
    for seed in range(0 if contents else 64):
        out = io.BytesIO()
        drawn(np.random.default_rng(seed)).save(out, "JPEG", quality=90)
        contents.append(out.getvalue())
    sources = []
    for i in range(number):
        data = contents[i % len(contents)]
        comment = b"\xff\xfe\x00\x0a" + i.to_bytes(8, "big")
        path = folder / f"{i:06}.jpg"
        path.write_bytes(data[:2] + comment + data[2:])
        sources.append(Source(i, os.fsencode(path)))
    return sources


def pixels_of(sources: list[Source], preprocess: Preprocess) -> NDArray[np.uint8]:
    """Decode canonically, shape (N, 3, H, W)."""
    loaded = load(sources, wants=lambda _: True, preprocess=preprocess, workers=cores())
    return np.stack([each.pixels for each in loaded if each.pixels is not None])


def forward_rate(run: Pass, pixels: torch.Tensor) -> Callable[[], float]:
    """Return what measures images/s of a pass alone, the pixels being there."""

    def rate(times: int = 10) -> float:
        run(pixels)
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(times):
            run(pixels)
        torch.cuda.synchronize()
        return times * len(pixels) / (time.perf_counter() - started)

    return rate


def rate_of(
    engine: Engine, sources: list[Source], preprocess: Preprocess, share: float | None
) -> Callable[[], float]:
    """Return what measures images/s from files on, a share of them decoded on the device."""

    def rate() -> float:
        if engine.decoder is not None:
            engine.decoder.share = share
        started = time.perf_counter()
        done = from_files(engine, sources, preprocess)
        return len(done.digests) / (time.perf_counter() - started)

    return rate


def from_files(engine: Engine, sources: list[Source], preprocess: Preprocess) -> Extracted:
    """Run the whole extraction."""
    return extract(
        sources,
        wants=lambda _: True,
        preprocess=preprocess,
        engine=lambda: engine,
        workers=cores(),
        stop=threading.Event(),
        progress=lambda _done, _failed: None,
    )


def precise(engine: Engine, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the vectors of a pass in float32."""
    parts = [engine.features(pixels[i : i + 32], precise=True) for i in range(0, len(pixels), 32)]
    return torch.nn.functional.normalize(torch.cat(parts)).cpu().numpy()


def in_order(done: Extracted, number: int) -> NDArray[np.float32]:
    """Return the vectors of the first files, in their order."""
    places = {digest: i for i, digest in enumerate(done.digests)}
    first = sorted(done.reads, key=lambda read: read.key)[:number]
    return done.vectors[[places[read.digest] for read in first]]


def worst(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Return the least cosine of unit vectors, row by row."""
    return float(np.einsum("nd,nd->n", ours.astype(float), theirs.astype(float)).min())


def decode_rates(engine: Engine, sources: list[Source], preprocess: Preprocess) -> dict[str, float]:
    """Return images/s of the device's decoding with nothing beside it, by size of the batch."""
    decoder = DeviceDecoder(engine.device, preprocess, engine.forward)
    decoder.share = 1.0
    kept = load(
        sources[: 4 * _BATCH], wants=lambda _: True, preprocess=preprocess, keeps=decoder.keeps
    )
    jpegs = [each for each in kept if each.jpeg is not None]
    found = {"plain among them": len(jpegs) / len(sources[: 4 * _BATCH])}
    for size in (64, _BATCH):
        started = time.perf_counter()
        for start in range(0, len(jpegs), size):
            decoder.pixels(jpegs[start : start + size])
        torch.cuda.synchronize()
        found[f"images/s in batches of {size}"] = len(jpegs) / (time.perf_counter() - started)
    return found


if __name__ == "__main__":
    main()
