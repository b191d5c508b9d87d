"""The deployments with Prefect's own server, commands and worker; the files that describe them."""

import configparser
import importlib
import inspect
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from flows.cli import cli
from flows.job.loop import IndexOptions, run_index
from flows.job.progress import Progress
from flows.job.spaces import SpaceChoice
from flows.job.steps import PlainSteps
from flows.job.worker import bench_for, clear_bench
from flows.server.local import whole_server
from flows.server.nightly_child import SERVED
from storage.catalog import Catalog
from storage.home import Home
from storage.tables import Run
from tests.flows.contents import assert_same, contents
from tests.flows.prefect_site import (
    PREFECT,
    Accounts,
    Site,
    accounts,
    assert_nothing_twice,
    environment,
    large_tree,
    until,
    worker,
)
from tests.flows.terminal import CHECKOUT, lookalike

DEPLOYMENTS = CHECKOUT / "deployments"
PREFECT_YAML = DEPLOYMENTS / "prefect.yaml"
SPEC = yaml.safe_load(PREFECT_YAML.read_text())
IMAGES = 240
live = pytest.mark.prefect
posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX processes")
pytestmark = pytest.mark.xdist_group("deployments")


class TestPrefectYaml:
    """The file is right, before any server sees it."""

    @pytest.fixture(params=SPEC["deployments"], ids=lambda deployment: deployment["name"])
    def deployment(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        return request.param

    def test_it_names_the_three(self) -> None:
        assert [each["name"] for each in SPEC["deployments"]] == [
            "nightly",
            "backfill",
            "maintenance",
        ]
        assert SPEC["pull"] == []  # so that entry points are modules wherever the worker stands

    def test_entry_points_are_flows_and_parameters_theirs(self, deployment: dict[str, Any]) -> None:
        from prefect import Flow

        module, _, name = deployment["entrypoint"].rpartition(".")
        flow = getattr(importlib.import_module(module), name)
        assert isinstance(flow, Flow)
        given = inspect.signature(flow.fn).parameters
        assert set(deployment.get("parameters", {})) <= set(given)
        assert all(each.default is not each.empty for each in given.values())  # a cron gives none
        assert "home" in given

    def test_schedules_and_limits_are_prefects(self, deployment: dict[str, Any]) -> None:
        from prefect.client.schemas.objects import ConcurrencyLimitConfig
        from prefect.client.schemas.schedules import CronSchedule

        limit = ConcurrencyLimitConfig(**deployment["concurrency_limit"])
        assert limit.limit == 1
        for schedule in deployment.get("schedules", []):
            assert CronSchedule(cron=schedule["cron"]).cron == schedule["cron"]
            assert schedule["timezone"] == "{{ $TZ }}"
        assert deployment["description"]
        assert deployment["tags"] == ["lookalike", deployment["name"]]

    def test_lookalike_nightly_serves_the_same(self, deployment: dict[str, Any]) -> None:
        [served] = [each for each in SERVED if each.name == deployment["name"]]
        assert served.entrypoint == deployment["entrypoint"]
        assert served.description == deployment["description"]
        assert served.collision == deployment["concurrency_limit"]["collision_strategy"]


class TestSystemd:
    """The unit is a unit, and its command is ours."""

    UNIT = DEPLOYMENTS / "lookalike-nightly.service"

    def test_its_command_exists(self) -> None:
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read(self.UNIT)
        program, *args = shlex.split(unit["Service"]["ExecStart"])
        assert program.endswith("/bin/lookalike")
        assert_is_command(args)
        assert unit["Service"]["KillMode"] == "mixed"  # the first signal is for one process alone
        assert "LOOKALIKE_HOME=%S/lookalike" in unit["Service"]["Environment"]
        assert unit["Service"]["StateDirectory"] == "lookalike"

    @pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
    def test_systemd_takes_it(self, tmp_path: Path) -> None:
        command = tmp_path / "lookalike"
        command.write_text("#!/bin/sh\n")
        command.chmod(0o755)
        unit = tmp_path / self.UNIT.name
        unit.write_text(self.UNIT.read_text().replace("/opt/lookalike/bin/lookalike", str(command)))
        done = subprocess.run(
            ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
        unit.write_text(unit.read_text().replace("KillMode=mixed", "KillMode=sometimes"))
        done = subprocess.run(
            ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60
        )
        assert "sometimes" in done.stderr  # so what was silent above does look


class TestSlurm:
    """What dask-jobqueue makes of the file; there is no Slurm here to run it."""

    FOLDER = DEPLOYMENTS / "slurm"

    def test_a_job_asks_for_what_a_worker_needs(self, tmp_path: Path) -> None:
        spec = yaml.safe_load((self.FOLDER / "gpu.yaml").read_text())
        asked = spec["cluster_kwargs"]
        assert spec["cluster_class"] == "dask_jobqueue.SLURMCluster"
        script = _job_script(asked, tmp_path)
        for line in (
            "#SBATCH -p gpu",
            "#SBATCH -A imaging",
            "#SBATCH --gres=gpu:1",
            "#SBATCH --cpus-per-task=8",
            "#SBATCH --mem=30G",
            "#SBATCH -t 04:00:00",
            "export PREFECT_API_URL=http://login1:4200/api",
            "export LOOKALIKE_HOME=/shared/lookalike/home",
            "export LOOKALIKE_CATALOG_URL=$(cat /shared/lookalike/catalog-url)",
            "export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK",
        ):
            assert line in script.splitlines()
        assert "--nthreads 1 " in script
        assert "--lifetime 225m --lifetime-stagger 10m" in script
        hours, minutes, _ = asked["walltime"].split(":")
        assert int(hours) * 60 + int(minutes) > 225 + 10
        for line in asked["job_script_prologue"]:
            assert subprocess.run(["sh", "-n", "-c", line], timeout=10).returncode == 0

    def test_the_runner_takes_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from prefect.settings import PREFECT_API_URL, temporary_settings

        from flows.engine.runners import task_runner

        monkeypatch.chdir(tmp_path)
        options = IndexOptions(
            home=str(tmp_path),
            catalog_url="postgresql://dbhost/lookalike",
            runner="dask",
            cluster=str(self.FOLDER / "gpu.yaml"),
        )
        with temporary_settings({PREFECT_API_URL: "http://login1:4200/api"}):
            runner: Any = task_runner(options)
        assert runner.cluster_class == "dask_jobqueue.SLURMCluster"
        assert runner.cluster_kwargs["n_workers"] == 8

    def test_the_driver_is_a_script_and_its_command_ours(self) -> None:
        script = self.FOLDER / "night.sbatch"
        assert subprocess.run(["bash", "-n", str(script)], timeout=10).returncode == 0
        [line] = re.findall(r"^exec lookalike (.*)$", script.read_text(), re.MULTILINE)
        assert_is_command(shlex.split(line))
        # Without `B:` Slurm signals the job's steps alone, and `exec` starts none.
        assert "#SBATCH --signal=B:TERM@300" in script.read_text().splitlines()


def _job_script(asked: dict[str, Any], logs: Path) -> str:
    """Return the job script, in a process of its own: a cluster leaves threads behind."""
    asked = {**asked, "n_workers": 0, "scheduler_options": {}, "log_directory": str(logs)}
    code = (
        "import sys, json; from dask_jobqueue import SLURMCluster\n"
        "with SLURMCluster(**json.loads(sys.argv[1])) as cluster: print(cluster.job_script())"
    )
    import json

    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(asked)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_is_command(args: list[str]) -> None:
    """Hold that ``lookalike ARGS`` is understood, without running it."""
    name, *rest = args
    with click.Context(cli, info_name="lookalike") as ctx:
        command = cli.get_command(ctx, name)
        assert command is not None
        command.make_context(name, rest, parent=ctx).close()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> str:
    return large_tree(tmp_path_factory.mktemp("trees") / "pictures", IMAGES)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Yield a whole server with our deployments, and a worker for them."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch, whole_server(str(folder)) as url:
        patch.delenv("PREFECT_API_URL", raising=False)  # that of this test process
        env = environment(folder / "client", PREFECT_API_URL=url, TZ="Europe/Berlin")
        site = Site(url, env)
        site.prefect("work-pool", "create", "lookalike", "--type", "process")
        site.prefect("--no-prompt", "deploy", "--all", "--prefect-file", str(PREFECT_YAML))
        command = [PREFECT, "worker", "start", "--pool", "lookalike"]
        with worker(command, env, folder / "worker.log"):
            yield site


def asked(home: Path | str, *roots: str) -> IndexOptions:
    choice = SpaceChoice(model="shufflenet_v2_x0_5", weights="random:0")
    return IndexOptions(home=str(home), roots=roots, choice=choice, workers=2)


@pytest.fixture(scope="module")
def sequential(tmp_path_factory: pytest.TempPathFactory, tree: str) -> str:
    """Return the home of one plain run over the tree: what all others must come to."""
    home = str(tmp_path_factory.mktemp("sequential") / "home")
    plainly(asked(home, tree))
    return home


def plainly(options: IndexOptions, progress: Progress | None = None) -> None:
    try:
        with PlainSteps() as steps:
            run_index(options, steps=steps, progress=progress or Progress("silent"))
    finally:
        clear_bench(options.home, options.catalog_url)


def assert_same_vectors(one: str, other: str) -> None:
    """Hold two homes against each other, but for the order of equally good hits.

    That order is the order of the commits, and pictures that look the same are equally good.
    """
    wanted, found = contents(one), contents(other)
    in_order: dict[bytes, list[tuple[bytes, ...]]] = {digest: [] for digest in wanted.hits}
    assert_same(replace(wanted, hits=in_order), replace(found, hits=in_order))
    assert found.hits.keys() == wanted.hits.keys()


def known(home: Path | str, tree: str) -> None:
    """Scan the tree into a home and extract nothing: all of it is pending."""
    options = asked(home, tree)
    stop = bench_for(options.home, None).stop

    class Stopping(Progress):
        def pending(self, total: int) -> None:
            stop.set()

    plainly(options, Stopping("silent"))
    assert accounts(Home(str(home))).vectors == 0


def _unlocked(catalog: str) -> bool:
    """Return whether nobody writes into a SQLite catalog."""
    with closing(sqlite3.connect(catalog, timeout=0.5, isolation_level=None)) as database:
        try:
            database.execute("begin immediate")
        except sqlite3.OperationalError:
            return False
        database.execute("rollback")
        return True


@live
@posix
class TestWithAWorker:
    """Runs that a server gives to a worker."""

    def test_prefect_has_the_deployments(self, site: Site) -> None:
        nightly = site.deployment("index-images/nightly")
        assert (nightly.entrypoint, nightly.work_pool_name) == (
            "flows.index.index_images",
            "lookalike",
        )
        assert nightly.pull_steps == []
        [schedule] = nightly.schedules
        assert schedule.schedule.cron == "0 2 * * *"
        assert schedule.schedule.timezone == "Europe/Berlin"  # that of TZ
        assert nightly.global_concurrency_limit.limit == 1
        assert nightly.concurrency_options.collision_strategy == "CANCEL_NEW"
        backfill = site.deployment("backfill-images/backfill")
        assert (backfill.schedules, backfill.concurrency_options.collision_strategy) == (
            [],
            "ENQUEUE",
        )
        maintenance = site.deployment("maintain-store/maintenance")
        assert [each.schedule.cron for each in maintenance.schedules] == ["0 4 * * sun"]

    def test_of_two_nights_at_once_one_is_cancelled(
        self, site: Site, tree: str, sequential: str, tmp_path: Path
    ) -> None:
        home = str(tmp_path / "home")
        nights = [
            site.trigger("index-images/nightly", roots=[tree], home=home, chunk_size=32)
            for _ in range(2)
        ]
        ended = {run.state.name: run for run in map(site.ended, nights)}
        assert set(ended) == {"Completed", "Cancelled"}
        assert "concurrency limit" in ended["Cancelled"].state.message
        assert ended["Completed"].state.message.startswith(f"Done: {IMAGES} images extracted")
        assert_same_vectors(sequential, home)
        assert_nothing_twice(accounts(Home(home)), IMAGES)

    def test_a_backfill_beside_a_night_does_nothing_twice(
        self, site: Site, tree: str, sequential: str, tmp_path: Path
    ) -> None:
        home = str(tmp_path / "home")
        known(home, tree)
        options = {"home": home, "chunk_size": 2}
        night = site.trigger("index-images/nightly", **options)
        self._in_work(home, 0)
        with self._held(home, night):  # so that it is not done before the other begins
            done = accounts(Home(home)).vectors
            assert 0 < done < IMAGES
            backfill = site.trigger("backfill-images/backfill", roots=[tree], **options)
            self._in_work(home, done)
            assert accounts(Home(home)).running == 2
        runs = [night, backfill]
        assert {site.ended(run).state.name for run in runs} == {"Completed"}
        found = accounts(Home(home))
        assert_nothing_twice(found, IMAGES)
        shares = [found.extracted[str(run)] for run in runs]
        assert sum(shares) == IMAGES
        assert shares[0] >= done
        assert shares[1] > 0
        assert_same_vectors(sequential, home)

    def test_maintenance_finds_all_in_order(self, site: Site, tree: str, tmp_path: Path) -> None:
        home = str(tmp_path / "home")
        folder = tmp_path / "few"
        folder.mkdir()
        for path in sorted(Path(tree).iterdir())[:3]:
            shutil.copy2(path, folder)
        plainly(asked(home, str(folder)))
        run = site.ended(site.trigger("maintain-store/maintenance", home=home))
        assert run.state.name == "Completed", run.state.message

    def test_after_a_cancelled_and_a_killed_night_the_next_goes_on(
        self, site: Site, tree: str, sequential: str, tmp_path: Path
    ) -> None:
        home = str(tmp_path / "home")
        known(home, tree)
        options = {"home": home, "chunk_size": 2}

        cancelled = site.trigger("index-images/nightly", **options)
        self._in_work(home, 0)
        site.cancel(cancelled)
        run = site.ended(cancelled)
        assert run.state.name == "Cancelled"
        assert "the next run goes on from here" in run.state.message
        after_cancel = accounts(Home(home))
        assert (after_cancel.claims, after_cancel.running) == (0, 0)
        assert 0 < after_cancel.vectors < IMAGES

        killed = site.trigger("index-images/nightly", **options)
        self._in_work(home, after_cancel.vectors)
        os.kill(self._process_of(home, killed), signal.SIGKILL)
        run = site.ended(killed)
        assert run.state.name == "Crashed"
        until(lambda: accounts(Home(home)).running == 0, within_s=20)  # a lease lasts 120 s
        after_kill = accounts(Home(home))
        assert after_kill.claims == 0
        assert after_cancel.vectors < after_kill.vectors < IMAGES

        run = site.ended(site.trigger("index-images/nightly", home=home, chunk_size=64))
        assert run.state.name == "Completed"
        left = IMAGES - after_kill.vectors
        assert run.state.message.startswith(f"Done: {left} image")
        assert_nothing_twice(accounts(Home(home)), IMAGES)
        assert_same_vectors(sequential, home)

    def _in_work(self, home: str, before: int) -> Accounts:
        """Return the accounts as soon as a run has committed more than there was."""

        def more() -> Accounts | None:
            found = accounts(Home(home))
            return found if found.vectors > before else None

        return until(more)

    @contextmanager
    def _held(self, home: str, run: Any) -> Iterator[None]:
        """Hold a run's process inside, at a moment at which it does not lock the catalog."""
        process = self._process_of(home, run)
        os.kill(process, signal.SIGSTOP)
        try:
            while not _unlocked(Home(home).sqlite):
                os.kill(process, signal.SIGCONT)
                time.sleep(0.05)
                os.kill(process, signal.SIGSTOP)
            yield
        finally:
            os.kill(process, signal.SIGCONT)

    def _process_of(self, home: str, run: Any) -> int:
        with Catalog.open(Home(home), write=False) as catalog, catalog.read() as conn:
            query = Run.__table__.select().where(Run.flow_run == str(run), Run.state == "running")
            return int(conn.execute(query).one().pid)

    def test_lookalike_nightly_leaves_the_workers_deployments_alone(
        self, site: Site, tmp_path: Path
    ) -> None:
        done = lookalike(
            "--home",
            str(tmp_path / "home"),
            "nightly",
            env={**site.env, "PREFECT_API_URL": site.url},
            code=2,
        )
        assert "belongs to the work pool 'lookalike'" in done.stderr
        assert "Traceback" not in done.stderr
        assert site.deployment("index-images/nightly").paused is False
