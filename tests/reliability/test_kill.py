"""SIGKILL at random moments of an indexing run; the next run must make it whole."""

import json
import os
import random
import time

import numpy as np
import pytest
from sqlalchemy import func, select

from flows.samples import draw_families
from search.engine import Searcher
from storage.catalog import Catalog
from storage.check import check
from storage.errors import CatalogError
from storage.home import Home
from storage.reading import Rows, open_store, snapshot
from storage.spaces import get_space
from storage.tables import File, Image, Part, Run, Vector
from tests.reliability import writers
from tests.reliability.children import children, command, lightly
from tests.reliability.scale import scale, tally
from tests.reliability.victims import kill_often

KILLS = scale(ci=10, long=150)
SEED = 20261122
CHUNK = 4
FAMILIES = 5


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    draw_families(str(folder), FAMILIES, seed=6)
    return str(folder)


def start(home, pictures):
    words = ["--home", home, "index", pictures, "--no-prefect", "--json"]
    words += ["--model", "squeezenet1_1", "--weights", "random:0"]
    words += ["--chunk-size", str(CHUNK), "--batch-size", "2"]
    child = children.Process(target=command, args=(words, f"{home}.json"))
    child.start()
    return child


def index(home, pictures):
    child = start(home, pictures)
    child.join(timeout=300)
    assert child.exitcode == 0
    with open(f"{home}.json") as file:
        return json.load(file)


def vectors_by_digest(home):
    """Return digest -> vector of the current space."""
    with Catalog.open(home, write=False) as catalog:
        view = snapshot(catalog, get_space(catalog, None))
        with catalog.read() as conn:
            pairs = conn.execute(select(Vector.row, Image.digest).join(Image)).all()
        vectors = Rows(open_store(catalog, view.space), view.parts).gather([r for r, _ in pairs])
        return {digest: vector for (_, digest), vector in zip(pairs, vectors, strict=True)}


def answers(home, pictures):
    queries = [os.fsencode(f"{pictures}/family-{n:03d}/plain.jpg") for n in range(FAMILIES)]
    with Searcher(Home(home)) as searcher:
        found = searcher.search_paths(queries, k=5)
    return [[(hit.path, hit.score) for hit in answer.hits] for answer in found]


def same_hits(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose([s for _, s in one], [s for _, s in other], atol=1e-5)
        # Hits whose scores differ by less than rounding may change places.
        cut = one[-1][1] + 1e-5
        assert {p for p, s in one if s > cut} <= {p for p, _ in other}


def test_killed_runs_end_like_an_uninterrupted_one(tmp_path, pictures):
    whole = str(tmp_path / "whole")
    index(str(tmp_path / "warm"), pictures)  # the first child waits for the imports
    started = time.monotonic()
    images = index(whole, pictures)["extracted"]
    span = time.monotonic() - started
    assert images == FAMILIES * 9
    expected, hits = vectors_by_digest(Home(whole)), answers(whole, pictures)
    rng = random.Random(SEED)
    kills, bitten = 0, 0
    while kills < KILLS:
        home = str(tmp_path / f"killed-{kills}")
        while kills < KILLS and kill_once(home, pictures, rng.uniform(0, span)):
            kills += 1
            bitten += has_vectors(home)
        report = index(home, pictures)
        assert report["failed"] == 0
        judge(home, images, report)
        ours = vectors_by_digest(Home(home))
        assert ours.keys() == expected.keys()
        for digest, vector in ours.items():
            np.testing.assert_allclose(vector, expected[digest], atol=1e-5)
        same_hits(answers(home, pictures), hits)
    assert bitten >= KILLS // 4, "too few kills came between the first and the last commit"


def kill_once(home, pictures, after_s):
    """Start a run and kill it after some time; False if it was done before."""
    child = start(home, pictures)
    child.join(timeout=after_s)
    if child.exitcode is not None:
        assert child.exitcode == 0
        return False
    child.kill()
    child.join()
    return True


def has_vectors(home):
    if not os.path.exists(f"{home}/catalog.sqlite"):
        return False
    try:
        with Catalog.open(Home(home), write=False) as catalog, catalog.read() as conn:
            return conn.execute(select(Vector.row).limit(1)).first() is not None
    except CatalogError:  # killed while the catalog was being made
        return False


def judge(home, images, last):
    """Nothing lost, nothing doubled, and never more than a chunk extracted twice."""
    with Catalog.open(Home(home), write=False) as catalog:
        assert [f for f in check(catalog, deep=True) if f.severity == "error"] == []
        with catalog.read() as conn:
            assert conn.execute(select(func.count()).select_from(Vector)).scalar() == images
            files = conn.execute(select(func.count()).select_from(File)).scalar()
            committed = conn.execute(select(func.sum(Part.n))).scalar()
            crashed = conn.execute(
                select(func.count()).select_from(Run).where(Run.state == "crashed")
            ).scalar()
        assert committed == images  # a part that was committed was never computed again
        view = snapshot(catalog, get_space(catalog, None))
        folder = catalog.home.parts_dir(view.space.fingerprint)
        written = sum(
            len(np.load(os.path.join(folder, name), mmap_mode="r"))
            for name in os.listdir(folder)
            if name.endswith(".npy") and ".ids" not in name
        )
    assert written - committed <= crashed * CHUNK
    assert files == last["scanned"]


def test_killed_writers_lose_repeat_and_mix_up_nothing(request, database, catalog_home, tmp_path):
    server = request.getfixturevalue("postgres_server") if database == "postgres" else None
    most = {"sqlite": scale(ci=300, long=10_000), "postgres": scale(ci=20, long=1_000)}[database]
    stores = writers.Stores(catalog_home, server)
    told = lightly(kill_often, stores, str(tmp_path), most, SEED)
    tally(f"kills of a writer, {database}", seed=SEED, **told)
    assert told["kills"] == most
    assert told["with_a_tail"] >= 0.3 * most, "too few kills left something uncommitted"
