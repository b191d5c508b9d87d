"""Back-fills: what exactly they take, what they leave, and what goes on meanwhile."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import select

from flows.cli import cli
from flows.errors import FlowError
from flows.job.dates import EPOCH, moment_ns, moment_text
from flows.job.loop import IndexOptions, run_index
from flows.job.parameters import options_for, parameters_of
from flows.job.plan import plan
from flows.job.progress import Progress
from flows.job.report import Report
from flows.job.spaces import SpaceChoice
from flows.job.steps import PlainSteps
from flows.job.worker import clear_bench
from flows.samples import draw_families
from search.engine import Searcher
from storage.catalog import Catalog
from storage.errors import RootError
from storage.home import Home
from storage.pending import pending_counts
from storage.reading import Rows, open_store, snapshot
from storage.spaces import get_space, list_spaces
from storage.tables import File, Generation, Run, Vector
from tests.flows.terminal import CHECKOUT, loaded

OLD = {"model": "shufflenet_v2_x0_5", "weights": "random:0", "space": "old"}
NEW = {**OLD, "weights": "random:1", "space": "new"}
DAY = 86_400 * 10**9
NOON = moment_ns("2026-11-10T12:00")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return two roots: families in ``a`` and ``b``, dated a day apart by their numbers."""
    base = tmp_path_factory.mktemp("pictures")
    for seed, root in enumerate(("a", "b")):
        draw_families(str(base / root), 2, seed=seed)
        (base / root / "broken.jpg").write_bytes(b"no picture " + root.encode())
    for root in ("a", "b"):
        for day, family in enumerate(("family-000", "family-001")):
            for path in (base / root / family).iterdir():
                os.utime(path, ns=(NOON + day * DAY, NOON + day * DAY))
        os.utime(base / root / "broken.jpg", ns=(NOON, NOON))
    time.sleep(2.6)  # younger files are read again by every run
    return base


@pytest.fixture
def tree(pictures: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may change."""
    shutil.copytree(pictures, tmp_path / "pictures")
    time.sleep(2.6)
    return tmp_path / "pictures"


@pytest.fixture
def store(catalog_home: Home) -> Iterator[Home]:
    yield catalog_home
    clear_bench(catalog_home.path, catalog_home.catalog_url)


def asked(store: Home, kind: str, **values: Any) -> IndexOptions:
    place = {"home": store.path, "catalog_url": store.catalog_url}
    return options_for({**place, **values}, kind)[0]


def go(store: Home, kind: str, **values: Any) -> Report:
    """Run as the command does, and forget what the process holds."""
    try:
        with PlainSteps() as steps:
            options = asked(store, kind, **values)
            return run_index(options, steps=steps, progress=Progress("silent"))
    finally:
        clear_bench(store.path, store.catalog_url)


def index(store: Home, tree: Path) -> Path:
    report = go(store, "index", roots=[str(tree / "a"), str(tree / "b")], **OLD)
    assert (report.extracted, report.failed) == (36, 2)
    return tree


@pytest.fixture
def shared(store: Home, pictures: Path) -> Path:
    """Return the pictures, which stay as they are, indexed with the old model."""
    return index(store, pictures)


@pytest.fixture
def indexed(store: Home, tree: Path) -> Path:
    """Return the copy, indexed with the old model."""
    return index(store, tree)


def everything(tree: Path) -> set[str]:
    return {str(path.relative_to(tree)) for path in tree.rglob("*/family-*/*")}


def vectors(store: Home, space: str, tree: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Return the vectors of a space by the paths of the files."""
    with Catalog.open(store, write=False) as catalog:
        info = get_space(catalog, space)
        with catalog.read() as conn:
            query = select(File.path, File.root_id, Vector.row)
            query = query.join(Vector, Vector.image_id == File.image_id)
            found = conn.execute(query.where(Vector.space_id == info.id)).all()
        x = Rows(open_store(catalog, info), snapshot(catalog, info).parts).gather(
            [row for *_, row in found]
        )
        roots = {1: "a", 2: "b"}
    return {
        os.path.join(roots[root], os.fsdecode(path)): vector
        for (path, root, _), vector in zip(found, x, strict=True)
    }


def left(store: Home, space: str) -> int:
    with Catalog.open(store, write=False) as catalog:
        return pending_counts(catalog, get_space(catalog, space)).total


def rows(store: Home, *columns: Any) -> list[Any]:
    with Catalog.open(store, write=False) as catalog, catalog.read() as conn:
        return list(conn.execute(select(*columns)).all())


SCOPES: dict[str, tuple[dict[str, Any], Callable[[str], bool]]] = {
    "a root": ({"roots": ["b"]}, lambda path: path.startswith("b/")),
    "a folder": ({"roots": ["a/family-001"]}, lambda path: path.startswith("a/family-001/")),
    "a picture": (
        {"roots": ["a/family-000/dark.jpg"]},
        lambda path: path == "a/family-000/dark.jpg",
    ),
    "two roots, one in the other": (
        {"roots": ["a", "a/family-000"]},
        lambda path: path.startswith("a/"),
    ),
    "a name": ({"globs": ["*.png"]}, lambda path: path.endswith(".png")),
    "globs": (
        {"globs": ["family-000/*r*.jpg", "**/small.*"]},
        lambda path: (
            path.endswith("/small.jpg")
            or ("000/" in path and Path(path).stem in {"crop", "dark", "warm", "turned", "blur"})
        ),
    ),
    "a folder's glob in a root": (
        {"roots": ["a"], "globs": ["family-001"]},
        lambda path: path.startswith("a/family-001/"),
    ),
    "since": ({"since": "2026-11-11"}, lambda path: "family-001" in path),
    "until": ({"until": "2026-11-11T12:00"}, lambda path: "family-001" not in path),
    "since that very moment": (
        {"since": "2026-11-10T12:00", "until": "2026-11-10T12:00:01"},
        lambda path: "family-001" not in path,
    ),
    "nothing": ({"globs": ["*.tif"]}, lambda path: False),
}


@pytest.mark.parametrize("scope", SCOPES)
def test_a_backfill_takes_what_it_is_about_and_leaves_the_rest(
    scope: str, shared: Path, store: Home
) -> None:
    values, meant = SCOPES[scope]
    values = {**values, "roots": [str(shared / root) for root in values.get("roots", ())]}
    expected = {path for path in everything(shared) if meant(path)}
    at_most = len(expected) + sum(map(meant, ("a/broken.jpg", "b/broken.jpg")))
    assert plan(asked(store, "backfill", **NEW, **values)).spaces[0]["pending"] == at_most

    report = go(store, "backfill", **NEW, **values)

    assert (report.extracted, report.failed, report.exit_code()) == (len(expected), 0, 0)
    assert set(vectors(store, "new", shared)) == expected
    assert left(store, "new") == 36 - len(expected)


def test_a_new_model_is_backfilled_beside_the_space_that_serves(
    shared: Path, store: Home, tmp_path: Path
) -> None:
    query = [os.fsencode(shared / "a" / "family-000" / "plain.jpg")]

    def hits() -> list[tuple[float, bytes]]:
        with Searcher(store) as searcher:
            return [(hit.score, hit.path) for hit in searcher.search_paths(query, k=7)[0].hits]

    before, spaces = hits(), rows(store, Generation.name)
    report = go(store, "backfill", **NEW)

    assert hits() == before
    with Catalog.open(store, write=False) as catalog:
        assert {space.name: space.current for space in list_spaces(catalog)} == {
            "old": True,
            "new": False,
        }
    assert report.index is not None
    assert (report.index["space"], report.index["n"]) == ("new", 36)
    assert report.index["recall"] == 1.0
    assert len(rows(store, Generation.name)) == len(spaces) + 1
    assert report.to_text().startswith("Back-fill done: 36 images extracted into space new in ")
    assert [kind for (kind,) in rows(store, Run.kind)] == ["index", "backfill"]

    scratch = Home(str(tmp_path / "scratch"))
    go(scratch, "index", roots=[str(shared / "a"), str(shared / "b")], **NEW)
    ours, theirs = vectors(store, "new", shared), vectors(scratch, "new", shared)
    assert ours.keys() == theirs.keys() == everything(shared)
    for path, vector in ours.items():
        np.testing.assert_allclose(vector, theirs[path], rtol=0, atol=1e-5)


def test_parts_of_a_backfill_come_to_the_whole(shared: Path, store: Home) -> None:
    parts = [
        {"roots": [str(shared / "a")], "until": "2026-11-11"},
        {"globs": ["*.png"]},
        {"roots": [str(shared / "b")]},
        {},
    ]
    counts = [go(store, "backfill", **NEW, **part).extracted for part in parts]
    assert counts == [9, 3, 16, 8]
    assert set(vectors(store, "new", shared)) == everything(shared)
    again = go(store, "backfill", **NEW)
    assert again.to_text().startswith("Nothing is pending there: ")
    assert again.index is None


def test_a_backfill_publishes_also_where_no_index_is_due(shared: Path, store: Home) -> None:
    go(store, "backfill", **NEW, globs=["*.jpg"])
    report = go(store, "backfill", **NEW, globs=["family-000/*.png"])
    assert report.extracted == 2
    assert report.index is not None
    assert report.index["n"] == 34


def attempts(store: Home) -> dict[str, int]:
    return {os.fsdecode(path): n for path, n in _attempts(store)}


def _attempts(store: Home) -> list[Any]:
    from storage.failures import list_failures

    with Catalog.open(store, write=False) as catalog:
        return [(failure.path, failure.attempts) for failure in list_failures(catalog)]


def test_what_failed_is_tried_again_and_nothing_else(shared: Path, store: Home) -> None:
    broken = {str(shared / root / "broken.jpg"): 1 for root in ("a", "b")}
    assert attempts(store) == broken
    assert go(store, "backfill", **OLD).to_text().startswith("Nothing is pending")
    assert attempts(store) == broken
    planned = plan(asked(store, "backfill", **OLD, failed=True, roots=[str(shared / "a")]))
    assert [space["pending"] for space in planned.spaces] == [1]
    assert not planned.idle

    report = go(store, "backfill", **OLD, failed=True, roots=[str(shared / "a")])

    assert (report.failed, report.extracted, report.exit_code()) == (1, 0, 3)
    assert attempts(store) == {**broken, str(shared / "a" / "broken.jpg"): 2}
    assert left(store, "old") == 0

    report = go(store, "backfill", **NEW, failed=True)
    assert (report.failed, report.extracted) == (2, 0)
    assert left(store, "new") == 36


def test_what_could_not_be_read_is_found_by_its_failure(indexed: Path, store: Home) -> None:
    gone = indexed / "b" / "family-001" / "warm.jpg"
    os.rename(gone, indexed / "aside")
    assert go(store, "backfill", **NEW, globs=["*.jpg"]).failures == {"vanished": 1}
    os.rename(indexed / "aside", gone)
    time.sleep(2.6)
    report = go(store, "backfill", **NEW, failed=True)
    assert report.extracted == 1
    assert str(gone.relative_to(indexed)) in vectors(store, "new", indexed)
    assert left(store, "new") == 4  # the PNGs, which nobody has asked for


def test_a_root_that_is_not_mounted_is_left_out(indexed: Path, store: Home) -> None:
    os.rename(indexed / "a", indexed / "elsewhere")
    os.mkdir(indexed / "a")  # the mount point
    planned = plan(asked(store, "backfill", **NEW))
    assert list(planned.unavailable) == [str(indexed / "a")]
    assert planned.spaces[0]["pending"] == 19

    report = go(store, "backfill", **NEW)

    assert (report.extracted, report.failed, report.exit_code()) == (18, 0, 4)
    assert report.troubles[4][0].startswith("19 of 19 known files of ")
    assert {path[0] for path in vectors(store, "new", indexed)} == {"b"}
    os.rmdir(indexed / "a")
    report = go(store, "backfill", **NEW, roots=[str(indexed / "a" / "family-000")])
    assert (report.extracted, report.failed, report.exit_code()) == (0, 0, 4)
    os.rename(indexed / "elsewhere", indexed / "a")
    assert go(store, "backfill", **NEW).extracted == 18


def test_a_root_that_is_not_known_is_refused(shared: Path, store: Home, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    for place in (tmp_path / "c", shared, shared / "a" / ".." / ".."):
        with pytest.raises(RootError, match="is not in any root; `lookalike roots` lists them"):
            go(store, "backfill", **NEW, roots=[str(place)])
    assert [kind for (kind,) in rows(store, Run.kind)] == ["index"]


def test_what_is_new_or_gone_waits_for_an_index_run(indexed: Path, store: Home) -> None:
    shutil.copy(indexed / "a" / "family-000" / "png.png", indexed / "a" / "another.png")
    (indexed / "b" / "family-000" / "png.png").unlink()
    before = sorted(rows(store, File.path, File.state, File.seen_mtime_ns))
    report = go(store, "backfill", **NEW, globs=["*.jpg"])
    assert report.extracted == 32
    assert sorted(rows(store, File.path, File.state, File.seen_mtime_ns)) == before
    assert report.roots == [{"root": str(indexed / root)} for root in ("a", "b")]


def run(home: Path, *args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["--home", str(home), *args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, (result.stdout, result.stderr)
    return result


@pytest.fixture(scope="module")
def home(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a SQLite store of one root."""
    made = tmp_path_factory.mktemp("homes") / "home"
    args = ("--model", OLD["model"], "--weights", "random:0", "--no-prefect")
    run(made, "index", str(pictures / "a"), *args, code=3)
    time.sleep(2.6)
    run(made, "index", "--no-prefect")
    return made


def test_nothing_pending_loads_neither_torch_nor_prefect(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # for work, if there were any
    done = loaded("--home", str(home), "backfill")
    assert not done & {"torch", "torchvision", "prefect", "faiss"}
    assert "sqlalchemy" in done


def test_the_command_tells_its_plan_and_touches_nothing(home: Path, pictures: Path) -> None:
    before = (home / "catalog.sqlite").stat().st_mtime_ns
    planned = run(home, "backfill", "--model", "resnet18", "--glob", "*.png", "--plan").stdout
    assert planned.splitlines() == [
        "new space 'resnet18': at most 2 images to extract, "
        "how much disk they take follows once the model is known",
        "nothing was touched",
    ]
    told = json.loads(run(home, "backfill", "--failed", "--plan", "--json").stdout)
    assert [space["pending"] for space in told["spaces"]] == [1]
    assert (home / "catalog.sqlite").stat().st_mtime_ns == before


def test_the_command_reports_as_index_does(home: Path) -> None:
    done = run(home, "backfill", "--failed", "--json", "--no-prefect", code=3)
    report = json.loads(done.stdout)
    assert (report["kind"], report["failed"], report["extracted"]) == ("backfill", 1, 0)
    assert report["exit_code"] == 3


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--since", "yesterday"], "'yesterday' is no date: write 2026-11-22, "),
        (["--until", "2026-02-30"], "'2026-02-30' is no date"),
        (["--until", "2300-01-01"], "'2300-01-01' is no date"),
        (["--since", "2026-11-22", "--until", "2026-11-21"], "earlier than until"),
        (["--since", "1d", "--until", "7d"], "no file is modified since 1d and before 7d"),
        (["--glob", "/"], "the pattern '/' names nothing"),
        (["--space", "nowhere"], "no space"),
        (["--runner", "dask", "--no-prefect"], "Dask is reached through Prefect"),
        (["--cluster", "2"], "add --runner dask"),
        (["/nowhere/at/all"], "/nowhere/at/all is not in any root"),
    ],
)
def test_nonsense_is_one_line(home: Path, args: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "--home", str(home), "backfill", *args],
        cwd=CHECKOUT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("lookalike: ")
    assert said in line


def test_without_a_store_there_is_nothing_to_fill(tmp_path: Path, pictures: Path) -> None:
    for args in ([], [str(pictures)], ["--plan"]):
        with pytest.raises(FlowError, match="no root is known yet"):
            run(tmp_path / "none", "backfill", *args)
    assert not (tmp_path / "none").exists()


def test_index_on_dask_is_refused_without_prefect(home: Path) -> None:
    with pytest.raises(FlowError, match="leave out --no-prefect or --runner dask"):
        run(home, "index", "--runner", "dask", "--no-prefect")


BERLIN = timezone(timedelta(hours=1))
NOW = datetime(2026, 11, 22, 14, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("2026-11-22T14:30Z", NOW),
        ("2026-11-22T15:30:00.000001+01:00", NOW + timedelta(microseconds=1)),
        ("2026-11-22 15:30+01:00", datetime(2026, 11, 22, 15, 30, tzinfo=BERLIN)),
        ("7d", NOW - timedelta(days=7)),
        (" 36 H ", NOW - timedelta(hours=36)),
        ("2w", NOW - timedelta(days=14)),
        ("0d", NOW),
        ("1969-12-31T23:59:59Z", EPOCH - timedelta(seconds=1)),
    ],
)
def test_a_moment_is_what_people_type(text: str, when: datetime) -> None:
    ns = moment_ns(text, NOW)
    assert ns == (when - EPOCH) // timedelta(microseconds=1) * 1000
    assert datetime.fromisoformat(moment_text(ns)) == when
    assert moment_ns(moment_text(ns)) == ns


def test_a_date_is_of_this_machines_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        assert moment_ns("2026-11-22") == moment_ns("2026-11-22T05:00Z")
        assert moment_ns("2026-07-01T12:00") == moment_ns("2026-07-01T16:00Z")
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["", "d", "-7d", "7y", "22.11.2026", "99999999999d", "2026"])
def test_no_moment_is_refused(text: str) -> None:
    with pytest.raises(FlowError, match="is no date"):
        moment_ns(text)


def test_the_parameters_of_a_backfill_mean_the_same_again(tmp_path: Path) -> None:
    values = {
        "home": str(tmp_path / "home"),
        "roots": [str(tmp_path)],
        "globs": ["*.png"],
        "since": "2026-11-01",
        "until": "2026-11-22T14:30",
        "failed": True,
        "runner": "dask",
        "cluster": "2",
        **NEW,
    }
    options, _ = options_for(values, "backfill")
    assert (options.kind, options.scan, options.publish_always) == ("backfill", False, True)
    assert options.choice == SpaceChoice(**NEW)
    assert options_for(parameters_of(options), "backfill")[0] == options
    index, _ = options_for({**values, "since": None, "until": None, "failed": None, "globs": None})
    assert (index.kind, index.scan, index.publish_always) == ("index", True, False)
    assert options_for(parameters_of(index))[0] == index
