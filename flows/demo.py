"""``make demo``: draw pictures, index them through Prefect, change a few, index again, search.

It goes through the same functions as the commands, and says which command would do the same.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

import click

from flows.job.loop import IndexOptions
from flows.job.progress import Progress
from flows.job.report import Report
from flows.job.spaces import SpaceChoice
from flows.samples import VARIATIONS, draw_families

FAMILIES = 36
CHANGED = ("family-000/dark.jpg", "family-001/dark.jpg", "family-002/dark.jpg")
DATA = os.environ.get("LOOKALIKE_DATA") or os.path.join(os.pardir, "shared", "data")
"""Where photos and weights are looked for, as CONTRIBUTING says."""
T = TypeVar("T")


def main(folder: str = "demo") -> int:
    """Run the demonstration below ``folder``; return the exit code."""
    folder = os.path.abspath(folder)
    pictures, home = os.path.join(folder, "pictures"), os.path.join(folder, "home")
    shutil.rmtree(folder, ignore_errors=True)
    times: dict[str, float] = {}
    drawn = _timed(times, "draw", lambda: draw_families(pictures, FAMILIES))
    _say(f"Drew {drawn} pictures in {FAMILIES} families of {len(VARIATIONS)} below {pictures}")
    options = IndexOptions(
        home=home, roots=(pictures,), choice=SpaceChoice(model="resnet18", weights=_weights())
    )
    from flows.server.local import api

    with ExitStack() as stack:
        server = api(home, lambda line: click.echo(line, err=True))  # one server for both runs
        _timed(times, "start Prefect", lambda: stack.enter_context(server))
        first, second = _index_twice(options, pictures, times)
    right = _search(home, pictures, os.path.join(folder, "sheet.png"), times)
    _say("\nSeconds: " + ", ".join(f"{name} {spent:.1f}" for name, spent in times.items()))
    return 0 if (first.extracted, second.extracted) == (drawn, len(CHANGED)) and right else 1


def _weights() -> str:
    path = os.path.join(DATA, "weights", "resnet18.pth")
    if os.path.exists(path):
        _say(f"Weights: {path}")
        return os.path.abspath(path)
    _say(f"Weights: seeded random ones: no {path}; LOOKALIKE_DATA says where else to look.")
    _say("Random weights tell families apart by colour and texture, and know nothing of things.")
    return "random:0"


def _index_twice(
    options: IndexOptions, pictures: str, times: dict[str, float]
) -> tuple[Report, Report]:
    _say(f"\n$ lookalike index {pictures} --prefect")
    first = _timed(times, "index", lambda: _index(options))
    _say(first.to_text())
    for name in CHANGED:
        _change(os.path.join(pictures, name))
    _say(f"\nChanged {len(CHANGED)} pictures.\n$ lookalike index --prefect")
    second = _timed(times, "index again", lambda: _index(options))
    _say(second.to_text())
    return first, second


def _index(options: IndexOptions) -> Report:
    from flows.run import run

    with Progress() as progress:
        return run(options, progress, prefect="always")


def _change(path: str) -> None:
    from PIL import Image, ImageOps

    with Image.open(path) as picture:
        ImageOps.mirror(picture.convert("RGB")).save(path, quality=90)


def _search(home: str, pictures: str, sheet: str, times: dict[str, float]) -> bool:
    """Search by one picture of the tenth family; True if its family comes first."""
    from search.engine import Searcher
    from search.sheet import draw_sheet
    from storage.home import Home

    query = os.path.join(pictures, "family-010", "plain.jpg")
    _say(f"\n$ lookalike search {query} -k {len(VARIATIONS)} --sheet {sheet}")
    with Searcher(Home(home)) as searcher:
        answers = _timed(
            times, "search", lambda: searcher.search_paths([os.fsencode(query)], k=len(VARIATIONS))
        )
    for hit in answers[0].hits:
        _say(f"  {hit.score:.4f}  {os.path.relpath(os.fsdecode(hit.path), pictures)}")
    draw_sheet(answers, sheet)
    found = sum(b"family-010" in hit.path for hit in answers[0].hits)
    _say(f"{found} of the {len(VARIATIONS)} pictures of the family found. Contact sheet: {sheet}")
    return found >= len(VARIATIONS) // 2


def _timed(times: dict[str, float], name: str, work: Callable[[], T]) -> T:
    started = time.perf_counter()
    result = work()
    times[name] = time.perf_counter() - started
    return result


def _say(line: str) -> None:
    click.echo(line)


if __name__ == "__main__":
    sys.exit(main())
