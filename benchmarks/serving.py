"""Many clients at once ask ``lookalike serve`` while another process feeds its store.

Half of the questions are vectors and half are images.  All answers are kept, and each is held
against a comparison with every vector (``truth.py``): it must be that of one state of the store,
and of one that may have been the newest between question and answer.  Beside the latencies stands
FAISS's own time for the same questions, on the machine that was free then: ``index.search`` of the
same index and the products of its candidates, one question after the other and all clients' in one
call.

    python benchmarks/serving.py [--seconds 60] [--clients 64] [--images 100000] --json OUT
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import numpy.typing as npt
from bulk import clustered, fill
from clients import Answer, ask_at_once, request, serving
from feeding import Event, Feed, feeding
from queries import K, Plain
from report import Goal, finish, parser
from truth import Truth, states_of, vectors_of

from search.engine import Searcher
from storage.catalog import Catalog
from storage.home import Home
from storage.leases import finish_run, start_run
from storage.publish import publish

FloatArray = npt.NDArray[np.float32]

QUESTIONS = 256
"""Different ones: half of them vectors, half images."""
SHOWN = 5


@dataclass(frozen=True)
class Load:
    """How much is asked of what."""

    images: int
    dim: int
    clients: int
    seconds: float
    every_s: float
    """Between two rounds of feeding."""


@dataclass(frozen=True)
class Asked:
    """The questions: as vectors, shape ``(n, d)``, and as the values that are posted."""

    xq: FloatArray
    values: Sequence[dict[str, Any]]


def main() -> None:
    """Fill a store, measure FAISS, let all ask, judge every answer, print the table."""
    args = _arguments()
    load = Load(args.images, 512, args.clients, args.seconds, args.every)
    if args.quick:
        load = Load(5000, 32, 8, 3.0, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        home = Home(os.path.join(folder, "home"))
        started = time.perf_counter()
        asked = _filled(home, load)
        print(f"{load.images:,} images: the store took {time.perf_counter() - started:.0f} s")
        figures = _plain(home, load, asked)
        print(", ".join(f"{name} {value}" for name, value in figures.items()), flush=True)
        rounds = int(load.seconds / load.every_s)
        feed = Feed(home, os.path.join(folder, "fed"), asked.xq, rounds, load.every_s)
        answers, events = _under_load(feed, load, asked)
        figures |= _latencies(answers, load) | _fed(events)
        problems = _problems(feed, load, asked, answers, events)
    print(", ".join(f"{name} {value}" for name, value in figures.items()))
    for problem in problems[:SHOWN]:
        print(f"  {problem}")
    finish("serving", _goals(load, answers, problems, figures), figures, args.json)


def _arguments() -> Any:
    made = parser(__doc__)
    made.add_argument("--images", type=int, default=100_000)
    made.add_argument("--clients", type=int, default=64)
    made.add_argument("--seconds", type=float, default=60.0)
    made.add_argument("--every", type=float, default=5.0, help="seconds from publish to publish")
    return made.parse_args()


def _filled(home: Home, load: Load) -> Asked:
    """Fill the store and publish; return the questions, which are about all of its clusters."""
    with Catalog.open(home, write=True) as catalog:
        lease = start_run(catalog, "benchmark")
        space = fill(catalog, load.dim, clustered(load.images, load.dim))
        publish(catalog, lease, space)
        finish_run(catalog, lease, "done")
    others = next(clustered(QUESTIONS // 2, load.dim, seed=1))
    values: list[dict[str, Any]] = [{"vector": [float(f"{v:.9g}") for v in x]} for x in others]
    ids = np.random.default_rng(3).choice(load.images, QUESTIONS // 2, replace=False) + 1
    values += [{"image_id": image_id} for image_id in ids.tolist()]
    with Searcher(home) as searcher:
        own = Plain(searcher).gather(ids - 1)
    return Asked(np.concatenate([others, own]), [{**value, "k": K} for value in values])


def _plain(home: Home, load: Load, asked: Asked) -> dict[str, Any]:
    """Return FAISS's own times: one question after the other, and those of all clients at once."""
    with Searcher(home) as searcher:
        plain = Plain(searcher)
    many = asked.xq[: load.clients]
    plain.search(many)
    alone = [_seconds(plain, asked.xq[at : at + 1]) for at in range(len(asked.xq))]
    together = [_seconds(plain, many) for _ in range(10)]
    return {
        "factory": plain.factory,
        "faiss_ms": _ms(statistics.median(alone)),
        "faiss_all_clients_ms": _ms(statistics.median(together)),
    }


def _seconds(plain: Plain, xq: FloatArray) -> float:
    started = time.perf_counter()
    plain.search(xq)
    return time.perf_counter() - started


def _under_load(feed: Feed, load: Load, asked: Asked) -> tuple[list[Answer], list[Event]]:
    with feeding(feed) as feeder, serving(feed.home) as url:
        requests = [request(url, value) for value in asked.values]
        ask_at_once(url, requests, clients=load.clients, seconds=1)  # all is open, and in memory
        feeder.send("go")
        answers = ask_at_once(url, requests, clients=load.clients, seconds=load.seconds)
        events: list[Event] = feeder.recv()
    return answers, events


def _latencies(answers: Sequence[Answer], load: Load) -> dict[str, Any]:
    seconds = sorted(answer.seconds for answer in answers)
    return {
        "answers": len(answers),
        "answers_per_s": round(len(answers) / load.seconds, 1),
        "median_ms": _ms(statistics.median(seconds)),
        "p99_ms": _ms(seconds[int(0.99 * len(seconds))]),
        "worst_ms": _ms(seconds[-1]),
    }


def _fed(events: Sequence[Event]) -> dict[str, Any]:
    took = [event.ended_s - event.began_s for event in events if event.kind == "published"]
    return {"publishes": len(took), "publish_ms": _ms(statistics.median(took))}


def _problems(
    feed: Feed, load: Load, asked: Asked, answers: Sequence[Answer], events: Sequence[Event]
) -> list[str]:
    """Return what is wrong, of each answer where something is."""
    with Catalog.open(feed.home, write=False) as catalog:
        x, held = vectors_of(catalog)
    truth = Truth(x, held, states_of(feed, load.images, events), asked.xq, K)
    return [found for answer in answers if (found := truth.problem(answer)) is not None]


def _goals(
    load: Load, answers: Sequence[Answer], problems: Sequence[str], figures: dict[str, Any]
) -> list[Goal]:
    failed = sum(answer.status != 200 for answer in answers)
    name = f"{load.clients} clients, {load.images:,} vectors"
    alone = figures["faiss_ms"] * load.clients
    said = f"median {figures['median_ms']} ms, 99th percentile {figures['p99_ms']} ms,"
    said += f" {figures['answers_per_s']} answers/s; FAISS {figures['faiss_ms']} ms for one,"
    said += f" {figures['faiss_all_clients_ms']} ms for {load.clients} in one call"
    return [
        Goal(f"{name}: answered", "all", 1 - failed / len(answers), 1, True),
        Goal(
            f"{name}: right",
            "each answer is that of one state, the newest at some moment meanwhile",
            1 - len(problems) / len(answers),
            1,
            higher_is_better=True,
            note=f"{len(problems)} of {len(answers):,} are not",
        ),
        Goal(
            f"{name}: indexes published meanwhile",
            f"one every {load.every_s:g} s",
            figures["publishes"],
            int(load.seconds / load.every_s),
            higher_is_better=True,
        ),
        Goal(
            f"{name}: median",
            "at most 4 times what FAISS and rescoring take for all clients, one by one",
            figures["median_ms"] / alone,
            4.0,
            higher_is_better=False,
            note=said,
        ),
    ]


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)


if __name__ == "__main__":
    sys.exit(main())
