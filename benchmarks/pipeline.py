"""How much of the device's speed is left once files are read, hashed and decoded as well.

Measures images/s of the whole extraction (files in, vectors out) over images/s of the same engine
on pixels that are already in memory, in one process and taking turns, so that a busy machine slows
both alike.  Both go through the same pictures in the same batches.

    python benchmarks/pipeline.py [--photos DIR] [--model resnet50] [--weights FILE] [--json OUT]
"""

import argparse
import json
import os
import platform
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from extractor.engine import Engine
from extractor.extract import extract
from extractor.loader import Source, load
from extractor.models import ModelRequest, open_model
from extractor.preprocess import Preprocess

DATA = Path(os.environ.get("LOOKALIKE_DATA") or Path(__file__).parents[2] / "shared" / "data")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return what was printed."""
    options = _arguments(argv)
    if not options.photos.is_dir():
        sys.exit(f"no photos: {options.photos} is missing, set LOOKALIKE_DATA or --photos")
    weights = options.weights or str(DATA / "weights" / f"{options.model}.pth")
    model = open_model(ModelRequest(options.model, weights=weights))
    engine = Engine(model, device=options.device, batch_size=options.batch_size)
    files = sorted(p for p in options.photos.rglob("*") if p.is_file())[: options.limit]
    sources = [Source(i, os.fsencode(path)) for i, path in enumerate(files)]
    pixels = _pixels(sources, model.preprocess)
    if not len(pixels):
        sys.exit(f"no photos: {options.photos} holds none that can be read")
    engine.forward(pixels[: 2 * engine.batch_size])  # the first batches are slower than the rest
    pairs = []
    for number in range(options.pairs):
        # Which of the two goes first alternates, so that a drift favours neither.
        order = ("forward", "end_to_end") if number % 2 == 0 else ("end_to_end", "forward")
        rates = {
            what: _forward_rate(engine, pixels)
            if what == "forward"
            else _end_to_end_rate(engine, sources, model.preprocess, options.workers)
            for what in order
        }
        pairs.append(rates | {"ratio": rates["end_to_end"] / rates["forward"]})
        print(_line(f"pair {number + 1}", pairs[-1]), flush=True)
    medians = {key: statistics.median(p[key] for p in pairs) for key in pairs[0]}
    print(_line("median", medians))
    report = {
        "machine": machine(),
        "model": options.model,
        "images": len(pixels),
        "workers": options.workers,
        "torch_threads": torch.get_num_threads(),
        **engine.facts,
        "pairs": pairs,
        "median": medians,
    }
    print(", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return report


def machine() -> dict[str, str | int]:
    """Describe the machine and what runs on it."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    load_1min = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return {
        "cpu": cpu,
        "cores": _cores(),
        "load": load_1min,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, default=DATA / "photos" / "imagenet-sample")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--weights", help="default: the real weights in LOOKALIKE_DATA")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--workers", type=int, default=max(2, _cores()))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--limit", type=int, help="use the first so many photos only")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(argv)


def _pixels(sources: list[Source], preprocess: Preprocess) -> NDArray[np.uint8]:
    loaded = load(sources, wants=lambda _: True, preprocess=preprocess)
    return np.stack([x.pixels for x in loaded if x.pixels is not None])


def _forward_rate(engine: Engine, pixels: NDArray[np.uint8]) -> float:
    started = time.perf_counter()
    engine.forward(pixels)
    return len(pixels) / (time.perf_counter() - started)


def _end_to_end_rate(
    engine: Engine, sources: list[Source], preprocess: Preprocess, workers: int
) -> float:
    started = time.perf_counter()
    done = extract(
        sources,
        wants=lambda _: True,
        preprocess=preprocess,
        engine=lambda: engine,
        workers=workers,
        stop=threading.Event(),
        progress=lambda _done, _failed: None,
    )
    return len(done.digests) / (time.perf_counter() - started)


def _line(name: str, rates: dict[str, float]) -> str:
    return (
        f"{name:7} forward only {rates['forward']:6.2f} images/s, "
        f"end to end {rates['end_to_end']:6.2f} images/s, ratio {rates['ratio']:.3f}"
    )


if __name__ == "__main__":
    main()
