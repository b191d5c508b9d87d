"""The report of a maintenance: what was verified, read again, pruned, compacted and published."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from flows.commands.show import printable, size
from flows.job.progress import counted
from flows.job.report import RECALL
from flows.job.troubles import Troubles
from flows.job.wording import BUT
from storage.check import Finding
from storage.compact import CompactResult
from storage.rehash import SLICES, Rehashed
from storage.roots import display

SHOWN = 10
"""Characters of a digest that tell two apart for a person."""
AGAIN = {
    "same": "the same",
    "changed": "changed: the next index run reads them",
    "rotten": "with other bytes though nothing else differs",
    "vanished": "gone",
    "unreadable": "unreadable",
}
"""What to say of the files that were read again, by their outcome."""


@dataclass
class UpkeepReport(Troubles):
    """Findings, counts, seconds by step and troubles of one run of ``lookalike maintain``."""

    run_id: str = ""
    duration_s: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    """By step: ``verify rehash prune compact publish delete``; those that were not taken lack."""
    findings: list[dict[str, Any]] | None = None
    """``severity what repaired``; None where nothing was verified."""
    rehash: dict[str, Any] | None = None
    """``slice of files finished``, the number of files by outcome, and lists of the ``rotten``
    (``path was now``) and the ``unreadable`` (``path why``), up to 100 of each."""
    pruned: int = 0
    """Files that were missing past their grace."""
    compacted: list[dict[str, Any]] = field(default_factory=list)
    """``space parts_before parts_after rows_dropped bytes_before bytes_after``."""
    published: list[dict[str, Any]] = field(default_factory=list)
    """``space reason generation factory n row_end size_bytes recall fallen duration_s``."""
    deleted: int = 0
    """Replaced files, and files of ended runs, that nobody reads any more."""
    warnings: list[str] = field(default_factory=list)
    interrupted: bool = False
    troubles: dict[int, list[str]] = field(default_factory=dict)
    """One line a trouble, by the exit code that it causes."""

    def finish(self, duration_s: float) -> None:
        """Set how long the run took."""
        self.duration_s = duration_s

    def add_findings(self, findings: Iterable[Finding]) -> None:
        """Add what the check found; what is wrong and was not mended is a trouble (exit 5)."""
        self.findings = [asdict(finding) for finding in findings]
        for finding in self.findings:
            if finding["severity"] == "error" and not finding["repaired"]:
                self.trouble(5, finding["what"])

    def add_rehash(self, found: Rehashed) -> None:
        """Add what came of reading files again; those that have rotted are a trouble (exit 3)."""
        rotten = [
            {"path": display(bad.path), "was": bad.was.hex()[:SHOWN], "now": bad.now.hex()[:SHOWN]}
            for bad in found.rotten
        ]
        unreadable = [{"path": display(path), "why": why} for path, why in found.unreadable]
        self.rehash = {
            "slice": found.number,
            "of": SLICES,
            "files": found.outcomes.total(),
            "finished": found.finished,
            "outcomes": {name: found.outcomes[name] for name in AGAIN},
            "rotten": rotten,
            "unreadable": unreadable,
        }
        for bad in rotten:
            self.trouble(
                3,
                f"{bad['path']} holds other bytes ({bad['was']}... became {bad['now']}...) though "
                "size, times and inode are the same: a failing disk, or a write through a memory "
                "map. Restore it from a backup; the next index run reads it as it is then",
            )
        more = found.outcomes["rotten"] - len(rotten)
        if more > 0:
            self.trouble(3, f"{counted(more, 'more file')} hold other bytes in the same way")
        if unreadable:
            n = counted(found.outcomes["unreadable"], "file")
            first = unreadable[0]
            self.warnings.append(f"{n} could not be read: {first['path']}: {first['why']}")

    def add_compacted(self, space: str, result: CompactResult) -> None:
        """Add what a compaction did."""
        self.compacted.append({"space": space, **asdict(result)})

    def add_published(self, reason: str, made: Mapping[str, Any]) -> None:
        """Add an index that was published, and what to tell people of its recall."""
        self.published.append({**made, "reason": reason})
        if made["fallen"]:
            self.warnings.append(made["fallen"])

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values, ``exit_code`` among them."""
        ended = {"troubles": self.trouble_values(), "exit_code": self.exit_code()}
        return {**asdict(self), **ended}

    def to_text(self) -> str:
        """Return the report for a terminal: a line for the whole, and one for each step."""
        lines = [self._headline(), *(f"  {step:<11}{said}" for step, said in self._steps())]
        if self.seconds:
            spent = ", ".join(f"{step} {s:,.1f}" for step, s in self.seconds.items())
            lines.append(f"  {'seconds':<11}{spent}")
        return "\n".join([*lines, *map(printable, self.warnings)])

    def to_markdown(self) -> str:
        """Return the report as Markdown, for a Prefect artifact."""
        steps = "\n".join(f"- **{step}**: {said}" for step, said in self._steps())
        spent = [f"| {step} | {s:,.1f} |" for step, s in self.seconds.items()]
        warnings = map(printable, self.warnings)
        table = "\n".join(["| step | seconds |", "|---|---:|", *spent]) if spent else ""
        said = "\n".join(f"- {line}" for line in (*warnings, *self.trouble_lines()))
        return "\n\n".join(part for part in (f"# {self._headline()}", steps, table, said) if part)

    def _headline(self) -> str:
        but = BUT.get(self.exit_code())
        if self.rehash and self.rehash["outcomes"]["rotten"] and not but:
            but = "files hold other bytes than when they were indexed"
        how = "Interrupted" if self.interrupted else f"Done, but {but}" if but else "Done"
        return f"{how}: the store was maintained in {self.duration_s:,.1f} s"

    def _steps(self) -> Iterator[tuple[str, str]]:
        if self.findings is not None:
            yield "verified", _verified(self.findings)
            yield from (("", _finding(finding)) for finding in self.findings)
        if self.rehash is not None:
            yield "read again", _read_again(self.rehash)
        if self.pruned:
            yield "pruned", f"{counted(self.pruned, 'file')} missing past the grace period"
        yield from (("compacted", compacted_line(**each)) for each in self._rewritten())
        for made in self.published:
            yield "index", _index_line(made)
        if self.deleted:
            yield "deleted", counted(self.deleted, "old file")

    def _rewritten(self) -> list[dict[str, Any]]:
        return [
            each
            for each in self.compacted
            if each["rows_dropped"] or each["parts_after"] != each["parts_before"]
        ]


def compacted_line(
    space: str,
    parts_before: int,
    parts_after: int,
    rows_dropped: int,
    bytes_before: int,
    bytes_after: int,
) -> str:
    """Return what a compaction did to a space, in one line."""
    return (
        f"space {space}: {counted(rows_dropped, 'dead vector')} dropped, "
        f"parts {parts_before} -> {parts_after}, {size(bytes_before)} -> {size(bytes_after)}"
    )


def _index_line(made: dict[str, Any]) -> str:
    said = f"space {made['space']}: {made['factory']}, {counted(made['n'], 'vector')}"
    return said if made["recall"] is None else f"{said}, {RECALL} {made['recall']:.3f}"


def _finding(finding: dict[str, Any]) -> str:
    mended = " (repaired)" if finding["repaired"] else ""
    return f"{finding['severity']}: {finding['what']}{mended}"


def _verified(findings: list[dict[str, Any]]) -> str:
    errors = [finding for finding in findings if finding["severity"] == "error"]
    if not errors:
        return "clean"
    repaired = sum(finding["repaired"] for finding in errors)
    return f"{counted(len(errors), 'error')}, {repaired:,} repaired"


def _read_again(rehash: dict[str, Any]) -> str:
    head = f"slice {rehash['slice'] + 1} of {rehash['of']}"
    files, outcomes = rehash["files"], rehash["outcomes"]
    if outcomes["same"] == files:
        said = f"{counted(files, 'file')}, all the same" if files else "no file"
    else:
        said = ", ".join(f"{n:,} {AGAIN[name]}" for name, n in outcomes.items() if n)
    return f"{said} ({head}{'' if rehash['finished'] else ', not finished'})"
