"""The Prefect flow ``maintain_store``: a thin coat around the weekly maintenance.

A deployment names it ``flows.maintenance.maintain_store``; it then takes its store from the
environment.  ``lookalike maintain`` does the same without Prefect.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any

from prefect import State, flow

from flows.engine import form
from flows.engine.artifacts import Table
from flows.engine.hooks import give_back_leases
from flows.engine.labels import run_name
from flows.engine.story import FlowJob, job_state
from flows.job.progress import Progress
from flows.job.upkeep import KIND, run_maintenance
from flows.job.upkeep_options import UpkeepOptions, upkeep_options
from flows.job.upkeep_report import UpkeepReport
from storage.catalog import Catalog
from storage.spaces import list_spaces

Repair = Annotated[
    bool,
    form.about("Mend what can be mended: what is derived is built anew, what is lost is pending."),
]
Verify = Annotated[
    bool, form.about("Read every byte of the store; without it the other steps are taken alone.")
]


def carry_out(options: UpkeepOptions, progress: Progress, flow_run: str | None) -> UpkeepReport:
    """Maintain the store in the name of a flow run."""
    return run_maintenance(replace(options, flow_run=flow_run), progress)


def tags(_options: UpkeepOptions, catalog: Catalog) -> Iterator[str]:
    """Yield a tag for each space."""
    return (f"space:{space.name}" for space in list_spaces(catalog))


def tables(report: UpkeepReport, _catalog: Catalog) -> list[Table]:
    """Return what the check found, and the files that hold other bytes."""
    rotten = (report.rehash or {}).get("rotten", [])
    return [
        Table("findings", "What is wrong with the store.", report.findings or []),
        Table("rotten", "Files with other bytes though size and times are the same.", rotten),
    ]


JOB = FlowJob(KIND, carry_out, tags, tables)


@flow(
    name="maintain-store",
    flow_run_name=lambda: run_name(KIND),
    persist_result=False,
    on_crashed=[give_back_leases],
    on_cancellation=[give_back_leases],
)
def maintain_store(
    repair: Repair = False, verify: Verify = True, home: form.HomeDir = None
) -> State[dict[str, Any]]:
    """Verify the store, read a thirtieth of the files again, and tidy up.

    What is missing past its grace is forgotten, parts are compacted and indexes are published where
    that is due.  The result is the run's report.  The run is *Failed* where the store is in trouble
    that was not mended or a root is not there, *Cancelled* where it was stopped.

    Parameters
    ----------
    repair
        Mend what can be mended, from what is there.
    verify
        Read every byte of catalog, vectors and indexes.
    home
        Directory of the store; None is that of the settings.
    """
    return job_state(lambda: upkeep_options({"home": home}, repair=repair, verify=verify), JOB)
