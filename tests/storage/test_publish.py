import os

import numpy as np
import pytest
from sqlalchemy import delete, func, insert, select, update

from storage.durable import file_checksum
from storage.errors import IndexFileError, LeaseHeld, LeaseLost, PartError, SpaceError
from storage.generation import load_generation
from storage.leases import finish_run, start_run
from storage.npy import write_npy
from storage.publish import publish, publish_due, withdraw
from storage.reading import generation_paths, snapshot
from storage.runs import claim
from storage.tables import Claim, Generation, Vector
from tests.storage.filled import Filled, clustered

D = 16


@pytest.fixture
def filled(catalog):
    """100 rows of which 3 and 4 are dead from birth."""
    space = Filled(catalog, D)
    space.add(clustered(100, D), duplicates=(3, 4))
    return space


def folder_of(filled) -> str:
    return filled.catalog.home.index_dir(filled.space.fingerprint)


def loaded(filled, generation):
    return load_generation(folder_of(filled), generation, D)


def test_publishes_every_row_that_is_an_images_vector(filled, lease):
    filled.set_state([10], "missing")  # may come back, and must then be found
    made = publish(filled.catalog, lease, filled.space)
    view = snapshot(filled.catalog, filled.space)
    assert view.generation == made
    assert (made.row_end, made.n, made.factory) == (100, 98, "SQ8")
    found = loaded(filled, made)
    np.testing.assert_array_equal(found.rowmap, np.setdiff1d(np.arange(100), [3, 4]))
    assert (found.index.ntotal, found.index.d) == (98, D)
    path, rowmap_path = generation_paths(folder_of(filled), made.name)
    assert made.name.startswith(lease.run_id)
    assert (os.path.getsize(path), file_checksum(path)) == (made.size_bytes, made.checksum)
    assert file_checksum(rowmap_path) == made.rowmap_checksum
    assert np.load(rowmap_path, allow_pickle=False).dtype == np.int64


def test_the_former_generation_is_replaced_and_its_files_stay(filled, lease):
    first = publish(filled.catalog, lease, filled.space)
    filled.add(clustered(20, D, seed=5))
    second = publish(filled.catalog, lease, filled.space, "Flat")
    assert (second.row_end, second.n, second.factory) == (120, 118, "Flat")
    assert snapshot(filled.catalog, filled.space).generation == second
    with filled.catalog.read() as conn:
        states = conn.execute(
            select(Generation.id, Generation.state, Generation.replaced_at).order_by(Generation.id)
        ).all()
    assert [(row.id, row.state) for row in states] == [(first.id, "replaced"), (second.id, "live")]
    assert states[0].replaced_at > 0
    assert states[1].replaced_at is None
    assert loaded(filled, first).index.ntotal == 98
    assert len(os.listdir(folder_of(filled))) == 4


def test_due(filled, lease):
    catalog, space = filled.catalog, filled.space
    assert publish_due(catalog, space) == "first"
    publish(catalog, lease, space)
    assert publish_due(catalog, space) is None
    filled.add(clustered(4, D, seed=1))  # of 98
    assert publish_due(catalog, space) is None
    filled.add(clustered(1, D, seed=2))
    assert publish_due(catalog, space) == "tail"
    publish(catalog, lease, space)
    forget(filled, 10)  # of 103
    assert publish_due(catalog, space) is None
    forget(filled, 12)
    assert publish_due(catalog, space) == "dead"
    publish(catalog, lease, space)
    assert publish_due(catalog, space) is None


def forget(filled, below):
    with filled.catalog.write() as conn:
        conn.execute(delete(Vector).where(Vector.row < below + 2))  # 3 and 4 have no entry


def test_a_tail_of_4096_is_enough_for_any_space(filled, lease):
    publish(filled.catalog, lease, filled.space)
    with filled.catalog.write() as conn:
        conn.execute(update(Generation).values(n=1_000_000))
        conn.execute(delete(Vector))
    filled.add(clustered(4096, D, clusters=9), duplicates=tuple(range(4096))[1:])
    assert publish_due(filled.catalog, filled.space) == "dead"
    filled.add(clustered(1, D))
    assert publish_due(filled.catalog, filled.space) == "tail"


def test_an_empty_space_has_nothing_to_publish(catalog, space, lease):
    assert publish_due(catalog, space) is None
    with pytest.raises(SpaceError, match="no vectors yet"):
        publish(catalog, lease, space)
    assert claims(catalog) == 0


def test_a_space_whose_rows_are_all_gone_is_not_published(filled, lease):
    publish(filled.catalog, lease, filled.space)
    with filled.catalog.write() as conn:
        conn.execute(delete(Vector))
    assert publish_due(filled.catalog, filled.space) is None  # with an index that still counts
    with filled.catalog.write() as conn:
        withdraw(conn, filled.space.id, 1.0)
    assert snapshot(filled.catalog, filled.space).generation is None
    assert publish_due(filled.catalog, filled.space) is None  # with parts of dead rows alone


def claims(catalog):
    with catalog.read() as conn:
        return conn.execute(select(func.count()).select_from(Claim)).scalar_one()


def test_one_run_at_a_time(filled, lease):
    other = start_run(filled.catalog, "compact")
    claim(filled.catalog, other, "space", filled.space.id, filled.space.id)
    with pytest.raises(LeaseHeld, match=other.run_id):
        publish(filled.catalog, lease, filled.space)
    finish_run(filled.catalog, other, "done")
    publish(filled.catalog, lease, filled.space)
    assert claims(filled.catalog) == 0


def test_a_run_without_a_lease_publishes_nothing(filled, lease):
    finish_run(filled.catalog, lease, "done")
    with pytest.raises(LeaseLost):
        publish(filled.catalog, lease, filled.space)
    assert snapshot(filled.catalog, filled.space).generation is None


@pytest.mark.parametrize(
    ("factory", "why"),
    [
        ("IDMap,Flat", "has an IDMap; leave it out, rows have a map of their own"),
        (
            "Nonsense",
            "is not known to FAISS for dimension 16: could not parse index string Nonsense",
        ),
        (
            "IVF99,Flat",
            "can't be trained with 98 vectors: Number of training points (98) should be at least as"
            " large as number of clusters (99)",
        ),
        (
            "PCA99,Flat",
            "can't be trained with 98 vectors: PCA matrix cannot output 99 dimensions from 16",
        ),
    ],
)
def test_a_spec_that_can_not_be_built_changes_nothing(filled, lease, factory, why):
    before = publish(filled.catalog, lease, filled.space)
    with pytest.raises(SpaceError) as caught:
        publish(filled.catalog, lease, filled.space, factory)
    # Nothing of FAISS's source: it says no one what to do.
    assert str(caught.value) == f"the index spec {factory!r} {why}"
    assert snapshot(filled.catalog, filled.space).generation == before
    assert claims(filled.catalog) == 0


def test_a_missing_part_changes_nothing(filled, lease):
    before = publish(filled.catalog, lease, filled.space)
    os.unlink(filled.store.path(snapshot(filled.catalog, filled.space).parts[0].name))
    with pytest.raises(PartError, match="missing"):
        publish(filled.catalog, lease, filled.space)
    assert snapshot(filled.catalog, filled.space).generation == before


def test_a_generation_without_its_rowmap(filled, lease):
    made = publish(filled.catalog, lease, filled.space)
    os.unlink(generation_paths(folder_of(filled), made.name)[1])
    with pytest.raises(IndexFileError, match="missing") as caught:
        loaded(filled, made)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "the catalog says"),
        (lambda rows: rows[::-1], "checksum"),
        (lambda rows: rows + 1, "checksum"),
    ],
)
def test_a_rowmap_that_is_not_the_published_one(filled, lease, change, message):
    made = publish(filled.catalog, lease, filled.space)
    path = generation_paths(folder_of(filled), made.name)[1]
    write_npy(path, change(np.load(path)))
    with pytest.raises(IndexFileError, match=message):
        loaded(filled, made)


def test_a_rowmap_with_rows_that_it_must_not_have(filled, lease):
    made = publish(filled.catalog, lease, filled.space)
    path = generation_paths(folder_of(filled), made.name)[1]
    checksum = write_npy(path, np.load(path) + 1).checksum
    with filled.catalog.write() as conn:
        conn.execute(update(Generation).values(rowmap_checksum=checksum))
    with pytest.raises(IndexFileError, match="does not ascend below row 100"):
        loaded(filled, snapshot(filled.catalog, filled.space).generation)


def test_a_commit_meanwhile_is_the_tail(filled, lease):
    # What another run commits while the index is built comes after the rows that it covers.
    built = publish(filled.catalog, lease, filled.space)
    filled.add(clustered(3, D, seed=7))
    view = snapshot(filled.catalog, filled.space)
    assert (built.row_end, view.next_row) == (100, 103)
    assert loaded(filled, built).rowmap.max() < built.row_end


def test_generations_of_another_space_stay(filled, lease):
    mine = publish(filled.catalog, lease, filled.space)
    other = Filled(filled.catalog, D, "float16", folder="16")
    other.add(clustered(30, D))
    with filled.catalog.write() as conn:
        conn.execute(insert(Vector).values(space_id=other.space.id, image_id=1010, row=1000))
    made = publish(filled.catalog, lease, other.space)
    assert made.n == 30
    assert snapshot(filled.catalog, filled.space).generation == mine
    assert snapshot(filled.catalog, other.space).generation == made


class TestAskedFor:
    """A kind of index that somebody asked for is kept."""

    def test_later_publishing_keeps_to_it_until_it_may_choose_again(self, filled, lease):
        catalog, space = filled.catalog, filled.space
        assert publish(catalog, lease, space).requested is False
        asked = publish(catalog, lease, space, "IVF2,Flat")
        assert (asked.factory, asked.requested) == ("IVF2,Flat", True)
        filled.add(clustered(20, D, seed=5))
        later = publish(catalog, lease, space)
        assert (later.factory, later.requested, later.n) == ("IVF2,Flat", True, 118)
        assert later.parameters == asked.parameters
        assert snapshot(catalog, space).generation == later
        chosen = publish(catalog, lease, space, "auto")
        assert (chosen.factory, chosen.requested) == ("SQ8", False)
        assert publish(catalog, lease, space).factory == "SQ8"

    def test_it_is_kept_where_the_index_was_withdrawn_meanwhile(self, filled, lease):
        publish(filled.catalog, lease, filled.space, "Flat")
        with filled.catalog.write() as conn:
            withdraw(conn, filled.space.id, 1.0)
        made = publish(filled.catalog, lease, filled.space)
        assert (made.factory, made.requested) == ("Flat", True)

    def test_another_spaces_wish_is_its_own(self, filled, lease):
        publish(filled.catalog, lease, filled.space, "Flat")
        other = Filled(filled.catalog, D, "float16", folder="16")
        other.add(clustered(30, D))
        assert publish(filled.catalog, lease, other.space).factory == "SQ8"

    def test_where_too_few_vectors_are_left_for_it_one_is_chosen(self, filled, lease):
        publish(filled.catalog, lease, filled.space, "IVF90,Flat")
        forget(filled, 50)
        assert publish_due(filled.catalog, filled.space) == "dead"
        made = publish(filled.catalog, lease, filled.space)
        assert (made.factory, made.requested, made.n) == ("SQ8", False, 48)
        with pytest.raises(SpaceError, match="can't be trained with 48 vectors"):
            publish(filled.catalog, lease, filled.space, "IVF90,Flat")

    def test_a_kind_for_another_number_of_vectors_is_outgrown(self, filled, lease):
        catalog, space = filled.catalog, filled.space
        publish(catalog, lease, space)
        assert publish_due(catalog, space, retrain=True) is None
        with catalog.write() as conn:
            conn.execute(update(Generation).values(factory="HNSW32,SQ8"))
        assert publish_due(catalog, space) is None
        assert publish_due(catalog, space, retrain=True) == "outgrown"
        publish(catalog, lease, space)
        assert publish_due(catalog, space, retrain=True) is None
        publish(catalog, lease, space, "HNSW32,SQ8")  # of the same kind, but asked for
        assert publish_due(catalog, space, retrain=True) is None
