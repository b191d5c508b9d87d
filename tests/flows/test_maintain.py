"""The weekly maintenance: each step on a real store, stopped, killed, and beside other runs."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import func, select, update

from extractor.threads import Room
from flows.cli import cli
from flows.engine.environment import TAMED
from flows.job import patience
from flows.job.loop import IndexOptions, run_index
from flows.job.opened import opened_run
from flows.job.progress import Progress
from flows.job.rereading import reread
from flows.job.spaces import SpaceChoice
from flows.job.steps import PlainSteps
from flows.job.told import Told
from flows.job.upkeep import Upkeep, run_maintenance
from flows.job.upkeep_options import UpkeepOptions, upkeep_options
from flows.job.upkeep_report import UpkeepReport
from flows.job.worker import bench_for, clear_bench
from flows.samples import draw_families
from storage.catalog import Catalog
from storage.errors import CatalogError
from storage.file_rows import GRACE_S
from storage.home import Home
from storage.leases import finish_run, start_run
from storage.rehash import SLICES, Outcome, Settled
from storage.roots import list_roots
from storage.runs import claim
from storage.scan import Signature
from storage.spaces import list_spaces
from storage.tables import Claim, File, Generation, Part, Run, Vector
from tests.flows.contents import assert_same, contents
from tests.flows.gate import gate
from tests.flows.terminal import CHECKOUT, loaded, lookalike
from tests.flows.test_prefect import Api

TINY = SpaceChoice(model="shufflenet_v2_x0_5", weights="random:0")
STEPS = ["verify", "rehash", "prune", "compact", "publish", "delete"]
FAMILIES = 2


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "pictures"
    draw_families(str(folder), FAMILIES, seed=5)
    return folder


@pytest.fixture
def home(catalog_home, tree):
    """Return a home on either database, in which all is indexed and settled."""
    index(catalog_home, str(tree))
    settle(catalog_home)
    return catalog_home


def settle(home: Home) -> None:
    """Trust what was read, as if it had been a few seconds older then."""
    write(home, update(File).values(trusted=True))


def index(home: Home, *roots: str, **changes):
    options = IndexOptions(home.path, home.catalog_url, roots=roots, choice=TINY, **changes)
    try:
        with PlainSteps() as steps:
            return run_index(options, steps=steps, progress=Progress("silent"))
    finally:
        clear_bench(home.path, home.catalog_url)


def go(home: Home, progress: Progress | None = None, **changes) -> UpkeepReport:
    """Maintain and forget what the process holds, as the command does."""
    options = UpkeepOptions(home.path, home.catalog_url, **changes)
    try:
        return run_maintenance(options, progress or Progress("silent"))
    finally:
        clear_bench(home.path, home.catalog_url)


def rows(home: Home, query):
    with Catalog.open(home, write=False) as catalog, catalog.read() as conn:
        return conn.execute(query).all()


def write(home: Home, statement) -> None:
    with Catalog.open(home, write=True) as catalog, catalog.write() as conn:
        conn.execute(statement)


def count(home: Home, table, *where) -> int:
    return rows(home, select(func.count()).select_from(table).where(*where))[0][0]


def files_of(home: Home) -> dict[str, int]:
    """Return the ids of the files by their relative paths."""
    return {os.fsdecode(path): file_id for path, file_id in rows(home, select(File.path, File.id))}


def rot(home: Home, tree: Path, name: str) -> None:
    """Change bytes, and let the catalog think that nothing else of the file did."""
    path = tree / name
    path.write_bytes(path.read_bytes() + b" ")
    found = os.stat(path)
    sig = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
    fields = ("size_bytes", "mtime_ns", "ctime_ns", "inode")
    same = {f"seen_{name}": value for name, value in zip(fields, sig, strict=True)}
    same |= {f"digest_{name}": value for name, value in zip(fields, sig, strict=True)}
    write(home, update(File).where(File.path == os.fsencode(name)).values(same))


def last_run(home: Home):
    """Return kind, state and report of the run that began last."""
    columns = select(Run.kind, Run.state, Run.report)
    return rows(home, columns.order_by(Run.started_at.desc(), Run.id.desc()).limit(1))[0]


def slice_with(home: Home, name: str) -> int:
    return files_of(home)[name] % SLICES


def up_to(home: Home, number: int) -> None:
    """Have the slices before ``number`` done, as far as the catalog knows."""
    report = {"rehash": {"slice": (number - 1) % SLICES, "finished": True}}
    with Catalog.open(home, write=True) as catalog:
        finish_run(catalog, start_run(catalog, "maintenance"), "done", report)


def part_paths(home: Home) -> list[str]:
    with Catalog.open(home, write=False) as catalog:
        (space,) = list_spaces(catalog)
        folder = home.parts_dir(space.fingerprint)
        names = [name for (name,) in rows(home, select(Part.name).where(Part.state == "live"))]
    return [os.path.join(folder, f"{name}.npy") for name in names]


def flip(path: str) -> None:
    with open(path, "r+b") as file:
        file.seek(-3, os.SEEK_END)
        byte = file.read(1)
        file.seek(-3, os.SEEK_END)
        file.write(bytes([byte[0] ^ 255]))


def test_a_sound_store_passes_all_steps_and_each_run_takes_the_next_slice(home):
    for number in range(3):
        report = go(home, flow_run="of Prefect")
        expected = count(home, File, File.id % SLICES == number)
        assert report.exit_code() == 0
        assert report.findings == []
        assert report.rehash is not None
        assert (report.rehash["slice"], report.rehash["finished"]) == (number, True)
        assert report.rehash["files"] == report.rehash["outcomes"]["same"] == expected
        assert (report.pruned, report.published, report.deleted) == (0, [], 0)
        assert [each["rows_dropped"] for each in report.compacted] == [0]
        assert list(report.seconds) == STEPS
        assert (report.warnings, report.trouble_lines()) == ([], [])
        kind, state, kept = last_run(home)
        assert (kind, state) == ("maintenance", "done")
        assert kept == json.loads(json.dumps(report.to_json()))
    assert rows(home, select(Run.flow_run).where(Run.kind == "maintenance"))[0] == ("of Prefect",)
    assert count(home, Claim) == 0


def test_thirty_runs_read_every_file_once(home, tree):
    names = sorted(files_of(home))
    for name in names:
        rot(home, tree, name)
    named = []
    for number in range(SLICES):
        report = go(home, verify=False)
        assert list(report.seconds) == STEPS[1:]
        assert report.rehash["slice"] == number
        named += [os.path.relpath(bad["path"], tree) for bad in report.rehash["rotten"]]
    assert sorted(named) == names
    assert go(home, verify=False).rehash["slice"] == 0
    assert index(home).extracted == len(names)


def test_a_rotten_file_is_named_and_read_by_the_next_run(home, tree):
    name = "family-001/plain.jpg"
    rot(home, tree, name)
    assert (index(home).changed, index(home).extracted) == (0, 0)  # nothing else sees it
    up_to(home, slice_with(home, name))
    report = go(home)
    assert report.exit_code() == 3
    (bad,) = report.rehash["rotten"]
    assert bad["path"] == str(tree / name)
    assert bad["was"] != bad["now"]
    (line,) = report.trouble_lines()
    assert bad["path"] in line
    assert bad["was"] in line
    assert bad["now"] in line
    assert report.to_text().startswith("Done, but files hold other bytes")
    page = report.to_markdown()
    for said in ("# Done, but files hold", "- **verified**: clean", "| rehash |", f"- {line}"):
        assert said in page
    assert last_run(home).state == "done"
    assert index(home).extracted == 1
    up_to(home, slice_with(home, name))
    assert go(home).exit_code() == 0


def put_socket(path):
    """Put what nobody can open in the place of a file."""
    path.unlink()
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)  # whose whole path may be longer than a socket's can be


def test_an_edited_a_vanished_and_an_unreadable_file_are_counted(home, tree):
    folder = "family-000"
    for name in os.listdir(tree / folder):
        path = tree / folder / name
        if name.startswith("plain"):
            path.write_bytes(path.read_bytes() + b" ")
        elif name.startswith("dark"):
            path.unlink()
        elif name.startswith("warm"):
            put_socket(path)
    outcomes = dict.fromkeys(("same", "changed", "rotten", "vanished", "unreadable"), 0)
    for _ in range(SLICES):
        report = go(home, verify=False)
        assert report.exit_code() == 0
        for outcome, n in report.rehash["outcomes"].items():
            outcomes[outcome] += n
        if report.rehash["outcomes"]["unreadable"]:
            assert "warm.jpg" in report.to_text()
    n = len(files_of(home))
    assert outcomes == {"same": n - 3, "changed": 1, "rotten": 0, "vanished": 1, "unreadable": 1}
    assert count(home, File, File.state == "live", File.trusted.is_(True)) == n


def test_damage_is_exit_code_5_and_nothing_is_rewritten_until_it_is_mended(home):
    (path,) = part_paths(home)
    flip(path)
    assert go(home, verify=False).exit_code() == 0
    report = go(home)
    assert report.exit_code() == 5
    assert [finding["repaired"] for finding in report.findings] == [False, False]
    assert len(report.trouble_lines()) == 2  # the part, and its rows
    assert list(report.seconds) == ["verify", "rehash"]
    assert "--repair" in report.to_text()
    assert last_run(home).state == "done"
    vectors = count(home, Vector)
    assert vectors
    mended = go(home, repair=True)
    assert mended.exit_code() == 0
    assert all(finding["repaired"] for finding in mended.findings)
    assert "(repaired)" in mended.to_text()
    assert list(mended.seconds) == STEPS
    assert count(home, Vector) == 0
    assert index(home).extracted == vectors
    assert go(home).findings == []


def test_a_repair_that_meets_another_run_says_so_and_mends_nothing(home):
    flip(part_paths(home)[0])
    with Catalog.open(home, write=True) as catalog:
        (space,) = list_spaces(catalog)
        other = start_run(catalog, "compact")
        claim(catalog, other, "space", space.id, space.id)
        report = go(home, repair=True)
        assert report.exit_code() == 5
        assert not any(finding["repaired"] for finding in report.findings)
        assert "nothing was repaired" in report.warnings[0]
        assert other.run_id in report.warnings[0]
        finish_run(catalog, other, "done")
    assert go(home, repair=True).exit_code() == 0


def lose(home: Home, tree: Path, names: list[str]) -> None:
    """Delete files, and let the grace of all missing ones be over."""
    for name in names:
        (tree / name).unlink()
    index(home, confirm_missing=True)
    with Catalog.open(home, write=True) as catalog, catalog.write() as conn:
        over = catalog.now(conn) - GRACE_S - 60
        conn.execute(update(File).where(File.state == "missing").values(missing_since=over))


def test_what_is_long_gone_is_forgotten_and_the_store_is_that_of_what_is_left(home, tree, tmp_path):
    gone = sorted(files_of(home))[::2]
    lose(home, tree, gone)
    (old_part,) = part_paths(home)
    vectors = count(home, Vector)
    report = go(home)
    assert report.exit_code() == 0
    assert report.pruned == len(gone)
    left = [os.path.relpath(path, tree) for path in tree.rglob("*.*")]
    assert sorted(files_of(home)) == sorted(left)
    (compacted,) = report.compacted
    assert compacted["rows_dropped"] == vectors - count(home, Vector) > 0
    (published,) = report.published
    assert published["reason"] == "dead"
    assert published["n"] == count(home, Vector)
    for said in ("pruned", "compacted", "index"):
        assert f"  {said}" in report.to_text()
    if home.catalog_url is None:
        fresh = Home(str(tmp_path / "fresh"))
        index(fresh, str(tree))
        assert_same(contents(fresh.path), contents(home.path))

    assert os.path.exists(old_part)  # for a day, for readers that have it open
    for table in (Part, Generation):
        write(home, update(table).values(replaced_at=table.replaced_at - 2 * 86400))
    assert go(home).deleted == 2
    assert not os.path.exists(old_part)
    assert go(home).findings == []


def test_another_run_at_the_space_is_a_warning(home, tree):
    lose(home, tree, sorted(files_of(home))[::2])
    write(home, update(Generation).values(state="replaced", replaced_at=0.0))
    with Catalog.open(home, write=True) as catalog:
        (space,) = list_spaces(catalog)
        other = start_run(catalog, "publish")
        claim(catalog, other, "space", space.id, space.id)
        report = go(home)
        assert report.exit_code() == 0
        assert (report.compacted, report.published) == ([], [])
        assert len(report.warnings) == 2
        assert all(other.run_id in line for line in report.warnings)
        finish_run(catalog, other, "done")
    assert [made["reason"] for made in go(home).published] == ["first"]


def test_an_index_of_a_kind_for_another_number_of_vectors_is_built_anew(home):
    write(home, update(Generation).values(factory="HNSW32,SQ8"))
    assert index(home).index is None
    (made,) = go(home).published
    assert (made["reason"], made["factory"]) == ("outgrown", "SQ8")
    assert go(home).published == []


def test_a_root_that_is_not_there_is_reported_and_left_alone(home, tree, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tree / "family-000", other)
    index(home, str(other))
    settle(home)
    gone = sorted(name for name in files_of(home) if name.startswith("family-000"))
    lose(home, tree, gone[:2])
    away = tmp_path / "away"
    os.rename(tree, away)
    read = 0
    for _ in range(SLICES):
        report = go(home, verify=False)
        assert report.exit_code() == 4
        (line,) = report.trouble_lines()
        assert str(tree) in line
        assert report.pruned == 0
        assert report.rehash["outcomes"]["vanished"] == 0
        read += report.rehash["files"]
    assert read == len(list(other.iterdir()))
    os.rename(away, tree)
    report = go(home)
    assert (report.exit_code(), report.pruned) == (0, 2)


def test_where_no_root_is_there_the_slice_is_not_done(home, tree, tmp_path):
    os.rename(tree, tmp_path / "away")
    for _ in range(2):
        report = go(home)
        assert (report.exit_code(), report.rehash) == (4, None)
    os.rename(tmp_path / "away", tree)
    assert go(home).rehash["slice"] == 0


def test_a_root_that_is_scanned_meanwhile_is_not_pruned(home, tree):
    lose(home, tree, sorted(files_of(home))[:1])
    with Catalog.open(home, write=True) as catalog:
        (root,) = list_roots(catalog)
        other = start_run(catalog, "index")
        claim(catalog, other, "root", root.id)
        report = go(home)
        assert (report.exit_code(), report.pruned, len(report.warnings)) == (0, 0, 1)
        finish_run(catalog, other, "done")
    assert go(home).pruned == 1


class Stopping(Progress):
    """Asks for a stop as soon as something of a kind is told."""

    def __init__(self, home: Home, at: str) -> None:
        super().__init__("silent")
        self._home, self._at = home, at

    def _tell(self, what: str) -> None:
        if what == self._at:
            bench_for(self._home.path, self._home.catalog_url).stop.set()

    def note(self, line: str) -> None:
        self._tell(line.split()[0])

    def advance(self, n: int = 1, failed: int = 0) -> None:
        super().advance(n, failed)
        self._tell("advance")

    def publishing(self, space: str, reason: str) -> None:
        self._tell("publishing")


@pytest.mark.parametrize(
    ("at", "steps"),
    [("verifying", 1), ("reading", 2), ("advance", 2), ("publishing", 5)],
)
def test_a_stop_ends_cleanly_between_the_steps_and_inside_them(home, tree, at, steps):
    lose(home, tree, sorted(files_of(home))[::2])
    write(home, update(File).values(id=File.id * SLICES))  # all in one slice
    report = go(home, Stopping(home, at))
    assert report.interrupted
    assert report.exit_code() == 130
    assert list(report.seconds) == STEPS[:steps]
    assert report.published == []
    assert report.to_text().startswith("Interrupted")
    assert last_run(home).state == "interrupted"
    assert count(home, Claim) == 0
    finished = at == "publishing"
    assert bool(report.rehash and report.rehash["finished"]) == finished
    files = count(home, File, File.state == "live")
    if at == "advance":
        assert report.rehash["files"] < files
    following = go(home)
    assert following.rehash["slice"] == int(finished)
    assert following.rehash["files"] == (0 if finished else files)


KILLED = """\
import sys, time
from flows.engine.environment import TAMED
from flows.job.progress import Progress
from flows.job.upkeep import maintain
from flows.job.upkeep_options import UpkeepOptions

class Waiting(Progress):
    def advance(self, n=1, failed=0):
        print("at work", flush=True)
        time.sleep(600)

maintain(UpkeepOptions(sys.argv[1], sys.argv[2] or None), Waiting("silent"))
"""


def test_a_killed_run_does_not_advance_the_slice(home):
    number = min(file_id for file_id in files_of(home).values()) % SLICES
    up_to(home, number)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, home.path, home.catalog_url or ""],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
    finally:
        process.kill()
        process.communicate()
    report = go(home)
    assert (report.rehash["slice"], report.exit_code()) == (number, 0)
    states = rows(home, select(Run.state).where(Run.kind == "maintenance").order_by(Run.id))
    assert sorted(state for (state,) in states) == ["crashed", "done", "done"]


def test_it_runs_beside_an_index_run(home, tree):
    draw_families(str(tree / "more"), 2, seed=9)
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "--home", home.path, "index", "--no-prefect", "-q"],
        cwd=CHECKOUT,
        env={**os.environ, "LOOKALIKE_CATALOG_URL": home.catalog_url or ""},
        stdout=subprocess.DEVNULL,
    )
    ends = []
    while process.poll() is None:
        ends.append(go(home, verify=False).exit_code())
    assert process.returncode == 0
    assert set(ends) == {0}
    assert count(home, File, File.image_id.is_(None)) == 0
    assert go(home).findings == []


def settled(path: Path) -> Settled:
    import hashlib

    digest = hashlib.sha256(path.read_bytes()).digest()
    return Settled(1, os.fsencode(path), digest, Signature.of(os.stat(path)))


def test_what_becomes_of_a_file_follows_the_loader_s_rules(tmp_path):
    def outcome(known: Settled) -> Outcome:
        return reread(known, Room(1), lambda: False).outcome

    path = tmp_path / "a.jpg"
    path.write_bytes(b"0123456789")
    known = settled(path)
    assert outcome(known) is Outcome.SAME
    with open(path, "ab") as file:
        file.write(b"more")
    assert outcome(known) is Outcome.CHANGED
    os.truncate(path, 3)
    assert outcome(known) is Outcome.CHANGED
    path.unlink()
    assert outcome(known) is Outcome.VANISHED
    os.mkfifo(path)
    assert outcome(known) is Outcome.CHANGED
    path.unlink()
    path.symlink_to(path)  # what was there is gone: links are not followed
    assert outcome(known) is Outcome.VANISHED
    put_socket(path)
    again = reread(known, Room(1), lambda: False)
    assert again.outcome is Outcome.UNREADABLE
    assert again.message


def test_the_report_is_what_every_flow_tells():
    report: Told = UpkeepReport()
    assert report.exit_code() == 0
    assert report.to_markdown().startswith("# Done")
    assert json.loads(json.dumps(report.to_json()))["exit_code"] == 0


def test_nothing_indexed_is_one_line_and_makes_no_store(tmp_path):
    home = tmp_path / "home"
    done = lookalike("--home", str(home), "maintain", code=5)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "lookalike index" in done.stderr
    assert not home.exists()
    with pytest.raises(CatalogError):
        upkeep_options({"home": str(home)})
    assert not home.exists()


def test_the_command_tells_the_report(sqlite_template, tmp_path, tree):
    home = Home(str(tmp_path / "home"))
    index(home, str(tree))
    settle(home)

    def run(*args: str):
        return CliRunner().invoke(cli, ["--home", home.path, "maintain", *args])

    done = run()
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("Done: ")
    assert "(slice 1 of 30)" in done.stdout
    assert "slice 1 of 30" in done.stderr
    values = json.loads(run("--json", "--no-verify").stdout)
    assert (values["exit_code"], values["findings"], values["rehash"]["slice"]) == (0, None, 1)
    assert run("-q").stderr == ""
    flip(part_paths(home)[0])
    broken = run("-q")
    assert broken.exit_code == 5
    assert broken.stderr.startswith("lookalike: space ")
    assert run("--repair", "-q").exit_code == 0
    refused = run("--repair", "--no-verify")
    assert refused.exit_code == 2
    assert "--no-verify" in refused.stderr


@pytest.mark.prefect
@pytest.mark.xdist_group("prefect")
def test_the_flow_does_the_same_and_shows_it(sqlite_template, tmp_path, tree, monkeypatch):
    """A run that Prefect's engine has started, with its state, tags and artifacts."""
    from flows.server.local import temporary_server

    home = Home(str(tmp_path / "home"))
    index(home, str(tree))
    settle(home)
    name = "family-001/plain.jpg"
    rot(home, tree, name)
    up_to(home, slice_with(home, name))
    for setting in (*TAMED, "NO_PROXY", "no_proxy"):  # what a server sets ends with the test
        monkeypatch.setenv(setting, "to be restored")
        monkeypatch.delenv(setting)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect-home"))
    with temporary_server(str(tmp_path / "server")) as url:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker
        from prefect.settings import PREFECT_API_URL, temporary_settings

        from flows.maintenance import maintain_store

        with temporary_settings({PREFECT_API_URL: url}):
            rotten = maintain_store(home=home.path, return_state=True)
            flip(part_paths(home)[0])
            damaged = maintain_store(home=home.path, return_state=True)
            for worker in (EventsWorker, APILogWorker):  # before the server ends
                worker.drain_all(timeout=10, at_exit=False)
        seen = Api(url)
        run = seen.run()
        kept = seen.artifacts(run)
    told = rotten.result()
    assert (rotten.name, told["exit_code"]) == ("Completed", 3)
    assert told["rehash"]["rotten"][0]["path"] == str(tree / name)
    assert damaged.name == run.state.name == "Failed"
    assert "checksum" in run.state.message
    assert re.fullmatch(r"maintenance [-\d]{10} [:\d]{8}", run.name)
    assert run.tags == ["lookalike", "maintenance", "space:shufflenet_v2_x0_5-mean"]
    assert run.parameters["home"] == home.path
    assert kept["maintenance-report"].startswith("# Done, but the store is in trouble")
    assert len(json.loads(kept["maintenance-findings"])) == 2
    kind, state, report = last_run(home)
    assert (kind, state, report["exit_code"]) == ("maintenance", "done", 5)
    flow_runs = rows(home, select(Run.flow_run).order_by(Run.started_at.desc()).limit(1))
    assert flow_runs == [(str(run.id),)]


@pytest.mark.postgres
def test_a_restart_of_postgres_ends_no_run(tmp_path, postgres_url, monkeypatch):
    """Neither where the run begins, nor at a question on its way, nor where it ends."""
    monkeypatch.setattr(patience, "AGAIN_AFTER_S", (0.1, 0.1, 0.1))
    home, report = str(tmp_path / "home"), UpkeepReport()
    with gate(postgres_url) as way:
        bench = bench_for(home, way.url)
        try:
            way.restart(refused=2)
            with opened_run(bench, report, "maintenance", None, report.finish) as lease:
                assert way.left() == 0
                upkeep = Upkeep(
                    UpkeepOptions(home, way.url), Progress("silent"), bench, lease, report
                )
                way.restart(refused=2)
                assert list(upkeep.spaces()) == list(upkeep.roots()) == []
                assert way.left() == 0
                way.restart(refused=2)
            assert way.left() == 0
        finally:
            clear_bench(home, way.url)
    assert report.run_id == lease.run_id
    assert last_run(Home(home, postgres_url))[:2] == ("maintenance", "done")


def test_each_parameter_of_the_flow_is_described_in_its_form():
    from prefect.utilities.callables import parameter_schema

    from flows.maintenance import maintain_store

    fields = parameter_schema(maintain_store).properties
    assert list(fields) == ["repair", "verify", "home"]
    assert all(field["description"] for field in fields.values())
    assert [field["default"] for field in fields.values()] == [False, True, None]


def test_help_loads_nothing_heavy():
    assert not {"torch", "prefect", "sqlalchemy"} & loaded("maintain", "--help")
