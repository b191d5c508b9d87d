import itertools
import os

import faiss
import numpy as np
import pytest
from sqlalchemy import delete, func, select

from storage.build import build
from storage.cleanup import delete_old_files
from storage.errors import LeaseLost
from storage.kinds import IndexSpec
from storage.leases import finish_run, start_run
from storage.publish import publish, withdraw
from storage.reading import Rows, snapshot
from storage.recall import (
    RecallInfo,
    Sample,
    fallen,
    latest,
    measure,
    noise,
    record,
    series,
)
from storage.spaces import drop_space
from storage.tables import Generation, Recall
from storage.vectors import VectorStore
from tests.storage.filled import Filled, clustered
from tests.storage.test_vectors import committed, digests

D, N, K, FETCH = 16, 3000, 10, 100


class Stop(Exception):
    pass


def stored(folder, x, dtype="float32", parts=3) -> Rows:
    """Return vectors as rows 0 to n - 1, in some parts."""
    store = VectorStore(str(folder), x.shape[1], dtype)
    starts = np.linspace(0, len(x), parts + 1).astype(int)
    written = [
        committed(store.append("run", x[a:b], digests(b - a)), row_start=int(a))
        for a, b in itertools.pairwise(starts)
    ]
    return Rows(store, written)


def measured(vectors, spec, rowmap=None, *, n=N, seed=0, k=K) -> float:
    rowmap = np.arange(n) if rowmap is None else rowmap
    index = build(vectors, rowmap, spec)
    return measure(vectors, rowmap, index, spec, sample=Sample(k=k, seed=seed).of(len(rowmap)))


def by_brute_force(x, offered, *, seed=0, k=K) -> float:
    """Return the recall where query -> positions that an index offers, over all of ``x``."""
    x = x.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    shares = []
    for at in np.random.default_rng(seed).choice(len(x), min(100, len(x)), replace=False):
        cosines = x @ x[at]
        least = sorted(cosines)[-k] - 1e-6
        best = sorted(cosines[offered(at)])[::-1][:k]
        shares.append(sum(cosine >= least for cosine in best) / k)
    return float(np.mean(shares))


def in_its_list(index, x):
    """Return query -> the vectors of the one list that it probes."""
    ivf = faiss.extract_index_ivf(index)
    centroids = ivf.quantizer.reconstruct_n(0, ivf.nlist)
    lists = np.argmax(x @ centroids.T, axis=1)
    return lambda at: np.flatnonzero(lists == lists[at])


def nearest_codes(index, x):
    """Return query -> the vectors whose decoded codes are nearest, as many as a search fetches."""
    decoded = index.reconstruct_n(0, len(x)).astype(np.float64)
    return lambda at: np.argsort(-(decoded @ x[at].astype(np.float64)), kind="stable")[:FETCH]


class TestMeasure:
    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_an_index_of_the_vectors_themselves_finds_all(self, tmp_path, dtype):
        vectors = stored(tmp_path, clustered(N, D), dtype)
        assert measured(vectors, IndexSpec("Flat")) == 1.0

    @pytest.mark.parametrize("seed", [0, 7])
    def test_lists_that_are_not_probed_are_missed(self, tmp_path, seed):
        x = clustered(N, D, clusters=60, spread=1.0)
        vectors = stored(tmp_path, x)
        spec = IndexSpec("IVF32,Flat", {"nprobe": 1})
        truth = by_brute_force(x, in_its_list(build(vectors, np.arange(N), spec), x), seed=seed)
        assert 0.3 < truth < 0.9
        assert measured(vectors, spec, seed=seed) == pytest.approx(truth, abs=1e-9)
        # The generation's own parameters count.
        assert measured(vectors, IndexSpec(spec.factory, {"nprobe": 32}), seed=seed) == 1.0

    @pytest.mark.parametrize("factory", ["PQ4x4np", "PQ8x4np"])
    def test_codes_that_say_little_miss_more_than_a_search_fetches(self, tmp_path, factory):
        x = clustered(N, D, clusters=3)
        vectors = stored(tmp_path, x)
        spec = IndexSpec(factory)
        truth = by_brute_force(x, nearest_codes(build(vectors, np.arange(N), spec), x))
        assert 0.1 < truth < 0.99
        # Equal codes stand in any order, at the edge of what is fetched.
        assert measured(vectors, spec) == pytest.approx(truth, abs=0.02)

    def test_k_neighbours_are_looked_for(self, tmp_path):
        x = clustered(N, D, clusters=60, spread=1.0)
        vectors = stored(tmp_path, x)
        spec = IndexSpec("IVF32,Flat", {"nprobe": 1})
        offered = in_its_list(build(vectors, np.arange(N), spec), x)
        assert measured(vectors, spec, k=1) == 1.0  # each is in the list that it probes
        assert measured(vectors, spec, k=3) == pytest.approx(by_brute_force(x, offered, k=3))

    def test_as_near_is_found_and_farther_is_missed(self, tmp_path):
        # The codes of 400 are equal, and the index offers any 100 of them.
        directions = np.random.default_rng(1).standard_normal((400, D))
        for spread, fewest, most in ((1e-5, 0.99, 1.0), (3e-3, 0.1, 0.6)):
            x = np.full((400, D), 0.25) + spread * directions
            x /= np.linalg.norm(x, axis=1, keepdims=True)
            others = clustered(100, D)
            both = np.concatenate([x, others]).astype(np.float32)
            vectors = stored(tmp_path / str(spread), both)
            spec = IndexSpec("SQ4")
            index = build(vectors, np.arange(500), spec)
            truth = by_brute_force(both, nearest_codes(index, both))
            found = measured(vectors, spec, n=500)
            assert fewest <= found <= most
            assert found == pytest.approx(truth, abs=0.03)

    def test_copies_are_no_misses(self, tmp_path):
        x = np.repeat(clustered(5, D), 300, axis=0)
        vectors = stored(tmp_path, x[np.random.default_rng(2).permutation(len(x))])
        for factory in ("Flat", "SQ8", "IVF2,Flat"):
            assert measured(vectors, IndexSpec(factory), n=len(x)) == 1.0

    def test_rows_that_the_index_must_not_have_are_nobodys_neighbours(self, tmp_path):
        x = clustered(N, D, clusters=60, spread=1.0)
        vectors = stored(tmp_path, np.repeat(x, 2, axis=0))
        rowmap = np.arange(0, 2 * N, 2)  # and each has a dead copy
        assert measured(vectors, IndexSpec("Flat"), rowmap) == 1.0
        spec = IndexSpec("IVF32,Flat", {"nprobe": 1})
        truth = by_brute_force(x, in_its_list(build(vectors, rowmap, spec), x))
        assert measured(vectors, spec, rowmap) == pytest.approx(truth, abs=1e-9)

    @pytest.mark.parametrize("n", [1, 4, 9])
    def test_fewer_than_k_are_all_looked_for(self, tmp_path, n):
        vectors = stored(tmp_path, clustered(n, D), parts=1)
        assert Sample().of(n) == Sample(queries=n, k=n)
        assert measured(vectors, IndexSpec("SQ8"), n=n) == 1.0

    def test_it_ends_wherever_it_is_told_to(self, tmp_path):
        x = clustered(N, D)
        vectors, rowmap, spec = stored(tmp_path, x), np.arange(N), IndexSpec("Flat")
        index = build(vectors, rowmap, spec)

        def ended_by(most: int) -> int:
            calls = 0

            def check() -> None:
                nonlocal calls
                calls += 1
                if calls > most:
                    raise Stop

            measure(vectors, rowmap, index, spec, sample=Sample(), check=check)
            return calls

        whole = ended_by(1000)
        assert whole >= 3 + 2 * -(-100 * FETCH // 2048) + 4  # parts, candidates, queries
        for most in range(whole):
            with pytest.raises(Stop):
                ended_by(most)


@pytest.fixture
def filled(catalog):
    space = Filled(catalog, D)
    space.add(clustered(300, D))
    return space


def info(recall, *, queries=100, generation="g", factory="SQ8") -> RecallInfo:
    return RecallInfo(generation, factory, 300, 10, queries, recall, 1.0)


class TestSeries:
    def test_every_publishing_is_measured(self, filled, lease):
        assert series(filled.catalog, filled.space) == []
        assert latest(filled.catalog, filled.space) == (None, None)
        first = publish(filled.catalog, lease, filled.space)
        one = RecallInfo(first.name, "SQ8", 300, 10, 100, 1.0, first.created_at)
        assert latest(filled.catalog, filled.space) == (one, None)
        filled.add(clustered(30, D, seed=3))
        second = publish(filled.catalog, lease, filled.space, "Flat")
        two = RecallInfo(second.name, "Flat", 330, 10, 100, 1.0, second.created_at)
        assert latest(filled.catalog, filled.space) == (two, one)
        assert series(filled.catalog, filled.space) == [two, one]
        assert series(filled.catalog, filled.space, 1) == [two]

    def test_few_vectors_are_measured_with_what_there_is(self, catalog, lease):
        few = Filled(catalog, D)
        few.add(clustered(4, D))
        publish(catalog, lease, few.space)
        [found] = series(catalog, few.space)
        assert (found.n, found.k, found.queries, found.recall) == (4, 4, 4, 1.0)

    def test_the_recall_is_that_of_the_published_index(self, catalog, lease):
        filled = Filled(catalog, D)
        x = clustered(1000, D, clusters=3)
        for at in (0, 500):
            filled.add(x[at : at + 500])
        publish(catalog, lease, filled.space, "PQ4x4np")
        view = snapshot(catalog, filled.space)
        vectors = Rows(filled.store, view.parts)
        index = build(vectors, np.arange(1000), IndexSpec("PQ4x4np"))
        [found] = series(catalog, filled.space)
        assert found.recall == pytest.approx(by_brute_force(x, nearest_codes(index, x)), abs=0.02)
        assert found.recall < 0.9

    def test_they_stay_when_the_files_go_and_go_with_the_space(self, filled, lease):
        catalog, space = filled.catalog, filled.space
        for _ in range(3):
            publish(catalog, lease, space)
        kept = series(catalog, space)
        assert delete_old_files(catalog, lease, keep_s=0) == 2
        with catalog.read() as conn:
            assert conn.execute(select(func.count()).select_from(Generation)).scalar_one() == 1
        assert series(catalog, space) == kept
        assert len(kept) == 3
        other = Filled(catalog, D, "float16", folder="16")
        other.add(clustered(30, D))
        publish(catalog, lease, other.space)
        drop_space(catalog, lease, other.space.name)
        assert series(catalog, other.space) == []
        assert series(catalog, space) == kept

    def test_a_stop_while_it_is_measured_leaves_all_as_it_was(self, filled, lease):
        catalog, space = filled.catalog, filled.space
        calls = 0

        def check() -> None:
            nonlocal calls
            calls += 1
            if calls == last:
                raise Stop

        last = 0
        before = publish(catalog, lease, space, "Flat", check)
        last, calls = calls, 0  # the last of all is one of the measurement
        kept = series(catalog, space)
        files = sorted(os.listdir(catalog.home.index_dir(space.fingerprint)))
        with pytest.raises(Stop):
            publish(catalog, lease, space, "Flat", check)
        assert snapshot(catalog, space).generation == before
        assert series(catalog, space) == kept
        assert sorted(os.listdir(catalog.home.index_dir(space.fingerprint))) == files

    def test_nothing_is_kept_of_an_index_that_is_not_recorded(self, filled):
        catalog, space = filled.catalog, filled.space
        run = start_run(catalog, "index")
        ended = False

        def check() -> None:
            nonlocal ended
            if not ended:
                ended = True
                finish_run(catalog, run, "done")

        with pytest.raises(LeaseLost):
            publish(catalog, run, space, check=check)
        assert series(catalog, space) == []


class TestFallen:
    @pytest.mark.parametrize(
        ("before", "newest", "queries", "told"),
        [
            (None, 1.0, 100, False),
            (None, 0.9, 100, False),
            (None, 0.899, 100, True),
            (0.85, 0.89, 100, True),  # better, and not good
            (1.0, 0.97, 100, False),  # chance may do that
            (1.0, 0.93, 100, True),
            (0.93, 1.0, 100, False),
            (0.99, 0.981, 1_000_000, False),  # no chance, and no matter
            (0.99, 0.978, 1_000_000, True),
            (1.0, 0.97, 400, True),
            (1.0, 1.0, 100, False),
        ],
    )
    def test_what_is_told(self, filled, lease, before, newest, queries, told):
        made = publish(filled.catalog, lease, filled.space)
        with filled.catalog.write() as conn:
            conn.execute(delete(Recall))
            if before is not None:
                record(conn, filled.space.id, info(before, queries=queries))
            now = info(newest, queries=queries, generation=made.name)
            record(conn, filled.space.id, now)
        assert (fallen(filled.catalog, filled.space) is not None) == told

    def test_what_is_said(self, filled, lease):
        catalog, space = filled.catalog, filled.space
        assert fallen(catalog, space) is None
        made = publish(catalog, lease, space)
        command = f"`lookalike index --space {space.name} --index-spec"
        with catalog.write() as conn:
            record(conn, space.id, info(0.5, generation=made.name))
        assert fallen(catalog, space) == (
            f"the index of space {space.name} (SQ8) finds 50.0 % of the 10 nearest, the one before"
            f" (SQ8) found 100.0 %; {command} FACTORY` publishes another kind; Flat finds all and"
            " is the largest"
        )
        with catalog.write() as conn:
            record(conn, space.id, info(0.456, generation=made.name, factory="PQ4"))
        assert fallen(catalog, space) == (
            f"the index of space {space.name} (PQ4) finds 45.6 % of the 10 nearest;"
            f" {command} auto` publishes SQ8 instead"
        )

    def test_an_index_that_is_withdrawn_is_not_spoken_of(self, filled, lease):
        made = publish(filled.catalog, lease, filled.space)
        with filled.catalog.write() as conn:
            record(conn, filled.space.id, info(0.5, generation=made.name))
        assert fallen(filled.catalog, filled.space) is not None
        with filled.catalog.write() as conn:
            withdraw(conn, filled.space.id, 1.0)
        assert fallen(filled.catalog, filled.space) is None

    @pytest.mark.parametrize("p", [0.9, 0.95, 0.98])
    def test_chance_alone_is_seldom_taken_for_a_fall(self, p):
        # The worst case: each query finds all of its neighbours or none.
        rng = np.random.default_rng(3)
        drawn = rng.binomial(100, p, (2, 10_000)) / 100
        falls = [a - b > noise(info(a), info(b)) for a, b in drawn.T]
        assert 0 < np.mean(falls) < 0.03
        # Where each neighbour is found or missed by itself, it hardly happens.
        drawn = rng.binomial(100 * 10, p, (2, 10_000)) / 1000
        assert np.mean([a - b > noise(info(a), info(b)) for a, b in drawn.T]) < 1e-3
        # And a fall by a fifth is nearly always seen.
        lower = rng.binomial(100, 0.8 * p, 10_000) / 100
        assert np.mean([p - b > noise(info(p), info(b)) for b in lower]) > 0.9
