import numpy as np
import pytest
from sqlalchemy import bindparam, delete, select, text, update

from storage.dead import _live_rows, live_rows
from storage.errors import PartError
from storage.prepared import Prepared, _compiled
from storage.ranking import Line, best_first, find_living
from storage.reading import Rows, Watched, snapshot
from storage.tables import Part, Root, Vector
from tests.storage.filled import Filled, clustered, local_catalog

D = 16


@pytest.fixture
def filled(sqlite_template, tmp_path):
    """Rows 0 to 49 in a dense part, 50 to 58 in one that leaves rows out."""
    with local_catalog(sqlite_template, tmp_path) as catalog:
        filled = Filled(catalog, D)
        filled.add(clustered(50, D))
        filled.add(clustered(4, D, seed=3), offsets=np.array([0, 2, 3, 8]))
        yield filled


def rows_of(filled) -> Rows:
    return Rows(filled.store, snapshot(filled.catalog, filled.space).parts)


def nobody(rows):
    return {}


def everybody(rows):
    return {row: 1000 + row for row in rows}


def test_the_nearest_come_first_and_each_once(filled):
    q = filled.x[7]
    truth = filled.x[:50].astype(np.float64) @ q
    rows, scores = best_first(rows_of(filled), np.array([7, 3, 49, 7, 3, 12]), q, nobody)
    assert rows.tolist() == sorted({7, 3, 49, 12}, key=lambda row: -truth[row])
    np.testing.assert_allclose(scores, truth[rows], atol=1e-6)
    assert len(best_first(rows_of(filled), np.empty(0, np.int64), q, nobody)[0]) == 0


def test_dead_rows_that_no_part_holds_are_left_out_and_live_ones_are_damage(filled):
    gone = np.array([4, 51, 57, 59, -1, 52])
    rows, _ = best_first(rows_of(filled), gone, filled.x[0], nobody)
    assert sorted(rows.tolist()) == [4, 52]
    with pytest.raises(PartError, match="no part holds row"):
        best_first(rows_of(filled), gone, filled.x[0], everybody)


@pytest.mark.parametrize("value", [1e38, np.inf, np.nan, 1.5])
def test_a_damaged_vector_is_told_of_only_where_its_image_lives(filled, value):
    part = snapshot(filled.catalog, filled.space).parts[0]
    x = np.load(filled.store.path(part.name), mmap_mode="r+")
    x[5, 2] = value
    x.flush()
    rows, _ = best_first(rows_of(filled), np.arange(10), filled.x[0], nobody)
    assert sorted(rows.tolist()) == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    with pytest.raises(PartError, match="row 5 is damaged"):
        best_first(rows_of(filled), np.arange(10), filled.x[0], everybody)


def test_only_as_many_are_asked_for_as_are_needed():
    asked = []

    def living(rows):
        asked.append(sorted(rows))
        return {row: 100 + row for row in rows if row not in (0, 2)}

    scores = -np.arange(200, dtype=np.float32)
    first = Line(np.arange(200), scores, 200, 3, frozenset())
    other = Line(np.arange(100, 103), scores[:3], 3, 5, frozenset({101 + 100}))
    find_living([first, other], living)
    assert [hit.row for hit in first.hits] == [1, 3, 4, 5, 6, 7, 8, 9, 10][: len(first.hits)]
    assert len(first.hits) >= 3
    assert [(hit.row, hit.image_id) for hit in other.hits] == [(100, 200), (102, 202)]
    assert asked[0] == [0, 1, 2, 100, 101, 102]
    assert len(asked) == 2
    assert max(asked[1]) < 100


def test_rows_are_looked_up_by_their_index_and_not_by_reading_the_space(catalog):
    filled = Filled(catalog, D)
    filled.add(clustered(30, D))
    with catalog.read() as conn:
        assert live_rows(conn, filled.space.id, range(5, 400)) == {
            row: 1000 + row for row in range(5, 30)
        }
        if catalog.dialect == "sqlite":
            sql, order, _ = _compiled(_live_rows("sqlite"), conn.dialect)
            plan = conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", tuple("1" for _ in order))
            assert "(space_id=? AND row=?)" in " ".join(row[-1] for row in plan)


def test_a_prepared_statement_takes_values_by_name(catalog):
    filled = Filled(catalog, D)
    filled.add(clustered(5, D))
    statement = Prepared(
        lambda _: select(Vector.row).where(
            Vector.image_id > bindparam("least"), Vector.row < 4, Vector.space_id == bindparam("at")
        )
    )
    with catalog.read() as conn:
        for least, rows in ((1001, [2, 3]), (1000, [1, 2, 3])):
            found = statement.rows(conn, at=filled.space.id, least=least)
            assert sorted(row for (row,) in found) == rows


def test_a_watched_space_is_read_anew_only_where_it_changed(catalog, open_catalog):
    filled = Filled(catalog, D)
    filled.add(clustered(20, D))
    other = open_catalog()
    watched = Watched(filled.space)

    def seen():
        with other.read() as conn:
            return watched.snapshot_in(conn)

    first = seen()
    assert seen() is first
    with catalog.write() as conn:  # nothing of the space
        conn.execute(update(Root).values(display="another"))
    assert seen() is first
    filled.add(clustered(10, D, seed=2))  # by another connection
    second = seen()
    assert (len(second.parts), second.n, second.next_row) == (2, 30, 30)
    assert second == snapshot(catalog, filled.space)
    with catalog.write() as conn:  # as compaction does it: one is replaced by another
        part = second.parts[0]
        conn.execute(update(Part).where(Part.id == part.id).values(state="replaced"))
        conn.execute(
            text(
                "INSERT INTO parts (space_id, name, state, row_start, row_end, n, size_bytes,"
                " checksum, ids_checksum, run_id, facts, created_at) SELECT space_id, 'new',"
                " 'live', row_start, row_end, n, size_bytes, checksum, ids_checksum, run_id,"
                f" facts, created_at FROM parts WHERE id = {part.id}"
            )
        )
    third = seen()
    assert [part.name for part in third.parts] == ["new", second.parts[1].name]
    with catalog.write() as conn:
        conn.execute(delete(Part).where(Part.name == "new"))
    assert [part.name for part in seen().parts] == [second.parts[1].name]
