"""What Prefect costs: the same run of ``lookalike index`` with it and without it.

Drawn pictures of the size that ImageNet's have go through a tiny network, each time into a new home
and in a process of its own, with a server of Prefect running beside it; the two ways take turns, so
that a busy machine slows both alike.  What is compared:

``process``
    The command from its start to its end; the import of Prefect is in it.
``run``
    What the run's own report says it took.
``around``
    The rest of the process: imports, and the flow's beginning and end.  A constant, and the one
    figure that hardly scatters.
``cpu``
    Processor seconds of the command; what else the machine does shows least in these.

    python benchmarks/orchestration.py [--pictures 10000] [--pairs 3] [--json OUT]
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from PIL import Image
from report import finish, parser

from flows.server.local import temporary_server

WAYS = {"plain": "--no-prefect", "prefect": "--prefect"}
SIZE = (500, 375)
COMMAND = ("index", "--model", "shufflenet_v2_x0_5", "--weights", "random:0", "--json")


def main() -> None:
    """Draw the pictures, start the server, and run both ways in turns."""
    args = _arguments()
    print(f"{args.pictures:,} pictures", flush=True)
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        pictures = os.path.join(folder, "pictures")
        draw(pictures, args.pictures)
        with temporary_server(os.path.join(folder, "server")) as url:
            for number in range(args.pairs + 1):
                # Which of the two goes first alternates, so that a drift favours neither.
                ways = list(WAYS) if number % 2 else list(reversed(WAYS))
                pair = {way: timed(way, url, pictures, folder) for way in ways}
                if number:  # the first pair warms the caches
                    pairs.append(pair)
                    print(f"pair {number}: {line(pair)}", flush=True)
    figures: dict[str, Any] = {"pictures": args.pictures, "pairs": pairs}
    for what in ("process", "run", "around", "cpu"):
        extra = [pair["prefect"][what] / pair["plain"][what] - 1 for pair in pairs]
        seconds = statistics.median(pair["prefect"][what] - pair["plain"][what] for pair in pairs)
        share = f"median {statistics.median(extra):+.1%} ({min(extra):+.1%} to {max(extra):+.1%})"
        print(f"Prefect costs, by {what}: {share}, {seconds:+.1f} s")
        figures[f"prefect_{what}_s"] = seconds
    finish("orchestration", [], figures, args.json)


def draw(folder: str, pictures: int) -> None:
    """Draw different pictures of `SIZE`: soft colours with a grain, some 50 kB each."""
    os.makedirs(folder)
    rng = np.random.default_rng(0)
    grain = rng.integers(-24, 25, (*SIZE[::-1], 3), np.int16)
    for n in range(pictures):
        soft = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize(SIZE)
        pixels = np.clip(np.asarray(soft, np.int16) + np.roll(grain, n), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(os.path.join(folder, f"{n:06}.jpg"), quality=85)


def timed(way: str, url: str, pictures: str, folder: str) -> dict[str, float]:
    """Index all pictures into a new home; return seconds of process and run."""
    home = os.path.join(folder, "home")
    command = [sys.executable, "-m", "flows.cli", "--home", home, *COMMAND, WAYS[way], pictures]
    started, before = time.perf_counter(), _cpu_s()
    done = subprocess.run(
        command,
        env={**os.environ, "PREFECT_API_URL": url},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    seconds, cpu = time.perf_counter() - started, _cpu_s() - before
    report = json.loads(done.stdout)
    if report["extracted"] != len(os.listdir(pictures)):
        sys.exit(f"{report['extracted']} pictures were extracted, there are others")
    shutil.rmtree(home)
    run = report["duration_s"]
    return {"process": seconds, "run": run, "around": seconds - run, "cpu": cpu}


def _cpu_s() -> float:
    """Return the processor seconds of all commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def line(pair: dict[str, dict[str, float]]) -> str:
    """Return one pair as a line."""
    said = (
        f"{way} {seconds['process']:.1f} s "
        f"({seconds['run']:.1f} s the run, {seconds['cpu']:.1f} s of processors)"
        for way, seconds in pair.items()
    )
    return ", ".join(said)


def _arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--pictures", type=int, default=10_000)
    options.add_argument("--pairs", type=int, default=3)
    args = options.parse_args()
    if args.quick:
        args.pictures, args.pairs = 4, 1
    return args


if __name__ == "__main__":
    main()
