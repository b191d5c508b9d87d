"""Pictures and networks that really end the process of a run; the next run must get past them."""

import json
import os
import random
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image as Pictures
from sqlalchemy import func, select

from storage.catalog import Catalog
from storage.chunks import claim_chunk
from storage.errors import CatalogError
from storage.failures import list_failures
from storage.home import Home
from storage.leases import start_run
from storage.spaces import get_space
from storage.tables import Claim, Failure, File, Run, Suspect, Vector
from tests.reliability.children import children, command
from tests.reliability.poisoned.decoder import poison
from tests.reliability.scale import scale, tally

GOOD = 12
SEED = 20261123
KILLS = scale(ci=5, long=60)
NETWORK = ["--model", "squeezenet1_1", "--weights", "random:0"]
POISONED = os.path.join(os.path.dirname(__file__), "poisoned")


def poisoned(words, out, time_s):
    """Run the command with a poisoned decoder, in this process and in those that it starts."""
    from extractor import guarded
    from search import decoders
    from tests.reliability.poisoned import decoder

    os.environ["PYTHONPATH"] = POISONED
    guarded.BOUNDS = guarded.Bounds(time_s, 2**30)
    decoders.bounds = lambda: guarded.BOUNDS
    decoder.install()
    command(words, out)


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(SEED)
    for n in range(GOOD):
        pixels = np.kron(rng.integers(0, 200, (5, 5, 3), np.uint8), np.ones((9, 9, 1), np.uint8))
        Pictures.fromarray(pixels).save(folder / f"{n:02}.png")
    return folder


@pytest.fixture
def home(request, database, tmp_path):
    url = request.getfixturevalue("postgres_url") if database == "postgres" else None
    return Home(str(tmp_path / "home"), url)


def start(home, tree, *more, time_s=60.0):
    store = ["--home", home.path, *(["--catalog-url", home.catalog_url] * bool(home.catalog_url))]
    words = [*store, "index", str(tree), "--no-prefect", "--json", "--workers", "2"]
    words += ["--chunk-size", "5", "--batch-size", "2", *(more or NETWORK)]
    run = children.Process(target=poisoned, args=(words, f"{home.path}.json", time_s))
    run.start()
    return run


def index(home, tree, *more, time_s=60.0):
    """Run to the end; return the exit code and, where the run lived, its report."""
    run = start(home, tree, *more, time_s=time_s)
    run.join(timeout=300)
    if run.exitcode is None:
        run.kill()
        pytest.fail("the run hangs")
    if run.exitcode < 0:
        return run.exitcode, None
    with open(f"{home.path}.json") as file:
        return run.exitcode, json.load(file)


def count(home, what, *where):
    with Catalog.open(home, write=False) as catalog, catalog.read() as conn:
        return conn.execute(select(what).where(*where)).scalar_one()


def failures(home):
    with Catalog.open(home, write=False) as catalog:
        return list_failures(catalog, get_space(catalog))


def settle():
    time.sleep(2.6)


@pytest.mark.parametrize(
    ("database", "what", "failure_class"),
    [
        ("sqlite", "crash", "crashed"),
        ("sqlite", "memory", "memory"),
        pytest.param("postgres", "abort", "crashed", marks=pytest.mark.postgres),
    ],
    indirect=["database"],
)
def test_after_a_crash_the_culprit_is_quarantined_and_the_rest_goes_on(
    home, tree, what, failure_class
):
    (tree / "06.jpg").write_bytes(poison(what))
    (tree / "07.jpg").write_bytes(poison(what))
    settle()
    died, _ = index(home, tree)
    assert died < 0, "the decoder was to end the run"
    code, report = index(home, tree)
    assert (code, report["extracted"]) == (3, GOOD - before(home, report))
    assert count(home, func.count(Vector.row)) == GOOD
    assert count(home, func.count(Suspect.file_id)) == 0
    assert count(home, func.count(Claim.run_id)) == 0
    (failure,) = failures(home)
    assert (failure.stage, failure.failure_class) == ("decode", failure_class)
    assert not failure.transient
    assert (failure.copies, os.path.basename(failure.path)) == (2, b"06.jpg")
    code, report = index(home, tree)
    assert (code, report["extracted"], report["failed"]) == (0, 0, 0)
    shown(home, failure_class)
    tried_again(home, tree, failure_class)


def before(home, report):
    """Return how many vectors other runs have made."""
    made_by = select(func.count()).select_from(Run).where(Run.state == "crashed")
    with Catalog.open(home, write=False) as catalog, catalog.read() as conn:
        assert conn.execute(made_by).scalar_one() == 1
        return conn.execute(select(func.count(Vector.row))).scalar_one() - report["extracted"]


def shown(home, failure_class):
    """Hold what `lookalike failures` says against the class."""
    store = ["--home", home.path, *(["--catalog-url", home.catalog_url] * bool(home.catalog_url))]
    out = f"{home.path}.failures"
    asked = children.Process(target=command, args=([*store, "failures", "--json"], out))
    asked.start()
    asked.join(timeout=60)
    with open(out) as file:
        assert json.load(file)["counts"] == {failure_class: 1}


def tried_again(home, tree, failure_class):
    """Arm the failure as `lookalike retry` does: the next run must not die of it again."""
    store = ["--home", home.path, *(["--catalog-url", home.catalog_url] * bool(home.catalog_url))]
    retry = children.Process(target=command, args=([*store, "retry"], os.devnull))
    retry.start()
    retry.join(timeout=60)
    assert retry.exitcode == 0
    code, report = index(home, tree)
    assert (code, report["extracted"]) == (3, 0)
    (failure,) = failures(home)
    assert (failure.failure_class, failure.transient) == (failure_class, False)
    assert failure.attempts == 2


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_picture_that_hangs_is_quarantined_in_the_same_run(home, tree):
    (tree / "05.jpg").write_bytes(poison("hang"))
    settle()
    code, report = index(home, tree, time_s=2.0)
    assert (code, report["extracted"], report["failures"]) == (3, GOOD, {"timeout": 1})
    (failure,) = failures(home)
    assert (failure.failure_class, failure.transient) == ("timeout", False)
    assert index(home, tree, time_s=2.0)[1]["failed"] == 0


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_runs_that_were_killed_quarantine_nothing(home, tree):
    """Pictures take long, so that kills find them in work; what is killed is innocent."""
    for n in range(GOOD):
        (tree / f"slow-{n}.jpg").write_bytes(poison("nap", n))
    settle()
    rng = random.Random(SEED)
    kills = bitten = 0
    worst = Counter()
    while kills < KILLS:
        run = start(home, tree)
        found = wait_for_claims(home, run)
        run.join(timeout=rng.uniform(0, 1.0))
        if run.exitcode is None:
            run.kill()
            run.join()
            kills += 1
        else:
            assert run.exitcode == 0
            for n in range(GOOD):
                (tree / f"slow-{n}.jpg").write_bytes(poison("nap", 1000 * kills + n))
        assert count(home, func.count(Failure.id)) == 0
        worst |= Counter(found)
        bitten += bool(found)
    settle()
    code, report = index(home, tree)
    assert (code, report["failed"]) == (0, 0)
    assert count(home, func.count(Failure.id)) == 0
    assert count(home, func.count(Suspect.file_id)) == 0
    assert count(home, func.count(Vector.row)) >= 2 * GOOD
    tally("poison-kills", seed=SEED, kills=kills, bitten=bitten, worst=max(worst.values()))
    assert bitten >= KILLS // 2, "too few kills found files in work"


def wait_for_claims(home, run):
    """Return what is suspect when the run has taken its first files into work, or has ended."""
    mine = Claim.run_id.in_(select(Run.id).where(Run.pid == run.pid))
    deadline = time.monotonic() + 60
    while run.exitcode is None and time.monotonic() < deadline:
        try:
            if count(home, func.count(Claim.run_id), Claim.kind == "file", mine):
                break
        except CatalogError:  # not made yet
            pass
        run.join(timeout=0.02)
    with Catalog.open(home, write=False) as catalog, catalog.read() as conn:
        return dict(conn.execute(select(Suspect.file_id, Suspect.deaths)).all())


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_crash_in_the_forward_pass_blames_nobody_and_all_else_is_done(home, tree):
    Pictures.new("RGB", (60, 60), (255, 255, 255)).save(tree / "03-white.png")
    settle()
    network = ["--model", "tests.reliability.poisoned.network:net", "--weights", "random:0"]
    runs = 0
    while count_or_none(home) != GOOD:
        runs += 1
        assert runs <= 6, "the others are not done"
        assert index(home, tree, *network)[0] == -11
    assert index(home, tree, *network)[0] == -11
    assert count(home, func.count(Failure.id)) == 0
    query = select(File.path, Suspect.deaths).join(Suspect, Suspect.file_id == File.id)
    with Catalog.open(home, write=True) as catalog:
        lease = start_run(catalog, "index")  # declares nobody dead: the last run's claims stand
        with catalog.read() as conn:
            named = dict(conn.execute(query).all())
            alone = conn.execute(select(Claim.subject_id).where(Claim.kind == "file")).all()
        assert len(alone) == 1
        assert set(named) == {b"03-white.png"}
        assert claim_chunk(catalog, lease, get_space(catalog), number=1, limit=9) is None
    tally("poison-forward", seed=SEED, runs=runs)


def count_or_none(home):
    try:
        return count(home, func.count(Vector.row))
    except CatalogError:
        return None
