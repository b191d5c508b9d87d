"""Pictures of 12 megapixels: the whole extraction against the plain script, in turns.

The photos are real ones enlarged to 4000 x 3000 (Lanczos) and saved at quality 90.  The plain
script decodes each at full size; here a JPEG is decoded at a fraction of it, as far as twice the
side that the network needs.  What that does to vectors is measured against those of the same
extraction with every picture decoded at full size.

With a network that takes long for a picture, most of both sides' time is its forward pass, whatever
the decoding costs; each network's ceiling (the plain script's time for a picture over that of our
forward pass alone) is said beside its figure.

    python benchmarks/big.py [--networks mobilenet_v2 resnet18] [--photos 48] [--json OUT]
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from photos import enlarged, weights
from report import Goal, finish, in_turns, median_ratio, parser
from turns import Ours, Peer, cosines

from extractor.decode import decode
from extractor.preprocess import pixels

BATCH = 16


def main() -> None:
    """Measure one network after the other."""
    args = _arguments()
    goals: list[Goal] = []
    with tempfile.TemporaryDirectory() as folder:
        what = enlarged(Path(folder, "photos"), args.photos, args.cache)
        print(f"{what}; {args.photos} photos", flush=True)
        figures: dict[str, Any] = {"photos": what, "decode": _decode(Path(folder, "photos"))}
        for network in args.networks:
            figures[network], kept = measured(network, Path(folder), args)
            goals += kept
    finish("big", goals, figures, args.json)


def _decode(folder: Path) -> dict[str, float]:
    """Return milliseconds a picture on one thread, scaled and at full size."""
    files = sorted(folder.iterdir())[:8]
    found = {}
    for name, target in (("scaled", 256), ("full", None)):
        times = []
        for path in files:
            data = path.read_bytes()
            started = time.thread_time()
            decode(data, target=target).resize((341, 256))
            times.append(time.thread_time() - started)
        found[f"{name}_ms"] = 1e3 * statistics.median(times)
    print(
        ", ".join(f"decode and resize, {name} {ms:.1f}" for name, ms in found.items()), flush=True
    )
    return found


def measured(
    network: str, folder: Path, args: argparse.Namespace
) -> tuple[dict[str, Any], list[Goal]]:
    """Return the figures of a network, and its goals."""
    state, of = weights(network, folder)
    ours = Ours(folder / "photos", network, state, args.engine)
    print(f"{network} ({of}), {ours.engine.facts['engine']}", flush=True)
    options = {"network": network, "weights": state, "batch": BATCH}
    with Peer("plain", folder / "photos", options) as plain:
        plain.rate()  # the first round loads and warms up
        sides = {"forward": ours.forward, "end to end": ours.end_to_end, "plain": plain.rate}
        rates = in_turns(sides, args.rounds)
    medians = {side: statistics.median(values) for side, values in rates.items()}
    agreement = cosines(ours.vectors, ours.engine.forward(_full(ours)))
    figures = {
        "rounds": rates,
        "forward_per_s": medians["forward"],
        "end_to_end_per_s": medians["end to end"],
        "plain_per_s": medians["plain"],
        "cosine_least": sorted(map(float, agreement))[:5],
        "engine": ours.engine.facts["engine"],
        "weights": of,
    }
    ceiling = medians["forward"] / medians["plain"]
    goals = [
        Goal(
            f"{network}, 12 megapixels, over the plain script",
            "at least 4 times its images/s",
            median_ratio(rates["end to end"], rates["plain"]),
            4.0,
            True,
            f"{medians['end to end']:.2f} and {medians['plain']:.2f} images/s; "
            f"without any decoding it would be {ceiling:.1f} times",
        ),
        Goal(
            f"{network}, 12 megapixels, mean cosine to a full decode",
            "at least 0.995",
            float(agreement.mean()),
            0.995,
            True,
            of,
        ),
        Goal(
            f"{network}, 12 megapixels, worst cosine to a full decode",
            "at least 0.98",
            float(agreement.min()),
            0.98,
            True,
        ),
    ]
    return figures, goals


def _full(ours: Ours) -> Any:
    """Return what the network takes when every picture is decoded at full size."""
    preprocess = ours.model.preprocess
    files = (Path(source.path.decode()) for source in ours.sources)
    return np.stack([pixels(decode(path.read_bytes()), preprocess) for path in files])


def _arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--networks", nargs="+", default=["mobilenet_v2", "resnet18", "resnet50"])
    options.add_argument("--photos", type=int, default=48)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir(), "lookalike-12-megapixels")
    )
    options.add_argument("--engine", default="auto")
    args = options.parse_args()
    if args.quick:
        args.engine = "torch"
        args.networks, args.photos, args.rounds = ["shufflenet_v2_x0_5"], 3, 1
    return args


if __name__ == "__main__":
    main()
