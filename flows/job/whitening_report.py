"""The report of a whitening: what was learnt, how many vectors were made, and the index."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from flows.job.progress import counted
from flows.job.report import RECALL
from flows.job.troubles import Troubles


@dataclass
class WhiteningReport(Troubles):
    """Counts, seconds by step and the index of one run of ``lookalike whiten``."""

    base: str = ""
    """The space that was whitened."""
    space: str = ""
    """The space that holds the whitened vectors."""
    run_id: str = ""
    dims: tuple[int, int] = (0, 0)
    """Numbers of a vector before and after."""
    learnt_from: int = 0
    """Vectors of the sample; 0 where it was learnt by an earlier run."""
    filled: int = 0
    """Vectors that this run has made."""
    vectors: int = 0
    """Vectors of the new space at the end."""
    duration_s: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    """By step: ``learn fill publish``; those that were not taken lack."""
    index: dict[str, Any] | None = None
    """``space generation factory n row_end size_bytes recall fallen duration_s``; None where
    nothing was published."""
    warnings: list[str] = field(default_factory=list)
    interrupted: bool = False
    troubles: dict[int, list[str]] = field(default_factory=dict)
    """One line a trouble, by the exit code that it causes."""

    def finish(self, duration_s: float) -> None:
        """Set how long the run took."""
        self.duration_s = duration_s

    def add_published(self, made: Mapping[str, Any]) -> None:
        """Add the index that was published, and what to tell people of its recall."""
        self.index = dict(made)
        if made["fallen"]:
            self.warnings.append(made["fallen"])

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values, ``exit_code`` among them."""
        ended = {"troubles": self.trouble_values(), "exit_code": self.exit_code()}
        return {**asdict(self), "dims": list(self.dims), **ended}

    def to_text(self) -> str:
        """Return the report for a terminal; its first line says the whole in short."""
        lines = [self._headline()]
        if self.learnt_from:
            lines.append(f"  learnt from {counted(self.learnt_from, 'vector')}")
        if self.filled:
            lines.append(f"  whitened    {counted(self.filled, 'vector')}, no image was read")
        if self.index is not None:
            said = f"  index       {self.index['factory']}, {counted(self.index['n'], 'vector')}"
            recall = self.index["recall"]
            lines.append(said if recall is None else f"{said}, {RECALL} {recall:.3f}")
        if self.filled and not self.interrupted:
            lines.append(f"  search it with --space {self.space}, or after: {self._use()}")
        return "\n".join([*lines, *self.warnings])

    def _use(self) -> str:
        return f"lookalike spaces use {self.space}"

    def _headline(self) -> str:
        if self.interrupted:
            made = counted(self.filled, "vector")
            return f"Interrupted: {made} made and kept; the same command goes on"
        before, after = self.dims
        what = f"space {self.space} holds {counted(self.vectors, 'vector')} of {self.base}"
        said = f"{what}, whitened from {before:,} to {after:,} numbers"
        if not (self.learnt_from or self.filled or self.index):
            return f"Nothing to do: {said}"
        return f"Done: {said}, in {self.duration_s:,.1f} s"
