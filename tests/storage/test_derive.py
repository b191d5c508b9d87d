"""A space that is filled from another one's vectors, on both databases."""

import numpy as np
import pytest
from sqlalchemy import delete, func, select

from storage import derive as deriving
from storage.derive import count_lacking, derive
from storage.errors import LeaseLost, PartError
from storage.leases import finish_run
from storage.reading import Rows, open_store, snapshot
from storage.spaces import ensure_space
from storage.tables import File, Image, Part, Space, Vector
from tests.storage.filled import Filled, clustered

TURN = np.linalg.qr(np.random.default_rng(5).standard_normal((8, 8)))[0][:, :3]


def turned(x):
    out = x.astype(np.float64) @ TURN
    return (out / np.linalg.norm(out, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def filled(catalog):
    """Return a space of two parts: 20 vectors, of which rows 3 and 15 are no image's."""
    filled = Filled(catalog, 8)
    filled.add(clustered(12, 8), duplicates=(3,))
    filled.add(clustered(8, 8, seed=1), duplicates=(3,))
    return filled


@pytest.fixture
def target(catalog, filled):
    spec = {**filled.space.spec, "dim": 3, "whitening": "x"}
    return ensure_space(catalog, name="turned", spec=spec, request=filled.space.request, key="t")


def held(catalog, space):
    """Return digest -> vector of a space."""
    view = snapshot(catalog, space)
    query = select(Image.digest, Vector.row).join(Vector, Vector.image_id == Image.id)
    with catalog.read() as conn:
        rows = conn.execute(query.where(Vector.space_id == space.id)).all()
    x = Rows(open_store(catalog, space), view.parts).gather([row for _, row in rows])
    return {digest: vector for (digest, _), vector in zip(rows, x, strict=True)}


def assert_turned(catalog, filled, target, n):
    """Hold each vector against that of its image, which the digests in the parts name too."""
    base, found = held(catalog, filled.space), held(catalog, target)
    assert found.keys() <= base.keys()
    assert len(found) == n
    for digest, vector in found.items():
        np.testing.assert_array_equal(vector, turned(base[digest][None])[0])
    view, store = snapshot(catalog, target), open_store(catalog, target)
    written = [bytes(d) for part in view.parts for d in store.digests(part)]
    assert set(written) >= found.keys()


def test_each_image_gets_its_vector_turned(catalog, lease, filled, target):
    filled.set_state([5], "missing")  # it may come back, and then costs nothing here either
    assert count_lacking(catalog, filled.space, target) == 18
    chunks = list(derive(catalog, lease, filled.space, target, turned))
    assert [(chunk.rows, chunk.entered) for chunk in chunks] == [(18, 18)]
    assert_turned(catalog, filled, target, 18)
    with catalog.read() as conn:
        part = conn.execute(select(Part).where(Part.space_id == target.id)).one()
        next_row = conn.execute(select(Space.next_row).filter_by(id=target.id)).scalar_one()
    assert (part.run_id, part.row_start, part.row_end, next_row) == (lease.run_id, 0, 18, 18)
    assert part.facts == {"derived_from": filled.space.fingerprint}
    assert list(derive(catalog, lease, filled.space, target, turned)) == []


def test_what_was_committed_before_a_break_is_not_done_again(
    catalog, lease, filled, target, monkeypatch
):
    monkeypatch.setattr(deriving, "CHUNK_ROWS", 5)
    for chunk in derive(catalog, lease, filled.space, target, turned):
        assert chunk.entered == 5
        break
    first = held(catalog, target)
    assert (len(first), count_lacking(catalog, filled.space, target)) == (5, 13)
    chunks = list(derive(catalog, lease, filled.space, target, turned))
    assert [chunk.entered for chunk in chunks] == [5, 5, 3]
    assert_turned(catalog, filled, target, 18)
    filled.add(clustered(4, 8, seed=2))
    assert [chunk.entered for chunk in derive(catalog, lease, filled.space, target, turned)] == [4]
    assert_turned(catalog, filled, target, 22)


def test_vectors_that_came_meanwhile_and_images_that_went_are_left_alone(
    catalog, lease, filled, target
):
    """While a chunk is computed, another run enters one of its images, and one is forgotten."""
    with catalog.read() as conn:
        query = select(Image.id).join(Vector).where(Vector.space_id == filled.space.id)
        ids = conn.execute(query.order_by(Vector.row)).scalars().all()

    def meanwhile(x):
        with catalog.write() as conn:
            conn.execute(
                Vector.__table__.insert().values(space_id=target.id, image_id=ids[0], row=0)
            )
            conn.execute(Space.__table__.update().filter_by(id=target.id).values(next_row=1))
            for table, column in ((Vector, Vector.image_id), (File, File.image_id)):
                conn.execute(delete(table).where(column == ids[1]))
            conn.execute(delete(Image).where(Image.id == ids[1]))
        return turned(x)

    chunks = list(derive(catalog, lease, filled.space, target, meanwhile))
    assert [(chunk.rows, chunk.entered) for chunk in chunks] == [(18, 16)]
    with catalog.read() as conn:
        rows = dict(
            conn.execute(select(Vector.image_id, Vector.row).where(Vector.space_id == target.id))
            .tuples()
            .all()
        )
    assert rows == {ids[0]: 0} | {image: at for at, image in enumerate(ids[2:], 3)}


def test_a_vector_without_direction_waits_and_the_others_do_not(catalog, lease, filled, target):
    def but_one(x):
        out = turned(x)
        out[4] = np.nan
        return out

    [chunk] = derive(catalog, lease, filled.space, target, but_one)
    assert (chunk.rows, chunk.entered) == (18, 17)
    assert count_lacking(catalog, filled.space, target) == 1
    assert_turned(catalog, filled, target, 17)

    def none(x):
        return np.full((len(x), 3), np.nan, np.float32)

    [chunk] = derive(catalog, lease, filled.space, target, none)
    assert (chunk.rows, chunk.entered) == (1, 0)


def test_damage_is_not_copied(catalog, lease, filled, target):
    [part, _] = snapshot(catalog, filled.space).parts
    path = filled.store.path(part.name)
    with open(path, "r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x00\x00\x00\x3f")
    with pytest.raises(PartError, match="checksum"):
        list(derive(catalog, lease, filled.space, target, turned))
    assert held(catalog, target) == {}


def test_a_run_that_was_declared_dead_enters_nothing(catalog, lease, filled, target):
    finish_run(catalog, lease, "done")
    with pytest.raises(LeaseLost):
        list(derive(catalog, lease, filled.space, target, turned))
    with catalog.read() as conn:
        count = select(func.count()).where(Vector.space_id == target.id)
        assert conn.execute(count).scalar_one() == 0
