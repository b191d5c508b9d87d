"""What is told of a run of ``regions`` at its end."""

from dataclasses import dataclass

from flows.batch.told import BatchReport


@dataclass
class RegionsReport(BatchReport):
    """That of any run that writes an output, and how many regions there are."""

    regions: int = 0
    """Regions in the output; in a folder, those that this run has found."""

    def to_text(self) -> str:
        """Return the report for a terminal, the number of regions below its first line."""
        if not self.regions and self.kept:
            return super().to_text()
        first, *rest = super().to_text().split("\n")
        return "\n".join([first, f"  {'regions':<11}{self.regions:,}", *rest])
