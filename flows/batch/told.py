"""What is told of an extraction at its end."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from flows.commands.show import printable
from flows.job.progress import counted
from flows.job.report import TELLING_S, engines_line
from flows.job.troubles import Troubles
from flows.job.wording import BUT, STAGES, THREADS, TOO_SHORT

HERE = {
    **STAGES,
    "scan": "Looking through the source limits this run.",
    "write": "Keeping finished work limits this run: a faster disk beside the output would help.",
    "assemble": "Writing the output limits this run: there was little else to do.",
}
"""Stages that follow each other, and what to say when one takes the most time."""


@dataclass
class BatchReport(Troubles):
    """Counts, seconds by stage and troubles of one run that writes an output."""

    source: str = ""
    out: str = ""
    format: str = ""
    model: str = ""
    layers: dict[str, int] = field(default_factory=dict)
    """Length of a vector by the layer's name."""
    written: int = 0
    """Images in the output; 0 while it is not complete."""
    extracted: int = 0
    """Images that this run has made vectors for."""
    kept: int = 0
    """Images that an earlier run was done with."""
    failed: int = 0
    """Images without a vector: all of the output's, or this run's while it is not complete."""
    engines: dict[str, int] = field(default_factory=dict)
    """Images of this run by what ran their forward passes; of a detector none are told."""
    failures: dict[str, int] = field(default_factory=dict)
    """Those by class."""
    failures_file: str | None = None
    left: int | None = None
    """Images that an interrupted run has left to the next one, where their number is known."""
    duration_s: float = 0.0
    images_per_s: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds by stage: those of ``HERE`` follow each other, those of the threads overlap."""
    warnings: list[str] = field(default_factory=list)
    limits: str = ""
    """One plain sentence of what limits the run."""
    interrupted: bool = False
    troubles: dict[int, list[str]] = field(default_factory=dict)
    """One line a trouble, by the exit code that it causes."""

    def add_failures(self, classes: Sequence[str]) -> None:
        """Count failures by their class."""
        self.failed += len(classes)
        for name in classes:
            self.failures[name] = self.failures.get(name, 0) + 1

    def add_seconds(self, seconds: Mapping[str, float]) -> None:
        """Add seconds by stage."""
        for stage, spent in seconds.items():
            self.stages[stage] = self.stages.get(stage, 0.0) + spent

    def finish(self, duration_s: float, max_failures: float | None) -> None:
        """Set what follows from the whole run: rate, limiting stage, too many failures (exit 7)."""
        self.duration_s = duration_s
        self.images_per_s = self.extracted / duration_s if duration_s > 0 else 0.0
        known = [stage for stage in HERE if self.stages.get(stage)]
        if known:
            longest = max(known, key=self.stages.__getitem__)
            self.limits = TOO_SHORT if duration_s < TELLING_S else HERE[longest]
        share = self.failed / max(self.failed + (self.written or self.extracted), 1)
        if max_failures is not None and share > max_failures:
            line = f"{share:.0%} of the images failed, --max-failures allows {max_failures:.0%}"
            self.trouble(7, line)

    def exit_codes(self) -> set[int]:
        """Return the exit codes that apply; images that failed are 3."""
        return super().exit_codes() | ({3} if self.failed else set())

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values, ``exit_code`` among them."""
        ended = {"troubles": self.trouble_values(), "exit_code": self.exit_code()}
        return {**asdict(self), **ended}

    def to_text(self) -> str:
        """Return the report for a terminal: a line for the whole, and one for each matter."""
        lines = [self._headline()]
        lines += [f"  {word:<11}{said}" for word, said in self._matters() if said]
        lines += [self.limits] if self.limits else []
        return "\n".join(map(printable, [*lines, *self.warnings]))

    def _headline(self) -> str:
        but = BUT.get(self.exit_code())
        if self.interrupted:
            left = f", {counted(self.left, 'image')} left" if self.left else ""
            return (
                f"Interrupted: {counted(self.extracted, 'image')} extracted{left}; "
                "the same command goes on from here"
            )
        how = f"Done, but {but}" if but else "Done"
        return f"{how}: {counted(self.written, 'image')} in {self.out} ({self.format})"

    def _matters(self) -> list[tuple[str, str]]:
        layers = ", ".join(f"{name} ({dim:,})" for name, dim in self.layers.items())
        rate = f", {self.images_per_s:,.1f} images/s" if self.extracted else ""
        earlier = f", {self.kept:,} in an earlier run" if self.kept else ""
        classes = ", ".join(f"{n:,} {name}" for name, n in sorted(self.failures.items()))
        if classes and self.failures_file:
            classes += f"  ({self.failures_file} lists them)"
        return [
            ("source", self.source),
            ("network", f"{self.model} {layers}"),
            ("extracted", f"{counted(self.extracted, 'image')}{rate}{earlier}"),
            ("engine", engines_line(self.engines)),
            ("failures", classes),
            ("seconds", self._seconds(tuple(HERE))),
            ("in threads", self._seconds(THREADS)),
        ]

    def _seconds(self, stages: Sequence[str]) -> str:
        said = [f"{name} {self.stages[name]:,.1f}" for name in stages if name in self.stages]
        return ", ".join(said)
