"""The report of an index run or back-fill: what was found and done, why, and what limited it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from flows.commands.show import printable
from flows.job.progress import counted
from flows.job.troubles import Troubles
from flows.job.wording import BUT, STAGES, THREADS, TOO_SHORT, WHY

EDITED = ("size", "mtime", "ctime", "inode")
"""Reasons of files that were known and look different now."""

RECALL = "recall@10"
"""How ``storage.recall`` measures an index."""

TELLING_S = 2.0
"""A shorter run does not tell what limits it."""


@dataclass
class Report(Troubles):
    """Counts, reasons, seconds by stage and troubles of one run."""

    run_id: str = ""
    space: str = ""
    scanned: int = 0
    unchanged: int = 0
    new: int = 0
    changed: int = 0
    moved: int = 0
    touched: int = 0
    missing: int = 0
    extracted: int = 0
    reused: int = 0
    failed: int = 0
    duration_s: float = 0.0
    images_per_s: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds by stage: those of ``STAGES`` follow each other, those of ``THREADS`` overlap."""
    index: dict[str, Any] | None = None
    """What this run published: ``space generation factory n row_end size_bytes recall fallen
    duration_s``, of the last of several spaces; None where it published nothing."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Files by what the scan said about them."""
    copied: int = 0
    back: int = 0
    excluded: int = 0
    busy: int = 0
    pending: int = 0
    """Files that an interrupted run has left to the next one, where their number is known."""
    engines: dict[str, int] = field(default_factory=dict)
    """Images by what ran their forward passes."""
    failures: dict[str, int] = field(default_factory=dict)
    """Failed images of this run by class."""
    roots: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    limits: str = ""
    """One plain sentence of what limits the run."""
    interrupted: bool = False
    troubles: dict[int, list[str]] = field(default_factory=dict)
    """One line a trouble, by the exit code that it causes."""
    kind: str = "index"
    """``index``, or ``backfill``, which scans nothing."""

    def add_scan(self, scan: Mapping[str, Any]) -> None:
        """Add what the scan of one root found (``storage.files.ScanResult`` as a dict)."""
        self.scanned += scan["scanned"]
        self.unchanged += scan["unchanged"]
        for reason, n in scan["reasons"].items():
            self.reasons[reason] = self.reasons.get(reason, 0) + n
        self.new = self.reasons.get("new", 0)
        self.changed = sum(self.reasons.get(reason, 0) for reason in EDITED)
        self.missing = self.reasons.get("missing", 0)
        self.back = self.reasons.get("back", 0)
        self.excluded = self.reasons.get("excluded", 0)
        self.roots.append({**scan, "reasons": dict(scan["reasons"])})
        if scan["unreadable_count"]:
            where, why = scan["unreadable"][0]
            n = counted(scan["unreadable_count"], "folder or file", "folders or files")
            self.warnings.append(f"{n} could not be read and kept their state: {where}: {why}")
        if scan["future"]:
            n = counted(scan["future"], "file")
            self.warnings.append(f"{n} dated in the future: read again on every run until then")

    def add_looked(self, root: str) -> None:
        """Record a root that is there and was not scanned."""
        self.roots.append({"root": root})

    def add_chunk(self, chunk: Mapping[str, Any]) -> None:
        """Add the outcomes, failures by class and seconds by stage of one committed chunk."""
        for outcome, n in chunk["outcomes"].items():
            setattr(self, outcome, getattr(self, outcome) + n)
        for name, n in chunk["failures"].items():
            self.failures[name] = self.failures.get(name, 0) + n
        self.add_seconds(chunk["seconds"])
        add_engines(self, chunk)

    def add_seconds(self, seconds: Mapping[str, float]) -> None:
        """Add seconds by stage."""
        for stage, spent in seconds.items():
            self.stages[stage] = self.stages.get(stage, 0.0) + spent

    def add_unavailable(self, root: str, line: str) -> None:
        """Record a root of which nothing changed because it can't be trusted now (exit 4)."""
        self.roots.append({"root": root, "unavailable": line})
        self.trouble(4, line)

    def add_held(self, root: str, line: str) -> None:
        """Record a root that another run is scanning (exit 6)."""
        self.roots.append({"root": root, "held": line})
        self.trouble(6, line)

    def failed_share(self) -> float:
        """Return which share of the images that needed a vector failed in this run."""
        return self.failed / max(self.failed + self.extracted, 1)

    def finish(self, duration_s: float, max_failures: float | None = None) -> None:
        """Set what follows from the whole run: rate, limiting stage, too many failures (exit 7)."""
        self.duration_s = duration_s
        self.images_per_s = self.extracted / duration_s if duration_s > 0 else 0.0
        self.limits = self.limiting()
        if max_failures is not None and self.failed_share() > max_failures:
            share = f"{self.failed_share():.0%} of the images failed"
            self.trouble(7, f"{share}, --max-failures allows {max_failures:.0%}")

    def exit_codes(self) -> set[int]:
        """Return the exit codes that apply; images that failed are 3."""
        return super().exit_codes() | ({3} if self.failed else set())

    def limiting(self) -> str:
        """Return one plain sentence about the stage that took the most time."""
        known = [stage for stage in STAGES if self.stages.get(stage)]
        if known and self.duration_s < TELLING_S:
            return TOO_SHORT
        return STAGES[max(known, key=self.stages.__getitem__)] if known else ""

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values, ``exit_code`` among them."""
        values = asdict(self)
        values["limits"] = self.limits or self.limiting()
        return {**values, "troubles": self.trouble_values(), "exit_code": self.exit_code()}

    def to_text(self) -> str:
        """Return the report for a terminal: one line where nothing happened, else about ten."""
        if self._nothing_happened():
            return self._idle_line()
        lines = [self._headline(), self._scan_line(), *self._why_lines(), *self._outcome_lines()]
        lines += [*self._stage_lines(), self._index_line(), self.limits or self.limiting()]
        return "\n".join(line for line in (*lines, *map(printable, self.warnings)) if line)

    def to_line(self) -> str:
        """Return the whole in one line, for a state in Prefect."""
        if self._nothing_happened():
            return self._idle_line()
        parts = [f"{n:,} {word}" for word, n in self._outcomes() if n and word != "extracted"]
        index = " ".join(self._index_line().split())
        return "; ".join(part for part in (self._headline(), ", ".join(parts), index) if part)

    def to_markdown(self) -> str:
        """Return the report as Markdown, for a Prefect artifact."""
        counts = [("scanned", self.scanned), ("unchanged", self.unchanged)]
        counts = counts if self.kind == "index" else []
        counts += [(WHY.get(reason, reason), n) for reason, n in self.reasons.items()]
        counts += [(word, n) for word, n in self._outcomes() if n]
        said = self._idle_line() if self._nothing_happened() else self._headline()
        parts = [f"# {said}", _table(("files", "count"), counts) if counts else ""]
        if self.failures:
            parts.append(_table(("failure", "images"), self.failures.items()))
        parts.append(f"engine: {engines_line(self.engines)}" if self.engines else "")
        if self.stages:
            seconds = [(stage, f"{value:,.1f}") for stage, value in self.stages.items()]
            parts.append(_table(("stage", "seconds"), seconds))
        parts += [self._index_line(), self.limits or self.limiting()]
        parts += [f"- {line}" for line in (*map(printable, self.warnings), *self.trouble_lines())]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _nothing_happened(self) -> bool:
        done = self.reasons or self.troubles or self.warnings or self.interrupted
        return not (done or self.index) and not any(n for _, n in self._outcomes())

    def _idle_line(self) -> str:
        if self.kind == "backfill":
            return f"Nothing is pending there: looked for {self.duration_s:,.1f} s."
        files = counted(self.scanned, "file")
        return f"Nothing changed: {files} scanned in {self.duration_s:,.1f} s."

    def _headline(self) -> str:
        space = f" into space {self.space}" if self.space else ""
        said = [f"{counted(self.extracted, 'image')} extracted{space} in {self.duration_s:,.1f} s"]
        if self.extracted:
            said.append(f"{self.images_per_s:,.1f} images/s")
        if self.pending:
            said.append(f"{counted(self.pending, 'file')} left")
        return f"{self._how()}: {', '.join(said)}"

    def _how(self) -> str:
        but = BUT.get(self.exit_code())
        how = "interrupted" if self.interrupted else f"done, but {but}" if but else "done"
        return f"Back-fill {how}" if self.kind == "backfill" else how.capitalize()

    def _scan_line(self) -> str:
        if self.kind != "index":
            return ""
        return f"  scanned    {counted(self.scanned, 'file')}, {self.unchanged:,} unchanged"

    def _why_lines(self) -> list[str]:
        said = [f"{n:,} {WHY.get(reason, reason)}" for reason, n in self.reasons.items() if n]
        return [f"  because    {', '.join(said)}"] if said else []

    def _outcomes(self) -> list[tuple[str, int]]:
        return [
            ("extracted", self.extracted),
            ("reused: the image had a vector", self.reused),
            ("moved", self.moved),
            ("copied", self.copied),
            ("touched: same bytes", self.touched),
            ("busy: changed while read, next run reads them", self.busy),
            ("failed", self.failed),
        ]

    def _outcome_lines(self) -> list[str]:
        said = [f"{n:,} {word}" for word, n in self._outcomes() if n]
        lines = [f"  outcome    {', '.join(said)}"] if said else []
        if self.failures:
            classes = ", ".join(f"{n:,} {name}" for name, n in sorted(self.failures.items()))
            lines.append(f"  failures   {classes}  (lookalike failures lists them)")
        return [*lines, f"  engine     {engines_line(self.engines)}"] if self.engines else lines

    def _stage_lines(self) -> list[str]:
        lines = []
        for word, stages in (("seconds", tuple(STAGES)), ("in threads", THREADS)):
            said = [f"{name} {self.stages[name]:,.1f}" for name in stages if name in self.stages]
            if said:
                lines.append(f"  {word:<11}{', '.join(said)}")
        return lines

    def _index_line(self) -> str:
        if not self.index:
            return ""
        several = self.index["space"] != self.space
        where = f" of space {self.index['space']}" if several else ""
        said = f"{self.index['factory']}, {counted(self.index['n'], 'vector')}{where}"
        recall = self.index.get("recall")
        return f"  index      {said}" + ("" if recall is None else f", {RECALL} {recall:.3f}")


def add_engines(report: Any, told: Mapping[str, Any]) -> None:
    """Add to a report what was told of the engines; several workers may say the same of one."""
    for name, n in told["engines"].items():
        report.engines[name] = report.engines.get(name, 0) + n
    report.warnings += [line for line in told["warnings"] if line not in report.warnings]


def engines_line(engines: Mapping[str, int]) -> str:
    """Return which engines ran the forward passes of how many images."""
    if len(engines) == 1:
        return next(iter(engines))
    return ", ".join(f"{name} for {counted(n, 'image')}" for name, n in engines.items())


def _table(head: tuple[str, str], rows: Any) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---:|"]
    return "\n".join([*lines, *(f"| {name} | {_cell(value)} |" for name, value in rows)])


def _cell(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else value


def dump(value: Any) -> str:
    r"""Return JSON for scripts: ASCII alone, so that odd bytes of a path are ``\udcXX``."""
    return json.dumps(value, ensure_ascii=True, indent=2)
