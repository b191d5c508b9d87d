"""The Prefect flow ``index_images``: a thin coat around the job.

A deployment names it ``flows.index.index_images``; it then takes its settings from the environment.
The command line calls it through `flows.prefect_run`.
"""

import os
from typing import Any

from prefect import State, flow
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows.parameters import options_for
from flows.story import job_state


def run_name() -> str:
    """Return the name of a run: what is indexed, and how."""
    asked = flow_run.get_parameters()
    roots = [os.path.basename(root.rstrip("/")) or root for root in asked.get("roots") or ()]
    how = [asked.get("space") or "-".join(filter(None, (asked.get("model"), asked.get("layer"))))]
    return " ".join(filter(None, ["index", *roots[:3], "..." if roots[3:] else "", *how]))


@flow(
    name="index-images",
    flow_run_name=run_name,
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
    return job_state(lambda: options_for(asked)[0])
