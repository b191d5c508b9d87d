"""``lookalike nightly``: it runs by itself, tells what becomes of runs, leaves nothing behind."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from flows.errors import FlowError
from flows.server.clock import When, machine_zone, when, zone
from flows.server.ending import LEFT_S
from flows.server.process import locked
from storage.home import Home
from tests.flows.prefect_site import Site, accounts, environment, large_tree, until
from tests.flows.terminal import CHECKOUT, lookalike

pytestmark = pytest.mark.xdist_group("nightly")
posix = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
FEW, MANY = 6, 400
MAIN = "from flows.cli import main; main()"


class TestWhen:
    """Times as people type them."""

    @pytest.mark.parametrize(
        ("typed", "cron", "said"),
        [
            ("02:00", "0 2 * * *", "every day at 02:00"),
            ("2:05", "5 2 * * *", "every day at 02:05"),
            (" Sunday  04:00 ", "0 4 * * 0", "every sunday at 04:00"),
            ("sat 23:59", "59 23 * * 6", "every saturday at 23:59"),
            ("*/15  * * * *", "*/15 * * * *", "*/15 * * * *"),
            ("0 2 * * MON-FRI", "0 2 * * mon-fri", "0 2 * * mon-fri"),
        ],
    )
    def test_it_is_understood(self, typed: str, cron: str, said: str) -> None:
        assert when(typed) == When(said, cron)

    @pytest.mark.parametrize(
        "typed", ["", "2", "24:00", "12:60", "so 04:00", "mo 04:00", "noon", "0 2 * *", "every day"]
    )
    def test_it_is_refused_with_examples(self, typed: str) -> None:
        with pytest.raises(FlowError, match="is no time: 02:00, 'sunday 04:00', or five fields"):
            when(typed)

    @pytest.mark.parametrize("typed", ["61 * * * *", "0 25 * * *", "a b c d e", "0 0 31 2 *x"])
    def test_a_cron_expression_is_prefects_to_judge(self, typed: str) -> None:
        with pytest.raises(FlowError, match="is no cron expression that Prefect takes"):
            when(typed)

    def test_the_crons_mean_what_is_said(self) -> None:
        """Prefect's own reading of the expressions is the oracle."""
        import asyncio
        from datetime import UTC, datetime

        from prefect.server.schemas.schedules import CronSchedule

        start = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)  # a sunday
        for typed, wanted in (
            ("02:00", "Monday 2026-11-23 02:00"),
            ("sunday 04:00", "Sunday 2026-11-29 04:00"),
            ("wed 13:30", "Wednesday 2026-11-25 13:30"),
        ):
            [next_one] = asyncio.run(CronSchedule(cron=when(typed).cron).get_dates(1, start=start))
            assert f"{next_one:%A %Y-%m-%d %H:%M}" == wanted


class TestZone:
    """The time zone of a machine."""

    @pytest.fixture
    def machine(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.delenv("TZ", raising=False)
        zones = tmp_path / "zoneinfo" / "Europe"
        zones.mkdir(parents=True)
        for name in ("Berlin", "Nowhere"):
            (zones / name).touch()
        return tmp_path

    def test_it_is_typed(self) -> None:
        assert zone("Europe/Berlin") == "Europe/Berlin"
        for wrong in ("Europe/Nowhere", "Europe", "../UTC", "CEST+1"):
            with pytest.raises(FlowError, match="is no time zone"):
                zone(wrong)

    @pytest.mark.parametrize(
        ("tz", "wanted"),
        [
            ("America/New_York", "America/New_York"),
            (":Asia/Tokyo", "Asia/Tokyo"),
            ("/usr/share/zoneinfo/Asia/Tokyo", "Asia/Tokyo"),
            ("CET-1CEST", "Europe/Berlin"),
            ("", "Europe/Berlin"),
        ],
    )
    def test_that_of_the_environment_comes_first(
        self, tz: str, wanted: str, machine: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TZ", tz)
        (machine / "localtime").symlink_to(machine / "zoneinfo" / "Europe" / "Berlin")
        assert machine_zone(str(machine / "localtime"), "nothing") == wanted

    def test_a_link_to_no_zone_leaves_the_file(self, machine: Path) -> None:
        (machine / "localtime").symlink_to(machine / "zoneinfo" / "Europe" / "Nowhere")
        (machine / "timezone").write_text("Australia/Perth\n")
        asked = (str(machine / "localtime"), str(machine / "timezone"))
        assert machine_zone(*asked) == "Australia/Perth"
        (machine / "timezone").write_bytes(b"\xff\xfe")
        assert machine_zone(*asked) == "UTC"
        assert machine_zone("nothing", "nothing") == "UTC"


class TestRefusals:
    """What is said before anything is started."""

    @pytest.mark.parametrize(
        ("args", "said"),
        [
            (["--at", "25:00"], "'25:00' is no time"),
            (["--maintenance", "soon"], "'soon' is no time"),
            (["--timezone", "Mars/Olympus"], "'Mars/Olympus' is no time zone"),
        ],
    )
    def test_wrong_options(self, args: list[str], said: str) -> None:
        done = lookalike("nightly", *args, code=2)
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1

    @posix
    def test_a_second_one_for_the_same_home(self, tmp_path: Path) -> None:
        (tmp_path / "home" / "prefect").mkdir(parents=True)
        with locked(str(tmp_path / "home" / "prefect"), "nightly.lock"):
            done = lookalike("nightly", code=2)
        assert "another `lookalike nightly` serves" in done.stderr

    def test_an_api_that_is_configured_and_silent(self) -> None:
        done = lookalike("nightly", env={"PREFECT_API_URL": "http://127.0.0.1:9/api"}, code=2)
        assert "http://127.0.0.1:9/api does not answer; start it, or leave it out" in done.stderr


class Nightly:
    """A running ``lookalike nightly``."""

    def __init__(self, process: subprocess.Popen[bytes], home: str, log: Path) -> None:
        self.process = process
        self.home = home
        self.log = log

    def said(self, pattern: str) -> re.Match[str] | None:
        return re.search(pattern, self.log.read_text(), re.MULTILINE)

    def says(self, pattern: str, within_s: float = 120.0) -> re.Match[str]:
        try:
            found: re.Match[str] = until(lambda: self.said(pattern) or self._ended(), within_s)
        except AssertionError:
            pytest.fail(f"{pattern!r} is not in {self.log.read_text()}")
        assert isinstance(found, re.Match), self.log.read_text()
        return found

    def _ended(self) -> bool:
        return self.process.poll() is not None

    def site(self) -> Site:
        facts = json.loads(Path(self.home, "prefect", "server.json").read_text())
        return Site(facts["url"], {})

    def start_a_long_run(self, tree: str) -> None:
        before = accounts(Home(self.home)).vectors
        self.site().trigger("index-images/nightly", home=self.home, roots=[tree], chunk_size=2)
        until(lambda: accounts(Home(self.home)).vectors > before)

    def family(self) -> set[int]:
        """Return the processes that it has started, and theirs."""
        found, new = set[int](), {self.process.pid}
        while new:
            found |= new
            new = {child for pid in new for child in _children(pid)} - found
        return found - {self.process.pid}


def _path() -> str:
    return os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))


def _children(pid: int) -> set[int]:
    found = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found |= {int(child) for child in path.read_text().split()}
        except OSError:
            continue
    return found


def alive(pids: set[int]) -> set[int]:
    """Return the processes that still run; a zombie does not."""
    found = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.add(pid)
    return found


def gone(pids: set[int], within_s: float) -> None:
    until(lambda: not alive(pids), within_s)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module")
def store(folder: Path) -> str:
    few = large_tree(folder / "few", FEW)
    env = environment(folder / "client", LOOKALIKE_HOME=str(folder / "home"))
    index = [sys.executable, "-m", "flows.cli", "index", few, "--no-prefect", "--quiet"]
    subprocess.run(index, cwd=CHECKOUT, env=env, check=True, capture_output=True)
    return str(folder / "home")


@pytest.fixture(scope="module")
def many(folder: Path) -> str:
    return large_tree(folder / "many", MANY)


@posix
@pytest.mark.prefect
class TestAService:
    """One home that is served three times, and ended in three ways."""

    @contextmanager
    def serving(self, folder: Path, home: str, *args: str) -> Iterator[Nightly]:
        log = folder / f"{time.monotonic_ns()}.log"
        stand = folder / "stand"  # where somebody else has flows, too
        (stand / "flows").mkdir(parents=True, exist_ok=True)
        (stand / "flows" / "__init__.py").write_text("raise SystemExit('not these')")
        with open(log, "wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", MAIN, "--home", home, "nightly", *args],
                cwd=stand,
                env=environment(folder / "client", PYTHONPATH=_path()),
                stdout=subprocess.DEVNULL,
                stderr=err,
                process_group=0,
            )
        nightly = Nightly(process, home, log)
        try:
            nightly.says("^Prefect's page")
            yield nightly
        finally:
            family = nightly.family()
            process.kill()
            process.wait()
            for pid in alive(family):
                os.kill(pid, signal.SIGKILL)

    def test_it_runs_by_itself_and_stops_cleanly(self, folder: Path, store: str, many: str) -> None:
        new = Path(large_tree(folder / "new", FEW + 1), f"{FEW:04}.jpg")
        os.rename(new, folder / "few" / new.name)
        zone = ("--timezone", "Europe/Berlin", "--maintenance", "sunday 04:00")
        with self.serving(folder, store, "--at", "* * * * *", *zone) as nightly:
            nightly.says(r"^serving nightly, backfill, maintenance of .*; times are Europe/Berlin$")
            nightly.says(r"nightly runs next on \w+, [-\d]+ at \d\d:\d\d$")
            nightly.says(r"maintenance runs next on Sunday, [-\d]+ at 04:00$")
            nightly.says(r"nightly\b.* started$")
            nightly.says(r"nightly\b.* completed: Done: 1 image extracted")
            assert accounts(Home(store)).vectors == FEW + 1

            nightly.site().trigger("backfill-images/backfill", home=store)
            nightly.says(r"backfill\b.* completed: ")

            self._schedule_by_hand(nightly.site(), "backfill-images/backfill")
            assert self._schedules(store) == {"nightly", "maintenance", None}

            nightly.start_a_long_run(many)
            family = nightly.family()
            assert len(alive(family)) >= 3  # server, runner, run
            os.killpg(nightly.process.pid, signal.SIGINT)  # as the terminal does
            assert nightly.process.wait(60) == 0
            nightly.says("^stopping: finished images are kept")
            nightly.says(r"nightly\b.* cancelled: Interrupted: .*the next run goes on from here")
            assert not nightly.said("Traceback")
        gone(family, 5)
        found = accounts(Home(store))
        assert (found.claims, found.running) == (0, 0)
        assert FEW + 1 < found.vectors < FEW + 1 + MANY
        assert self._paused(store) == {"nightly": 1, "backfill": 1, "maintenance": 1}
        assert not Path(store, "prefect", "server.json").exists()

    def test_a_second_signal_leaves_at_once(self, folder: Path, store: str, many: str) -> None:
        with self.serving(folder, store, "--at", "03:33", "--maintenance", "never") as nightly:
            nightly.says(r"nightly runs next on \w+, [-\d]+ at 03:33$")
            assert self._paused(store) == {"nightly": 0, "backfill": 0, "maintenance": 0}
            assert self._schedules(store) == {"nightly", None}  # a person's own stays
            nightly.start_a_long_run(many)
            family = nightly.family()
            nightly.process.terminate()
            nightly.says("^stopping")
            nightly.process.terminate()
            assert nightly.process.wait(5) == 130
            gone(family, 10)
        assert accounts(Home(store)).running == 1  # whose lease is void: see the next one

    def test_nothing_outlives_it_when_it_is_killed(
        self, folder: Path, store: str, many: str
    ) -> None:
        with self.serving(folder, store, "--at", "03:33") as nightly:
            nightly.says(r"nightly many [-\d]{10} [:\d]{8} crashed: its process is gone; the next")
            nightly.start_a_long_run(many)
            family = nightly.family()
            nightly.process.kill()
            gone(family, 60)
            assert not nightly.said("Warning|Traceback")
        found = accounts(Home(store))
        assert found.images == found.vectors == found.rows == found.written

    def test_it_ends_soon_after_its_server(self, folder: Path, store: str) -> None:
        with self.serving(folder, store, "--at", "03:33") as nightly:
            nightly.start_a_long_run(large_tree(folder / "more", MANY))
            family, page = nightly.family(), nightly.site().url.removesuffix("/api")
            facts = json.loads(Path(store, "prefect", "server.json").read_text())
            os.kill(facts["owner"]["pid"], signal.SIGKILL)
            assert nightly.process.wait(LEFT_S + 10) == 2
            said = nightly.log.read_text().partition("Ctrl-C ends it\n")[2].splitlines()
            assert said[-1] == (
                f"lookalike: Prefect's server at {page} has ended; start `lookalike nightly` again"
            )
            assert all(
                re.search(" started$| crashed: its | runs next on ", line) for line in said[:-1]
            )
        gone(family, 5)
        found = accounts(Home(store))
        assert (found.claims, found.running) == (0, 0)
        assert not Path(store, "prefect", "server.json").exists()

    def _schedule_by_hand(self, site: Site, deployment: str) -> None:
        from prefect.client.schemas.schedules import CronSchedule

        with site.client() as client:
            made = [(CronSchedule(cron="0 12 1 1 *"), True)]
            client.create_deployment_schedules(site.deployment(deployment).id, made)

    def _schedules(self, home: str) -> set[str | None]:
        with closing(sqlite3.connect(os.path.join(home, "prefect", "prefect.db"))) as database:
            return {slug for (slug,) in database.execute("select slug from deployment_schedule")}

    def _paused(self, home: str) -> dict[str, int]:
        with closing(sqlite3.connect(os.path.join(home, "prefect", "prefect.db"))) as database:
            return dict(database.execute("select name, paused from deployment").fetchall())
