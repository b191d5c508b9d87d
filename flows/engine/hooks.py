"""What Prefect calls when a run has crashed or was cancelled: its leases are given back.

A run that a worker has started is supervised by another process, perhaps on another host than the
run's: Prefect loads the flow there by its entry point, and calls its hooks.  The run's parameters
and that process's own settings say where the store is, so a worker whose flows find their catalog
by ``LOOKALIKE_CATALOG_URL`` has to be given it too.  Where no hook is called leases run out by
themselves.
"""

from collections.abc import Mapping
from typing import Any

from prefect import Flow, State
from prefect.client.schemas import FlowRun
from prefect.logging.loggers import flow_run_logger

from flows.engine.call import current_call
from flows.settings import load_settings
from storage.catalog import Catalog
from storage.home import Home
from storage.leases import end_runs_of


def give_back_leases(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Declare crashed what the flow run still has running in the catalog; raise nothing.

    For ``on_crashed`` and ``on_cancellation``: Prefect calls either once the run's process is gone,
    by the names of these parameters.
    """
    log = flow_run_logger(flow_run, flow)
    try:
        ended = _ended(_home(flow_run.parameters), str(flow_run.id))
    except Exception as error:  # noqa: BLE001 - a hook that fails must not be the run's story
        log.warning("The leases of this run end by themselves: %s", error)
        return
    if ended:
        log.info("%s: the leases of run %s are free", state.name, ", ".join(ended))


def _ended(home: Home, flow_run_id: str) -> list[str]:
    if not home.is_made():
        return []
    with Catalog.open(home, write=True) as catalog:
        return end_runs_of(catalog, flow_run_id)


def _home(parameters: Mapping[str, Any]) -> Home:
    call = current_call()
    if call is not None:
        return Home(call.options.home, call.options.catalog_url)
    return load_settings({"home": parameters.get("home")}).settings.home_()
