"""A Prefect of the tests' own: commands, API, workers; and what the catalog accounts for."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import func, select

from flows.samples import draw_families
from storage.catalog import Catalog
from storage.home import Home
from storage.tables import Claim, Image, Part, Run, Vector
from tests.flows.contents import age

PREFECT = str(Path(sys.executable).with_name("prefect"))
TINY = {"LOOKALIKE_MODEL": "shufflenet_v2_x0_5", "LOOKALIKE_WEIGHTS": "random:0"}
SOON_S = 120.0


def environment(folder: Path | str, **more: str) -> dict[str, str]:
    """Return the environment of a process that shares nothing with the developer's Prefect."""
    names = ("PREFECT", "LOOKALIKE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    return {
        **kept,
        **TINY,
        "OMP_NUM_THREADS": "1",
        "PREFECT_HOME": str(folder),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "DO_NOT_TRACK": "1",
        "NO_PROXY": "127.0.0.1",
        **more,
    }


def large_tree(folder: Path, n: int) -> str:
    """Fill a folder with ``n`` small pictures, each with bytes of its own at its end."""
    draw_families(str(folder.with_name("drawn")), 1, seed=5)
    drawn = sorted(folder.with_name("drawn").rglob("*.jpg"))
    pictures = [path.read_bytes() for path in drawn]
    folder.mkdir()
    for number in range(n):
        data = pictures[number % len(pictures)] + number.to_bytes(4, "big")
        (folder / f"{number:04}.jpg").write_bytes(data)
    age(str(folder))
    return str(folder)


def until(true: Callable[[], Any], within_s: float = SOON_S) -> Any:
    """Return what ``true`` returns as soon as that is true."""
    deadline = time.monotonic() + within_s
    while True:
        found = true()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s"
        time.sleep(0.1)


@dataclass(frozen=True)
class Site:
    """A Prefect API, and the environment of whoever uses it."""

    url: str
    env: Mapping[str, str]

    def prefect(self, *args: str) -> str:
        """Run a command of Prefect's, and return what it printed."""
        done = subprocess.run(
            [PREFECT, *args], env=dict(self.env), capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, (args, done.stdout, done.stderr)
        return done.stdout

    @contextmanager
    def client(self) -> Iterator[Any]:
        from prefect.client.orchestration import get_client
        from prefect.settings import PREFECT_API_URL, temporary_settings

        with (
            temporary_settings({PREFECT_API_URL: self.url}),
            get_client(sync_client=True) as client,
        ):
            yield client

    def deployment(self, name: str) -> Any:
        with self.client() as client:
            return client.read_deployment_by_name(name)

    def trigger(self, deployment: str, **parameters: Any) -> UUID:
        """Start a run of a deployment, and return its id."""
        with self.client() as client:
            found = client.read_deployment_by_name(deployment)
            return client.create_flow_run_from_deployment(found.id, parameters=parameters).id

    def run(self, run: UUID) -> Any:
        with self.client() as client:
            return client.read_flow_run(run)

    def cancel(self, run: UUID) -> None:
        """Ask for the end of a run, like the button on the page."""
        from prefect.states import Cancelling

        with self.client() as client:
            client.set_flow_run_state(run, Cancelling())

    def ended(self, run: UUID, within_s: float = SOON_S) -> Any:
        """Return a run as soon as it has ended."""

        def end() -> Any:
            found = self.run(run)
            return found if found.state is not None and found.state.is_final() else None

        return until(end, within_s)


@contextmanager
def worker(command: list[str], env: Mapping[str, str], log: Path) -> Iterator[None]:
    """Run a worker inside."""
    with open(log, "wb") as out:
        process = subprocess.Popen(
            command, env=dict(env), stdout=out, stderr=out, cwd=log.parent, start_new_session=True
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Accounts:
    """What the catalog says that was done."""

    images: int
    vectors: int
    written: int
    """Rows of all parts: what was ever extracted and committed."""
    rows: int
    """Rows with a vector, each counted once."""
    claims: int
    running: int
    extracted: dict[str, int]
    """Images by the flow run that extracted them."""


def accounts(home: Home) -> Accounts:
    """Read the accounts of a home."""
    with Catalog.open(home, write=False) as catalog, catalog.read() as conn:

        def count(what: Any) -> int:
            return conn.execute(select(what)).scalar_one() or 0

        runs = conn.execute(select(Run.flow_run, Run.state, Run.report)).all()
        return Accounts(
            images=count(func.count(Image.id)),
            vectors=count(func.count(Vector.image_id)),
            written=count(func.sum(Part.n)),
            rows=count(func.count(Vector.row.distinct())),
            claims=count(func.count(Claim.run_id)),
            running=sum(run.state == "running" for run in runs),
            extracted={run.flow_run: (run.report or {}).get("extracted", 0) for run in runs},
        )


def assert_nothing_twice(found: Accounts, images: int) -> None:
    """Hold that every image was extracted exactly once, and that nobody holds a lease."""
    assert found.images == found.vectors == found.rows == found.written == images
    assert (found.claims, found.running) == (0, 0)
