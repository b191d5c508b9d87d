import contextlib
import os
import random
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import delete, func, insert, select, update

import storage.check_space
from storage.catalog import Catalog
from storage.check import check
from storage.errors import StorageError
from storage.leases import start_run
from storage.lookup import Lookup
from storage.publish import publish
from storage.reading import generation_paths, open_store, snapshot
from storage.roots import list_roots
from storage.tables import Part, Space, Vector
from tests.storage.filled import Filled, clustered, local_catalog
from tests.storage.trees import NOBODY, public_folder, unprivileged

D = 16


@pytest.fixture
def lease(catalog):
    return start_run(catalog, "check")


@pytest.fixture
def filled(catalog, lease):
    filled = Filled(catalog, D)
    for seed in range(3):
        filled.add(clustered(20, D, seed=seed))
    publish(catalog, lease, filled.space)
    return filled


def errors(found):
    return [finding.what for finding in found if finding.severity == "error"]


def part_path(filled, number, kind=""):
    view = snapshot(filled.catalog, filled.space)
    return open_store(filled.catalog, filled.space).path(view.parts[number].name, kind)


def index_paths(filled):
    folder = filled.catalog.home.index_dir(filled.space.fingerprint)
    return generation_paths(folder, snapshot(filled.catalog, filled.space).generation.name)


def flip(path):
    """Change one bit in the middle of a file."""
    os.chmod(path, 0o600)
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 4]))


def truncate(path):
    os.truncate(path, os.path.getsize(path) - 8)


def test_a_sound_store_has_no_findings(filled):
    assert check(filled.catalog) == []
    assert check(filled.catalog, deep=True) == []


def test_an_empty_store_has_no_findings(catalog):
    assert check(catalog, deep=True) == []


@pytest.mark.parametrize("harm", [os.unlink, truncate])
@pytest.mark.parametrize("kind", ["", ".ids"])
def test_a_part_that_is_gone_or_short_is_found_and_its_images_are_pending_again(
    filled, lease, harm, kind
):
    harm(part_path(filled, 1, kind))
    found = errors(check(filled.catalog))
    assert len(found) == 2
    assert "20 rows" in found[1]
    mended = check(filled.catalog, repair=True, lease=lease)
    assert all(finding.repaired for finding in mended)
    assert check(filled.catalog, deep=True) == []
    with filled.catalog.read() as conn:
        rows = conn.execute(select(Vector.row).order_by(Vector.row)).scalars().all()
    assert rows == [*range(20), *range(40, 60)]
    nearest = Lookup(filled.catalog, filled.space, exact_below=0).nearest(filled.x[25:26], 60)
    assert len(nearest.neighbours[0]) == 40


@pytest.fixture
def unreadable(sqlite_template):
    """Yield a filled store that belongs to who looks at it, and runs as that user."""
    with (
        public_folder() as folder,
        local_catalog(sqlite_template, Path(os.fsdecode(folder))) as own,
    ):
        filled = Filled(own, D)
        for seed in range(3):
            filled.add(clustered(20, D, seed=seed))
        publish(own, start_run(own, "index"), filled.space)
        check(own, deep=True)  # imports what nobody else may read
        for top, _, names in os.walk(own.home.path) if os.geteuid() == 0 else ():
            for path in (top, *(os.path.join(top, name) for name in names)):
                os.chown(path, NOBODY, NOBODY)
        with unprivileged():
            yield filled


@pytest.mark.parametrize("kind", ["", ".ids"])
def test_a_part_that_may_not_be_read_now_is_told_of_and_not_given_up(unreadable, kind):
    path, lease = part_path(unreadable, 1, kind), start_run(unreadable.catalog, "check")
    os.chmod(path, 0)
    for repair in (False, True):
        found = check(unreadable.catalog, repair=repair, deep=True, lease=lease)
        assert [finding.repaired for finding in found] == [False]
        assert f"{path} can't be read: Permission denied" in found[0].what
    os.chmod(path, 0o600)
    assert check(unreadable.catalog, deep=True) == []
    assert snapshot(unreadable.catalog, unreadable.space).n == 60


def test_a_folder_that_may_not_be_read_is_refused_in_one_line(unreadable):
    folder = os.path.dirname(part_path(unreadable, 0))
    os.chmod(folder, 0)
    try:
        with pytest.raises(StorageError, match=f"{folder} can't be read: Permission denied"):
            check(unreadable.catalog)
    finally:
        os.chmod(folder, 0o700)


@pytest.mark.parametrize("kind", ["", ".ids"])
def test_flipped_bits_are_found_by_the_deep_check(filled, lease, kind):
    flip(part_path(filled, 0, kind))
    assert errors(check(filled.catalog)) == []
    assert errors(check(filled.catalog, deep=True))
    check(filled.catalog, repair=True, deep=True, lease=lease)
    assert check(filled.catalog, deep=True) == []


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("harm", [os.unlink, truncate])
def test_a_broken_index_is_found_and_built_anew(filled, lease, which, harm):
    harm(index_paths(filled)[which])
    assert len(errors(check(filled.catalog))) == 1
    before = snapshot(filled.catalog, filled.space).generation
    check(filled.catalog, repair=True, lease=lease)
    after = snapshot(filled.catalog, filled.space).generation
    assert after.id > before.id
    assert check(filled.catalog, deep=True) == []


def test_a_flipped_index_is_found_by_the_deep_check(filled):
    flip(index_paths(filled)[0])
    assert errors(check(filled.catalog)) == []
    assert len(errors(check(filled.catalog, deep=True))) == 1


def test_vectors_without_unit_length_are_found(filled):
    path = part_path(filled, 0)
    vectors = np.load(path)
    np.save(path, vectors * 2)
    from storage.durable import file_checksum

    with filled.catalog.write() as conn:  # someone recorded the wrong file
        name = snapshot(filled.catalog, filled.space).parts[0].name
        values = {"checksum": file_checksum(path)}
        conn.execute(update(Part).where(Part.name == name).values(values))
    found = errors(check(filled.catalog, deep=True))
    assert len(found) == 2
    assert "unit length" in found[0]


def test_rows_that_no_part_holds_are_given_up(filled, lease):
    with filled.catalog.write() as conn:
        name = snapshot(filled.catalog, filled.space).parts[2].name
        conn.execute(delete(Part).where(Part.name == name))
    found = errors(check(filled.catalog))
    assert len(found) == 1
    assert "20 rows" in found[0]
    check(filled.catalog, repair=True, lease=lease)
    assert errors(check(filled.catalog)) == []
    with filled.catalog.read() as conn:
        assert conn.execute(select(func.count()).select_from(Vector)).scalar() == 40


def test_overlapping_rows_and_two_current_spaces_are_said(filled):
    with filled.catalog.write() as conn:
        conn.execute(update(Space).values(next_row=50, current=False))
    found = errors(check(filled.catalog))
    assert any("overlap" in what for what in found)
    assert any("current" in what for what in found)


def test_orphans_are_information(filled):
    part = filled.store.append("20200101T000000-abcdef", clustered(1, D), [b"x" * 32])
    found = check(filled.catalog)
    assert [finding.severity for finding in found] == ["info"]
    assert "2 files" in found[0].what
    assert os.path.exists(filled.store.path(part.name))


def test_a_part_whose_ids_are_not_those_of_the_catalog_is_found_and_given_up(filled, lease):
    rows = (Vector.space_id == filled.space.id, Vector.row.in_([20, 21]))
    with filled.catalog.write() as conn:
        one, other = conn.execute(select(Vector.image_id).where(*rows)).scalars()
        for row, image in ((20, -1), (21, one), (20, other)):
            here = (Vector.space_id == filled.space.id, Vector.row == row)
            if image == -1:
                conn.execute(delete(Vector).where(*here))
            elif row == 21:
                conn.execute(update(Vector).where(*here).values(image_id=one))
            else:
                conn.execute(
                    insert(Vector).values(space_id=filled.space.id, row=20, image_id=other)
                )
    assert errors(check(filled.catalog)) == []
    found = errors(check(filled.catalog, deep=True))
    assert "2 vectors of part" in found[0]
    check(filled.catalog, repair=True, deep=True, lease=lease)
    assert check(filled.catalog, deep=True) == []
    with filled.catalog.read() as conn:
        assert conn.execute(select(func.count()).select_from(Vector)).scalar() == 40


@pytest.fixture
def local(sqlite_template, tmp_path):
    """A filled store on SQLite whose log is empty, and the bytes of its catalog."""
    with local_catalog(sqlite_template, tmp_path) as catalog:
        filled = Filled(catalog, D)
        for seed in range(3):
            filled.add(clustered(20, D, seed=seed))
        publish(catalog, start_run(catalog, "index"), filled.space)
    with open(catalog.home.sqlite, "rb") as file:
        return catalog.home, file.read()


def test_rows_that_point_at_nothing_are_found_in_sqlite(local):
    home, _ = local
    with sqlite3.connect(home.sqlite) as conn:
        conn.execute("DELETE FROM images WHERE id < 1005")
    conn.close()
    with Catalog.open(home, write=False) as catalog:
        found = errors(check(catalog))
    assert any("5 rows of files point at images" in what for what in found)
    assert any("5 rows of vectors point at images" in what for what in found)


def test_a_damaged_file_of_sqlite_is_found_and_nothing_repaired_by_it(local):
    home, _ = local
    with Catalog.open(home, write=True) as catalog:
        lease = start_run(catalog, "check")
    with open(home.sqlite, "r+b") as file:
        file.seek(36)  # so many free pages, of which there is none
        file.write(bytes([0, 0, 0, 7]))
    with Catalog.open(home, write=True) as catalog:
        for deep in (False, True):
            (finding,) = check(catalog, repair=True, deep=deep, lease=lease)
            assert finding.severity == "error"
            assert not finding.repaired
            assert f"{home.sqlite} is damaged" in finding.what
            assert "restore a backup beside its store.json" in finding.what


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bits_of_the_catalog_end_in_one_line_or_do_no_harm(local, seed):
    home, content = local
    rng = random.Random(seed)
    data = bytearray(content)
    used = [at for at, byte in enumerate(content) if byte]
    for at in rng.sample(used, rng.choice([1, 4, 32, 256])):
        data[at] ^= 1 << rng.randrange(8)
    for write in (False, True):
        for suffix in ("-wal", "-shm"):
            if os.path.exists(home.sqlite + suffix):
                os.unlink(home.sqlite + suffix)
        with open(home.sqlite, "wb") as file:
            file.write(data)
        with contextlib.suppress(StorageError), Catalog.open(home, write=write) as catalog:
            found = check(catalog, deep=True)
            list_roots(catalog)
            with contextlib.closing(sqlite3.connect(home.sqlite)) as conn:
                said = conn.execute("PRAGMA integrity_check").fetchall()
            assert found or said == [("ok",)]


@pytest.mark.parametrize("repair", [False, True])
def test_what_a_run_commits_meanwhile_is_not_lost(filled, lease, monkeypatch, repair):
    rows, added = storage.check_space.entered_rows, []

    def later(*args, **kwargs):
        if not added:
            added.append(filled.add(clustered(5, D, seed=9)))
        return rows(*args, **kwargs)

    monkeypatch.setattr(storage.check_space, "entered_rows", later)
    assert check(filled.catalog, repair=repair, lease=lease) == []
    with filled.catalog.read() as conn:
        assert conn.execute(select(func.count()).select_from(Vector)).scalar() == 65
    assert snapshot(filled.catalog, filled.space).generation is not None
