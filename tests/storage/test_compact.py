import hashlib
import os

import numpy as np
import pytest
from sqlalchemy import delete, func, insert, select, update

import storage.compact
from storage.check import check
from storage.cleanup import delete_old_files, orphans
from storage.compact import SMALL_ROWS, compact
from storage.dead import entered_rows, live_rows
from storage.errors import LeaseHeld, LeaseLost, PartError
from storage.leases import finish_run, start_run
from storage.lookup import Lookup
from storage.publish import publish, publish_due
from storage.reading import Rows, open_store, snapshot
from storage.runs import claim
from storage.tables import Failure, File, Image, Part, Vector
from storage.vectors import VectorStore
from tests.storage.filled import Filled, clustered, local_catalog

D = 16


@pytest.fixture
def filled(catalog):
    return Filled(catalog, D)


@pytest.fixture
def lease(catalog):
    return start_run(catalog, "compact")


def vectors(filled):
    """Return row -> vector as a reader finds them."""
    view = snapshot(filled.catalog, filled.space)
    rows = Rows(open_store(filled.catalog, filled.space), view.parts)
    return {int(r): x for block, some in rows.blocks() for r, x in zip(block, some, strict=True)}


def test_small_neighbours_are_merged_and_rows_keep_their_vectors(filled, lease):
    for seed in range(5):
        filled.add(clustered(20, D, seed=seed))
    before = vectors(filled)
    result = compact(filled.catalog, lease, filled.space)
    assert (result.parts_before, result.parts_after, result.rows_dropped) == (5, 1, 0)
    after = vectors(filled)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[row], after[row]) for row in before)
    again = compact(filled.catalog, lease, filled.space)
    assert (again.parts_before, again.parts_after) == (1, 1)


@pytest.mark.parametrize(
    ("parts", "due"),
    [
        (["float32", "float32"], "float32"),
        (["float16", "float32", "float16"], "float16, float32"),
        (["float32", None], "float32, unknown"),
    ],
)
def test_a_merged_part_says_how_precisely_its_vectors_were_computed(filled, lease, parts, due):
    def found():
        with filled.catalog.read() as conn:
            query = select(Part.facts).where(Part.state == "live")
            return [facts["precision"] for facts in conn.execute(query).scalars()]

    for seed, precision in enumerate(parts):
        filled.add(clustered(20, D, seed=seed))
        facts = {"precision": precision} if precision else {}
        newest = select(func.max(Part.id)).scalar_subquery()
        with filled.catalog.write() as conn:
            conn.execute(update(Part).where(Part.id == newest).values(facts=facts))
    compact(filled.catalog, lease, filled.space)
    assert found() == [due]
    filled.add(clustered(20, D, seed=9))
    with filled.catalog.write() as conn:
        newest = select(func.max(Part.id)).scalar_subquery()
        conn.execute(update(Part).where(Part.id == newest).values(facts={"precision": "float32"}))
    compact(filled.catalog, lease, filled.space)
    assert found() == [due]


def test_dead_rows_go_when_they_are_many_and_numbers_stay(filled, lease):
    x = clustered(SMALL_ROWS + 4, D)
    rows = filled.add(x)
    filled.set_state(rows[:40], "excluded")
    assert compact(filled.catalog, lease, filled.space).rows_dropped == 0
    filled.set_state(rows[: SMALL_ROWS // 2], "excluded")
    result = compact(filled.catalog, lease, filled.space)
    assert result.rows_dropped == SMALL_ROWS // 2
    assert result.bytes_after < result.bytes_before
    left = vectors(filled)
    assert sorted(left) == rows[SMALL_ROWS // 2 :].tolist()
    assert all(np.array_equal(left[row], x[row]) for row in left)
    with filled.catalog.read() as conn:
        entered = conn.execute(select(Vector.row).order_by(Vector.row)).scalars().all()
    assert entered == sorted(left)


def test_what_is_missing_stays_for_its_grace_and_costs_nothing_when_it_comes_back(filled, lease):
    rows = filled.add(clustered(SMALL_ROWS + 4, D))
    filled.set_state(rows[: SMALL_ROWS // 2], "missing")
    assert compact(filled.catalog, lease, filled.space).rows_dropped == 0
    # Where the others are rewritten, too.
    filled.set_state(rows[-SMALL_ROWS // 2 :], "excluded")
    assert compact(filled.catalog, lease, filled.space).rows_dropped == SMALL_ROWS // 2
    assert sorted(vectors(filled)) == rows[: SMALL_ROWS // 2 + 4].tolist()
    filled.set_state(rows[: SMALL_ROWS // 2], "live")
    with filled.catalog.read() as conn:
        assert sorted(live_rows(conn, filled.space.id, rows)) == sorted(vectors(filled))


def test_a_copy_that_lives_or_is_missing_holds_the_row_of_one_that_is_excluded(filled, lease):
    rows = filled.add(clustered(30, D))
    filled.set_state(rows[:20], "excluded")
    with filled.catalog.write() as conn:
        for row, state in ((0, "live"), (1, "missing"), (2, "excluded")):
            copy = {"path": b"copy%d" % row, "display": "copy", "state": state}
            columns = [c for c in File.__table__.c if c.name not in ("id", *copy)]
            held = select(*columns).where(File.image_id == filled.base + row)
            conn.execute(insert(File).values({**conn.execute(held).mappings().one(), **copy}))
    compact(filled.catalog, lease, filled.space)
    assert sorted(vectors(filled)) == [0, 1, *range(20, 30)]


@pytest.mark.parametrize("state", ["missing", "excluded"])
def test_a_merge_keeps_dead_rows_that_are_few(filled, lease, state):
    filled.add(clustered(40, D), duplicates=(3,))
    rows = filled.add(clustered(40, D, seed=1))
    filled.set_state(rows[:5], state)
    before = vectors(filled)
    result = compact(filled.catalog, lease, filled.space)
    assert (result.parts_after, result.rows_dropped) == (1, 0)
    assert vectors(filled).keys() == before.keys()
    with filled.catalog.read() as conn:
        entered = entered_rows(conn, filled.space.id).tolist()
    assert entered == [row for row in range(80) if row != 3]


def test_an_image_that_nothing_holds_goes_with_its_failures(filled, lease):
    rows = filled.add(clustered(30, D))
    broken, kept, failed = b"broken".ljust(32), b"kept".ljust(32), b"elsewhere".ljust(32)
    other = Filled(filled.catalog, D, "float16", folder="16")
    with filled.catalog.write() as conn:
        conn.execute(delete(File).where(File.image_id.in_([filled.base, filled.base + 1])))
        # One that never had a vector, and one that has one in another space alone.
        conn.execute(insert(Image).values(id=1, digest=broken, size_bytes=1, first_seen_at=0.0))
        conn.execute(insert(Image).values(id=2, digest=kept, size_bytes=1, first_seen_at=0.0))
        conn.execute(insert(Vector).values(space_id=other.space.id, image_id=2, row=0))
        gone = select(Image.digest).where(Image.id == filled.base)
        for digest in (broken, kept, failed, conn.execute(gone).scalar_one()):
            facts = {"failure_class": "x", "message": "x", "first_at": 0.0, "last_at": 0.0}
            facts |= {"stage": "decode", "transient": False, "digest": digest, "run_id": "run"}
            conn.execute(insert(Failure).values(facts))
    compact(filled.catalog, lease, filled.space)
    with filled.catalog.read() as conn:
        images = set(conn.execute(select(Image.id)).scalars())
        failures = set(conn.execute(select(Failure.digest)).scalars())
    with_rows = {filled.base + int(row) for row in rows}
    assert images == {2} | with_rows  # rows 0 and 1 are too few to be dropped
    assert kept in failures
    assert broken not in failures
    compact(filled.catalog, lease, filled.space, force=True)
    with filled.catalog.read() as conn:
        images = set(conn.execute(select(Image.id)).scalars())
        failures = set(conn.execute(select(Failure.digest)).scalars())
    assert images == {2} | (with_rows - {filled.base, filled.base + 1})
    assert failures == {kept, failed}  # of a digest that was never an image nothing is known


def test_the_deletion_of_an_image_reads_no_whole_table(sqlite_template, tmp_path):
    with local_catalog(sqlite_template, tmp_path) as catalog, catalog.read() as conn:
        plan = conn.exec_driver_sql("EXPLAIN QUERY PLAN DELETE FROM images WHERE id = 1").all()
    # References to it are looked up too: among a million vectors, for each of the images.
    assert [step.detail for step in plan if step.detail.startswith("SCAN")] == []
    assert any("vectors" in step.detail for step in plan)


def test_a_space_that_was_emptied_can_be_compacted_and_published_again(filled, lease):
    catalog, space = filled.catalog, filled.space
    rows = filled.add(clustered(30, D))
    publish(catalog, lease, space)
    with catalog.write() as conn:
        conn.execute(delete(File))
    for _ in range(2):
        compact(catalog, lease, space)
        assert publish_due(catalog, space) is None
        view = snapshot(catalog, space)
        assert (view.parts, view.generation) == ((), None)
    assert Lookup(catalog, space, exact_below=0).nearest(clustered(1, D), 3).neighbours == [[]]
    again = filled.add(clustered(5, D, seed=3), offsets=np.arange(5))
    assert again[0] == len(rows)
    assert publish_due(catalog, space) == "first"
    assert publish(catalog, lease, space).n == 5


def test_force_drops_every_dead_row_duplicates_too(filled, lease):
    filled.add(clustered(30, D), duplicates=(3, 4))
    rows = filled.add(clustered(30, D, seed=1))
    filled.set_state(rows[:1], "missing")
    result = compact(filled.catalog, lease, filled.space, force=True)
    assert result.rows_dropped == 3
    assert sorted(vectors(filled)) == [n for n in range(60) if n not in (3, 4, 30)]
    # A second time over a part that leaves rows out already.
    filled.set_state(rows[1:3], "missing")
    assert compact(filled.catalog, lease, filled.space, force=True).rows_dropped == 2
    assert sorted(vectors(filled)) == [n for n in range(60) if n not in (3, 4, 30, 31, 32)]


def test_a_part_without_live_rows_goes_altogether(filled, lease):
    rows = filled.add(clustered(10, D))
    filled.set_state(rows, "missing")
    result = compact(filled.catalog, lease, filled.space, force=True)
    assert (result.parts_after, result.bytes_after) == (0, 0)
    assert vectors(filled) == {}


def test_float16_survives_unchanged(catalog, lease):
    filled = Filled(catalog, D, "float16")
    for seed in range(2):
        filled.add(clustered(20, D, seed=seed))
    before = vectors(filled)
    compact(catalog, lease, filled.space)
    after = vectors(filled)
    assert all(np.array_equal(before[row], after[row]) for row in before)


def test_search_finds_the_same_before_and_after_and_through_an_old_index(filled, lease):
    for seed in range(3):
        filled.add(clustered(400, D, seed=seed))
    publish(filled.catalog, lease, filled.space)
    dead = np.arange(0, 1200, 3)
    filled.set_state(dead, "excluded")
    lookup = Lookup(filled.catalog, filled.space, exact_below=0)
    queries = clustered(20, D, seed=9)
    before = lookup.nearest(queries, 10).neighbours
    compact(filled.catalog, lease, filled.space)
    between = lookup.nearest(queries, 10).neighbours  # the index still holds the dropped rows
    publish(filled.catalog, lease, filled.space)
    after = lookup.nearest(queries, 10).neighbours
    found = [[n.row for n in one] for one in before]
    assert not set(np.ravel(found)) & set(dead)
    assert [[n.row for n in one] for one in between] == found
    assert [[n.row for n in one] for one in after] == found


def test_an_image_that_comes_back_after_its_row_went_is_pending_again(filled, lease):
    rows = filled.add(clustered(20, D))
    filled.set_state(rows[:5], "missing")
    compact(filled.catalog, lease, filled.space, force=True)
    filled.set_state(rows[:5], "live")
    with filled.catalog.read() as conn:
        without = conn.execute(
            select(func.count())
            .select_from(File)
            .outerjoin(Vector, Vector.image_id == File.image_id)
            .where(Vector.row.is_(None))
        ).scalar()
    assert without == 5


def test_replaced_files_stay_for_a_day(filled, lease):
    for seed in range(2):
        filled.add(clustered(20, D, seed=seed))
    publish(filled.catalog, lease, filled.space)
    old = snapshot(filled.catalog, filled.space)
    compact(filled.catalog, lease, filled.space)
    publish(filled.catalog, lease, filled.space)
    store = open_store(filled.catalog, filled.space)
    assert delete_old_files(filled.catalog, lease) == 0
    assert all(os.path.exists(store.path(part.name)) for part in old.parts)
    with filled.catalog.write() as conn:
        past = filled.catalog.now(conn) - 90_000
        conn.execute(update(Part).where(Part.state == "replaced").values(replaced_at=past))
    assert delete_old_files(filled.catalog, lease) == 2
    assert not any(os.path.exists(store.path(part.name)) for part in old.parts)
    assert delete_old_files(filled.catalog, lease, keep_s=0) == 1  # the index
    assert len(vectors(filled)) == 40


def test_orphans_go_when_their_run_has_ended_and_they_are_old(filled, lease):
    filled.add(clustered(4, D))
    ended = start_run(filled.catalog, "index")
    for run in (ended, lease):
        part = filled.store.append(run.run_id, clustered(4, D), [bytes([n] * 32) for n in range(4)])
        assert os.path.exists(filled.store.path(part.name))
    finish_run(filled.catalog, ended, "failed")
    left = orphans(filled.catalog, filled.space)
    assert {os.path.basename(path).startswith(ended.run_id) for path in left} == {True}
    assert len(left) == 2
    assert delete_old_files(filled.catalog, lease) == 0  # not a day old
    for path in left:
        os.utime(path, (0, 0))
    assert delete_old_files(filled.catalog, lease) == 2
    assert orphans(filled.catalog, filled.space) == []
    assert len(vectors(filled)) == 4


def test_what_a_dropped_space_left_goes_after_a_day_too(filled, lease):
    filled.add(clustered(4, D))
    home, kept = filled.catalog.home, filled.store.folder
    ended = start_run(filled.catalog, "index")
    finish_run(filled.catalog, ended, "failed")
    left = home.parts_dir("f" * 64)  # no row of the catalog knows this space any more
    for run in (ended, lease):  # one died before it deleted, one writes still
        VectorStore(home.space_dir("f" * 64), D, "float32").append(
            run.run_id, clustered(4, D), [bytes([n] * 32) for n in range(4)]
        )
    assert delete_old_files(filled.catalog, lease) == 0  # not a day old
    for name in os.listdir(left):
        os.utime(os.path.join(left, name), (0, 0))
    assert delete_old_files(filled.catalog, lease) == 2
    assert {name.startswith(lease.run_id) for name in os.listdir(left)} == {True}
    finish_run(filled.catalog, lease, "done")
    other = start_run(filled.catalog, "index")
    assert delete_old_files(filled.catalog, other) == 2
    assert not os.path.exists(home.space_dir("f" * 64))
    assert len(os.listdir(kept)) == 2


def test_another_holder_and_a_lost_lease_are_refused(filled, lease):
    for seed in range(2):
        filled.add(clustered(10, D, seed=seed))
    other = start_run(filled.catalog, "publish")
    claim(filled.catalog, other, "space", filled.space.id, filled.space.id)
    with pytest.raises(LeaseHeld):
        compact(filled.catalog, lease, filled.space)
    finish_run(filled.catalog, other, "done")
    finish_run(filled.catalog, lease, "done")
    with pytest.raises(LeaseLost):
        compact(filled.catalog, lease, filled.space)
    assert len(snapshot(filled.catalog, filled.space).parts) == 2


@pytest.mark.parametrize("kind", ["", ".ids"])
def test_damage_is_never_given_a_fresh_checksum(filled, lease, kind):
    for seed in range(3):
        filled.add(clustered(20, D, seed=seed))
    store, before = open_store(filled.catalog, filled.space), snapshot(filled.catalog, filled.space)
    path = store.path(before.parts[1].name, kind)
    os.chmod(path, 0o600)
    with open(path, "r+b") as file:
        file.seek(-5, os.SEEK_END)
        byte = file.read(1)
        file.seek(-5, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(PartError, match=f"{path} .*lookalike check --deep --repair"):
        compact(filled.catalog, lease, filled.space)
    assert snapshot(filled.catalog, filled.space) == before
    assert check(filled.catalog, deep=True, repair=True, lease=lease)
    assert compact(filled.catalog, lease, filled.space).rows_dropped == 0
    assert check(filled.catalog, deep=True) == []
    assert sorted(vectors(filled)) == [*range(20), *range(40, 60)]


def test_a_part_that_a_run_writes_at_this_moment_is_no_orphan(filled, lease, monkeypatch):
    # A run begins, and writes, just before the folder is looked at: it has yet to commit.
    listdir, began = os.listdir, []

    def listing(folder):
        if not began:
            began.append(start_run(filled.catalog, "index"))
            filled.store.append(began[0].run_id, clustered(2, D), [b"a" * 32, b"b" * 32])
        return listdir(folder)

    filled.add(clustered(4, D))
    monkeypatch.setattr(os, "listdir", listing)
    assert delete_old_files(filled.catalog, lease, keep_s=0.0) == 0
    assert len(listdir(filled.store.folder)) == 4


def test_unused_images_are_deleted_some_at_a_time(filled, lease, monkeypatch):
    monkeypatch.setattr(storage.compact, "PAGE", 7)
    with filled.catalog.write() as conn:
        images = [
            {"digest": hashlib.sha256(b"%d" % n).digest(), "size_bytes": 1, "first_seen_at": 0.0}
            for n in range(20)
        ]
        before = conn.execute(select(func.count()).select_from(Image)).scalar_one()
        conn.execute(insert(Image), images)
    compact(filled.catalog, lease, filled.space)
    with filled.catalog.read() as conn:
        assert conn.execute(select(func.count()).select_from(Image)).scalar_one() == before
