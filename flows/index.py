"""The Prefect flow ``index_images``: a thin coat around the job.

A deployment names it ``flows.index.index_images``; it then takes its settings from the environment.
The command line calls it through `flows.engine.in_process`.
"""

from dataclasses import replace
from typing import Any

from prefect import State, flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.engine import form
from flows.engine.artifacts import Table, failure_table
from flows.engine.hooks import give_back_leases
from flows.engine.labels import run_name, tags_of
from flows.engine.runners import steps_of
from flows.engine.story import FlowJob, job_state
from flows.job.loop import IndexOptions, run_index
from flows.job.parameters import options_for
from flows.job.progress import Progress
from flows.job.report import Report
from flows.job.steps import MOST_SLOTS
from storage.catalog import Catalog


def carry_out(options: IndexOptions, progress: Progress, flow_run: str | None) -> Report:
    """Run the job with its steps as tasks."""
    options = replace(options, flow_run=flow_run)
    with steps_of(options, progress.note) as steps:
        return run_index(options, steps=steps, progress=progress)


def tables(report: Report, catalog: Catalog) -> list[Table]:
    """Return the table of the failures."""
    return [failure_table(report.failures, catalog, report.run_id)]


JOB = FlowJob("index", carry_out, tags_of, tables, Report.to_line)


@flow(
    name="index-images",
    flow_run_name=lambda: run_name("index"),
    task_runner=ThreadPoolTaskRunner(max_workers=MOST_SLOTS),  # type: ignore[arg-type]
    persist_result=False,
    on_crashed=[give_back_leases],
    on_cancellation=[give_back_leases],
)
def index_images(  # noqa: PLR0913 - each one is a field of Prefect's form and of a deployment
    roots: form.Roots = None,
    space: form.Space = None,
    model: form.Model = None,
    layer: form.Layer = None,
    weights: form.Weights = None,
    input_size: form.InputSize = None,
    pool: form.Pool = None,
    scales: form.Scales = None,
    relu: form.Relu = None,
    dtype: form.Dtype = None,
    device: form.Device = None,
    engine: form.Engine = None,
    batch_size: form.BatchSize = None,
    workers: form.Workers = None,
    chunk_size: form.ChunkSize = None,
    excludes: form.Excludes = None,
    index_spec: form.IndexSpec = None,
    max_failures: form.MaxFailures = None,
    confirm_missing: form.ConfirmMissing = False,
    runner: form.Runner = None,
    cluster: form.Cluster = None,
    home: form.HomeDir = None,
) -> State[dict[str, Any]]:
    """Bring the index up to date with the roots, or with all known ones.

    What is left out comes from ``LOOKALIKE_*`` and the settings file.  The result is the run's
    report.  The run is *Failed* where a root or the store is in trouble or too many images failed,
    *Cancelled* where it was stopped; images that failed alone do not fail it.
    """
    asked = dict(locals())
    return job_state(lambda: options_for(asked)[0], JOB)
