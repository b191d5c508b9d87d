"""A run on the workers of a Dask cluster: the same outcome, whatever becomes of them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

import flows.engine.tasks
from flows.engine.environment import TAMED
from flows.engine.in_process import run_with_prefect
from flows.errors import ClusterLost
from flows.job.loop import IndexOptions, run_index
from flows.job.progress import Progress
from flows.job.report import Report
from flows.job.spaces import SpaceChoice
from flows.job.steps import PlainSteps
from flows.job.worker import clear_bench
from flows.samples import draw_families
from flows.server.local import temporary_server
from storage.catalog import Catalog
from storage.errors import StorageError
from storage.home import Home
from storage.tables import Claim, Part, Run, Vector
from tests.flows.contents import age, assert_same, contents
from tests.flows.terminal import CHECKOUT

psutil = pytest.importorskip("psutil")
LocalCluster = pytest.importorskip("distributed").LocalCluster
pytest.importorskip("prefect_dask")
pytestmark = [
    pytest.mark.prefect,
    pytest.mark.xdist_group("prefect"),
    pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals"),
]
TINY = SpaceChoice(model="shufflenet_v2_x0_5", weights="random:0")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with temporary_server(str(tmp_path_factory.mktemp("server"))) as url:
        yield url


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("trees") / "pictures")
    draw_families(folder, 3, seed=3)
    Path(folder, "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    age(folder)
    return folder


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: str) -> None:
    """Let what a run sets in the environment end with the test."""
    for name in [*TAMED, "NO_PROXY", "no_proxy"]:
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect-home"))
    monkeypatch.setenv("PREFECT_API_URL", server)


def asked(home: Path, root: str, **changes: Any) -> IndexOptions:
    return replace(IndexOptions(home=str(home), roots=(root,), choice=TINY), **changes)


def through_prefect(options: IndexOptions, progress: Progress | None = None) -> Report:
    try:
        return run_with_prefect(options, progress or Quiet())
    finally:
        clear_bench(options.home, options.catalog_url)


def plainly(options: IndexOptions) -> Report:
    try:
        with PlainSteps() as steps:
            return run_index(options, steps=steps, progress=Quiet())
    finally:
        clear_bench(options.home, options.catalog_url)


class Quiet(Progress):
    """Says nothing, and does something once when the first chunk is through."""

    def __init__(self, on_chunk: Callable[[], object] = lambda: None) -> None:
        super().__init__("silent")
        self._on_chunk: Callable[[], object] | None = on_chunk

    def advance(self, n: int = 1, failed: int = 0) -> None:
        super().advance(n, failed)
        act, self._on_chunk = self._on_chunk, None
        if act is not None:
            act()


def cluster_of_two() -> Any:
    """Return a cluster that is not the run's own."""
    return LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        memory_limit=0,
        scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
        silence_logs=60,
    )


def workers() -> list[Any]:
    """Return the worker processes of this process."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def count(home: str, what: Any, *where: Any) -> int:
    with Catalog.open(Home(home), write=False) as catalog, catalog.read() as conn:
        return int(conn.execute(select(what).where(*where)).scalar() or 0)


def assert_nothing_twice(home: str) -> None:
    """Hold the rows that were written and committed against the vectors that there are."""
    vectors = count(home, func.count(Vector.image_id))
    assert vectors == count(home, func.count(Vector.image_id.distinct()))
    assert vectors == count(home, func.sum(Part.n))
    assert count(home, func.count(Claim.run_id)) == 0


@pytest.fixture
def carried_out_here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the steps that tasks carry out in this process."""
    names: list[str] = []

    def noting(step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def carry_out(order: Any) -> Any:
            names.append(step.__name__)
            return step(order)

        return carry_out

    for name in ("scan_step", "extract_step", "publish_step"):
        step = getattr(flows.engine.tasks, name)
        monkeypatch.setattr(flows.engine.tasks, name, noting(step))
    return names


def test_a_run_on_several_processes_is_the_plain_run(
    tree: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    carried_out_here: list[str],
) -> None:
    plain = plainly(asked(tmp_path / "plain", tree))
    progress = Quiet()
    split = asked(tmp_path / "home", tree, chunk_size=6, runner="dask", cluster="2")
    report = through_prefect(split, progress)
    assert_same(contents(str(tmp_path / "plain")), contents(str(tmp_path / "home")))
    for name in ("scanned", "new", "extracted", "copied", "failed", "failures", "space"):
        assert getattr(report, name) == getattr(plain, name), name
    assert (report.extracted, report.failed, report.warnings) == (27, 1, [])
    assert report.index is not None
    assert report.index["n"] == 27
    assert progress.done == 28
    assert carried_out_here == ["scan_step", "publish_step"]
    assert_nothing_twice(str(tmp_path / "home"))
    assert workers() == []
    assert capfd.readouterr().err == ""


def test_two_devices_of_one_process_come_to_the_same_through_prefect(
    tree: str, tmp_path: Path
) -> None:
    plain = plainly(asked(tmp_path / "plain", tree))
    report = through_prefect(asked(tmp_path / "home", tree, chunk_size=6, device="cpu,cpu"))
    assert_same(contents(str(tmp_path / "plain")), contents(str(tmp_path / "home")))
    assert (report.extracted, report.failures) == (plain.extracted, plain.failures)
    assert_nothing_twice(str(tmp_path / "home"))


def test_a_worker_that_is_killed_costs_no_more_than_its_chunk(
    tree: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plainly(asked(tmp_path / "plain", tree))
    killed: list[int] = []

    def kill() -> None:
        victim = workers()[0]
        killed.append(victim.pid)
        victim.kill()

    with cluster_of_two() as cluster:
        address = cluster.scheduler_address
        options = asked(tmp_path / "home", tree, chunk_size=3, runner="dask", cluster=address)
        through_prefect(options, Quiet(kill))
        assert len(killed) == 1
        assert workers()  # they are not the run's to end
    assert_same(contents(str(tmp_path / "plain")), contents(str(tmp_path / "home")))
    assert_nothing_twice(str(tmp_path / "home"))
    assert "Traceback" not in capfd.readouterr().err


def test_a_run_whose_cluster_is_gone_ends_in_one_line(
    tree: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with cluster_of_two() as cluster:
        address = cluster.scheduler_address
        options = asked(tmp_path / "home", tree, chunk_size=3, runner="dask", cluster=address)
        with pytest.raises(ClusterLost, match="the Dask cluster is lost") as caught:
            through_prefect(options, Quiet(cluster.close))
    assert (caught.value.exit_code, str(caught.value).count("\n")) == (5, 0)
    assert "Traceback" not in capfd.readouterr().err
    assert_nothing_twice(str(tmp_path / "home"))
    assert 0 < count(str(tmp_path / "home"), func.count(Vector.image_id)) < 27
    assert count(str(tmp_path / "home"), func.count(), Run.state == "failed") == 1


@pytest.fixture(scope="module")
def large_tree(tmp_path_factory: pytest.TempPathFactory, tree: str) -> str:
    """Pictures for a long run: each has bytes of its own at its end, so that none is reused."""
    folder = tmp_path_factory.mktemp("large")
    pictures = [path.read_bytes() for path in sorted(Path(tree).rglob("family-*/*.jpg"))]
    for number in range(400):
        data = pictures[number % len(pictures)] + number.to_bytes(4, "big")
        (folder / f"{number:04}.jpg").write_bytes(data)
    age(str(folder))
    return str(folder)


def test_ctrl_c_stops_the_workers_too(large_tree: str, tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    given = "--model shufflenet_v2_x0_5 --weights random:0 --runner dask --cluster 2"
    asked_for = ["index", large_tree, *given.split(), "--chunk-size", "16"]
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "--home", home, *asked_for],
        cwd=CHECKOUT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        deadline = time.monotonic() + 120
        while not _begun(home):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        pressed = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does
        out, err = process.communicate(timeout=90)
        took = time.monotonic() - pressed
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert took < 45
    assert "Traceback" not in err
    assert out.startswith("Interrupted")
    deadline = time.monotonic() + 10  # the last one has yet to be buried
    while _living(process.pid):
        assert time.monotonic() < deadline, _living(process.pid)
        time.sleep(0.1)
    assert 0 < count(home, func.count(Vector.image_id)) < 400
    assert_nothing_twice(home)
    assert count(home, func.count(), Run.state == "interrupted") == 1


def _living(group: int) -> list[str]:
    """Return the processes of a group; not those that nobody has waited for yet."""
    found = []
    for each in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if os.getpgid(each.pid) == group and each.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(each.cmdline()))
    return found


def _begun(home: str) -> bool:
    """Return whether a chunk is committed."""
    with suppress(StorageError):  # not made yet
        return count(home, func.count(Part.id)) > 0
    return False
