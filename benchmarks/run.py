"""All measurements, one script after the other, and one table of what came of them.

Each script runs in a process of its own; what it prints is seen as it comes.  The figures go to
``results/<machine>.json``, where a script that is not run this time keeps its former ones, and the
table of all goals beside it to ``results/<machine>.txt``.

    python benchmarks/run.py [--only pipeline,scan] [--against results/FORMER.json] [--quick]

A goal that is missed is a figure, and no failure: the exit code is 1 only where a script failed.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from report import from_json, machine, table

HERE = Path(__file__).parent
SLOWER = 0.10
"""From which share on a figure counts as slower than before."""
LONGEST_S = 1500.0


@dataclass(frozen=True)
class Script:
    """A script, and what it is given besides ``--json`` and ``--quick``.

    Parameters
    ----------
    name
        Of the file, without its suffix.
    words
        Arguments of a run that is not quick.
    store
        Whether it takes a store that another one may have filled: ``--store``.
    """

    name: str
    words: tuple[str, ...] = ()
    store: bool = False


WORKERS = ("--workers", "8", "--rounds", "10", "--files", "20000", "--pictures", "1000")
SCRIPTS = (
    Script("pipeline"),
    Script("big"),
    Script("memory"),
    Script("scan"),
    Script("store"),
    Script("recall"),
    Script("duplicates"),
    Script("commands", store=True),
    Script("queries", store=True),
    Script("gathering", store=True),
    Script("serving"),
    Script("minus"),
    Script("gpu"),
    Script("orchestration", ("--pictures", "2000", "--pairs", "3")),
    Script("workers", WORKERS),
    Script("catalog", ("--files", "50000")),
    Script("peers"),
)

Reports = dict[str, dict[str, Any]]


def main() -> int:
    """Run what is wanted, print the table, write the figures."""
    args = _arguments()
    former = json.loads(args.against.read_text()) if args.against else None
    out = args.out or (None if args.quick else HERE / "results" / f"{slug(machine())}.json")
    reports = _run_all([script for script in SCRIPTS if script.name in args.only], args.quick)
    print("\n" + summary(reports))
    if former is not None:
        print("\n" + "\n".join(against(former, reports)))
    if out is not None:
        write(out, reports)
        print(f"\nwritten to {out}")
    return int(any("problem" in report for report in reports.values()))


def _run_all(scripts: Sequence[Script], quick: bool) -> Reports:
    reports: Reports = {}
    with tempfile.TemporaryDirectory() as folder:
        for script in scripts:
            print(f"\n== {script.name}", flush=True)
            started = time.monotonic()
            reports[script.name] = _run(script, quick, Path(folder))
            took = time.monotonic() - started
            reports[script.name] |= {
                "seconds": round(took, 1),
                "taken": datetime.now(UTC).isoformat(timespec="minutes"),
            }
            print(f"== {script.name}: {took:.0f} s", flush=True)
    return reports


def _run(script: Script, quick: bool, folder: Path) -> dict[str, Any]:
    """Run one script; return its JSON, or what the problem is."""
    path = HERE / f"{script.name}.py"
    if not path.exists():
        return {"problem": "the script is missing"}
    out = folder / f"{script.name}.json"
    words = [*(("--quick",) if quick else script.words), "--json", str(out)]
    if script.store:
        words += ["--store", str(folder / "store")]
    process = subprocess.Popen(
        [sys.executable, path, *words], cwd=HERE.parent, start_new_session=True
    )
    try:
        code = process.wait(LONGEST_S)
    except subprocess.TimeoutExpired:
        return {"problem": f"not done after {LONGEST_S:.0f} s"}
    finally:
        if process.poll() is None:  # too long, or interrupted: its children go with it
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code:
        return {"problem": f"failed with exit code {code}"}
    try:
        return dict(json.loads(out.read_text()))
    except (OSError, ValueError) as error:
        return {"problem": f"left no figures: {error}"}


def slug(described: Mapping[str, Any]) -> str:
    """Return a machine's name for a file: its GPU or its processor, and its cores."""
    gpu = described.get("gpu")
    words = f"{gpu or ''} {described['cpu']} {described['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def summary(reports: Reports) -> str:
    """Return the table of all goals, and a line for each script that gives none."""
    rows = [(name, from_json(goal)) for name, report in reports.items() for goal in _goals(report)]
    said = [table(rows)] if rows else []
    for name, report in reports.items():
        skipped = report.get("figures", {}).get("skipped")
        if "problem" in report:
            said.append(f"{name}: {report['problem']}")
        elif skipped:
            said.append(f"{name}: skipped: {skipped}")
        elif not _goals(report):
            said.append(f"{name}: figures only")
    met = sum(goal.passed for _, goal in rows)
    problems = sum("problem" in report for report in reports.values())
    said.append(f"{met} of {len(rows)} goals met, {problems} scripts with a problem")
    return "\n".join(said)


def _goals(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list(report.get("goals", []))


def against(former: Mapping[str, Any], reports: Reports) -> list[str]:
    """Return what got slower than it was, or larger, by more than a tenth; one line each.

    Goals are compared by their names, and so are figures whose name ends in ``_per_s`` (more is
    better), in ``s``, ``ms`` or ``mb`` (less is).
    """
    lines, compared = [], 0
    if slug(former["machine"]) != slug(machine()):
        lines.append(f"the former run was on another machine: {slug(former['machine'])}")
    for name, report in reports.items():
        before = _measured(former["scripts"].get(name, {}))
        for what, (value, more_is_better) in _measured(report).items():
            if what not in before or not value or not before[what][0]:
                continue
            compared += 1
            old = before[what][0]
            worse = old / value - 1 if more_is_better else value / old - 1
            if worse > SLOWER:
                lines.append(f"{name}: {what}: worse by {worse:.0%} ({old:.4g}, now {value:.4g})")
    lines.append(f"{compared} figures compared, {sum(': worse by' in it for it in lines)} worse")
    return lines


def _measured(report: Mapping[str, Any]) -> dict[str, tuple[float, bool]]:
    """Return each figure that can be compared, and whether more of it is better."""
    found = dict(_flat(report.get("figures", {})))
    for goal in _goals(report):
        found[goal["name"]] = (goal["measured"], goal["higher_is_better"])
    return found


def _flat(figures: Any, path: str = "") -> Iterator[tuple[str, tuple[float, bool]]]:
    if isinstance(figures, Mapping):
        for key, value in figures.items():
            yield from _flat(value, f"{path}/{key}" if path else str(key))
    elif isinstance(figures, int | float) and re.search("(_per_s|[_ ](s|ms|mb))$", path):
        yield path, (figures, path.endswith("_per_s"))


def write(out: Path, reports: Reports) -> None:
    """Write figures and table; scripts that were not run keep those that the file has."""
    kept = json.loads(out.read_text())["scripts"] if out.exists() else {}
    known = [script.name for script in SCRIPTS]
    merged = {name: kept.get(name) for name in known if name in kept} | reports
    out.parent.mkdir(parents=True, exist_ok=True)
    ordered = {name: merged[name] for name in known if name in merged}
    described = machine()
    text = json.dumps({"machine": described, "scripts": ordered}, indent=2)
    out.write_text(text + "\n")
    words = ", ".join(f"{name} {value}" for name, value in described.items())
    out.with_suffix(".txt").write_text(f"{words}\n\n{summary(ordered)}\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", type=_names, default=_names(""), metavar="A,B")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with these figures")
    parser.add_argument("--out", type=Path, metavar="FILE", help="instead of results/<machine>")
    parser.add_argument("--quick", action="store_true", help="small; writes only with --out")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    known = [script.name for script in SCRIPTS]
    names = [name for name in text.split(",") if name] or known
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(known)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
