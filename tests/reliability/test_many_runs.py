"""Several runs over the same pictures at once, one of them killed half-way."""

import glob
import json
import os
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pictures
from sqlalchemy import func, select

from storage.catalog import Catalog
from storage.check import check
from storage.errors import CatalogError
from storage.home import Home
from storage.reading import snapshot
from storage.spaces import get_space
from storage.tables import Claim, File, Part, Run, Vector
from tests.reliability.children import children, command
from tests.reliability.scale import scale

CHUNK = 50
RUNS = 4
PICTURES = {"postgres": scale(ci=1500, long=5000), "sqlite": scale(ci=600, long=1000)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Return a folder of different small pictures, in which others can be linked."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(7)
    for n in range(max(PICTURES.values())):
        pixels = np.kron(rng.integers(0, 256, (4, 4, 3), np.uint8), np.ones((12, 12, 1), np.uint8))
        Pictures.fromarray(pixels).save(folder / f"{n:05}.jpg")
    return folder


@pytest.fixture
def tree(pictures, tmp_path, database):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in sorted(pictures.iterdir())[: PICTURES[database]]:
        os.link(path, folder / path.name)
    return folder


def start(home, tree, out):
    words = ["--model", "shufflenet_v2_x0_5", "--weights", "random:0", "--workers", "2"]
    words += ["--chunk-size", str(CHUNK), "--no-prefect", "--json", str(tree)]
    store = ["--home", home.path, *(["--catalog-url", home.catalog_url] * bool(home.catalog_url))]
    child = children.Process(target=command, args=([*store, "index", *words], out))
    child.start()
    return child


def count(catalog, what, *where):
    with catalog.read() as conn:
        return conn.execute(select(what).where(*where)).scalar_one()


def wait_for_vectors(home, least):
    """Wait until so many vectors are committed, and return how many there are."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with suppress(CatalogError), Catalog.open(home, write=False) as catalog:
            there = count(catalog, func.count(Vector.row))
            if there >= least:
                return there
        time.sleep(0.05)
    pytest.fail(f"no {least} vectors within 300 s")


def test_four_runs_at_once_and_one_killed_do_each_image_once(request, database, tmp_path, tree):
    url = request.getfixturevalue("postgres_url") if database == "postgres" else None
    home, total = Home(str(tmp_path / "home"), url), PICTURES[database]
    outs = [str(tmp_path / f"report-{n}.json") for n in range(RUNS)]
    runs = [start(home, tree, out) for out in outs]
    before = wait_for_vectors(home, total // 3)
    assert before < total, "the runs were through before one could be killed"
    runs[1].kill()
    for run in runs:
        run.join(timeout=400)
    assert [run.exitcode for run in runs] == [0, -9, 0, 0]
    reports = [json.loads(Path(out).read_text()) for n, out in enumerate(outs) if n != 1]
    with Catalog.open(home, write=False) as catalog:
        judge(catalog, total, reports)
        space = get_space(catalog)
        assert snapshot(catalog, space).generation is not None
        assert [f.what for f in check(catalog, deep=True) if f.severity == "error"] == []
        parts = catalog.home.parts_dir(space.fingerprint)
        known = count(catalog, func.count(Part.id))
    orphans = len(glob.glob(f"{parts}/*.npy")) - 2 * known  # each part has its digests beside it
    assert orphans in (0, 1, 2), "the chunk in flight of the killed run, and no more"


def judge(catalog, total, reports):
    """Hold the reports against the catalog's own ledger."""
    survivors = [report["run_id"] for report in reports]
    assert count(catalog, func.count(File.id), File.state == "live") == total
    assert count(catalog, func.count(Vector.row)) == total
    assert count(catalog, func.sum(Part.n)) == total, "an image was committed twice"
    assert count(catalog, func.count(Claim.run_id)) == 0
    assert count(catalog, func.count(Run.id), Run.state == "crashed") == 1
    of_killed = count(catalog, func.coalesce(func.sum(Part.n), 0), Part.run_id.not_in(survivors))
    # What the survivors extracted and what the killed run committed is everything: nothing twice.
    assert sum(report["extracted"] for report in reports) + of_killed == total
    assert sum(report["failed"] for report in reports) == 0
    assert sum(report["extracted"] > 0 for report in reports) >= 2, "the work was not shared"
