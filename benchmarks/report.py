"""What the scripts say of their figures: goals held against limits, a table, a JSON file.

A script is run as ``python benchmarks/X.py [--json OUT] [--quick]``, which puts this folder before
all others where Python looks for modules; one that imports the package ``search`` puts the checkout
before it, because some names here are those of packages.
"""

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

DATA = Path(os.environ.get("LOOKALIKE_DATA") or Path(__file__).parents[2] / "shared" / "data")
"""Real photos and weights; a script does without, or says that it can't."""

_PACKAGES = (
    "torch",
    "torchvision",
    "onnxruntime",
    "timm",
    "faiss-gpu",
    "faiss-cpu",
    "numpy",
    "pillow",
    "sqlalchemy",
    "prefect",
)


@dataclass(frozen=True)
class Goal:
    """A figure that is held against a limit.

    Parameters
    ----------
    name
        The same from run to run, and unlike those of the script's other goals: by it a later run is
        compared.
    goal
        What is asked, for a person: ``at least 1.8 times the plain script``.
    measured, limit
        The figure, and what it may at least or at most be.
    higher_is_better
        Whether the limit is the least or the most.
    note
        What a person has to know beside it, such as why it misses.
    """

    name: str
    goal: str
    measured: float
    limit: float
    higher_is_better: bool
    note: str = ""

    @property
    def ratio(self) -> float:
        """How far within the limit: 1 is just met, 2 is twice as good as asked."""
        better, worse = self.measured, self.limit
        if not self.higher_is_better:
            better, worse = worse, better
        return better / worse if worse else float("inf")

    @property
    def passed(self) -> bool:
        """Whether the limit is kept."""
        if self.higher_is_better:
            return self.measured >= self.limit
        return self.measured <= self.limit

    @property
    def said(self) -> str:
        """``pass``, or by how much of the limit it misses."""
        if self.passed:
            return "pass"
        if not self.limit:
            return f"misses by {abs(self.measured):.3g}"
        missed = abs(self.measured - self.limit) / abs(self.limit)
        return f"misses by {missed:.1%}" if missed >= 0.001 else f"misses by {missed:.1g}"


def machine() -> dict[str, Any]:
    """Describe the machine and the versions of what is measured on it; nothing is imported."""
    found: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load": round(os.getloadavg()[0], 1),
        "system": platform.system(),
        "python": platform.python_version(),
    }
    for gpu in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        found["gpu"] = gpu.read_text().partition("Model:")[2].partition("\n")[0].strip()
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def parser(doc: str) -> argparse.ArgumentParser:
    """Return a parser that knows ``--json`` and ``--quick``; a script adds its own options."""
    made = argparse.ArgumentParser(description=doc.partition("\n")[0])
    made.add_argument("--json", type=Path, metavar="OUT", help="write all figures there")
    made.add_argument("--quick", action="store_true", help="sizes for a test; they show no speed")
    return made


def in_turns(
    ways: Mapping[str, Callable[[], float]], rounds: int, *, say: bool = True
) -> dict[str, list[float]]:
    """Call each way once a round; who goes first changes from round to round, against drift.

    Returns
    -------
    dict
        What each way returned, in the order of the rounds.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        names = list(ways)[number % len(ways) :] + list(ways)[: number % len(ways)]
        for name in names:
            found[name].append(ways[name]())
        if say:
            said = ", ".join(f"{name} {values[-1]:.4g}" for name, values in found.items())
            print(f"  round {number + 1}: {said}", flush=True)
    return found


def median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Return the median of the ratios of what was measured in the same round."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def finish(
    script: str, goals: Sequence[Goal], figures: Mapping[str, Any], json_path: Path | None
) -> None:
    """Print the goals as a table, and write them with all figures where ``json_path`` says.

    Parameters
    ----------
    script
        The script's name, without its suffix.
    goals
        What is held against a limit.
    figures
        All else, as JSON knows it.
    json_path
        The file to write, if any.
    """
    described = machine()
    print(", ".join(f"{key} {value}" for key, value in described.items()))
    if goals:
        print(table([(script, goal) for goal in goals]), flush=True)
    if json_path is not None:
        report = {
            "script": script,
            "machine": described,
            "goals": [as_json(goal) for goal in goals],
            "figures": dict(figures),
        }
        json_path.write_text(json.dumps(report, indent=2) + "\n")


def as_json(goal: Goal) -> dict[str, Any]:
    """Return a goal and what it comes to, as JSON knows it; ``from_json`` takes it back."""
    return {**asdict(goal), "ratio": round(goal.ratio, 4), "passed": goal.passed}


def from_json(values: Mapping[str, Any]) -> Goal:
    """Return the goal that ``as_json`` described."""
    return Goal(**{key: values[key] for key in Goal.__dataclass_fields__ if key in values})


def table(rows: Sequence[tuple[str, Goal]]) -> str:
    """Return goals, each with its script, as a table with one line a goal and one a note."""
    head = ("script", "goal", "measured", "limit", "ratio", "")
    cells = [
        (
            script,
            f"{goal.name}: {goal.goal}",
            f"{goal.measured:.4g}",
            f"{'>=' if goal.higher_is_better else '<='} {goal.limit:.4g}",
            f"{goal.ratio:.2f}",
            goal.said,
        )
        for script, goal in rows
    ]
    widths = [max(len(row[i]) for row in (head, *cells)) for i in range(len(head))]
    lines = [_line(head, widths)]
    for (_, goal), row in zip(rows, cells, strict=True):
        lines.append(_line(row, widths))
        if goal.note:
            lines.append(f"{'':{widths[0]}}    {goal.note}")
    return "\n".join(lines)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    left = (f"{text:{width}}" for text, width in zip(row[:2], widths[:2], strict=True))
    right = (f"{text:>{width}}" for text, width in zip(row[2:5], widths[2:5], strict=True))
    return "  ".join((*left, *right, row[5])).rstrip()
