"""The same job through Prefect's engine: same outcome, a record to look at, nothing left behind."""

import logging
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from inspect import signature
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError, OperationalError

from flows.engine import in_process as prefect_run
from flows.engine.environment import TAMED
from flows.engine.in_process import run_with_prefect
from flows.job import patience
from flows.job.loop import IndexOptions, run_index
from flows.job.parameters import options_for, parameters_of
from flows.job.progress import Progress
from flows.job.report import Report
from flows.job.spaces import SpaceChoice
from flows.job.steps import PlainSteps
from flows.job.worker import bench_for, clear_bench
from flows.samples import draw_families
from flows.server.local import SMALL, temporary_server
from flows.server.process import (
    ServerError,
    Start,
    end,
    free_port,
    launch,
    locked,
    wait_until_up,
)
from storage.catalog import Catalog
from storage.errors import CatalogError, SpaceError
from storage.home import Home
from storage.leases import reap
from storage.tables import Claim, Run, Vector
from tests.flows.contents import age, assert_same, contents
from tests.flows.gate import gate
from tests.flows.terminal import CHECKOUT

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.xdist_group("prefect"),
    pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals"),
]
TINY = SpaceChoice(model="resnet18", weights="random:0")
TYPED = ("--model", "resnet18", "--weights", "random:0")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Yield URL and folder of one server for all tests that need one."""
    home = str(tmp_path_factory.mktemp("server"))
    with temporary_server(home) as url:
        yield url, os.path.join(home, "prefect")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("trees") / "pictures")
    draw_families(folder, 2, seed=3)
    for name in ("broken.jpg", "empty.png"):
        Path(folder, name).write_bytes(b"\xff\xd8\xff no picture" if name == "broken.jpg" else b"")
    age(folder)
    return folder


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let what a run sets in the environment end with the test."""
    for name in [*TAMED, "PREFECT_API_URL", "NO_PROXY", "no_proxy"]:
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect-home"))


@pytest.fixture
def use_server(server: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PREFECT_API_URL", server[0])
    return server[0]


@pytest.fixture
def as_a_worker(use_server: str) -> Iterator[None]:
    """Let what logs to Prefect here find the server, also where Prefect was imported before."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: use_server}):
        yield


def migrated(home: Path, server: tuple[str, str]) -> str:
    """Return a home whose temporary servers start fast: with a copy of a database that is there."""
    (home / "prefect").mkdir(parents=True)
    with (
        closing(sqlite3.connect(Path(server[1], "prefect.db"))) as there,
        closing(sqlite3.connect(home / "prefect" / "prefect.db")) as here,
    ):
        there.backup(here)
    return str(home)


def asked(home: Path | str, *roots: str, **changes: Any) -> IndexOptions:
    return replace(IndexOptions(home=str(home), roots=roots, choice=TINY), **changes)


def through_prefect(options: IndexOptions, progress: Progress | None = None) -> Report:
    """Run in this process as the command does, and forget what it holds."""
    try:
        return run_with_prefect(options, progress or Progress("silent"))
    finally:
        clear_bench(options.home, options.catalog_url)


def plainly(options: IndexOptions) -> Report:
    try:
        with PlainSteps() as steps:
            return run_index(options, steps=steps, progress=Progress("silent"))
    finally:
        clear_bench(options.home, options.catalog_url)


def undated(name: str) -> str:
    """Return a run's name without the time at its end, which has to be there."""
    words, dated, rest = re.split(r" (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)$", name)
    ago = datetime.now(UTC) - datetime.fromisoformat(dated).astimezone()
    assert abs(ago.total_seconds()) < 3600
    assert rest == ""
    return words


class Api:
    """What Prefect's API knows of a run."""

    def __init__(self, url: str) -> None:
        self.url = url

    @contextmanager
    def client(self) -> Iterator[Any]:
        from prefect.client.orchestration import get_client
        from prefect.settings import PREFECT_API_URL, temporary_settings

        with (
            temporary_settings({PREFECT_API_URL: self.url}),
            get_client(sync_client=True) as client,
        ):
            yield client

    def run(self) -> Any:
        """Return the latest run."""
        from prefect.client.schemas.sorting import FlowRunSort

        with self.client() as client:
            return client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]

    def artifacts(self, run: Any) -> dict[str, Any]:
        from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

        of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        with self.client() as client:
            return {one.key: one.data for one in client.read_artifacts(artifact_filter=of_run)}

    def tasks(self, run: Any, number: int) -> dict[str, str]:
        """Return the states of the tasks by name, once ``number`` are recorded as ended."""
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

        of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
        deadline = time.monotonic() + 20
        while True:
            with self.client() as client:
                found = client.read_task_runs(flow_run_filter=of_run)
            states = {one.name: one.state_name for one in found}
            if len(found) >= number and all(one.state.is_final() for one in found):
                return states
            assert time.monotonic() < deadline, states
            time.sleep(0.2)


def test_a_run_through_a_server_is_the_plain_run_and_is_recorded(
    tree: str, tmp_path: Path, use_server: str, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = plainly(asked(tmp_path / "plain", tree, chunk_size=8))
    report = through_prefect(asked(tmp_path / "home", tree, chunk_size=8))

    assert_same(contents(str(tmp_path / "plain")), contents(str(tmp_path / "home")))
    for name in ("scanned", "new", "extracted", "reused", "copied", "failed", "failures", "space"):
        assert getattr(report, name) == getattr(plain, name), name
    assert report.failed == 2
    assert report.exit_code() == plain.exit_code() == 3

    seen = Api(use_server)
    run = seen.run()
    assert undated(run.name) == "index pictures resnet18"
    assert run.tags == [
        "lookalike",
        "index",
        f"root:{tree}",
        "space:resnet18-avgpool",
    ]
    assert run.parameters["roots"] == [tree]
    assert run.parameters["weights"] == "random:0"
    assert run.state.name == "Completed"
    assert run.state.message == report.to_line()
    kept = seen.artifacts(run)
    assert kept["index-progress"] == 100.0
    assert kept["index-report"] == report.to_markdown()
    assert sum(row["count"] for row in _rows(kept["index-failures"])) == 2
    assert any(tree in row["example"] for row in _rows(kept["index-failures"]))
    assert seen.tasks(run, 5) == {
        f"scan {tree}": "Completed",
        "chunk 1": "Completed",
        "chunk 2": "Completed",
        "chunk 3": "Completed",
        "index of resnet18-avgpool": "Completed",
    }
    assert capfd.readouterr().err == ""


def _rows(table: Any) -> list[dict[str, Any]]:
    import json

    return json.loads(table) if isinstance(table, str) else table


def test_a_run_with_a_temporary_server_is_the_plain_run(
    tree: str, tmp_path: Path, server: tuple[str, str]
) -> None:
    plainly(asked(tmp_path / "plain", tree))
    home = migrated(tmp_path / "home", server)
    before = _runs(home)
    done = subprocess.run(
        _command(home, "index", tree, *TYPED, "--prefect"),
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 3, done.stderr
    assert "starting a temporary Prefect server" in done.stderr
    assert "Traceback" not in done.stderr
    assert_same(contents(str(tmp_path / "plain")), contents(home))
    with locked(os.path.join(home, "prefect")):  # which a server that lives would hold
        pass
    assert _runs(home)[:-1] == before
    assert _last_run(home) == ("index pictures resnet18", "COMPLETED")
    assert _task_states(home) == {"COMPLETED"}


def _command(home: str, *args: str) -> list[str]:
    code = "from flows.cli import main; main()"
    return [sys.executable, "-c", code, "--home", home, *args]


def _runs(home: str) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(os.path.join(home, "prefect", "prefect.db"))) as database:
        return database.execute(
            "select name, state_type from flow_run order by created, id"
        ).fetchall()


def _last_run(home: str) -> tuple[str, str]:
    name, state = _runs(home)[-1]
    return undated(name), state


def _task_states(home: str) -> set[str]:
    """Return the states of the latest run's tasks."""
    query = (
        "select state_type from task_run where flow_run_id ="
        " (select id from flow_run order by created desc limit 1)"
    )
    with closing(sqlite3.connect(os.path.join(home, "prefect", "prefect.db"))) as database:
        return {state for (state,) in database.execute(query)}


@pytest.fixture(scope="module")
def large_tree(tmp_path_factory: pytest.TempPathFactory, tree: str) -> str:
    """Pictures for a long run: each has bytes of its own at its end, so that none is reused."""
    folder = tmp_path_factory.mktemp("large")
    pictures = [
        path.read_bytes() for path in sorted(Path(tree).rglob("*.jpg")) if path.stat().st_size > 99
    ]
    for number in range(600):
        data = pictures[number % len(pictures)] + number.to_bytes(4, "big")
        (folder / f"{number:04}.jpg").write_bytes(data)
    age(str(folder))
    return str(folder)


def rows(home: str, *columns: Any) -> list[Any]:
    with Catalog.open(Home(home), write=False) as catalog, catalog.read() as conn:
        return list(conn.execute(select(*columns)).all())


@contextmanager
def running(home: str, tree: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """Yield a run in a process group of its own, once it has committed something."""
    process = subprocess.Popen(
        _command(home, "index", tree, *TYPED, "--prefect", "--chunk-size", "16"),
        cwd=CHECKOUT,
        env={**os.environ, **env},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "files to read" in line:
                break
        else:
            pytest.fail(f"ended early with {process.wait()}")
        deadline = time.monotonic() + 60
        while not rows(home, Vector.row):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_stops_the_run_at_once_and_leaves_no_server(
    large_tree: str, tmp_path: Path, server: tuple[str, str]
) -> None:
    home = migrated(tmp_path / "home", server)
    with running(home, large_tree) as process:
        pressed = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does
        out, err = process.communicate(timeout=60)
        assert time.monotonic() - pressed < 12
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert out.startswith("Interrupted")
    with locked(os.path.join(home, "prefect")):
        pass
    assert _last_run(home) == (f"index {os.path.basename(large_tree)} resnet18", "CANCELLED")
    kept = contents(home)
    assert 0 < len(kept.vectors) < 600


def test_sigterm_is_ours_to_answer_while_the_job_runs(
    large_tree: str, tmp_path: Path, use_server: str
) -> None:
    with running(str(tmp_path / "home"), large_tree, PREFECT_API_URL=use_server) as process:
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert Api(use_server).run().state.name == "Cancelled"
    assert 0 < len(contents(str(tmp_path / "home")).vectors) < 600


@pytest.mark.usefixtures("as_a_worker")
def test_the_leases_of_a_crashed_run_are_given_back(
    large_tree: str, tmp_path: Path, use_server: str
) -> None:
    from prefect.states import Crashed

    from flows.engine.hooks import give_back_leases
    from flows.index import index_images

    home = str(tmp_path / "home")
    with running(home, large_tree, PREFECT_API_URL=use_server) as process:
        process.send_signal(signal.SIGSTOP)
        while not rows(home, Claim.run_id):  # between two chunks
            process.send_signal(signal.SIGCONT)
            time.sleep(0.1)
            process.send_signal(signal.SIGSTOP)
        process.kill()
    flow_run = Api(use_server).run()
    assert flow_run.state.name == "Running"
    with Catalog.open(Home(home), write=True) as catalog:
        with catalog.write() as conn:  # as if it ran on another machine, whose end nobody can see
            conn.execute(update(Run).values(host="elsewhere", boot="another"))
        assert reap(catalog) == []
    assert rows(home, Run.state, Run.flow_run) == [("running", str(flow_run.id))]
    assert rows(home, Claim.run_id)
    others = flow_run.model_copy(update={"id": uuid4()})
    give_back_leases(flow=index_images, flow_run=others, state=Crashed())
    assert rows(home, Run.state) == [("running",)]

    give_back_leases(flow=index_images, flow_run=flow_run, state=Crashed())  # as a worker calls it

    assert rows(home, Run.state) == [("crashed",)]
    assert not rows(home, Claim.run_id)
    report = plainly(asked(home, large_tree))
    assert report.exit_code() == 0
    assert len(contents(home).vectors) == 600


@pytest.mark.usefixtures("as_a_worker")
def test_a_hook_that_finds_no_store_raises_nothing_and_makes_none(tmp_path: Path) -> None:
    from prefect.client.schemas import FlowRun
    from prefect.states import Cancelling

    from flows.backfill import backfill_images
    from flows.engine.hooks import give_back_leases

    nowhere, damaged = tmp_path / "nowhere", tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "store.json").write_text("no JSON")
    for home in (nowhere, damaged):
        run = FlowRun(flow_id=uuid4(), parameters={"home": str(home)})
        give_back_leases(backfill_images, run, Cancelling())
    assert not nowhere.exists()
    for hooks in (backfill_images.on_crashed_hooks, backfill_images.on_cancellation_hooks):
        assert hooks == [give_back_leases]


def test_a_backfill_tells_its_own_story(tree: str, tmp_path: Path, use_server: str) -> None:
    home = str(tmp_path / "home")
    plainly(asked(home, tree))
    options, _ = options_for(
        {
            "home": home,
            "model": "resnet18",
            "weights": "random:1",
            "space": "second",
            "roots": [os.path.join(tree, "family-000")],
            "globs": ["*.jpg"],
        },
        "backfill",
    )
    report = through_prefect(options)
    assert (report.kind, report.extracted) == ("backfill", 8)
    seen = Api(use_server)
    run = seen.run()
    assert undated(run.name) == "backfill family-000 second *.jpg"
    assert sorted(run.tags) == [
        "backfill",
        "lookalike",
        f"root:{tree}/family-000",
        "space:second",
    ]
    assert run.parameters["globs"] == ["*.jpg"]
    assert run.state.name == "Completed"
    assert re.fullmatch(
        r"Back-fill done: 8 images extracted into space second in .* images/s; "
        r"index SQ8, 8 vectors, recall@10 1\.000",
        run.state.message,
    )
    kept = seen.artifacts(run)
    assert set(kept) == {"backfill-progress", "backfill-report"}
    assert kept["backfill-report"] == report.to_markdown()
    assert rows(home, Run.kind, Run.flow_run) == [("index", None), ("backfill", str(run.id))]

    failed, _ = options_for({"home": home, "space": "second", "failed": True}, "backfill")
    assert through_prefect(failed).exit_code() == 3
    assert set(seen.artifacts(seen.run())) == {*kept, "backfill-failures"}


@pytest.mark.parametrize("flow_of", ["index:index_images", "backfill:backfill_images"])
def test_every_field_of_a_flows_form_is_described(flow_of: str) -> None:
    from prefect.utilities.callables import parameter_schema

    module, _, name = flow_of.partition(":")
    flow = getattr(import_module(f"flows.{module}"), name)
    fields = parameter_schema(flow).model_dump_for_openapi()["properties"]
    assert set(fields) == set(signature(flow.fn).parameters)
    for field, shown in fields.items():
        assert shown.get("description", "").endswith("."), field
    assert fields["chunk_size"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 8192}
    assert fields["runner"]["anyOf"][0]["enum"] == ["thread", "dask"]


WRONG = [
    ({"batch_size": 0}, "greater than or equal to 1"),
    ({"chunk_size": 9000}, "less than or equal to 8192"),
    ({"max_failures": 7}, "less than or equal to 1"),
    ({"dtype": "int8"}, "'float32' or 'float16'"),
    ({"pool": "sum"}, "'avg', 'max' or 'gem'"),
    ({"scales": [1, 0]}, "greater than 0"),
    ({"input_size": 0}, "greater than or equal to 1"),
    ({"runner": "ray"}, "'thread' or 'dask'"),
    ({"roots": "/photos"}, "valid list"),
    ({"globs": [""]}, "at least 1 character"),
    ({"since": "yesterday"}, "'yesterday' is no date: write 2026-11-22"),
    ({"nonsense": 1}, "nonsense"),
]


@pytest.mark.parametrize(("wrong", "said"), WRONG)
def test_a_wrong_value_is_refused_in_words(wrong: dict[str, Any], said: str) -> None:
    from prefect.exceptions import ParameterTypeError, SignatureMismatchError

    from flows.backfill import backfill_images

    with pytest.raises((ParameterTypeError, SignatureMismatchError), match=re.escape(said)):
        backfill_images.validate_parameters(wrong)


def test_a_deployment_refuses_what_its_form_does_not_allow_and_names_its_runs(
    tree: str, tmp_path: Path, use_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.flow_engine import run_flow
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.utilities.callables import parameter_schema

    from flows.index import index_images

    seen = Api(use_server)
    with seen.client() as client:
        deployment = client.create_deployment(
            client.create_flow(index_images),
            "nightly",
            parameter_openapi_schema=parameter_schema(index_images).model_dump_for_openapi(),
            enforce_parameter_schema=True,
            tags=["photos"],
        )
        for wrong in ({"batch_size": 0}, {"runner": "ray"}, {"roots": "/photos"}):
            with pytest.raises(PrefectHTTPStatusError) as refused:
                client.create_flow_run_from_deployment(deployment, parameters=wrong)
            assert refused.value.response.status_code == 409
        values = {"roots": [tree], "home": str(tmp_path / "home")}
        created = client.create_flow_run_from_deployment(
            deployment, parameters={**values, "model": "resnet18", "weights": "random:0"}
        )
    with temporary_settings({PREFECT_API_URL: use_server}):
        run_flow(index_images, flow_run=created)
    with seen.client() as client:
        run = client.read_flow_run(created.id)
    assert undated(run.name) == "nightly pictures resnet18"
    assert run.state.name == "Completed"
    assert set(run.tags) == {
        "photos",
        "lookalike",
        "index",
        f"root:{tree}",
        "space:resnet18-avgpool",
    }
    assert rows(str(tmp_path / "home"), Run.flow_run) == [(str(run.id),)]


def test_runs_are_told_apart_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.client.schemas import FlowRun
    from prefect.context import FlowRunContext

    from flows.engine.labels import run_name

    def named(kind: str, auto_scheduled: bool = False, **asked: Any) -> str:
        due = datetime(2026, 11, 22, 1, 0, tzinfo=UTC)
        run = FlowRun(flow_id=uuid4(), auto_scheduled=auto_scheduled, expected_start_time=due)
        with FlowRunContext.model_construct(flow_run=run, parameters=asked):
            return run_name(kind)

    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert named("index", True) == "index 2026-11-22 02:00"
        assert named("maintenance", True, roots=None) == "maintenance 2026-11-22 02:00"
        assert undated(named("index")) == "index"
        roots = ["/mnt/photos/", "/", "c.tsv", "/d", "/e"]
        assert undated(named("index", roots=roots, model="vgg16", layer="fc7")) == (
            "index photos / c.tsv ... vgg16-fc7"
        )
        for asked, words in (
            ({"space": "new", "model": "vgg16"}, "new"),
            ({"failed": True}, "failed"),
            ({"globs": ["*.png"], "failed": False}, "*.png"),
            ({"globs": ["2019/**", "2020/**"]}, "2019/** ..."),
            ({"globs": ["a/very/long/way/to/the/pictures/**"]}, "a/very/long/way/to/th..."),
            ({"since": "7d"}, "7d.."),
            ({"until": "2026-11-22"}, "..2026-11-22"),
            (
                {"since": "2026-11-01T00:00:00+01:00", "until": "2026-11-22T14:30:00+01:00"},
                "2026-11-01..2026-11-22T14:30",
            ),
        ):
            assert undated(named("backfill", **asked)) == f"backfill {words}"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_killed_run_leaves_no_server(
    large_tree: str, tmp_path: Path, server: tuple[str, str]
) -> None:
    home = migrated(tmp_path / "home", server)
    with running(home, large_tree) as process:
        process.kill()
        deadline = time.monotonic() + 15
        while _is_locked(os.path.join(home, "prefect")):
            assert time.monotonic() < deadline, "the server still runs"
            time.sleep(0.2)


def _is_locked(folder: str) -> bool:
    try:
        with locked(folder):
            return False
    except BlockingIOError:
        return True


class Noting(Progress):
    """Does something as soon as the pending files are known, and keeps what is said."""

    def __init__(self, on_pending: Callable[[], None]) -> None:
        super().__init__("silent")
        self.said: list[str] = []
        self._on_pending = on_pending

    def pending(self, total: int) -> None:
        super().pending(total)
        self._on_pending()

    def note(self, line: str) -> None:
        self.said.append(line)


def test_a_run_that_was_stopped_is_cancelled(tree: str, tmp_path: Path, use_server: str) -> None:
    options = asked(tmp_path / "home", tree)
    stop = bench_for(options.home, None).stop
    report = through_prefect(options, Noting(stop.set))
    assert report.interrupted
    assert report.exit_code() == 130
    run = Api(use_server).run()
    assert run.state.name == "Cancelled"
    assert run.state.message.endswith("the next run goes on from here")


def test_a_stop_in_the_middle_of_a_scan_fails_no_task(
    tree: str, tmp_path: Path, use_server: str
) -> None:
    options = asked(tmp_path / "home", tree)
    stop = bench_for(options.home, None).stop

    class Stopping(Progress):
        def scanning(self, root: str, n: int) -> None:
            stop.set()

    report = through_prefect(options, Stopping("silent"))
    assert (report.exit_code(), report.scanned, report.troubles) == (130, 0, {})
    seen = Api(use_server)
    assert seen.run().state.name == "Cancelled"
    assert seen.tasks(seen.run(), 1) == {f"scan {tree}": "Completed"}


def test_the_tasks_have_their_names() -> None:
    from flows.engine.tasks import extract_chunk, publish, scan

    assert [task.name for task in (scan, extract_chunk, publish)] == [
        "scan",
        "extract_chunk",
        "publish",
    ]


def test_a_run_with_a_lost_root_fails_and_says_why(
    tree: str, tmp_path: Path, use_server: str
) -> None:
    lost = tmp_path / "caf\udce9"  # a name that is no UTF-8
    lost.mkdir()
    for name in range(3):
        os.link(Path(tree, "family-000", "plain.jpg"), lost / f"{name}.jpg")
    options = asked(tmp_path / "home", str(lost))
    assert through_prefect(options).extracted == 1
    for path in lost.iterdir():
        path.unlink()

    report = through_prefect(options)

    assert report.exit_code() == 4
    run = Api(use_server).run()
    assert undated(run.name) == r"index caf\xe9 resnet18"
    assert run.state.name == "Failed"
    assert r"caf\xe9 are gone" in run.state.message


def test_an_error_of_the_job_comes_back_as_itself(
    tree: str, tmp_path: Path, use_server: str, capfd: pytest.CaptureFixture[str]
) -> None:
    plainly(asked(tmp_path / "home", tree))
    options = asked(tmp_path / "home", tree, choice=SpaceChoice(space="nowhere"))
    with pytest.raises(SpaceError, match="no space"):
        through_prefect(options)
    run = Api(use_server).run()
    assert run.state.name == "Failed"
    assert run.state.message.startswith("SpaceError: ")
    assert capfd.readouterr().err == ""


class Faulty(Progress):
    """Has a bug."""

    def pending(self, total: int) -> None:
        raise ZeroDivisionError("a bug")


def test_a_bug_comes_back_as_itself_and_fails_the_run(
    tree: str, tmp_path: Path, use_server: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ZeroDivisionError, match="a bug"):
        through_prefect(asked(tmp_path / "home", tree), Faulty("silent"))
    assert Api(use_server).run().state.name == "Failed"
    assert "Traceback" not in capfd.readouterr().err


def test_a_flow_that_prefect_starts_takes_its_settings_from_the_environment(
    tree: str, tmp_path: Path, server: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.exceptions import FailedRun
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.index import index_images

    monkeypatch.setenv("LOOKALIKE_MODEL", "resnet18")
    monkeypatch.setenv("LOOKALIKE_WEIGHTS", "random:0")
    before = signal.getsignal(signal.SIGTERM)
    with temporary_settings({PREFECT_API_URL: server[0]}):
        report = index_images(roots=[tree])
        again = index_images()
        with pytest.raises(FailedRun, match="nowhere"):
            index_images(space="nowhere")
    assert report["extracted"] == again["scanned"] - 2 == 18
    assert report["space"] == "resnet18-avgpool"
    assert again["extracted"] == 0
    assert signal.getsignal(signal.SIGTERM) is before
    plainly(asked(tmp_path / "plain", tree))
    assert_same(contents(str(tmp_path / "plain")), contents(str(tmp_path / "home")))


UNREACHABLE = "postgresql://nobody@127.0.0.1:9/nothing"
REFUSED = [
    ("backfill:backfill_images", {"since": "2026-11-22", "until": "2026-11-22"}, {}, "FlowError: "),
    ("index:index_images", {"cluster": "4"}, {}, "FlowError: a cluster is for the runner dask"),
    ("index:index_images", {}, {"LOOKALIKE_WORKERS": "many"}, "SettingsError: "),
    ("maintenance:maintain_store", {}, {}, "CatalogError: "),
    ("index:index_images", {}, {"LOOKALIKE_CATALOG_URL": UNREACHABLE}, "CatalogError: "),
]


@pytest.mark.parametrize(("flow_of", "values", "env", "said"), REFUSED)
def test_what_can_not_begin_is_a_failed_run_of_one_line(
    flow_of: str,
    values: dict[str, Any],
    env: dict[str, str],
    said: str,
    server: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setattr(patience, "AGAIN_AFTER_S", (0.1,))
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    module, _, name = flow_of.partition(":")
    flow = getattr(import_module(f"flows.{module}"), name)
    with temporary_settings({PREFECT_API_URL: server[0]}):
        state = flow(**values, return_state=True)
    assert state.name == "Failed"
    assert state.message.startswith(said)
    assert "\n" not in state.message
    assert Api(server[0]).run().state.message == state.message
    assert "exception" not in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.postgres
@pytest.mark.parametrize("flow_of", ["index:index_images", "maintenance:maintain_store"])
def test_a_run_that_begins_while_postgres_restarts_waits_for_it(
    flow_of: str,
    tree: str,
    tmp_path: Path,
    server: tuple[str, str],
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    home = str(tmp_path / "home")
    plainly(asked(home, tree, catalog_url=postgres_url))
    monkeypatch.setattr(patience, "AGAIN_AFTER_S", (0.1, 0.1, 0.1))
    module, _, name = flow_of.partition(":")
    flow = getattr(import_module(f"flows.{module}"), name)
    with gate(postgres_url) as way, temporary_settings({PREFECT_API_URL: server[0]}):
        monkeypatch.setenv("LOOKALIKE_CATALOG_URL", way.url)
        way.restart(refused=2)
        state = flow(home=home, return_state=True)
        assert way.left() == 0
    assert state.name == "Completed", state.message


def test_warnings_are_in_the_state_and_in_the_log(
    tree: str, tmp_path: Path, use_server: str
) -> None:
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

    folder = tmp_path / "caf\udce9"
    shutil.copytree(Path(tree, "family-000"), folder)
    age(str(folder))
    ahead = time.time() + 86400
    os.utime(folder / "plain.jpg", (ahead, ahead))
    report = through_prefect(asked(tmp_path / "home", str(folder)))
    assert report.warnings == ["1 file dated in the future: read again on every run until then"]
    seen = Api(use_server)
    run = seen.run()
    assert run.state.name == "Completed"
    assert run.state.message == f"{report.to_line()}; 1 warning: {report.warnings[0]}"
    with seen.client() as client:
        logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])))
    told = [log.message for log in logs if log.level == logging.WARNING]
    assert report.warnings[0] in told


def test_the_message_of_a_state_is_bounded() -> None:
    from flows.engine.story import MOST, final_state

    many = Report(warnings=["w" * 9000, "second"])
    said = str(final_state(many, "Done").message)
    assert said.startswith("Done; 2 warnings: wwww")
    assert len(said) < MOST + 50
    many.trouble(5, "t" * 9000)
    failed = final_state(many, "Done")
    assert failed.is_failed()
    assert len(str(failed.message)) < 2 * MOST + 50
    many.interrupted = True
    assert "; the next run goes on from here; 2 warnings: w" in str(
        final_state(many, "Left").message
    )


def test_an_example_of_a_failure_is_of_the_run_that_tells_it(tmp_path: Path) -> None:
    from flows.engine.artifacts import failure_table

    home = str(tmp_path / "home")
    reports = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "broken.jpg").write_text(f"no picture {name}")
        age(str(folder))
        reports.append(plainly(asked(home, str(folder))))
    with Catalog.open(Home(home), write=False) as catalog:
        tables = [failure_table(report.failures, catalog, report.run_id) for report in reports]
    for name, table in zip(("one", "two"), tables, strict=True):
        [row] = table.rows
        assert (row["class"], row["count"]) == ("unsupported", 1)
        assert row["example"].startswith(f"{tmp_path / name / 'broken.jpg'}: ")


def test_a_flow_runs_in_a_thread_too(tree: str, tmp_path: Path, server: tuple[str, str]) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.index import index_images

    found: list[Any] = []

    def go() -> None:
        with temporary_settings({PREFECT_API_URL: server[0]}):
            found.append(index_images(roots=[tree], model="resnet18", weights="random:0"))

    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
    assert found[0]["extracted"] == 18


def test_a_runner_of_prefect_can_hand_the_flow_to_another_process() -> None:
    import cloudpickle
    from prefect.flows import load_flow_from_entrypoint

    loaded = load_flow_from_entrypoint(f"{CHECKOUT / 'flows' / 'index.py'}:index_images")
    assert loaded.name == "index-images"
    assert cloudpickle.dumps(loaded)


def test_options_of_a_flow_that_prefect_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOKALIKE_MODEL", "vgg16")
    assert options_for({})[0].choice == SpaceChoice(model="vgg16")
    assert options_for({"space": "all"})[0].choice == SpaceChoice(space="all")
    assert options_for({"layer": "fc6"})[0].choice == SpaceChoice(layer="fc6")
    options, _ = options_for(
        {"roots": ["pictures"], "batch_size": 3, "excludes": ["*.tmp"], "confirm_missing": True}
    )
    assert options.roots == (os.path.abspath("pictures"),)
    assert (options.batch_size, options.excludes, options.confirm_missing) == (3, ("*.tmp",), True)
    assert options.home == str(tmp_path / "home")


def test_a_password_is_not_shown() -> None:
    options = IndexOptions(home="/h", catalog_url="postgresql://me:secret@db/x")
    assert "secret" not in str(parameters_of(options))


@pytest.mark.parametrize(
    ("cause", "retried"),
    [
        (OperationalError("select", {}, Exception("locked")), True),
        (IntegrityError("insert", {}, Exception("unique")), False),
        (None, False),
    ],
)
def test_a_task_is_tried_again_only_where_the_store_was_out_of_reach(
    cause: Exception | None, retried: bool, tmp_path: Path
) -> None:
    from prefect.states import Failed

    from flows.engine.call import Call, carrying_out
    from flows.engine.tasks import extract_chunk, worth_retrying

    error = CatalogError("trouble")
    error.__cause__ = cause
    options = asked(tmp_path / "home")
    run: Any = None
    with carrying_out(Call(options, Progress("silent"))):
        assert worth_retrying(extract_chunk, run, Failed(data=error)) is retried
        bench_for(options.home, None).stop.set()
        assert not worth_retrying(extract_chunk, run, Failed(data=error))
    clear_bench(options.home, None)
    assert worth_retrying(extract_chunk, run, Failed(data=error)) is retried


def test_prefects_log_shares_the_console_and_keeps_to_itself_what_we_say() -> None:
    from prefect.logging.handlers import PrefectConsoleHandler

    from flows.engine.in_process import _console

    stream = StringIO()
    theirs = StringIO()
    handler = PrefectConsoleHandler(stream=theirs)
    log = logging.getLogger("prefect.flow_runs.of_this_test")
    log.addHandler(handler)
    log.propagate = False
    try:
        with _console(Progress("lines", stream), quiet=True):
            log.error("told by our own line")
        with _console(Progress("lines", stream), quiet=False):
            log.error("the user asked for it")
        log.error("afterwards")
    finally:
        log.removeHandler(handler)
    assert stream.getvalue() == "the user asked for it\n"
    assert theirs.getvalue() == "afterwards\n"


@contextmanager
def refusing_api() -> Iterator[str]:
    """Yield the URL of a server that is healthy and knows nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/api/health" else 404)
            self.end_headers()

        do_POST = do_GET  # noqa: N815 - the name that the base class asks for

        def log_message(self, *_args: object) -> None:
            pass

    refusing = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=refusing.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{refusing.server_port}/api"
    finally:
        refusing.shutdown()
        thread.join()
        refusing.server_close()


def test_an_api_that_does_not_take_the_run_is_one_line(
    tree: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refusing_api() as url:
        monkeypatch.setenv("PREFECT_API_URL", url)
        with pytest.raises(ServerError, match=f"{url} does not take the run"):
            through_prefect(asked(tmp_path / "home", tree))


@pytest.mark.filterwarnings("ignore:Artifact creation outside of a flow:FutureWarning")
def test_a_report_that_prefect_does_not_take_is_told() -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.engine.artifacts import publish_report

    said: list[str] = []
    with refusing_api() as url, temporary_settings({PREFECT_API_URL: url}):
        publish_report("index", Report(), list, said.append)
    assert said[0].startswith("Prefect did not get the report: ")


def test_a_stop_before_our_handler_is_in_force_is_an_interruption(
    tree: str, tmp_path: Path, use_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flows.engine.story

    stopped: list[int] = []

    def stop_early(call: object, job: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(flows.engine.story, "_carried_out", stop_early)
    before = signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    try:
        with pytest.raises(KeyboardInterrupt):
            through_prefect(asked(tmp_path / "home", tree))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped == [signal.SIGTERM]
    assert Api(use_server).run().state.name == "Crashed"


def test_a_run_whose_api_is_lost_ends_well_and_says_so(
    tree: str,
    tmp_path: Path,
    server: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(prefect_run, "ATTEMPTS", 0)  # its patience only takes time
    start = Start(
        os.path.join(migrated(tmp_path / "server", server), "prefect"), free_port(), SMALL
    )
    process = launch(start)
    try:
        wait_until_up(start, process)
        monkeypatch.setenv("PREFECT_API_URL", start.url)
        progress = Noting(lambda: end(process))
        report = through_prefect(asked(tmp_path / "home", tree), progress)
    finally:
        end(process)
    assert report.extracted == 18
    assert progress.said[-1].startswith(f"Prefect's API at {start.url} was lost")
    assert "Traceback" not in capfd.readouterr().err
