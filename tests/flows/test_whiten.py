"""``lookalike whiten``: held against numpy, searched, kept up, killed, moved and dropped."""

import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image as Picture
from sqlalchemy import func, select

from extractor.errors import WhiteningError
from flows.cli import cli
from flows.job.loop import IndexOptions, run_index
from flows.job.parameters import options_for
from flows.job.progress import Progress
from flows.job.report import Report
from flows.job.steps import PlainSteps
from flows.job.whitening import WhiteningOptions, whiten
from flows.job.whitening_report import WhiteningReport
from flows.job.worker import clear_bench
from flows.samples import draw_families
from search.engine import Searcher
from storage.catalog import Catalog
from storage.check import check
from storage.errors import LeaseHeld, SpaceError
from storage.home import Home
from storage.leases import start_run
from storage.reading import Rows, open_store, snapshot
from storage.runs import claim
from storage.spaces import get_space, list_spaces
from storage.tables import Image, Part, Run, Vector
from tests.flows.contents import age
from tests.reliability.children import children, command
from tests.storage.filled import Filled, clustered, local_catalog

TINY = {"model": "shufflenet_v2_x0_5", "weights": "random:0"}
BASE = "shufflenet_v2_x0_5-mean"
DIM = 8
NEW = f"{BASE}-whitened-{DIM}"
SEED = 20261122
KILLS = int(os.environ.get("LOOKALIKE_WHITEN_KILLS", "3"))


def go(home: Home, *roots: Path, **asked: object) -> Report:
    """Index and forget what the process holds, as a command does."""
    found = options_for({**asked, "home": home.path})[0]
    options = IndexOptions(
        **{**vars(found), "catalog_url": home.catalog_url, "roots": tuple(map(str, roots))}
    )
    try:
        with PlainSteps() as steps:
            return run_index(options, steps=steps, progress=Progress("silent"))
    finally:
        clear_bench(options.home, options.catalog_url)


def whitened(home: Home, **asked: Any) -> WhiteningReport:
    options = WhiteningOptions(home.path, home.catalog_url, **asked)
    return whiten(options, Progress("silent"))


def vectors(home: Home, name: str) -> dict[bytes, NDArray[np.float32]]:
    """Return digest -> vector of a space."""
    with Catalog.open(home, write=False) as catalog:
        space = get_space(catalog, name)
        view = snapshot(catalog, space)
        query = select(Image.digest, Vector.row).join(Vector, Vector.image_id == Image.id)
        with catalog.read() as conn:
            rows = conn.execute(query.where(Vector.space_id == space.id)).all()
        x = Rows(open_store(catalog, space), view.parts).gather([row for _, row in rows])
    return {digest: vector for (digest, _), vector in zip(rows, x, strict=True)}


def by_numpy(x: NDArray[np.float32], sample: NDArray[np.float32], dim: int) -> NDArray[np.float64]:
    """Whiten by a singular value decomposition of a sample, the textbook's way."""
    mean = sample.astype(np.float64).mean(axis=0)
    _, s, vt = np.linalg.svd(sample - mean, full_matrices=False)
    signs = np.sign(np.take_along_axis(vt, abs(vt).argmax(axis=1)[:, None], axis=1))
    turned = (vt * signs)[:dim] * (np.sqrt(len(sample) - 1) / s[:dim, None])
    out = (x - mean) @ turned.T
    return np.asarray(out / np.linalg.norm(out, axis=1, keepdims=True))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "pictures"
    draw_families(str(folder), 3, seed=3)
    age(str(folder))
    return folder


@pytest.fixture
def pictures(drawn: Path, tmp_path: Path) -> Path:
    shutil.copytree(drawn, tmp_path / "pictures")
    return tmp_path / "pictures"


def test_a_whitened_space_is_filled_searched_kept_up_and_dropped(
    catalog_home: Home, pictures: Path, tmp_path: Path
) -> None:
    n = go(catalog_home, pictures, **TINY).extracted
    report = whitened(catalog_home, dim=DIM)
    assert (report.space, report.filled, report.learnt_from) == (NEW, n, n)
    assert (report.dims, report.vectors) == ((1024, DIM), n)
    assert report.index is not None
    assert report.index["n"] == n
    assert any("fewer than 10 for each of 8" in line for line in report.warnings)

    base, found = vectors(catalog_home, BASE), vectors(catalog_home, NEW)
    assert found.keys() == base.keys()
    sample = np.stack(list(base.values()))
    due = by_numpy(sample, sample, DIM)
    np.testing.assert_allclose(np.stack([found[d] for d in base]), due, atol=1e-5)

    again = whitened(catalog_home, dim=DIM)
    assert (again.filled, again.learnt_from, again.index) == (0, 0, None)
    assert again.to_text().startswith(f"Nothing to do: space {NEW} holds {n} vectors of {BASE}")

    first = min(path for path in pictures.rglob("*") if path.is_file())
    with Picture.open(first) as picture:
        picture.convert("RGB").rotate(3).save(pictures / "new.png")
    age(str(pictures))
    night = go(catalog_home, space=NEW)
    assert (night.space, night.extracted, night.failed) == (NEW, 1, 0)
    assert go(catalog_home, space="all").extracted == 1  # the plain space's
    base, found = vectors(catalog_home, BASE), vectors(catalog_home, NEW)
    assert len(found) == n + 1
    ours, theirs = np.stack([found[d] for d in base]), np.stack(list(base.values()))
    np.testing.assert_allclose(ours, by_numpy(theirs, sample, DIM), atol=1e-5)

    with Picture.open(first) as picture:
        picture.convert("RGB").rotate(6).save(tmp_path / "query.png")
    _search_equals_brute_force(catalog_home, tmp_path / "query.png", found)
    with Catalog.open(catalog_home, write=False) as catalog:
        assert check(catalog, deep=True) == []
        with catalog.read() as conn:
            runs = conn.execute(select(Run.kind, Run.state).order_by(Run.started_at)).all()
    assert [tuple(run) for run in runs].count(("whiten", "done")) == 2

    folder = Path(catalog_home.path) / "whitening"
    assert len(os.listdir(folder)) == 1
    typed = ["--home", catalog_home.path, "--catalog-url", catalog_home.catalog_url or ""]
    typed = typed if catalog_home.catalog_url else typed[:2]
    result = CliRunner().invoke(cli, [*typed, "spaces", "drop", NEW])
    assert result.exit_code == 0, result.output
    assert os.listdir(folder) == []
    assert go(catalog_home).extracted == 0


def _search_equals_brute_force(
    home: Home, query: Path, found: dict[bytes, NDArray[np.float32]]
) -> None:
    x = np.stack(list(found.values()))
    with Searcher(home, space=NEW, device="cpu") as searcher:
        answers = searcher.search_vectors(x, 5)
        [answer] = searcher.search_paths([os.fsencode(query)], 5)
    due = np.sort(x.astype(np.float64) @ x.T, axis=1)[:, ::-1][:, :5]
    np.testing.assert_allclose([[hit.score for hit in hits] for hits in answers], due, atol=1e-5)
    assert len(answer.hits) == 5
    assert answer.hits[0].score < 0.9999  # turned: none of the pictures itself


def test_a_moved_home_takes_its_whitening_along(home: Home, pictures: Path, tmp_path: Path) -> None:
    n = go(home, pictures, **TINY).extracted
    whitened(home, dim=DIM)
    moved = Home(str(tmp_path / "elsewhere"))
    os.rename(home.path, moved.path)
    with Picture.open(next(pictures.rglob("plain.jpg"))) as picture:
        picture.convert("RGB").rotate(3).save(pictures / "new.png")
    age(str(pictures))
    assert go(moved, space=NEW).extracted == 1
    # The file that a space needs is gone: told at once, and nothing else is touched.
    [file] = (tmp_path / "elsewhere" / "whitening").iterdir()
    file.rename(tmp_path / "backup.npz")
    with pytest.raises(WhiteningError, match=f"{file.name} is missing.*backup"):
        whitened(moved, dim=DIM)
    red = tmp_path / "red.png"
    Picture.new("RGB", (300, 200), "red").save(red)
    with Searcher(moved, space=NEW, device="cpu") as searcher:  # noqa: SIM117 - the search raises
        with pytest.raises(WhiteningError, match="is missing"):
            searcher.search_paths([os.fsencode(red)], 1)
    (tmp_path / "backup.npz").rename(file)
    assert whitened(moved, dim=DIM).filled == 0
    assert len(vectors(moved, NEW)) == n + 1


def test_what_can_not_be_whitened_is_refused(catalog_home: Home, pictures: Path) -> None:
    n = go(catalog_home, pictures, **TINY).extracted
    with pytest.raises(WhiteningError, match=rf"^{n} vectors are too few .* 1,024 dimensions"):
        whitened(catalog_home)
    with pytest.raises(WhiteningError, match=rf"^{n} vectors are too few .* {n} dimensions"):
        whitened(catalog_home, dim=n)
    whitened(catalog_home, dim=DIM)
    for asked, said in (
        ({"space": "other"}, "there is no space 'other'"),
        ({"space": NEW}, "whitened already"),
        ({"dim": DIM, "name": "other"}, f"already the space '{NEW}'"),
        ({"dim": 4, "name": BASE}, "choose another --name"),
        ({"dim": 4, "name": "all"}, "choose another --name"),
    ):
        with pytest.raises(SpaceError, match=said):
            whitened(catalog_home, **asked)
    with Catalog.open(catalog_home, write=True) as catalog:
        assert [space.name for space in list_spaces(catalog)] == [BASE, NEW]
        lease, space = start_run(catalog, "compact"), get_space(catalog, NEW)
        claim(catalog, lease, "space", space.id, space.id)
        with pytest.raises(LeaseHeld):
            whitened(catalog_home, dim=DIM)
    assert len(os.listdir(Path(catalog_home.path) / "whitening")) == 1


def test_a_float16_space_is_whitened_in_its_own_type(home: Home, pictures: Path) -> None:
    go(home, pictures, **TINY, dtype="float16")
    report = whitened(home, dim=4)
    with Catalog.open(home, write=False) as catalog:
        assert get_space(catalog, report.space).dtype == "float16"
    base, found = vectors(home, report.base), vectors(home, report.space)
    sample = np.stack(list(base.values()))
    ours = np.stack([found[digest] for digest in base])
    np.testing.assert_allclose(ours, by_numpy(sample, sample, 4), atol=1e-3)


def test_a_seeded_sample_and_names_that_are_taken(sqlite_template: str, tmp_path: Path) -> None:
    with local_catalog(sqlite_template, tmp_path) as catalog:
        filled = Filled(catalog, 16)
        filled.add(clustered(400, 16))
        filled.set_state(range(50), "missing")
        home = catalog.home
    live = filled.x[50:]
    first = whitened(home, sample=100, seed=7)
    assert (first.space, first.learnt_from, first.filled) == ("tiny-pool-whitened", 100, 400)
    rows = np.sort(np.random.default_rng(7).choice(350, 100, replace=False))
    base, found = vectors(home, "tiny-pool"), vectors(home, first.space)
    ours = np.stack([found[digest] for digest in base])
    x = np.stack(list(base.values()))
    np.testing.assert_allclose(ours, by_numpy(x, live[rows], 16), atol=1e-5)
    other = whitened(home, sample=100, seed=8)
    assert (other.space, other.filled) == ("tiny-pool-whitened-2", 400)
    assert whitened(home, name="all-of-them").learnt_from == 350


def test_another_sample_that_holds_all_is_the_same_space(
    sqlite_template: str, tmp_path: Path
) -> None:
    with local_catalog(sqlite_template, tmp_path) as catalog:
        Filled(catalog, 16).add(clustered(400, 16))
        home = catalog.home
    first = whitened(home, dim=12)
    for asked in ({"seed": 5}, {"sample": 400}):
        again = whitened(home, dim=12, **asked)
        assert (again.space, again.filled, again.index) == (first.space, 0, None)
    with pytest.raises(SpaceError, match=rf"already the space '{first.space}'.* leave out --name"):
        whitened(home, dim=12, seed=6, name="other")
    with Catalog.open(home, write=False) as catalog:
        assert len(list_spaces(catalog)) == 2


def test_the_command_tells_and_writes_json(sqlite_template: str, tmp_path: Path) -> None:
    with local_catalog(sqlite_template, tmp_path) as catalog:
        Filled(catalog, 16).add(clustered(400, 16))
        home = catalog.home.path

    def said(*typed: str, code: int = 0) -> str:
        result = CliRunner().invoke(cli, ["--home", home, "whiten", *typed])
        found = getattr(result.exception, "exit_code", result.exit_code)
        assert found == code, (result.output, result.exception)
        return result.stdout

    text = said("--dim", "12", "-q")
    assert text.startswith("Done: space tiny-pool-whitened-12 holds 400 vectors of tiny-pool, ")
    assert "no image was read" in text
    values = json.loads(said("tiny-pool", "--dim", "12", "--json"))
    assert (values["filled"], values["dims"], values["exit_code"]) == (0, [16, 12], 0)
    said("--dim", "17", code=2)
    said("nothing", code=2)
    said("--dim", "0", code=2)
    listed = CliRunner().invoke(cli, ["--home", home, "spaces"]).stdout
    assert "DEFAULT, whitened" in listed


def start(home: Home) -> Any:
    words = ["--home", home.path, "whiten", "--dim", "48", "--json"]
    child = children.Process(target=command, args=(words, f"{home.path}.json"))
    child.start()
    return child


def parts_of_new(home: Home) -> int:
    with Catalog.open(home, write=False) as catalog, catalog.read() as conn:
        return conn.execute(
            select(func.count()).select_from(Part).where(Part.run_id != "run")
        ).scalar_one()


def test_killed_at_any_moment_it_goes_on(sqlite_template: str, tmp_path: Path) -> None:
    n = 40_000
    with local_catalog(sqlite_template, tmp_path) as catalog:
        Filled(catalog, 64).add(clustered(n, 64))
    source = tmp_path / "home"
    whole = Home(str(tmp_path / "whole"))
    shutil.copytree(source, whole.path)
    start(whole).join(timeout=200)  # the first child waits for the imports
    due = vectors(whole, "tiny-pool-whitened-48")
    assert len(due) == n

    rng, bitten = random.Random(SEED), 0
    span = json.loads(Path(f"{whole.path}.json").read_text())["duration_s"]
    for number in range(KILLS):
        home = Home(str(tmp_path / f"killed-{number}"))
        shutil.copytree(source, home.path)
        child = start(home)
        if number == 0:  # one certainly comes in the midst of the filling
            until = time.monotonic() + 60
            while not parts_of_new(home) and time.monotonic() < until:
                time.sleep(0.01)
        else:
            child.join(timeout=rng.uniform(0, 1.2 * span))
        child.kill()
        child.join()
        before = parts_of_new(home)
        child = start(home)
        child.join(timeout=200)
        assert child.exitcode == 0
        report = json.loads(Path(f"{home.path}.json").read_text())
        assert report["vectors"] == n
        bitten += 0 < report["filled"] < n
        assert before or report["filled"] == n
        found = vectors(home, "tiny-pool-whitened-48")
        assert found.keys() == due.keys()
        np.testing.assert_allclose(
            np.stack([found[digest] for digest in due]), np.stack(list(due.values())), atol=1e-6
        )
        with Catalog.open(home, write=False) as catalog:
            assert [f for f in check(catalog, deep=True) if f.severity == "error"] == []
            assert get_space(catalog, "tiny-pool-whitened-48").next_row == n
        assert len(os.listdir(f"{home.path}/whitening")) == 1
        shutil.rmtree(home.path)
    assert bitten, "no kill came while vectors were being made"
