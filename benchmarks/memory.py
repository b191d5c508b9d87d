"""Memory of ``lookalike index`` by the number of pictures, and what a command takes to start.

Tiny pictures go through a tiny network, few and many, each time into a new home; the peak of the
process is taken from the system.  What grows with the number would show as a ratio above 1.

    python benchmarks/memory.py [--few 2000] [--many 20000] [--json OUT]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from report import Goal, finish, parser

NETWORK = ("--model", "shufflenet_v2_x0_5", "--weights", "random:0")
COMMAND = ("index", *NETWORK, "--engine", "torch", "--no-prefect")
"""The engine is the same both times: ``auto`` would load another one for many pictures."""


def main() -> None:
    """Measure, and print."""
    args = _arguments()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        draw(folder / "pictures", args.many, args.few)
        for number, root in (
            (args.few, folder / "pictures" / "0000"),
            (args.many, folder / "pictures"),
        ):
            figures[f"index of {number}"] = index(folder / f"home-{number}", root, number)
        again = index(folder / f"home-{args.many}", folder / "pictures", 0)
        figures[f"index of {args.many}, nothing changed"] = again
        starts = [run(["--help"], folder / "help")["wall_s"] for _ in range(args.starts + 1)]
    starts = starts[1:]  # the first warms the caches
    figures["help_s"] = statistics.median(starts)
    few, many = (figures[f"index of {number}"]["peak_mb"] for number in (args.few, args.many))
    goals = [
        Goal(
            "peak memory of index, many pictures over few",
            "at most 1.1 times",
            many / few,
            1.1,
            False,
            f"{few:.0f} MB with {args.few:,} pictures, {many:.0f} MB with {args.many:,}, "
            f"{again['peak_mb']:.0f} MB with nothing changed",
        ),
        Goal(
            "lookalike --help, seconds",
            "under 0.1 s",
            figures["help_s"],
            0.1,
            False,
            f"best {min(starts):.3f} s",
        ),
    ]
    finish("memory", goals, figures, args.json)


def draw(folder: Path, number: int, each: int) -> None:
    """Draw different pictures of 32 x 32 pixels, so many to a folder."""
    rng = np.random.default_rng(0)
    for n in range(number):
        if n % each == 0:
            (folder / f"{n // each:04}").mkdir(parents=True)
        pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{n // each:04}" / f"{n:07}.jpg", quality=75)


def index(home: Path, root: Path, news: int) -> dict[str, float]:
    """Index a root, where so many pictures have no vector yet; return what the process took."""
    report = home.with_suffix(".json")
    done = run(["--home", str(home), *COMMAND, "--json", str(root)], report)
    extracted = json.loads(report.read_text())["extracted"]
    if extracted != news:
        sys.exit(f"{extracted} pictures were extracted, not {news}")
    print(f"{news:,} new pictures: {done['peak_mb']:.0f} MB, {done['wall_s']:.1f} s", flush=True)
    return done


def run(words: list[str], out: Path) -> dict[str, float]:
    """Run a command; return seconds, and megabytes of its process at most."""
    started = time.perf_counter()
    with out.open("w") as file:
        process = subprocess.Popen([sys.executable, "-m", "flows.cli", *words], stdout=file)
        _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"lookalike {' '.join(words)}: exit code {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    peak = used.ru_maxrss * unit / 2**20
    return {"wall_s": wall, "cpu_s": used.ru_utime + used.ru_stime, "peak_mb": peak}


def _arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--few", type=int, default=2000)
    options.add_argument("--many", type=int, default=20_000)
    options.add_argument("--starts", type=int, default=9)
    args = options.parse_args()
    if args.quick:
        args.few, args.many, args.starts = 20, 40, 1
    return args


if __name__ == "__main__":
    main()
