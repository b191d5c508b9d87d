"""SIGKILL at random moments of an indexing run; the next run must make it whole."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from sqlalchemy import func, select

from flows.samples import draw_families
from search.engine import Searcher
from storage.catalog import Catalog
from storage.check import check
from storage.home import Home
from storage.reading import Rows, open_store, snapshot
from storage.spaces import get_space
from storage.tables import File, Image, Part, Run, Vector

KILLS = int(os.environ.get("LOOKALIKE_KILLS", "30"))
CHUNK = 8
FAMILIES = 10


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    draw_families(str(folder), FAMILIES, seed=6)
    return str(folder)


def command(home, pictures):
    return [
        sys.executable, "-m", "flows.cli", "--home", home, "index", pictures, "--no-prefect",
        "--model", "resnet18", "--weights", "random:0", "--chunk-size", str(CHUNK), "--json",
    ]  # fmt: skip


def index(home, pictures):
    done = subprocess.run(command(home, pictures), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


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
    whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
    started = time.monotonic()
    images = index(whole, pictures)["extracted"]
    span = time.monotonic() - started
    rng = random.Random(20261122)
    kills, mid_run = 0, 0
    while kills < KILLS:
        # A finished store would leave nothing to interrupt: start over on another home.
        home = f"{killed}-{kills}"
        while kills < KILLS:
            run = subprocess.Popen(
                command(home, pictures), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            try:
                run.wait(timeout=rng.uniform(0.3, span))
            except subprocess.TimeoutExpired:
                run.send_signal(signal.SIGKILL)
                run.wait()
                kills += 1
                mid_run += os.path.exists(f"{home}/catalog.sqlite")
            else:
                assert run.returncode == 0
                break
        report = index(home, pictures)
        assert report["failed"] == 0
        judge(home, images, report)
        ours, theirs = vectors_by_digest(Home(home)), vectors_by_digest(Home(whole))
        assert ours.keys() == theirs.keys()
        for digest, vector in ours.items():
            np.testing.assert_allclose(vector, theirs[digest], atol=1e-5)
        same_hits(answers(home, pictures), answers(whole, pictures))
    assert mid_run >= KILLS // 3, "the kills came too early to prove anything"


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
