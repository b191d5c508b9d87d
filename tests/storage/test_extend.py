import os
from pathlib import Path

import faiss
import numpy as np
import pytest
from sqlalchemy import delete, update

from storage.check import check
from storage.cleanup import orphans
from storage.compact import compact
from storage.dead import DEAD_SHARE
from storage.errors import LeaseLost, PartError
from storage.extend import GROWTH
from storage.generation import load_generation
from storage.leases import finish_run, start_run
from storage.lookup import Lookup
from storage.npy import write_npy
from storage.publish import publish, publish_due, withdraw
from storage.reading import generation_paths, snapshot
from storage.recall import RecallInfo, fallen, latest, record, series
from storage.tables import Generation, Recall, Vector
from tests.storage.filled import Filled, clustered, nearest, recall

D, N, NEW, K = 16, 2000, 600, 10
KINDS = (
    "SQ8",
    "Flat",
    "HNSW32,SQ8",
    "IVF16,SQ8",
    "IVF16_HNSW32,SQ8",
    "IVF16,RaBitQ,Refine(SQ8)",
    "PCA12,IVF16,SQ8",
    "PQ8x4fs",
)


class Stop(Exception):
    pass


@pytest.fixture
def filled(catalog):
    """2,000 rows in two parts, of which 3 and 4 are dead from birth."""
    space = Filled(catalog, D)
    x = clustered(N, D)
    space.add(x[:1500], duplicates=(3, 4))
    space.add(x[1500:])
    return space


def grow(filled, n=NEW, seed=1, **kwargs):
    return filled.add(clustered(n, D, seed=seed, **kwargs), duplicates=(1,))


def built_anew(filled, lease, factory=None):
    """Publish; return the generation, and whether it was trained anew, as its recall tells."""
    made = publish(filled.catalog, lease, filled.space, factory)
    return made, latest(filled.catalog, filled.space)[0].generation == made.name


def folder_of(filled):
    return filled.catalog.home.index_dir(filled.space.fingerprint)


def loaded(filled, generation):
    return load_generation(folder_of(filled), generation, D)


def found(filled, xq):
    """Return the rows that a search through the index finds, shape ``(nq, K)``."""
    hits = Lookup(filled.catalog, filled.space, exact_below=0).nearest(xq, K)
    assert not hits.warnings
    return np.array([[hit.row for hit in line] for line in hits.neighbours])


class Turned:
    """The files of some parts hold their vectors in another order meanwhile."""

    def __init__(self, filled, parts) -> None:
        self.paths = [Path(filled.store.path(part.name)) for part in parts]
        self.held = [path.read_bytes() for path in self.paths]

    def __enter__(self) -> None:
        for path, data in zip(self.paths, self.held, strict=True):
            x = np.load(path)[::-1]
            path.write_bytes(data[: -x.nbytes] + x.tobytes())

    def __exit__(self, *error) -> None:
        for path, data in zip(self.paths, self.held, strict=True):
            path.write_bytes(data)


@pytest.mark.parametrize("factory", KINDS)
def test_it_finds_what_an_index_that_is_built_anew_finds(filled, lease, factory):
    first, _ = built_anew(filled, lease, factory)
    older = snapshot(filled.catalog, filled.space).parts
    rows = grow(filled)
    with Turned(filled, older):  # an index of what lies there now would find nothing
        made, anew = built_anew(filled, lease)
    assert not anew
    assert (made.factory, made.requested, made.parameters) == (factory, True, first.parameters)
    assert (made.row_end, made.n) == (N + NEW, N - 2 + NEW - 1)
    entered = np.setdiff1d(np.arange(N + NEW), [3, 4, rows[1]])
    np.testing.assert_array_equal(loaded(filled, made).rowmap, entered)
    assert loaded(filled, made).index.ntotal == made.n
    xq = filled.x[np.concatenate([entered[:100], entered[-100:]])]
    truth = nearest(filled.x, xq, K, entered)
    by_extended = found(filled, xq)
    np.testing.assert_array_equal(by_extended[:, 0], truth[:, 0])
    again, anew = built_anew(filled, lease, factory)
    assert anew
    np.testing.assert_array_equal(loaded(filled, again).rowmap, entered)
    assert recall(by_extended, truth) >= recall(found(filled, xq), truth) - 0.02
    assert recall(by_extended, truth) >= 0.95


def test_flat_is_the_same_to_the_bit(filled, lease):
    publish(filled.catalog, lease, filled.space, "Flat")
    grow(filled)
    extended = publish(filled.catalog, lease, filled.space)
    anew = publish(filled.catalog, lease, filled.space, "Flat")
    assert (extended.checksum, extended.rowmap_checksum) == (anew.checksum, anew.rowmap_checksum)


def test_again_and_again_until_it_has_grown_by_half(filled, lease):
    first, anew = built_anew(filled, lease)
    assert anew
    step, told = 180, []
    for seed in range(16):
        grow(filled, step + 1, seed=seed)
        made, anew = built_anew(filled, lease)
        told.append(anew)
        assert made.n == N - 2 + (seed + 1) * step
        assert publish_due(filled.catalog, filled.space) is None
        xq = filled.x[-50:][[*range(20), *range(30, 50)]]
        entered = loaded(filled, made).rowmap
        assert recall(found(filled, xq), nearest(filled.x, xq, K, entered)) >= 0.99
    most = int((1 + GROWTH) * first.n)
    due = (most - first.n) // step
    assert told[: due + 1] == [False] * due + [True]
    assert sum(told) == 2
    assert [info.n for info in series(filled.catalog, filled.space)][-1] == first.n
    assert len(series(filled.catalog, filled.space)) == 3


def test_levels_of_a_graph_are_drawn_and_not_repeated(filled, lease):
    publish(filled.catalog, lease, filled.space, "HNSW32,SQ8")
    for seed in range(4):
        filled.add(clustered(200, D, seed=seed))
        made, anew = built_anew(filled, lease)
        assert not anew
    graph = faiss.downcast_index(loaded(filled, made).index).hnsw
    levels = faiss.vector_to_array(graph.levels)[-800:].reshape(4, 200)
    assert len({line.tobytes() for line in levels}) == 4
    assert 5 <= np.sum(levels > 1) <= 60  # one in 32 is above the ground


class TestBuiltAnew:
    """What is wanted, or what is there, is no ground to extend."""

    def test_where_nothing_is_new(self, filled, lease):
        publish(filled.catalog, lease, filled.space)
        assert built_anew(filled, lease)[1]

    @pytest.mark.parametrize("factory", ["SQ8", "auto"])
    def test_where_somebody_asks_for_a_kind_now(self, filled, lease, factory):
        publish(filled.catalog, lease, filled.space)
        grow(filled)
        made, anew = built_anew(filled, lease, factory)
        assert anew
        assert made.requested == (factory == "SQ8")

    @pytest.mark.parametrize("other", [{"factory": "Flat"}, {"parameters": {"nprobe": 3}}])
    def test_where_another_kind_is_chosen(self, filled, lease, other):
        publish(filled.catalog, lease, filled.space)
        grow(filled)
        with filled.catalog.write() as conn:
            conn.execute(update(Generation).values(**other))
        assert built_anew(filled, lease)[1]

    @pytest.mark.parametrize("more", [0, 1])
    def test_where_many_are_dead(self, filled, lease, more):
        made = publish(filled.catalog, lease, filled.space)
        grow(filled)
        gone = int(DEAD_SHARE * made.n) + more
        kill(filled, gone)
        made, anew = built_anew(filled, lease)
        assert anew == bool(more)
        assert made.n == N - 2 + NEW - 1 - (gone if anew else 0)
        assert publish_due(filled.catalog, filled.space) is None

    @pytest.mark.parametrize("factory", ["SQ8", "IVF16,SQ8"])
    def test_where_the_new_are_not_of_the_kind_that_it_was_trained_for(
        self, catalog, lease, factory
    ):
        filled, rng = Filled(catalog, D), np.random.default_rng(5)
        x = clustered(N, D)
        x[:, :2] *= 0.1
        filled.add((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32))
        publish(catalog, lease, filled.space, factory)
        angles = rng.uniform(0.4, 1.1, NEW)  # both numbers are beyond where the codes end
        x = 1e-4 * rng.standard_normal((NEW, D))
        x[:, 0], x[:, 1] = np.sin(angles), np.cos(angles)
        x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
        filled.add(x)
        _, anew = built_anew(filled, lease)
        assert anew
        truth = nearest(filled.x, x[:50], K)
        assert recall(found(filled, x[:50]), truth) >= 0.95

    def test_where_it_was_withdrawn(self, filled, lease):
        publish(filled.catalog, lease, filled.space)
        grow(filled)
        with filled.catalog.write() as conn:
            withdraw(conn, filled.space.id, 1.0)
        assert built_anew(filled, lease)[1]

    def test_where_nothing_tells_how_many_it_was_trained_with(self, filled, lease):
        made = publish(filled.catalog, lease, filled.space)
        for change in ({"n": made.n + 1}, {"factory": "Flat"}):
            grow(filled, 100)
            with filled.catalog.write() as conn:
                conn.execute(update(Recall).values(generation="gone", **change))
            assert built_anew(filled, lease)[1]
        grow(filled, 100)
        with filled.catalog.write() as conn:
            conn.execute(delete(Recall))
        assert built_anew(filled, lease)[1]

    @pytest.mark.parametrize("which", [0, 1])
    @pytest.mark.parametrize("how", ["gone", "cut", "flipped", "foreign"])
    def test_where_the_published_one_is_broken(self, filled, lease, which, how):
        first = publish(filled.catalog, lease, filled.space)
        path = generation_paths(folder_of(filled), first.name)[which]
        grow(filled)
        spoil(path, how)
        made, anew = built_anew(filled, lease)
        assert anew
        assert loaded(filled, made).index.ntotal == made.n
        assert not check(filled.catalog, deep=True)

    def test_where_a_file_with_the_right_checksum_is_none_of_faiss(self, filled, lease):
        first = publish(filled.catalog, lease, filled.space)
        path = generation_paths(folder_of(filled), first.name)[0]
        file = write_npy(path, np.zeros(9))
        with filled.catalog.write() as conn:
            facts = {"checksum": file.checksum, "size_bytes": file.size_bytes}
            conn.execute(update(Generation).values(**facts))
        grow(filled)
        assert built_anew(filled, lease)[1]


def kill(filled, n):
    """Let the n first entered rows be no image's vector any more."""
    with filled.catalog.write() as conn:
        rows = loaded(filled, snapshot(filled.catalog, filled.space).generation).rowmap
        left = {
            row for (row,) in conn.execute(Vector.__table__.select().with_only_columns(Vector.row))
        }
        gone = [int(row) for row in rows if int(row) in left][:n]
        conn.execute(delete(Vector).where(Vector.row.in_(gone)))


def spoil(path, how):
    if how == "gone":
        os.unlink(path)
    elif how == "cut":
        os.truncate(path, os.path.getsize(path) - 1)
    elif how == "flipped":
        with open(path, "r+b") as file:
            file.seek(os.path.getsize(path) // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))
    else:
        with open(path, "wb") as file:
            file.write(b"nothing of the kind")


def test_dead_rows_of_the_older_one_stay_in_and_are_not_found(filled, lease):
    catalog, space = filled.catalog, filled.space
    first = publish(catalog, lease, space, "IVF16,SQ8")
    grow(filled)
    gone = np.arange(10, 100)
    with catalog.write() as conn:
        conn.execute(delete(Vector).where(Vector.row.in_(gone.tolist())))
    compact(catalog, lease, space, force=True)  # and no part holds them
    made, anew = built_anew(filled, lease)
    assert not anew
    assert made.n == first.n + NEW - 1
    assert np.isin(gone, loaded(filled, made).rowmap).all()
    xq = filled.x[5:105]
    alive = np.setdiff1d(loaded(filled, made).rowmap, gone)
    assert recall(found(filled, xq), nearest(filled.x, xq, K, alive)) >= 0.98
    assert not [each for each in check(catalog, deep=True) if each.severity == "error"]


def test_a_reader_of_the_former_one_goes_on(filled, lease):
    first = publish(filled.catalog, lease, filled.space)
    held = loaded(filled, first)
    before = [Path(path).read_bytes() for path in generation_paths(folder_of(filled), first.name)]
    xq = filled.x[:20]
    lookup = Lookup(filled.catalog, filled.space, exact_below=0)
    lookup.nearest(xq, K)
    answers = held.index.search(xq, K)
    rows = grow(filled)
    assert publish(filled.catalog, lease, filled.space).n > first.n
    np.testing.assert_array_equal(held.index.search(xq, K)[1], answers[1])
    paths = generation_paths(folder_of(filled), first.name)
    assert [Path(path).read_bytes() for path in paths] == before
    newest = filled.x[rows[2:3]]
    assert lookup.nearest(newest, 1).neighbours[0][0].row == rows[2]


@pytest.mark.parametrize("factory", ["SQ8", "PQ4x4np"])
def test_a_deep_check_of_an_extended_index(filled, lease, factory):
    publish(filled.catalog, lease, filled.space, factory)
    x = filled.x[:NEW] + 0.02 * np.random.default_rng(6).standard_normal((NEW, D))
    filled.add((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32))
    made, anew = built_anew(filled, lease)
    assert not anew
    assert check(filled.catalog, deep=True) == []
    # One that lacks a row that it should hold is found out, and mended.
    with filled.catalog.write() as conn:
        conn.execute(update(Generation).where(Generation.id == made.id).values(row_end=N + NEW + 9))
        grow_by = {"space_id": filled.space.id, "image_id": filled.base + 3, "row": 3}
        conn.execute(Vector.__table__.insert().values(grow_by | {"image_id": image_of(conn)}))
    [problem] = [each.what for each in check(filled.catalog, deep=True) if "lacks" in each.what]
    assert "lacks 1 rows" in problem


def image_of(conn):
    """Return a new image's id."""
    from storage.tables import Image

    image = {"id": 77, "digest": bytes(32), "size_bytes": 1, "first_seen_at": 0.0}
    conn.execute(Image.__table__.insert().values(image))
    return 77


class TestStopped:
    """Wherever it ends, the former index serves and nothing is left but an orphan."""

    def test_at_every_look_whether_to_go_on(self, filled, lease):
        catalog, space = filled.catalog, filled.space
        before = publish(catalog, lease, space, "IVF16,SQ8")
        for seed in range(3):
            grow(filled, 100, seed)
        files = sorted(os.listdir(folder_of(filled)))

        def ended_at(last):
            calls = 0

            def look():
                nonlocal calls
                calls += 1
                if calls > last:
                    raise Stop

            publish(catalog, lease, space, check=look)
            return calls

        for last in range(100):
            try:
                assert ended_at(last) == last
            except Stop:
                assert snapshot(catalog, space).generation == before
                assert sorted(os.listdir(folder_of(filled))) == files
            else:
                break
        assert last > 1 + 3 + 3  # the index, each part to be added, each to be compared
        assert snapshot(catalog, space).generation.n == before.n + 3 * 99

    def test_without_a_lease(self, filled):
        catalog, space = filled.catalog, filled.space
        before = publish(catalog, start_run(catalog, "index"), space)
        grow(filled)
        run = start_run(catalog, "index")
        ends = iter([run])

        def look():
            for ended in ends:
                finish_run(catalog, ended, "done")

        with pytest.raises(LeaseLost):
            publish(catalog, run, space, check=look)
        assert snapshot(catalog, space).generation == before
        assert len(orphans(catalog, space)) == 2
        assert recall(found(filled, filled.x[-50:]), everyone(filled)) >= 0.99  # by the tail

    def test_by_a_newer_part_that_is_missing(self, filled, lease):
        catalog, space = filled.catalog, filled.space
        before = publish(catalog, lease, space)
        grow(filled)
        newer = snapshot(catalog, space).parts[-1:]
        os.unlink(filled.store.path(newer[0].name))
        with pytest.raises(PartError, match="missing"):
            publish(catalog, lease, space)
        assert snapshot(catalog, space).generation == before


def everyone(filled):
    entered = np.setdiff1d(np.arange(len(filled.x)), [3, 4, N + 1])
    return nearest(filled.x, filled.x[-50:], K, entered)


def test_what_was_measured_at_the_training_goes_on_counting(filled, lease):
    catalog, space = filled.catalog, filled.space
    publish(catalog, lease, space)
    with catalog.write() as conn:
        poor = RecallInfo("before", "SQ8", N - 2, 10, 100, 0.5, 0.0)
        conn.execute(delete(Recall))
        record(conn, space.id, poor)
    grow(filled)
    _, anew = built_anew(filled, lease)
    assert not anew
    assert series(catalog, space) == [poor]
    assert "finds 50.0 %" in fallen(catalog, space)
    with catalog.write() as conn:
        withdraw(conn, space.id, 1.0)
    assert fallen(catalog, space) is None
