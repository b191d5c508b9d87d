"""The Prefect flow ``backfill_images``: work on what the catalog knows, as somebody asks for it.

A deployment names it ``flows.backfill.backfill_images``.  The command line calls it through
`flows.engine.in_process`.
"""

from typing import Any

from prefect import State, flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.engine import form
from flows.engine.hooks import give_back_leases
from flows.engine.labels import run_name, tags_of
from flows.engine.story import FlowJob, job_state
from flows.index import carry_out, tables
from flows.job.parameters import options_for
from flows.job.report import Report
from flows.job.steps import MOST_SLOTS

JOB = FlowJob("backfill", carry_out, tags_of, tables, Report.to_line)


@flow(
    name="backfill-images",
    flow_run_name=lambda: run_name("backfill"),
    task_runner=ThreadPoolTaskRunner(max_workers=MOST_SLOTS),  # type: ignore[arg-type]
    persist_result=False,
    on_crashed=[give_back_leases],
    on_cancellation=[give_back_leases],
)
def backfill_images(  # noqa: PLR0913 - each one is a field of Prefect's form and of a deployment
    space: form.Space = None,
    model: form.Model = None,
    layer: form.Layer = None,
    weights: form.Weights = None,
    input_size: form.InputSize = None,
    pool: form.Pool = None,
    scales: form.Scales = None,
    relu: form.Relu = None,
    dtype: form.Dtype = None,
    roots: form.KnownRoots = None,
    globs: form.Globs = None,
    failed: form.Failed = False,
    since: form.Since = None,
    until: form.Until = None,
    device: form.Device = None,
    engine: form.Engine = None,
    batch_size: form.BatchSize = None,
    workers: form.Workers = None,
    chunk_size: form.ChunkSize = None,
    max_failures: form.MaxFailures = None,
    runner: form.Runner = None,
    cluster: form.Cluster = None,
    home: form.HomeDir = None,
) -> State[dict[str, Any]]:
    """Extract what known images lack in a space, of all roots or of a part of them.

    The roots are not walked: what is new there is for ``index_images``.  A model without a space
    gets one beside the current one, which goes on serving.  An index is published at the end.  The
    states are those of ``index_images``.
    """
    asked = dict(locals())
    return job_state(lambda: options_for(asked, "backfill")[0], JOB)
