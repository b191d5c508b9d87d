"""Serve the deployments by Prefect's own runner for as long as the parent process lives.

A module for a child process, like `flows.server.child`: its standard input is a pipe that the
parent holds.  When the pipe closes, runs in progress are asked to stop, the schedules are paused,
and the process ends; `flows.server.ending` sees to that.
"""

import asyncio
import json
import os
import sys
import threading
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import (
    ConcurrencyLimitConfig,
    ConcurrencyLimitStrategy,
    DeploymentStatus,
)
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.runner import Runner
from prefect.schedules import Cron
from prefect.settings import PREFECT_API_URL

from flows.server.ending import end_what_is_left, follow_parent, heed_no_signal
from flows.server.local import server_folder
from flows.server.nightly import Night
from flows.server.process import REMOTE_ANSWER_S, ServerError, answers
from flows.server.watch import Watch

TAG = "lookalike"


class _Runner(Runner):
    """A runner that leaves signals to this module."""

    def handle_sigterm(self, *_args: object, **_kwargs: object) -> None:
        """Go on: see `heed_no_signal`."""


@dataclass(frozen=True)
class Served:
    """One deployment.  ``deployments/prefect.yaml`` has the same ones, for workers."""

    name: str
    entrypoint: str
    description: str
    collision: ConcurrencyLimitStrategy

    def deployment(self, night: Night, cron: str | None) -> RunnerDeployment:
        """Return the deployment, with its schedule if it has one."""
        deployment = RunnerDeployment.from_entrypoint(
            self.entrypoint,
            name=self.name,
            description=self.description,
            tags=[TAG, self.name],
            parameters={"home": night.home},
            schedules=[Cron(cron, timezone=night.timezone, slug=self.name)] if cron else [],
            concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=self.collision),
            paused=False,
        )
        if not cron:  # an empty list takes away the schedules that people have made
            deployment.model_fields_set.discard("schedules")
        return deployment


SERVED = (
    Served(
        "nightly",
        "flows.index.index_images",
        "Brings the index up to date with all known roots, every night.",
        ConcurrencyLimitStrategy.CANCEL_NEW,
    ),
    Served(
        "backfill",
        "flows.backfill.backfill_images",
        "Extracts what is chosen, by root, path, date or failure, into a space; started by hand.",
        ConcurrencyLimitStrategy.ENQUEUE,
    ),
    Served(
        "maintenance",
        "flows.maintenance.maintain_store",
        "Verifies the store, frees disk and looks after the index, every week.",
        ConcurrencyLimitStrategy.CANCEL_NEW,
    ),
)


async def serve(night: Night, closed: asyncio.Event) -> None:
    """Serve until ``closed`` is set.

    Raises
    ------
    ServerError
        The API serves these deployments otherwise, or was lost.
    """
    crons = {"nightly": night.nightly, "maintenance": night.maintenance}
    runner = _Runner(name="lookalike-nightly", pause_on_shutdown=True)
    names: dict[UUID, str] = {}
    async with get_client() as client:
        for served in SERVED:
            deployment = served.deployment(night, crons.get(served.name))
            await _take_over(client, deployment, night.home)
            names[await runner.aadd_deployment(deployment)] = served.name
        _greet(night, names)
        watch = Watch(names, night.timezone)
        await watch.bury(client)
        scheduled = {name for name, cron in crons.items() if cron}
        helpers = [
            asyncio.create_task(watch.run(client)),
            asyncio.create_task(watch.next_runs(client, scheduled)),
        ]
        try:
            await _run_until(runner, closed)
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            await watch.look(client)


async def _run_until(runner: Runner, closed: asyncio.Event) -> None:
    running = asyncio.create_task(runner.start())
    closing = asyncio.create_task(closed.wait())
    try:
        await asyncio.wait({running, closing}, return_when=asyncio.FIRST_COMPLETED)
        while not (runner.started or running.done()):  # it was closed at once
            await asyncio.sleep(0.1)
        if not running.done():
            await runner.astop()
        await running
    finally:
        closing.cancel()


async def _take_over(client: PrefectClient, deployment: RunnerDeployment, home: str) -> None:
    """Make sure that what is served replaces only what an earlier start has left."""
    try:
        there = await client.read_deployment_by_name(deployment.full_name)
    except ObjectNotFound:
        return
    _refuse_others(there, deployment.full_name, home)
    if deployment.schedules:
        return
    for schedule in there.schedules:
        if schedule.slug == deployment.name:  # ours; those that people have made stay
            await client.delete_deployment_schedule(there.id, schedule.id)


def _refuse_others(there: DeploymentResponse, name: str, home: str) -> None:
    """Leave deployments alone that workers carry out, or a process of another home."""
    if there.work_pool_name is not None:
        raise ServerError(
            f"{name} belongs to the work pool '{there.work_pool_name}': its workers run the nights "
            f"(`prefect deployment delete {name}` lets this process do it)"
        )
    other = there.parameters.get("home")
    if there.status == DeploymentStatus.READY and other not in (None, home):
        raise ServerError(f"{name} is served for {other} at this API; use another API")


def _greet(night: Night, names: dict[UUID, str]) -> None:
    api = str(PREFECT_API_URL.value())
    _say(f"serving {', '.join(names.values())} of {night.home}; times are {night.timezone}")
    _say(
        f"Prefect's page: {api.removesuffix('/api')} (back-fills are started there); Ctrl-C ends it"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - the log of the service


async def _main(night: Night) -> None:
    closed, url = asyncio.Event(), str(PREFECT_API_URL.value())
    ask = partial(asyncio.get_running_loop().call_soon_threadsafe, closed.set)
    os.chdir(server_folder(night.home))  # Prefect loads flows from where it stands, before all else
    threading.Thread(target=follow_parent, args=(os.getppid(), url, ask), daemon=True).start()
    try:
        await serve(night, closed)
    except ServerError:
        raise
    except Exception as error:
        if answers(url, REMOTE_ANSWER_S):
            raise ServerError(f"Prefect's runner has ended: {error}") from error
        raise ServerError(f"Prefect's API at {url} does not answer any more") from error


def main() -> int:
    """Serve what the argument says, and return the exit code."""
    heed_no_signal()
    try:
        asyncio.run(_main(Night(**json.loads(sys.argv[1]))))
    except ServerError as error:
        if os.environ.get("LOOKALIKE_DEBUG"):
            raise
        _say(f"lookalike: {error}")
        return error.exit_code
    finally:
        end_what_is_left()
    return 0


if __name__ == "__main__":
    sys.exit(main())
