import os
import threading
from contextlib import contextmanager

import faiss
import numpy as np
import pytest
from sqlalchemy import delete

from storage import candidates
from storage.errors import PartError
from storage.leases import start_run
from storage.lookup import Lookup
from storage.publish import publish
from storage.reading import generation_paths, snapshot
from storage.tables import Vector
from tests.storage.filled import Filled, clustered, local_catalog, nearest, recall, root_of

N, D, K = 2000, 32, 10


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@contextmanager
def a_space(template, folder, x, **options):
    with local_catalog(template, folder) as catalog:
        filled = Filled(catalog, x.shape[1], **options)
        filled.add(x)
        yield filled


@pytest.fixture
def filled(sqlite_template, tmp_path):
    """N rows, published, none dead."""
    with a_space(sqlite_template, tmp_path, clustered(N, D, clusters=60)) as filled:
        yield filled


def published(filled, factory=None):
    return publish(filled.catalog, start_run(filled.catalog, "index"), filled.space, factory)


def by_index(filled) -> Lookup:
    """Use the index however small the space is."""
    return Lookup(filled.catalog, filled.space, exact_below=0)


def exactly(filled) -> Lookup:
    return Lookup(filled.catalog, filled.space)


def rows_of(found) -> list[list[int]]:
    return [[hit.row for hit in hits] for hits in found.neighbours]


def near(x, seed=4, noise=0.02):
    moved = x + noise * np.random.default_rng(seed).standard_normal(x.shape)
    return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("make", [by_index, exactly])
def test_like_a_full_sort_with_true_cosines(filled, make):
    published(filled)
    xq = near(filled.x[::100])
    found = make(filled).nearest(xq, K)
    assert rows_of(found) == nearest(filled.x, xq, K).tolist()
    assert found.warnings == []
    for q, hits in zip(xq.astype(np.float64), found.neighbours, strict=True):
        for hit in hits:
            assert hit.image_id == 1000 + hit.row
            assert hit.score == pytest.approx(q @ filled.x[hit.row] / np.linalg.norm(q), abs=1e-6)


@pytest.mark.parametrize("make", [by_index, exactly])
def test_an_indexed_picture_finds_itself_first(filled, make):
    published(filled, "IVF32,RaBitQ")
    found = make(filled).nearest(filled.x[[5, 70]], 3)
    assert [hits[0].row for hits in found.neighbours] == [5, 70]
    assert [hits[0].score for hits in found.neighbours] == pytest.approx([1, 1], abs=1e-6)


@pytest.mark.parametrize("make", [by_index, exactly])
def test_float16_scores_are_cosines_too(sqlite_template, tmp_path, make):
    x = clustered(400, D)
    with a_space(sqlite_template, tmp_path, x, dtype="float16") as filled:
        published(filled)
        stored = x.astype(np.float16).astype(np.float64)
        stored /= np.linalg.norm(stored, axis=1, keepdims=True)
        found = make(filled).nearest(x[:20], K)
        assert rows_of(found) == nearest(stored, x[:20], K).tolist()
        assert max(hits[0].score for hits in found.neighbours) <= 1.0
        assert min(hits[0].score for hits in found.neighbours) > 0.9999999 - 1e-6


def test_the_same_hits_on_either_database(catalog, lease):
    filled = Filled(catalog, D)
    filled.add(clustered(300, D), folder="a/")
    filled.add(clustered(100, D, seed=3))
    filled.set_state(range(20), "missing")
    publish(filled.catalog, lease, filled.space)
    alive = np.arange(20, 400)
    truth = nearest(filled.x, filled.x[:9], 5, alive).tolist()
    assert rows_of(by_index(filled).nearest(filled.x[:9], 5)) == truth
    under = root_of(filled) + b"/a"
    truth = nearest(filled.x, filled.x[:9], 5, np.arange(20, 300)).tolist()
    assert rows_of(exactly(filled).nearest(filled.x[:9], 5, under=[under])) == truth


def test_the_tail_is_searched_too(filled):
    published(filled)
    filled.add(near(filled.x[:200], noise=0.001))
    filled.add(clustered(100, D, seed=8), duplicates=(0,))
    xq = filled.x[np.r_[:20, N : N + 20, N + 200 : N + 210]]
    alive = np.setdiff1d(np.arange(N + 300), [N + 200])
    assert rows_of(by_index(filled).nearest(xq, K)) == nearest(filled.x, xq, K, alive).tolist()


def test_an_open_lookup_sees_commits_and_publications(filled):
    published(filled)
    lookup = by_index(filled)
    assert rows_of(lookup.nearest(filled.x[:1], 1)) == [[0]]
    new = clustered(60, D, seed=11)
    filled.add(new)
    assert rows_of(lookup.nearest(new[:1], 1)) == [[N]]
    published(filled, "Flat")
    assert rows_of(lookup.nearest(new[:2], 1)) == [[N], [N + 1]]
    filled.set_state([N], "missing")
    assert rows_of(lookup.nearest(new[:2], 1))[0] != [N]
    filled.set_state([N], "live")  # back again, and in the index still
    assert rows_of(lookup.nearest(new[:2], 1)) == [[N], [N + 1]]


# Near-duplicates of one picture, all dead: each widening meets more of them.
CROWD = 5000


@pytest.fixture
def crowded(sqlite_template, tmp_path):
    crowd = near(np.repeat(clustered(1, D, seed=2), CROWD, axis=0), noise=0.0005)
    x = np.concatenate([crowd, clustered(500, D, seed=3)])
    with a_space(sqlite_template, tmp_path, x) as filled:
        yield filled


@pytest.mark.parametrize("factory", ["SQ8", "HNSW16,SQ8", "IVF32,SQ8", "PQ16x4fs", None])
@pytest.mark.parametrize("narrow", [0, 50_000])
def test_a_crowd_of_dead_near_duplicates(crowded, monkeypatch, factory, narrow):
    monkeypatch.setattr(candidates, "NARROW_ROWS", narrow)
    if factory is not None:
        published(crowded, factory)
    crowded.set_state(range(CROWD), "missing")
    alive = np.arange(CROWD, CROWD + 500)
    xq = crowded.x[[0, 17, CROWD + 3]]
    found = np.array(rows_of(by_index(crowded).nearest(xq, K)))
    truth = nearest(crowded.x, xq, K, alive)
    if factory == "HNSW16,SQ8":
        # So dense a crowd is badly linked to the rest of the graph.
        assert found.shape == truth.shape
        assert np.isin(found, alive).all()
        assert recall(found, truth) >= 0.7
    else:
        assert found.tolist() == truth.tolist()


@pytest.mark.parametrize("factory", ["HNSW16,SQ8", "IVF32,SQ8"])
def test_a_few_living_among_many_dead(filled, factory):
    published(filled, factory)
    alive = np.arange(0, N, 25)
    filled.set_state(np.setdiff1d(np.arange(N), alive), "missing")
    xq = filled.x[1::400]
    truth = nearest(filled.x, xq, K, alive)
    assert rows_of(by_index(filled).nearest(xq, K)) == truth.tolist()


@pytest.mark.parametrize("factory", ["HNSW16,SQ8", "SQ8"])
def test_a_living_tail_does_not_hide_the_living_in_the_index(filled, factory):
    published(filled, factory)
    far = clustered(2000, D, seed=31)
    far = far[far @ filled.x[0] < 0][:400]
    filled.add(far)
    near_ones = nearest(filled.x[:N], filled.x[:1], 400)[0]
    filled.set_state(near_ones[:105], "missing")  # those that the first search meets
    alive = np.setdiff1d(np.arange(N + 400), near_ones[:105])
    found = rows_of(by_index(filled).nearest(filled.x[:1], K))
    truth = nearest(filled.x, filled.x[:1], K, alive)
    assert max(truth[0]) < N
    assert recall(found, truth) >= (0.9 if factory.startswith("HNSW") else 1.0)


def test_fewer_live_images_than_asked_for(crowded):
    published(crowded)
    crowded.set_state(range(3, CROWD + 500), "missing")
    for lookup in (by_index(crowded), exactly(crowded)):
        found = lookup.nearest(crowded.x[:1], 50)
        assert sorted(rows_of(found)[0]) == [0, 1, 2]
    crowded.set_state([0, 1, 2], "missing")
    assert rows_of(by_index(crowded).nearest(crowded.x[:2], 5)) == [[], []]


def test_rows_that_compaction_dropped_are_no_hits(filled):
    published(filled)
    with filled.catalog.write() as conn:
        conn.execute(delete(Vector).where(Vector.row < 50))
    alive = np.arange(50, N)
    found = by_index(filled).nearest(filled.x[:5], K)
    assert rows_of(found) == nearest(filled.x, filled.x[:5], K, alive).tolist()


def test_equal_scores_stand_in_the_order_of_rows(sqlite_template, tmp_path):
    x = clustered(50, D)
    same = np.concatenate([x, x, x])
    with a_space(sqlite_template, tmp_path, same) as filled:
        published(filled)
        for lookup in (by_index(filled), exactly(filled)):
            found = lookup.nearest(x[7:8], 3)
            assert rows_of(found) == [[7, 57, 107]]
            assert len({hit.score for hit in found.neighbours[0]}) == 1


@pytest.mark.parametrize("make", [by_index, exactly])
def test_only_above_a_score(filled, make):
    published(filled)
    xq = filled.x[:4]
    lookup = make(filled)
    every = lookup.nearest(xq, 40).neighbours
    floor = every[0][5].score
    cut = lookup.nearest(xq, 40, min_score=floor).neighbours
    assert cut == [[hit for hit in hits if hit.score >= floor] for hits in every]
    assert len(cut[0]) == 6
    assert lookup.nearest(-xq, 5, min_score=0.99).neighbours == [[], [], [], []]


@pytest.mark.parametrize("make", [by_index, exactly])
def test_without_its_own_image(filled, make):
    published(filled)
    found = make(filled).nearest(filled.x[[5, 6]], 3, exclude=[{1005}, ()])
    truth = nearest(filled.x, filled.x[[5, 6]], 4).tolist()
    assert rows_of(found) == [truth[0][1:], truth[1][:3]]


@pytest.fixture
def in_folders(sqlite_template, tmp_path):
    """Rows 0 to 1999 in the root, 2000 to 2299 in ``few``, 2300 on in ``many``."""
    x = clustered(4000, D, clusters=50)
    with a_space(sqlite_template, tmp_path, x[:2000]) as filled:
        filled.add(x[2000:2300], folder="few/")
        filled.add(x[2300:], folder="many/")
        yield filled


@pytest.mark.parametrize("factory", ["SQ8", "HNSW16,SQ8", "PQ16x4fs", "Flat"])
@pytest.mark.parametrize("narrow", [0, 50_000])
def test_under_a_folder(in_folders, monkeypatch, factory, narrow):
    monkeypatch.setattr(candidates, "NARROW_ROWS", narrow)
    published(in_folders, factory)
    in_folders.add(clustered(200, D, seed=6), folder="many/late")
    in_folders.set_state(range(2400, 2500), "missing")
    lookup, xq = by_index(in_folders), in_folders.x[::400]
    for prefix, allowed in (
        (b"few", np.arange(2000, 2300)),
        (b"many", np.r_[2300:2400, 2500:4200]),
        (b"", np.r_[:2400, 2500:4200]),
        (b"none", np.empty(0, int)),
    ):
        found = rows_of(lookup.nearest(xq, K, under=[root_of(in_folders) + b"/" + prefix]))
        if len(allowed):
            assert found == nearest(in_folders.x, xq, K, allowed).tolist()
        else:
            assert found == [[]] * len(xq)


@pytest.mark.parametrize("harm", ["missing", "flipped", "no rowmap", "empty"])
def test_a_broken_index_warns_and_searches_exactly(filled, harm):
    made = published(filled)
    path, rowmap = generation_paths(
        filled.catalog.home.index_dir(filled.space.fingerprint), made.name
    )
    if harm == "missing":
        os.unlink(path)
    elif harm == "no rowmap":
        os.unlink(rowmap)
    elif harm == "empty":
        os.truncate(path, 0)
    else:
        with open(path, "r+b") as file:
            file.seek(made.size_bytes - 9)
            file.write(b"\xff\x00\xff")
    lookup = by_index(filled)
    for _ in range(2):
        found = lookup.nearest(filled.x[:3], K)
        assert rows_of(found) == nearest(filled.x, filled.x[:3], K).tolist()
        assert len(found.warnings) == 1
        assert "searched without the index" in found.warnings[0]
    published(filled)
    assert lookup.nearest(filled.x[:3], K).warnings == []


def test_a_small_space_needs_no_index_file(filled):
    made = published(filled)
    os.unlink(
        generation_paths(filled.catalog.home.index_dir(filled.space.fingerprint), made.name)[0]
    )
    assert exactly(filled).nearest(filled.x[:1], 1).warnings == []


def test_a_missing_part_is_an_error(filled):
    os.unlink(filled.store.path(snapshot(filled.catalog, filled.space).parts[0].name))
    with pytest.raises(PartError, match="missing"):
        exactly(filled).nearest(filled.x[:1], 1)


@pytest.mark.parametrize(
    ("xq", "k", "options", "message"),
    [
        (np.ones((1, 8)), 1, {}, r"dimension 32, the queries are of shape \(1, 8\)"),
        (np.ones(D), 1, {}, r"shape \(32,\)"),
        (np.ones((1, D)), 1, {}, "query 0 has norm 5.65685"),
        (np.full((1, D), np.nan), 1, {}, "query 0 has norm nan"),
        (clustered(1, D), 0, {}, "k is 0"),
        (clustered(1, D), 1, {"exclude": []}, "0 sets of images to exclude for 1 queries"),
    ],
)
def test_questions_that_make_no_sense(filled, xq, k, options, message):
    with pytest.raises(ValueError, match=message):
        exactly(filled).nearest(xq, k, **options)


def test_no_queries_and_no_vectors(sqlite_template, tmp_path):
    with local_catalog(sqlite_template, tmp_path) as catalog:
        filled = Filled(catalog, D)
        lookup = exactly(filled)
        assert lookup.nearest(np.empty((0, D), np.float32), 3).neighbours == []
        assert lookup.nearest(clustered(2, D), 3).neighbours == [[], []]


def test_threads_share_a_lookup(filled):
    published(filled, "HNSW16,SQ8")
    lookup, truth = by_index(filled), nearest(filled.x, filled.x[:40], 5).tolist()
    results, errors = {}, []

    def ask(start):
        try:
            for _ in range(5):
                results[start] = rows_of(lookup.nearest(filled.x[start : start + 10], 5))
        except Exception as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(start,)) for start in (0, 10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [hits for start in (0, 10, 20, 30) for hits in results[start]] == truth


def test_another_space_is_not_searched(filled):
    other = Filled(filled.catalog, D, folder="2/", dtype="float16")
    other.add(clustered(5, D, seed=9))
    found = exactly(other).nearest(filled.x[:1], 20)
    assert sorted(rows_of(found)[0]) == list(range(5))
    assert {hit.image_id for hit in found.neighbours[0]} == {other.base + row for row in range(5)}


@pytest.mark.parametrize("k", [N, 10**9, 10**30])
@pytest.mark.parametrize("look", [by_index, exactly])
def test_however_many_are_asked_for_no_more_is_made_room_for_than_there_are(filled, k, look):
    published(filled, "HNSW16,Flat")
    filled.set_state(range(7), "missing")
    found = look(filled).nearest(filled.x[50:52], k)
    truth = nearest(filled.x, filled.x[50:52], N - 7, np.arange(7, N))
    assert np.array_equal(rows_of(found), truth)


def test_an_empty_space_has_none_of_a_billion(sqlite_template, tmp_path):
    with local_catalog(sqlite_template, tmp_path) as catalog:
        space = Filled(catalog, D).space
        found = Lookup(catalog, space).nearest(clustered(1, D), 10**9)
    assert found.neighbours == [[]]


def test_an_index_that_is_back_is_used_again(filled):
    made = published(filled)
    path, _ = generation_paths(filled.catalog.home.index_dir(filled.space.fingerprint), made.name)
    lookup = by_index(filled)
    os.rename(path, f"{path}.away")
    assert "without the index" in lookup.nearest(filled.x[:1], K).warnings[0]
    os.rename(f"{path}.away", path)
    assert lookup.nearest(filled.x[:1], K).warnings == []
