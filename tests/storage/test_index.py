import os
import time

import faiss
import numpy as np
import pytest

import storage.index
from storage.build import build
from storage.errors import IndexFileError, SpaceError, StorageError
from storage.index import (
    IndexSpec,
    SelectorRefused,
    all_but,
    choose,
    load_index,
    only,
    search_index,
    spec_of,
    write_index,
)
from storage.kinds import outgrown
from storage.reading import Rows
from storage.vectors import PartInfo, VectorStore
from tests.storage.filled import clustered, limited_files, nearest, recall
from tests.storage.test_vectors import committed, digests

N, D, K = 5000, 32, 10
KINDS = {
    "SQ8": 0.95,
    "Flat": 1.0,
    "HNSW32,SQ8": 0.95,
    "IVF64,SQ8": 0.95,
    "IVF64,Flat": 1.0,  # as every list is probed
    "IVF64_HNSW32,RaBitQ": None,  # meant to be rescored
    "IVF64,RaBitQ,Refine(SQ8)": 0.9,
    "PCA24,IVF16,SQ8": None,
}
NO_SELECTOR = ("PQ16x4fs", "PQ16np")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """Rows 0 to N - 1 in three parts."""
    store = VectorStore(str(tmp_path_factory.mktemp("space")), D, "float32")
    x = clustered(N, D, clusters=100)
    parts = []
    for start, end in ((0, 1000), (1000, 3500), (3500, N)):
        part = store.append("run", x[start:end], digests(end - start))
        parts.append(committed(part, row_start=start))
    return Rows(store, parts)


@pytest.fixture(scope="module")
def x(vectors):
    return vectors.gather(np.arange(N))


@pytest.fixture(scope="module")
def built(vectors, tmp_path_factory):
    """Return a function from a kind to its index: built, written and loaded, once each."""
    folder, known = tmp_path_factory.mktemp("index"), {}

    def index_of(factory: str):
        if factory not in known:
            path = str(folder / f"{len(known)}.faiss")
            index = build(vectors, np.arange(N), IndexSpec(factory))
            size_bytes, checksum = write_index(index, path)
            known[factory] = load_index(path, size_bytes=size_bytes, checksum=checksum, d=D, n=N)
        return known[factory]

    return index_of


@pytest.fixture(scope="module")
def xq():
    centres = clustered(N, D, clusters=100)[:: N // 60][:60]
    noise = 0.05 * np.random.default_rng(9).standard_normal(centres.shape)
    moved = centres + noise
    return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)


def rescored(x, xq, positions, k):
    """Order candidates by their true product, as search does."""
    out = []
    for q, found in zip(xq, positions, strict=True):
        found = found[found >= 0]
        out.append(found[np.argsort(-(x[found] @ q), kind="stable")][:k])
    return out


@pytest.mark.parametrize("factory", KINDS)
def test_recall_against_brute_force(built, x, xq, factory):
    index, truth = built(factory), nearest(x, xq, K)
    parameters = {"nprobe": 64, "efSearch": 128}
    _, positions = search_index(index, parameters, xq, K)
    if KINDS[factory] is not None:
        assert recall(positions, truth) >= KINDS[factory]
    _, more = search_index(index, parameters, xq, 100)
    assert recall(rescored(x, xq, more, K), truth) >= 0.95


@pytest.mark.parametrize("factory", KINDS)
@pytest.mark.parametrize("keep", ["few", "most"])
def test_selectors_leave_positions_out(built, x, xq, factory, keep):
    best = np.unique(nearest(x, xq, 3))
    dead = best if keep == "most" else np.setdiff1d(np.arange(N), best)
    allowed = np.setdiff1d(np.arange(N), dead)
    truth = nearest(x, xq, K, allowed)
    for selector in (only(allowed), all_but(dead)):
        _, found = search_index(built(factory), {"nprobe": 64}, xq, 100, selector)
        assert not np.isin(found, dead).any()
        if keep == "most":
            assert recall(rescored(x, xq, found, K), truth) >= 0.95


@pytest.mark.parametrize("factory", NO_SELECTOR)
def test_a_kind_that_takes_no_selector_says_so(built, x, xq, factory):
    with pytest.raises(SelectorRefused, match="takes no selector"):
        search_index(built(factory), {}, xq, K, only(np.arange(5)))
    _, more = search_index(built(factory), {}, xq, 200)
    assert recall(rescored(x, xq, more, K), nearest(x, xq, K)) >= 0.95


def test_positions_follow_the_rowmap(vectors, x):
    rowmap = np.sort(np.random.default_rng(1).choice(N, 1200, replace=False))
    index = build(vectors, rowmap, IndexSpec("Flat"))
    _, positions = search_index(index, {}, x[rowmap[:50]], 1)
    np.testing.assert_array_equal(positions[:, 0], np.arange(50))


def test_the_same_rows_make_the_same_file(vectors, tmp_path):
    made = [
        write_index(build(vectors, np.arange(N), IndexSpec("IVF16,SQ8")), str(tmp_path / name))
        for name in ("a", "b")
    ]
    assert made[0] == made[1]
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_more_than_there_are_are_not_asked_for(vectors, x):
    index = build(vectors, np.arange(7), IndexSpec("SQ8"))
    _, positions = search_index(index, {}, x[:2], 50)
    assert [sorted(line) for line in positions.tolist()] == [list(range(7))] * 2


def test_threads_share_the_lists_of_few_queries_and_find_the_same(built, x, request):
    request.addfinalizer(lambda: faiss.omp_set_num_threads(1))
    index = built("IVF64,SQ8")
    ivf = faiss.try_extract_index_ivf(index)
    alone = search_index(index, {}, x[:8], K)
    assert ivf.parallel_mode == 0

    faiss.omp_set_num_threads(4)
    shared = [search_index(index, {}, x[at : at + 1], K) for at in range(8)]
    assert ivf.parallel_mode == 1
    for at in range(2):
        assert np.array_equal(np.concatenate([one[at] for one in shared]), alone[at])

    search_index(index, {}, x[:4], K)
    assert ivf.parallel_mode == 0, "each thread has a query"
    with storage.index._UNDER_WAY:
        search_index(index, {}, x[:1], K)
    assert ivf.parallel_mode == 0, "the threads have another search to do"


def test_queries_of_another_dimension_are_refused(built):
    with pytest.raises(ValueError, match="dimension 32"):
        search_index(built("SQ8"), {}, np.zeros((2, 16), np.float32), K)


@pytest.mark.parametrize(
    ("n", "factory", "nprobe"),
    [
        (1, "SQ8", None),
        (49_999, "SQ8", None),
        (50_000, "IVF1024,SQ8", 128),
        (200_000, "IVF2048,SQ8", 128),
        (300_000, "IVF2048,SQ8", 128),
        (1_000_000, "IVF4096,SQ8", 256),
        (2_000_000, "IVF4096_HNSW32,RaBitQ", 256),
        (100_000_000, "IVF32768_HNSW32,RaBitQ", 2048),
    ],
)
def test_the_kind_follows_the_number(n, factory, nprobe):
    spec = choose(n)
    assert (spec.factory, spec.parameters.get("nprobe")) == (factory, nprobe)
    index = faiss.index_factory(512, factory, faiss.METRIC_INNER_PRODUCT)
    ivf = faiss.try_extract_index_ivf(index)
    assert (ivf is None) == (nprobe is None)
    assert ivf is None or n >= 39 * ivf.nlist


@pytest.mark.parametrize(
    ("factory", "n", "gone"),
    [
        ("SQ8", 49_900, False),
        ("SQ8", 50_100, False),  # hovers
        ("SQ8", 55_000, False),
        ("SQ8", 56_000, True),
        ("IVF1024,SQ8", 50_100, False),
        ("IVF1024,SQ8", 49_900, False),
        ("IVF1024,SQ8", 46_000, False),
        ("IVF1024,SQ8", 45_000, True),
        ("IVF1024,SQ8", 140_000, False),
        ("IVF1024,SQ8", 150_000, True),
        ("HNSW32,SQ8", 100_000, True),  # what an earlier version chose
        ("PQ64np", 50_000, True),  # no number of vectors is its own
    ],
)
def test_a_kind_is_outgrown_well_past_its_bounds(factory, n, gone):
    assert outgrown(factory, n) == gone


@pytest.mark.parametrize("factory", ["IDMap,Flat", "IDMap2,SQ8", "IVF64,SQ8,idmap"])
def test_no_idmap(factory):
    with pytest.raises(SpaceError, match="has an IDMap"):
        spec_of(factory)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("Nonsense", "is not known to FAISS for dimension 32"),
        ("IVF64,Nonsense", "is not known to FAISS"),
        ("PQ5", "'PQ5' is not known to FAISS|can't be trained"),
        ("IVF6000,Flat", "can't be trained with 5000 vectors: .*6000"),
        ("IVF8,PQ16x13", "'IVF8,PQ16x13' can't be trained with 5000"),
    ],
)
def test_what_faiss_can_not_build_is_said_in_one_line(vectors, factory, message):
    with pytest.raises(SpaceError, match=message) as caught:
        build(vectors, np.arange(N), spec_of(factory))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.fixture
def written(vectors, tmp_path):
    path = str(tmp_path / "a.faiss")
    size_bytes, checksum = write_index(build(vectors, np.arange(N), IndexSpec("SQ8")), path)
    return path, {"size_bytes": size_bytes, "checksum": checksum, "d": D, "n": N}


def test_a_flipped_bit_is_noticed(written):
    path, facts = written
    with open(path, "r+b") as file:
        file.seek(facts["size_bytes"] // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 16]))
    with pytest.raises(IndexFileError, match="checksum"):
        load_index(path, **facts)


def test_a_truncated_file_is_noticed(written):
    path, facts = written
    os.truncate(path, facts["size_bytes"] - 1)
    with pytest.raises(IndexFileError, match="the catalog says"):
        load_index(path, **facts)


def test_a_missing_file_has_its_cause(written):
    path, facts = written
    os.unlink(path)
    with pytest.raises(IndexFileError, match="No such file") as caught:
        load_index(path, **facts)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_file_that_is_no_index(tmp_path):
    path = tmp_path / "a.faiss"
    path.write_bytes(b"nothing of the kind")
    from storage.durable import file_checksum

    facts = {"size_bytes": 19, "checksum": file_checksum(str(path)), "d": D, "n": N}
    with pytest.raises(IndexFileError, match="can't be read"):
        load_index(str(path), **facts)


@pytest.mark.parametrize("other", [{"d": 16}, {"n": 1}])
def test_another_index_than_the_catalog_says(written, other):
    path, facts = written
    with pytest.raises(IndexFileError, match="has dimension 32 and 5000 vectors"):
        load_index(path, **(facts | other))


def test_another_metric_than_inner_product(tmp_path, x):
    index = faiss.IndexFlatL2(D)
    index.add(x)
    path = str(tmp_path / "a.faiss")
    size_bytes, checksum = write_index(index, path)
    with pytest.raises(IndexFileError, match="by inner product"):
        load_index(path, size_bytes=size_bytes, checksum=checksum, d=D, n=N)


def test_a_full_disk_stops_the_writing(vectors, tmp_path):
    index = build(vectors, np.arange(N), IndexSpec("SQ8"))
    with limited_files(4096), pytest.raises(StorageError, match="can't be written"):
        write_index(index, str(tmp_path / "a.faiss"))
    assert os.listdir(tmp_path) == []


def test_a_training_ends_soon_after_it_is_told_to(tmp_path):
    class Stop(Exception):
        pass

    d, n = 256, 40_000
    store = VectorStore(str(tmp_path), d, "float32")
    rows = np.arange(n)
    x = clustered(n, d)
    part = store.append("run", x, [at.to_bytes(32, "big") for at in range(n)])
    info = PartInfo(1, part.name, 0, n, n, part.size_bytes, part.checksum, part.ids_checksum)
    began: list[float] = []

    def check():
        began.append(time.monotonic())
        if began[-1] - began[0] > 0.5:
            raise Stop

    with pytest.raises(Stop):
        build(Rows(store, [info]), rows, spec_of("PQ64np"), check=check)
    assert time.monotonic() - began[0] < 5  # it takes some 50 s to the end
    assert build(Rows(store, [info]), rows, spec_of("SQ8"), check=lambda: None).ntotal == n
