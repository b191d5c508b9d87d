"""The Prefect flow ``index_images``: a thin coat around the job.

A deployment names it ``flows.index.index_images``; it then takes its settings from the environment.
The command line calls it through `flows.prefect_run`.
"""

from dataclasses import replace
from typing import Any

from prefect import State, flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.artifacts import Table, failure_table
from flows.job import IndexOptions, run_index
from flows.labels import run_name, tags_of
from flows.parameters import options_for
from flows.progress import Progress
from flows.report import Report
from flows.story import FlowJob, job_state
from flows.tasks import PrefectSteps
from storage.catalog import Catalog


def carry_out(options: IndexOptions, progress: Progress, flow_run: str | None) -> Report:
    """Run the job with its steps as tasks."""
    options = replace(options, flow_run=flow_run)
    return run_index(options, steps=PrefectSteps(), progress=progress)


def tables(report: Report, catalog: Catalog) -> list[Table]:
    """Return the table of the failures."""
    return [failure_table(report.failures, catalog)]


JOB = FlowJob("index", carry_out, tags_of, tables)


@flow(
    name="index-images",
    flow_run_name=lambda: run_name("index"),
    task_runner=ThreadPoolTaskRunner(max_workers=1),  # type: ignore[arg-type]
    persist_result=False,
)
def index_images(  # noqa: PLR0913 - each one is a field of Prefect's form and of a deployment
    roots: list[str] | None = None,
    space: str | None = None,
    model: str | None = None,
    layer: str | None = None,
    weights: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    chunk_size: int | None = None,
    excludes: list[str] | None = None,
    index_spec: str | None = None,
    max_failures: float | None = None,
    confirm_missing: bool = False,
    home: str | None = None,
) -> State[dict[str, Any]]:
    """Bring the index up to date with the roots, or with all known ones.

    What is left out comes from ``LOOKALIKE_*`` and the settings file.  The result is the run's
    report.  The run is *Failed* where a root or the store is in trouble or too many images failed,
    *Cancelled* where it was stopped; images that failed alone do not fail it.
    """
    asked = dict(locals())
    return job_state(lambda: options_for(asked)[0], JOB)
