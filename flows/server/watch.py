"""Tell on stderr what becomes of the runs of some deployments, a line for each start and end."""

import asyncio
import sys
from collections.abc import Mapping
from datetime import datetime
from uuid import UUID
from zoneinfo import ZoneInfo

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Crashed

LOOK_S = 2.0
LATEST = 50
"""Runs that are looked at; more do not change within `LOOK_S`."""
BEFORE = [StateType.SCHEDULED, StateType.PENDING]
RUNNING = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
DIED = "its process is gone; the next run goes on from what it has committed"
SCHEDULED_S = 90.0
"""Time for a server's scheduler, which goes round once a minute."""


class Watch:
    """Looks at the runs of some deployments again and again.

    Parameters
    ----------
    names
        Names of the deployments by their ids.
    zone
        Time zone in which times are told.
    """

    def __init__(self, names: Mapping[UUID, str], zone: str) -> None:
        self._names = names
        self._zone = ZoneInfo(zone)
        self._told: dict[UUID, StateType] | None = None

    async def run(self, client: PrefectClient) -> None:
        """Look until this is cancelled; trouble of the API is the runner's to tell."""
        while True:
            await self.look(client)
            await asyncio.sleep(LOOK_S)

    async def look(self, client: PrefectClient) -> None:
        """Tell what has changed since the last look; the first tells nothing that is over."""
        try:
            runs = await self._latest(client)
        except Exception:  # noqa: BLE001 - see `run`
            return
        first, told = self._told is None, self._told or {}
        for run in reversed(runs):
            over = run.state is not None and run.state.is_final()
            if run.state_type and told.get(run.id) != run.state_type and not (first and over):
                self._say(f"{self._label(run)} {_what(run)}")
        self._told = {run.id: run.state_type for run in runs if run.state_type}

    async def bury(self, client: PrefectClient) -> None:
        """Declare crashed what still counts as running: it died with the process that served it.

        To be called before anything is served.  Such a run holds the only slot of its deployment
        for five minutes, and would be shown as running for ever.
        """
        dead = _runs_of(list(self._names), any_=RUNNING)
        for run in await client.read_flow_runs(flow_run_filter=dead, limit=LATEST):
            await client.set_flow_run_state(run.id, Crashed(message=DIED))
            self._say(f"{self._label(run)} crashed: {DIED}")

    async def next_runs(self, client: PrefectClient, wanted: set[str]) -> None:
        """Tell when each of the ``wanted`` deployments runs next, as soon as that is known."""
        left = {deployment: name for deployment, name in self._names.items() if name in wanted}
        for _ in range(int(SCHEDULED_S / LOOK_S)):
            for deployment, name in list(left.items()):
                for run in await self._next(client, deployment):
                    begins = run.next_scheduled_start_time
                    if begins is not None:
                        del left[deployment]
                        at = begins.astimezone(self._zone)
                        self._say(f"{name} runs next on {at:%A, %Y-%m-%d at %H:%M}")
            if not left:
                return
            await asyncio.sleep(LOOK_S)
        names = ", ".join(left.values())
        self._say(f"nothing is scheduled for {names}: does the scheduler of this API run?")

    async def _next(self, client: PrefectClient, deployment: UUID) -> list[FlowRun]:
        return await client.read_flow_runs(
            flow_run_filter=_runs_of([deployment], any_=[StateType.SCHEDULED]),
            sort=FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC,
            limit=1,
        )

    async def _latest(self, client: PrefectClient) -> list[FlowRun]:
        return await client.read_flow_runs(
            flow_run_filter=_runs_of(list(self._names), not_any_=BEFORE),
            sort=FlowRunSort.START_TIME_DESC,
            limit=LATEST,
        )

    def _name(self, run: FlowRun) -> str:
        return self._names[run.deployment_id] if run.deployment_id else run.name

    def _label(self, run: FlowRun) -> str:
        """Return the run's own name where it begins with the deployment's, as ours do."""
        name = self._name(run)
        return run.name if run.name.startswith(name) else name

    def _say(self, line: str) -> None:
        now = datetime.now(self._zone)
        print(f"{now:%Y-%m-%d %H:%M:%S} {line}", file=sys.stderr, flush=True)  # noqa: T201


def _what(run: FlowRun) -> str:
    if run.state is None or run.state_type == StateType.RUNNING:
        return "started"
    return ": ".join(filter(None, [(run.state.name or "ended").lower(), run.state.message]))


def _runs_of(
    deployments: list[UUID],
    any_: list[StateType] | None = None,
    not_any_: list[StateType] | None = None,
) -> FlowRunFilter:
    return FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=deployments),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=any_, not_any_=not_any_)),
    )
