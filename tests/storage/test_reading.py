import os
import weakref
from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy import delete, update

from storage import rows as reading
from storage.dead import entered_rows, live_rows, rows_at
from storage.errors import IndexFileError, PartError, SpaceError
from storage.reading import Rows, again_if_missing, snapshot
from storage.tables import File, Part, Space
from tests.storage.filled import Filled, clustered, local_catalog, root_of

D = 16


@pytest.fixture
def filled(sqlite_template, tmp_path):
    with local_catalog(sqlite_template, tmp_path) as catalog:
        yield with_parts(catalog)


@pytest.fixture
def filled_anywhere(catalog):
    return with_parts(catalog)


def with_parts(catalog):
    """Rows 0 to 29 in two parts, 7 dead from birth, and 30 to 40 in a part with a sidecar."""
    space = Filled(catalog, D)
    space.add(clustered(12, D, seed=1), duplicates=(7,), folder="a/")
    space.add(clustered(18, D, seed=2), folder="a b/")
    space.add(clustered(4, D, seed=3), offsets=np.array([0, 1, 5, 10]))
    return space


def test_snapshot_sees_live_parts_in_order(filled_anywhere):
    filled = filled_anywhere
    with filled.catalog.write() as conn:
        conn.execute(update(Part).where(Part.row_start == 12).values(state="replaced"))
    view = snapshot(filled.catalog, filled.space)
    assert [(part.row_start, part.row_end, part.n) for part in view.parts] == [
        (0, 12, 12),
        (30, 41, 4),
    ]
    assert (view.n, view.next_row, view.generation) == (16, 41, None)


def test_snapshot_of_a_dropped_space(filled):
    with filled.catalog.write() as conn:
        conn.execute(delete(Space))
    with pytest.raises(SpaceError, match="is gone"):
        snapshot(filled.catalog, filled.space)


def test_what_is_alive(filled_anywhere):
    filled = filled_anywhere
    filled.set_state([3, 20, 35], "missing")
    filled.set_state([4], "excluded")
    space_id = filled.space.id
    present = list(present_vectors(filled))
    with filled.catalog.read() as conn:
        entered = entered_rows(conn, space_id)
        live = entered_rows(conn, space_id, live=True)
        np.testing.assert_array_equal(entered, np.setdiff1d(present, [7]))
        np.testing.assert_array_equal(live, np.setdiff1d(present, [3, 4, 7, 20, 35]))
        np.testing.assert_array_equal(entered_rows(conn, space_id, below=3), [0, 1, 2])
        found = live_rows(conn, space_id, range(2000))
    assert found == {int(row): 1000 + int(row) for row in live}


def test_an_image_lives_by_any_of_its_files(filled_anywhere):
    filled = filled_anywhere
    filled.set_state([3], "missing")
    with filled.catalog.write() as conn:
        conn.execute(update(File).where(File.image_id == 1004).values(image_id=1003))
        assert live_rows(conn, filled.space.id, [3, 4]) == {3: 1003}


def test_rows_at_a_path_are_a_range_of_bytes(filled_anywhere):
    filled = filled_anywhere
    filled.set_state([5], "missing")
    with filled.catalog.read() as conn:

        def under(path):
            return rows_at(conn, filled.space.id, root_of(filled) + b"/" + path).tolist()

        first = [row for row in range(12) if row not in (5, 7)]
        assert under(b"a") == first  # and not "a b"
        assert under(b"a b") == list(range(12, 30))
        assert under(b"a/0000003.jpg") == [3]
        assert under(b"") == [*first, *range(12, 30), 30, 31, 35, 40]
        assert under(b"nowhere") == []
        assert rows_at(conn, filled.space.id + 1, root_of(filled)).tolist() == []


def rows_of(filled) -> Rows:
    return Rows(filled.store, snapshot(filled.catalog, filled.space).parts)


def present_vectors(filled) -> dict[int, np.ndarray]:
    return dict(zip([*range(30), 30, 31, 35, 40], filled.x, strict=True))


@pytest.mark.parametrize("wanted", [[], [0], [40, 3, 3, 29, 12, 11, 35], list(range(30))])
def test_gather_keeps_the_order_asked_for(filled, wanted):
    got = rows_of(filled).gather(wanted)
    assert got.dtype == np.float32
    truth = present_vectors(filled)
    np.testing.assert_array_equal(got, np.array([truth[row] for row in wanted]).reshape(-1, D))


@pytest.mark.parametrize("row", [-1, 32, 36, 41])
def test_a_row_without_a_vector_is_an_error(filled, row):
    rows = rows_of(filled)
    with pytest.raises(PartError, match=f"no part holds row {row}"):
        rows.gather([row])
    with pytest.raises(PartError, match=f"no part holds row {row}"):
        list(rows.blocks(row_start=-5, rows=np.array([row])))


@pytest.mark.parametrize(("start", "end"), [(0, None), (5, 31), (12, 30), (29, 36), (41, None)])
@pytest.mark.parametrize("most", [3, 10, 65_536])
def test_blocks_are_the_range_in_order(filled, monkeypatch, start, end, most):
    monkeypatch.setattr(reading, "BLOCK_ROWS", most)
    blocks = list(rows_of(filled).blocks(start, end))
    truth = {
        row: x
        for row, x in present_vectors(filled).items()
        if start <= row and (end is None or row < end)
    }
    assert all(len(rows) <= most and x.dtype == np.float32 for rows, x in blocks)
    assert [row for rows, _ in blocks for row in rows.tolist()] == list(truth)
    for rows, x in blocks:
        np.testing.assert_array_equal(x, [truth[row] for row in rows.tolist()])


@pytest.mark.parametrize("wanted", [[], [2, 3, 4, 17], [0, 11, 12, 30, 35, 40], [40]])
@pytest.mark.parametrize("most", [2, 65_536])
def test_blocks_of_some_rows(filled, monkeypatch, wanted, most):
    monkeypatch.setattr(reading, "BLOCK_ROWS", most)
    truth = present_vectors(filled)
    blocks = list(rows_of(filled).blocks(3, rows=np.array(wanted, np.int64)))
    assert [row for rows, _ in blocks for row in rows.tolist()] == [r for r in wanted if r >= 3]
    for rows, x in blocks:
        assert len(rows) <= most
        np.testing.assert_array_equal(x, [truth[row] for row in rows.tolist()])


def test_a_dense_float32_block_is_the_map_itself(filled):
    rows = rows_of(filled)
    _, whole = next(rows.blocks())
    _, some = next(rows.blocks(rows=np.arange(2, 9)))
    assert np.shares_memory(whole, some)


def test_a_block_is_bounded_in_bytes(filled, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK_BYTES", 5 * 4 * D)
    assert max(len(rows) for rows, _ in rows_of(filled).blocks()) == 5


def test_float16_is_read_as_float32(filled):
    filled = Filled(filled.catalog, D, dtype="float16", folder="16")
    filled.add(clustered(20, D))
    rows = rows_of(filled)
    rounded = filled.x.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(rows.gather(np.arange(20)), rounded)
    np.testing.assert_array_equal(next(rows.blocks())[1], rounded)


def test_no_parts_no_rows(filled):
    rows = Rows(filled.store, [])
    assert list(rows.blocks()) == []
    assert rows.gather([]).shape == (0, D)
    with pytest.raises(PartError, match="no part holds row 0"):
        rows.gather([0])


def test_few_parts_stay_open(filled, monkeypatch):
    monkeypatch.setattr(reading, "OPEN_PARTS", 2)
    rows = rows_of(filled)
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate([x for _, x in rows.blocks()]), filled.x)
    assert len(rows._open) == 2


def test_a_missing_part_is_tried_once_more(filled):
    views = []

    def attempt():
        views.append(snapshot(filled.catalog, filled.space))
        if len(views) == 1:
            # Compaction came between: the files that the first view names are gone.
            os.rename(filled.store.path(part.name), filled.store.path(f"{part.name}-2"))
            os.rename(filled.store.path(part.name, ".ids"), filled.store.path("x", ".ids"))
            with filled.catalog.write() as conn:
                named = update(Part).where(Part.id == part.id)
                conn.execute(named.values(name=f"{part.name}-2"))
        return Rows(filled.store, views[-1].parts).gather([0])

    part = snapshot(filled.catalog, filled.space).parts[0]
    np.testing.assert_array_equal(again_if_missing(attempt), filled.x[:1])
    assert len(views) == 2


def test_other_trouble_is_not_tried_again(filled):
    parts = snapshot(filled.catalog, filled.space).parts
    tries = []

    def wrong_size():
        tries.append(1)
        return Rows(filled.store, [replace(parts[0], size_bytes=1)]).gather([0])

    with pytest.raises(PartError, match="instead of 1"):
        again_if_missing(wrong_size)
    assert len(tries) == 1

    def missing():
        tries.append(1)
        raise IndexFileError("gone") from FileNotFoundError()

    with pytest.raises(IndexFileError, match="gone"):
        again_if_missing(missing)
    assert len(tries) == 3


def test_few_rows_of_many_parts_open_few_of_them_at_once(filled, monkeypatch):
    start = filled.next_row()
    for seed in range(8):
        filled.add(clustered(4, D, seed=10 + seed))
    parts = snapshot(filled.catalog, filled.space).parts
    monkeypatch.setattr(reading, "OPEN_PARTS", 2)
    some = Rows(filled.store, parts)
    held = []

    def counted(number, part=some._part):
        opened = part(number)
        held.append(weakref.ref(opened.x))
        assert sum(one() is not None for one in held) <= 3, "two are kept, one is being copied"
        return opened

    monkeypatch.setattr(some, "_part", counted)
    places = np.array([29, 1, 17, 9, 5, 25, 13, 21])
    x, there = some.gather_some(start + places)
    assert there.all()
    assert np.array_equal(x, filled.x[-32:][places])
    assert len(held) == 8
