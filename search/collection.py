"""The collection for whoever looks after it: runs in full, failures by class, trying again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from storage.catalog import Catalog
from storage.failures import FailureInfo, counts_by_class, list_failures
from storage.failures import retry as arm
from storage.recall import RecallInfo, series
from storage.spaces import get_space, list_spaces
from storage.tables import Run

EXAMPLES = 3
"""Failures that are shown of a class."""
_LATEST = 500
"""Failures among which examples are looked for."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Seconds that a run spent on one stage, and its share of the longest one."""

    name: str
    seconds: float
    share: float


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run has told of itself; numbers that it did not tell are None."""

    run_id: str
    duration_s: float | None
    stages: tuple[Stage, ...]
    counts: dict[str, int]
    """Images or files by outcome, those that there were."""
    limits: str
    """One sentence on what took the most time."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FailureClass:
    """Failures of one class that concern a live file; of common ones the latest are examples."""

    name: str
    n: int
    examples: tuple[FailureInfo, ...]


def run_reports(catalog: Catalog, run_ids: Sequence[str]) -> dict[str, RunReport]:
    """Return what some runs have reported, by their ids; nothing of those that have not."""
    query = select(Run.id, Run.started_at, Run.ended_at, Run.report).where(Run.id.in_(run_ids))
    with catalog.read() as conn:
        rows = conn.execute(query).all()
    return {row.id: _report(row) for row in rows if isinstance(row.report, dict)}


def failure_classes(catalog: Catalog) -> list[FailureClass]:
    """Return all failures that concern a live file, the most common class first."""
    counts = counts_by_class(catalog)
    latest = list_failures(catalog, limit=_LATEST) if counts else []
    return [
        FailureClass(name, n, tuple(_examples(latest, name))) for name, n in counts.most_common()
    ]


def recall_series(catalog: Catalog) -> dict[str, list[RecallInfo]]:
    """Return what was measured of the indexes of each space, oldest first, by the space's name."""
    found = {space.name: series(catalog, space)[::-1] for space in list_spaces(catalog)}
    return {name: measured for name, measured in found.items() if measured}


def retry(catalog: Catalog, *, failure_class: str | None = None, space: str | None = None) -> int:
    """Arm failures again: the next run takes up their files.

    Parameters
    ----------
    catalog
        Open, for reading at least; it is opened anew for writing.
    failure_class
        Only those of this class.
    space
        Only those that keep files out of the space of this name.

    Returns
    -------
    int
        How many were armed; those that pass by themselves are tried again anyway.

    Raises
    ------
    SpaceError
        There is no such space.
    CatalogError
        The catalog can't be written.
    """
    with Catalog.open(catalog.home, write=True) as writer:
        only = None if space is None else get_space(writer, space)
        return arm(writer, failure_class=failure_class, space=only)


def _examples(latest: Sequence[FailureInfo], name: str) -> Sequence[FailureInfo]:
    return [failure for failure in latest if failure.failure_class == name][:EXAMPLES]


_COUNTS = (
    "scanned",
    "new",
    "changed",
    "moved",
    "missing",
    "extracted",
    "reused",
    "copied",
    "touched",
    "busy",
    "failed",
    "pending",
)
"""Counts of a report that people look for, in this order."""


def _report(row: Any) -> RunReport:
    told: Mapping[str, Any] = row.report
    seconds = {
        str(name): float(value)
        for name, value in _mapping(told.get("stages")).items()
        if isinstance(value, int | float)
    }
    longest = max(seconds.values(), default=0.0)
    counts = {name: told.get(name) for name in _COUNTS}
    warnings = told.get("warnings")
    return RunReport(
        run_id=row.id,
        duration_s=_duration(row, told),
        stages=tuple(
            Stage(name, value, value / longest if longest > 0 else 0.0)
            for name, value in seconds.items()
        ),
        counts={name: n for name, n in counts.items() if isinstance(n, int) and n},
        limits=str(told.get("limits") or ""),
        warnings=tuple(map(str, warnings)) if isinstance(warnings, list) else (),
    )


def _duration(row: Any, told: Mapping[str, Any]) -> float | None:
    seconds = told.get("duration_s")
    if isinstance(seconds, int | float):
        return float(seconds)
    return None if row.ended_at is None else max(0.0, row.ended_at - row.started_at)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
