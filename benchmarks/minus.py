"""The weight of what hits shall be unlike, beside what they shall be like, on real photos.

Two things that people want of it, each with a range of weights.  *Refined*: a picture is searched
for, and the first hits of another class among the best 20 are said to be unlike; how many of the
next 20 are of its class?  *Taken away*: a picture of each of two classes is given, less another one
of the second; how many of 20 hits are of the first?

    python benchmarks/minus.py --json OUT
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import numpy.typing as npt
from report import DATA, Goal, finish, parser

from search.questions import MINUS

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

PHOTOS = DATA / "photos" / "corel-1k"
WEIGHTS = DATA / "weights" / "resnet18.pth"
TRIED = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 1.0)
HITS = 20
PAIRS = 2000
ROUND = 64


def main() -> None:
    """Make the vectors, try the weights, print the table."""
    args = parser(__doc__).parse_args()
    if not (PHOTOS.is_dir() and WEIGHTS.is_file()):
        why = f"there are no photos and weights in {DATA}"
        print(why)
        finish("minus", [], {"skipped": why}, args.json)
        return
    x, classes = _vectors(quick=args.quick)
    tasks = {f"refined by {n}": _refined(x, classes, n) for n in (1, 3)}
    tasks["taken away"] = _taken_away(x, classes, 50 if args.quick else PAIRS)
    goals = []
    for name, shares in tasks.items():
        print(f"{name}: " + ", ".join(f"{w:g} {share:.3f}" for w, share in shares.items()))
        goals.append(
            Goal(
                f"share of right hits, {name}",
                "at least that without what is unlike",
                shares[MINUS],
                shares[0.0],
                higher_is_better=True,
                note=f"with a weight of {MINUS}",
            )
        )
    figures = {
        name: {f"{w:g}": round(v, 4) for w, v in each.items()} for name, each in tasks.items()
    }
    finish("minus", goals, figures, args.json)


def _vectors(*, quick: bool) -> tuple[FloatArray, IntArray]:
    """Return the photos' vectors, unit length, and their classes."""
    from extractor.engine import Engine
    from extractor.loader import Source, load
    from extractor.models import ModelRequest, open_model

    model = open_model(ModelRequest("resnet18", None, str(WEIGHTS)))
    engine = Engine(model)
    paths = sorted(PHOTOS.glob("*/*"))[:: 10 if quick else 1]
    found = []
    for start in range(0, len(paths), ROUND):
        some = [Source(i, os.fsencode(p)) for i, p in enumerate(paths[start : start + ROUND])]
        loaded = load(some, wants=lambda _: True, preprocess=model.preprocess)
        pixels = [one.pixels for one in sorted(loaded, key=lambda one: one.key)]
        found.append(engine.forward(np.stack(pixels)))
    x = np.concatenate(found).astype(np.float64)
    return x, np.array([int(path.parent.name) for path in paths])


def _refined(x: FloatArray, classes: IntArray, most: int) -> dict[float, float]:
    shares: dict[float, list[float]] = {weight: [] for weight in TRIED}
    for query in range(len(x)):
        best = _best(x @ x[query], [query])
        wrong = best[classes[best] != classes[query]][:most]
        if not len(wrong):
            continue
        for weight in TRIED:
            hits = _best(x @ (x[query] - weight * x[wrong].mean(axis=0)), [query, *wrong])
            shares[weight].append(np.mean(classes[hits] == classes[query]))
    return {weight: float(np.mean(each)) for weight, each in shares.items()}


def _taken_away(x: FloatArray, classes: IntArray, pairs: int) -> dict[float, float]:
    rng = np.random.default_rng(0)
    shares: dict[float, list[float]] = {weight: [] for weight in TRIED}
    for _ in range(pairs):
        first, second = rng.choice(np.unique(classes), 2, replace=False)
        kept = rng.choice(np.flatnonzero(classes == first))
        both, away = rng.choice(np.flatnonzero(classes == second), 2, replace=False)
        for weight in TRIED:
            q = (x[kept] + x[both]) / 2 - weight * x[away]
            hits = _best(x @ q, [kept, both, away])
            shares[weight].append(np.mean(classes[hits] == first))
    return {weight: float(np.mean(each)) for weight, each in shares.items()}


def _best(scores: FloatArray, without: list[int]) -> IntArray:
    scores[without] = -np.inf
    return np.argsort(-scores)[:HITS]


if __name__ == "__main__":
    sys.exit(main())
