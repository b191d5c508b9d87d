"""Threads that ask at the same time: answered together, as a server has them, beside each alone.

Both sides ask the same searcher for the neighbours of images; the one side goes past what gathers
the questions.  They take turns, so that what else the machine does hits both.

    python benchmarks/gathering.py --store /tmp/stores --json OUT
"""

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from filled import Filled, filled
from report import Goal, finish, in_turns, median_ratio, parser

from search.engine import Searcher
from search.examples import Asked, Meant
from search.questions import Example, Question, Wanted

K = 10
DIM = 512
SIZES = (100_000, 1_000_000)
QUICK = (5_000,)
THREADS = (1, 2, 4, 16, 64)
MANY = 16
SECONDS = 3.0
ROUNDS = 5

Ask = Callable[[int], object]


def main() -> None:
    """Fill the stores that are not there, measure each, print the table."""
    made = parser(__doc__)
    made.add_argument("--store", metavar="DIR", help="where filled stores are, or are made")
    made.add_argument("--images", type=int, action="append", help="instead of the two sizes")
    args = made.parse_args()
    goals: list[Goal] = []
    figures: dict[str, Any] = {}
    folder = nullcontext(args.store) if args.store else tempfile.TemporaryDirectory()
    with folder as where:
        for images in args.images or (QUICK if args.quick else SIZES):
            store = filled(where, images, 32 if args.quick else DIM)
            figures[f"{images}"] = _measured(store, goals, quick=args.quick)
    finish("gathering", goals, figures, args.json)


def _measured(store: Filled, goals: list[Goal], *, quick: bool) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    wanted = Wanted(K)
    with Searcher(store.home) as searcher:

        def together(image: int) -> object:
            return searcher.reply(Question((Example(image_id=image),)), wanted)

        def alone(image: int) -> object:
            return searcher._answers.of(wanted, [Asked((Meant(image),), ())])

        searcher.prepare()
        for threads in THREADS:
            seconds = 0.2 if quick else SECONDS
            ways = {
                "together": lambda n=threads, s=seconds: _rate(together, store.images, n, s),
                "alone": lambda n=threads, s=seconds: _rate(alone, store.images, n, s),
            }
            found = in_turns(ways, 1 if quick else ROUNDS, say=False)
            ratio = median_ratio(found["together"], found["alone"])
            rates = {name: round(statistics.median(each), 1) for name, each in found.items()}
            figures[f"{threads}_threads"] = {**rates, "ratio": round(ratio, 3)}
            print(f"  {store.images:,} images, {threads} threads: {rates}, {ratio:.3f}", flush=True)
            _hold(goals, store, threads, ratio, rates)
    return figures


def _hold(
    goals: list[Goal], store: Filled, threads: int, ratio: float, rates: dict[str, float]
) -> None:
    least = {1: 0.95, MANY: 1.2}.get(threads)
    if least is None:
        return
    goals.append(
        Goal(
            f"questions a second, {threads} threads, {store.images:,}",
            f"at least {least} times those without gathering",
            ratio,
            least,
            higher_is_better=True,
            note=f"{rates['together']:,} against {rates['alone']:,}",
        )
    )


def _rate(ask: Ask, images: int, threads: int, seconds: float) -> float:
    """Return how many questions a second some threads get answered."""
    counts = [0] * threads
    end = time.perf_counter() + seconds

    def keep_asking(number: int) -> None:
        rng = np.random.default_rng(number)
        while time.perf_counter() < end:
            ask(int(rng.integers(1, images + 1)))
            counts[number] += 1

    workers = [threading.Thread(target=keep_asking, args=(number,)) for number in range(threads)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
