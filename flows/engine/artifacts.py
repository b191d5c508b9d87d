"""What a run leaves in Prefect to be looked at: its progress, its report, tables.

All of it is a view.  Where Prefect's API fails the run goes on without it.
"""

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, cast
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectException

from flows.commands.show import printable
from flows.job.parameters import safe
from flows.job.progress import Progress
from flows.job.told import Told
from storage.catalog import Catalog
from storage.errors import StorageError
from storage.failures import list_failures

EVERY_S = 5.0
"""Least time between two updates, which cost 20 ms each."""
LOOKED_AT = 1000
"""Failures among which an example of each class is looked for."""

ApiTrouble = (httpx.HTTPError, PrefectException)


@dataclass(frozen=True)
class Table:
    """A table that a run leaves in Prefect, under the key ``KIND-NAME``."""

    name: str
    description: str
    rows: list[dict[str, Any]]


class ProgressArtifact:
    """Shows in Prefect how far a run is, from a thread of its own.

    A context manager; to be entered inside the flow.  Its key is ``KIND-progress``: under each key
    Prefect shows the runs one after the other.
    """

    def __init__(self, kind: str, progress: Progress, every_s: float = EVERY_S) -> None:
        self._kind = kind
        self._progress = progress
        self._every_s = every_s
        self._done = threading.Event()
        self._id: UUID | None = None
        self._sent = 0.0

    def __enter__(self) -> Self:
        with suppress(*ApiTrouble):
            made = create_progress_artifact(
                progress=0.0,
                key=f"{self._kind}-progress",
                description="Share of the pending work that is done.",
            )
            self._id = cast(UUID, made)  # a coroutine only where an event loop runs
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._follow,), name="progress-artifact", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join(self._every_s)  # no longer: an API that hangs must not hold up the run

    def complete(self) -> None:
        """Say that all is done, also where nothing was pending."""
        self._send(100.0)

    def _follow(self) -> None:
        while not self._done.wait(self._every_s):
            self._send(100.0 * self._progress.done / max(self._progress.total, 1))

    def _send(self, share: float) -> None:
        if self._id is not None and share != self._sent:
            with suppress(*ApiTrouble):
                update_progress_artifact(self._id, progress=min(share, 100.0))
                self._sent = share


def publish_report(
    kind: str, report: Told, tables: Callable[[], list[Table]], say: Callable[[str], None]
) -> None:
    """Leave the report in Prefect as ``KIND-report``, and the tables that have rows."""
    try:
        create_markdown_artifact(
            key=f"{kind}-report",
            markdown=safe(report.to_markdown()),
            description="What the run did, and why.",
        )
        for table in tables():
            if table.rows:
                create_table_artifact(
                    key=f"{kind}-{table.name}", table=table.rows, description=table.description
                )
    except (*ApiTrouble, StorageError) as error:
        say(f"Prefect did not get the report: {error}")


def failure_table(failures: Mapping[str, int], catalog: Catalog, run_id: str) -> Table:
    """Return class, number and an example of a run's failures by class, the most frequent first.

    A copy of a picture that failed in an earlier run is counted and has no example.
    """
    examples: dict[str, str] = {}
    for failure in list_failures(catalog, limit=LOOKED_AT, run_id=run_id) if failures else ():
        line = f"{os.fsdecode(failure.path)}: {failure.message}"
        examples.setdefault(failure.failure_class, printable(line))
    ordered = sorted(failures.items(), key=lambda item: (-item[1], item[0]))
    rows = [
        {"class": name, "count": count, "example": examples.get(name, "")}
        for name, count in ordered
    ]
    return Table("failures", "Images without a vector of this run, by class.", rows)
