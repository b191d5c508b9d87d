"""Extraction on this machine: against the plain script, and against its own forward pass.

For each network, in one run and in turns: images/s of the forward pass alone, on pixels that are in
memory; of the whole extraction, files in and vectors out; and of the plain script (torchvision
eager, PIL, torchvision's transform, a DataLoader with two processes) with the same weights, layer
and photos, in a process of its own.  The engine is the one that ``--engine auto`` takes for much
work; the others are measured after it, and their vectors compared with the plain script's.

    python benchmarks/pipeline.py [--networks resnet50 vgg19] [--device auto] [--json OUT]
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from photos import photos, weights
from report import Goal, finish, in_turns, median_ratio, parser
from turns import Ours, Peer, Vectors, cosines

SIZES = {"vgg19": (32, 3)}
"""Photos and rounds of a network, where they are not those of the options."""
BATCH = 16
ENGINES = ("torch", "compile", "onnx")


def main() -> None:
    """Measure one network after the other."""
    args = _arguments()
    goals: list[Goal] = []
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for network in args.networks:
            figures[network], kept = measured(network, Path(folder), args)
            goals += kept
    finish("pipeline", goals, figures, args.json)


def measured(
    network: str, folder: Path, args: argparse.Namespace
) -> tuple[dict[str, Any], list[Goal]]:
    """Return the figures of a network, and its goals."""
    number, rounds = (
        (args.photos, args.rounds) if args.quick else SIZES.get(network, (args.photos, args.rounds))
    )
    here = folder / network
    here.mkdir()
    what = photos(here / "photos", number)
    state, of = weights(network, here)
    ours = Ours(here / "photos", network, state, args.engine, args.device)
    print(f"{network} ({of}), {number} photos ({what}), {ours.engine.facts['engine']}", flush=True)
    options = {"network": network, "weights": state, "batch": BATCH, "vectors": here / "plain.npy"}
    with Peer("plain", here / "photos", options) as plain:
        plain.rate()  # the first round loads and warms up
        sides = {"forward": ours.forward, "end to end": ours.end_to_end, "plain": plain.rate}
        rates = in_turns(sides, rounds)
    theirs: Vectors = np.load(here / "plain.npy")
    agreement = cosines(ours.vectors, theirs)
    medians = {f"{side}_per_s": statistics.median(values) for side, values in rates.items()}
    figures = {
        "photos": what,
        "weights": of,
        "rounds": rates,
        **{name.replace(" ", "_"): value for name, value in medians.items()},
        "engine_ready_s": ours.made_s,
        "auto_spent_s": ours.engine.making_s,
        "cosine_mean": float(agreement.mean()),
        "cosine_worst_around_the_mean_vector": _around_the_mean(ours.vectors, theirs),
        **{key: str(value) for key, value in ours.engine.facts.items()},
    }
    goals = [
        Goal(
            f"{network}, end to end over the plain script",
            "at least 1.8 times its images/s",
            median_ratio(rates["end to end"], rates["plain"]),
            1.8,
            True,
            f"{medians['end to end_per_s']:.2f} and {medians['plain_per_s']:.2f} images/s, {of}",
        ),
        Goal(
            f"{network}, end to end over forward only",
            "at least 0.95",
            median_ratio(rates["end to end"], rates["forward"]),
            0.95,
            True,
            f"{medians['forward_per_s']:.2f} images/s forward only, {ours.engine.facts['engine']}",
        ),
        Goal(
            f"{network}, worst cosine to the plain script's vectors",
            "at least 0.9999",
            float(agreement.min()),
            0.9999,
            True,
        ),
    ]
    if args.engines:
        figures["engines"] = _engines(ours, network, state, theirs, args)
        goals.append(_same(network, figures["engines"]))
    return figures, goals


def _around_the_mean(a: Vectors, b: Vectors) -> float:
    """Return the worst cosine once the mean is taken off.

    Random weights give every photo nearly the same vector; this still tells them apart.
    """

    def about(x: Vectors) -> Vectors:
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        return np.asarray(unit - unit.mean(axis=0), np.float32)

    return float(cosines(about(a), about(b)).min())


def _engines(
    ours: Ours, network: str, state: Path, theirs: Vectors, args: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Return what each engine makes of the same photos."""
    found = {}
    for name in args.engines:
        other = Ours(ours.folder, network, state, engine=name, device=args.device)
        rates = sorted(other.forward() for _ in range(2))
        other.end_to_end()
        found[name] = {
            "forward_per_s": rates[-1],
            "made_s": other.made_s,
            "cosine_worst": float(cosines(other.vectors, theirs).min()),
        }
        print(f"  {name}: " + ", ".join(f"{k} {v:.6g}" for k, v in found[name].items()), flush=True)
    return found


def _same(network: str, engines: dict[str, dict[str, float]]) -> Goal:
    name, least = min(
        ((name, each["cosine_worst"]) for name, each in engines.items()), key=lambda it: it[1]
    )
    said = ", ".join(f"{name} {each['forward_per_s']:.1f}" for name, each in engines.items())
    return Goal(
        f"{network}, worst cosine of any engine",
        "at least 0.999",
        least,
        0.999,
        True,
        f"{name}; images/s forward only: {said}",
    )


def _arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--networks", nargs="+", default=["resnet50", "vgg19"])
    options.add_argument("--engines", nargs="*", default=ENGINES, help="besides the chosen one")
    options.add_argument("--device", default="auto")
    options.add_argument("--photos", type=int, default=64)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--engine", default="auto")
    args = options.parse_args()
    if args.quick:
        args.engine = "torch"
        args.networks, args.engines = ["shufflenet_v2_x0_5"], []
        args.photos, args.rounds = 8, 1
    return args


if __name__ == "__main__":
    main()
