"""Backups: one moment of the store, checked on its way, complete or not there."""

import hashlib
import itertools
import json
import os
import shutil
import signal
import sqlite3
import tempfile
import threading

import pytest
from sqlalchemy import create_engine, delete, func, insert, select, text, update

from storage.backup import backup
from storage.backup_mark import Mark, read_mark, write_mark
from storage.catalog import Catalog
from storage.check import check
from storage.cleanup import delete_old_files
from storage.compact import compact
from storage.durable import file_checksum
from storage.errors import (
    CatalogError,
    DiskFull,
    ExportError,
    LeaseHeld,
    PartError,
    StorageError,
    StoreMismatch,
)
from storage.folder_lock import lock_folder
from storage.forget import forget
from storage.fs import Fs, using
from storage.home import Home
from storage.leases import start_run
from storage.migrations import upgrade
from storage.publish import publish
from storage.reading import Rows, generation_paths, open_store, snapshot
from storage.restore import restore
from storage.runs import claim
from storage.scratch import scratch_folder
from storage.spaces import get_space
from storage.tables import Base, Claim, File, Image, Part, Root, Run, Space, Vector
from tests.reliability.children import forked
from tests.storage.filled import Filled, clustered, limited_files, local_catalog, root_of

D = 16


@pytest.fixture
def lease(catalog):
    return start_run(catalog, "index")


@pytest.fixture
def filled(catalog, lease):
    filled = Filled(catalog, D)
    for seed in range(3):
        filled.add(clustered(20, D, seed=seed))
    publish(catalog, lease, filled.space)
    return filled


@pytest.fixture
def dest(tmp_path):
    return str(tmp_path / "backup")


@pytest.fixture
def local(sqlite_template, tmp_path):
    with local_catalog(sqlite_template, tmp_path) as catalog:
        filled = Filled(catalog, D)
        filled.add(clustered(20, D))
        publish(catalog, start_run(catalog, "index"), filled.space)
        yield filled


def rows_of(catalog, *, but=("runs", "claims")):
    """Return every row of every table."""
    with catalog.read() as conn:
        return {
            table.name: sorted(map(repr, map(tuple, conn.execute(select(table)))))
            for table in Base.metadata.sorted_tables
            if table.name not in but
        }


def vectors_of(catalog):
    """Return digest -> vector of the current space."""
    view = snapshot(catalog, get_space(catalog))
    with catalog.read() as conn:
        pairs = conn.execute(select(Vector.row, Image.digest).join(Image)).all()
    x = Rows(open_store(catalog, view.space), view.parts).gather([row for row, _ in pairs])
    return {digest: vector.tobytes() for (_, digest), vector in zip(pairs, x, strict=True)}


def files_below(folder):
    """Return relative path -> bytes of every file."""
    found = {}
    for at, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(at, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, folder)] = file.read()
    return found


def flip(path):
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 4]))


@pytest.fixture
def other_home(request, database, tmp_path):
    """Yield an empty home of the same database as the store that was copied."""
    if database == "sqlite":
        yield Home(str(tmp_path / "restored"))
        return
    server = request.getfixturevalue("postgres_server")
    name = server.create()
    yield Home(str(tmp_path / "restored"), server.database(name))
    server.drop(name)


class TestBackup:
    def test_it_is_a_sound_store_with_the_same_rows_and_vectors(self, filled, dest):
        result = backup(filled.catalog, dest)
        assert (result.spaces, result.vectors, result.files) == (1, 60, 8)
        assert (result.copied, result.deleted) == (8, 0)
        with Catalog.open(Home(dest), write=False) as copy:
            assert check(copy, deep=True) == []
            assert rows_of(copy) == rows_of(filled.catalog)
            assert vectors_of(copy) == vectors_of(filled.catalog)
        assert {os.stat(os.path.join(dest, name)).st_mode & 0o077 for name in os.listdir(dest)} == {
            0
        }
        assert not os.path.exists(f"{dest}/catalog.sqlite-wal")

    def test_nothing_is_copied_twice_and_what_is_gone_is_deleted(self, filled, lease, dest):
        backup(filled.catalog, dest)
        again = backup(filled.catalog, dest)
        assert (again.files, again.copied, again.copied_bytes, again.deleted) == (8, 0, 0, 0)
        filled.add(clustered(20, D, seed=9))
        third = backup(filled.catalog, dest)
        assert (third.files, third.copied, third.deleted) == (10, 2, 0)
        compact(filled.catalog, lease, filled.space, force=True)
        fourth = backup(filled.catalog, dest)
        assert (fourth.files, fourth.copied, fourth.deleted) == (4, 2, 8)
        with Catalog.open(Home(dest), write=False) as copy:
            assert check(copy, deep=True) == []
            assert vectors_of(copy) == vectors_of(filled.catalog)

    def test_a_damaged_file_of_the_backup_is_copied_again(self, filled, dest):
        backup(filled.catalog, dest)
        [index] = [path for path in files_below(dest) if path.endswith(".faiss")]
        flip(os.path.join(dest, index))
        assert backup(filled.catalog, dest).copied == 1
        with Catalog.open(Home(dest), write=False) as copy:
            assert check(copy, deep=True) == []

    @pytest.mark.parametrize("harm", [flip, os.unlink])
    @pytest.mark.parametrize("kind", [".faiss", ".ids.npy", "part"])
    def test_damage_is_refused_and_the_earlier_backup_stays(self, filled, dest, harm, kind):
        backup(filled.catalog, dest)
        before = files_below(dest)
        filled.add(clustered(20, D, seed=9))
        publish(filled.catalog, start_run(filled.catalog, "index"), filled.space)
        view = snapshot(filled.catalog, filled.space)
        store = open_store(filled.catalog, filled.space)
        folder = filled.catalog.home.index_dir(filled.space.fingerprint)
        path = {
            ".faiss": generation_paths(folder, view.generation.name)[0],
            ".ids.npy": store.path(view.parts[-1].name, ".ids"),
            "part": store.path(view.parts[-1].name),
        }[kind]
        harm(path)
        with pytest.raises(PartError, match="lookalike check"):
            backup(filled.catalog, dest)
        after = files_below(dest)
        assert {path: after[path] for path in before} == before
        with Catalog.open(Home(dest), write=False) as copy:
            assert [f.what for f in check(copy, deep=True) if f.severity == "error"] == []
            assert len(vectors_of(copy)) == 60

    def test_no_run_is_under_way_in_a_backup(self, filled, lease, dest):
        claim(filled.catalog, lease, "space", filled.space.id, filled.space.id)
        backup(filled.catalog, dest)
        with Catalog.open(Home(dest), write=False) as copy, copy.read() as conn:
            assert set(conn.execute(select(Run.state, Run.token))) == {("interrupted", "")}
            assert conn.execute(select(func.count()).select_from(Claim)).scalar_one() == 0
        with filled.catalog.read() as conn:
            assert conn.execute(select(Run.state)).scalar_one() == "running"
            assert conn.execute(select(func.count()).select_from(Claim)).scalar_one() == 1

    def test_it_is_read_and_never_written(self, local, dest):
        backup(local.catalog, dest)
        before = files_below(dest)
        with pytest.raises(CatalogError, match="restore"):
            Catalog.open(Home(dest), write=True)
        with pytest.raises(CatalogError, match="LOOKALIKE_CATALOG_URL"):
            Catalog.open(Home(dest, "postgresql://nowhere/none"), write=False)
        with Catalog.open(Home(dest), write=False) as copy:
            check(copy, deep=True)
        assert files_below(dest) == before

    def test_a_reader_can_read_it_where_nothing_can_be_written(self, local, dest):
        backup(local.catalog, dest)
        with sqlite3.connect(f"file:{dest}/catalog.sqlite?immutable=1", uri=True) as conn:
            assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert conn.execute("PRAGMA journal_mode").fetchone() != ("wal",)
        conn.close()

    def test_what_is_no_backup_of_this_store_is_refused(self, local, sqlite_template, tmp_path):
        strange = tmp_path / "strange"
        strange.mkdir()
        (strange / "letter.txt").write_text("dear")
        with pytest.raises(ExportError, match="not empty"):
            backup(local.catalog, str(strange))
        assert os.listdir(strange) == ["letter.txt"]
        for inside in (local.catalog.home.path, f"{local.catalog.home.path}/copy", str(tmp_path)):
            with pytest.raises(ExportError, match="overlap"):
                backup(local.catalog, inside)
        backup(local.catalog, str(tmp_path / "one"))
        os.mkdir(tmp_path / "second")
        with (
            local_catalog(sqlite_template, tmp_path / "second") as second,
            pytest.raises(StoreMismatch, match="choose another"),
        ):
            backup(second, str(tmp_path / "one"))

    def test_a_restored_home_is_never_taken_for_a_backup(self, local, dest, tmp_path):
        backup(local.catalog, dest)
        restored = Home(str(tmp_path / "restored"))
        restore(dest, restored)
        before = files_below(restored.path)
        with pytest.raises(ExportError, match="no backup"):
            backup(local.catalog, restored.path)
        assert files_below(restored.path) == before

    def test_what_lies_beside_it_is_not_touched(self, local, dest):
        backup(local.catalog, dest)
        with open(f"{dest}/README", "w") as file:
            file.write("made on Sundays")
        backup(local.catalog, dest)
        assert os.path.exists(f"{dest}/README")

    def test_two_at_once_take_turns(self, local, dest):
        backup(local.catalog, dest)
        lock = lock_folder(dest, "it")
        try:
            with pytest.raises(LeaseHeld, match="wait for it"):
                backup(local.catalog, dest)
        finally:
            os.close(lock)
        backup(local.catalog, dest)

    def test_numbers_are_never_given_again_after_it(self, filled, dest, other_home):
        catalog = filled.catalog
        with catalog.write() as conn:
            top = conn.execute(select(func.max(File.id))).scalar_one()
            conn.execute(delete(File).where(File.id == top))
        backup(catalog, dest)
        restore(dest, other_home)
        with Catalog.open(other_home, write=True) as restored, restored.write() as conn:
            root = conn.execute(select(Root.id)).scalar_one()
            stat = dict.fromkeys(
                ("seen_size_bytes", "seen_mtime_ns", "seen_ctime_ns", "seen_inode"), 1
            )
            row = {"root_id": root, "path": b"new", "display": "new", "state": "live"}
            new = insert(File).values(**row, first_seen_at=0.0, **stat).returning(File.id)
            assert conn.execute(new).scalar_one() > top


class FailsAt(Fs):
    """Raises at the k-th call that changes something in a folder."""

    def __init__(self, folder, at):
        self.folder, self.at, self.calls = folder, at, 0

    def _call(self, path):
        if isinstance(path, str) and path.startswith(self.folder):
            self.calls += 1
            if self.calls == self.at:
                raise KeyboardInterrupt

    def open_new(self, path, mode=0o600):
        self._call(path)
        return super().open_new(path, mode)

    def replace(self, old, new):
        self._call(new)
        super().replace(old, new)

    def unlink(self, path):
        self._call(path)
        super().unlink(path)

    def mkdir(self, path, mode=0o777):
        self._call(path)
        super().mkdir(path, mode)

    def fsync_dir(self, path):
        self._call(path)
        super().fsync_dir(path)


class KilledAt(Fs):
    """Dies at the first file of a name that is to appear, or to be deleted."""

    def __init__(self, end, *, deletes):
        self.end, self.deletes = end, deletes

    def replace(self, old, new):
        self._look(new, deletes=False)
        super().replace(old, new)

    def unlink(self, path):
        self._look(path, deletes=True)
        super().unlink(path)

    def _look(self, path, *, deletes):
        if deletes == self.deletes and path.endswith(self.end):
            os.kill(os.getpid(), signal.SIGKILL)


def killed_at(work, end, *, deletes=False):
    """Do something in a child that is killed at a file; say whether it was."""
    child = forked.Process(target=_until_killed, args=(work, end, deletes))
    child.start()
    child.join()
    return child.exitcode == -signal.SIGKILL


def _until_killed(work, end, deletes):
    with using(KilledAt(end, deletes=deletes)):
        work()


class TestScratch:
    def test_what_a_killed_backup_has_left_goes_with_the_next_one(
        self, local, dest, tmp_path, monkeypatch
    ):
        temporary = tmp_path / "tmp"
        temporary.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(temporary))
        others = temporary / "lookalike-scratch-of-a-person"
        others.mkdir()
        home = local.catalog.home
        assert killed_at(lambda: backup(Catalog.open(home, write=False), dest), "catalog.sqlite")
        assert len(os.listdir(temporary)) == 2
        with scratch_folder() as held:
            assert len(os.listdir(temporary)) == 2  # the killed one's is gone
            assert os.stat(os.path.dirname(held)).st_mode & 0o077 == 0
            backup(local.catalog, dest)
            assert os.listdir(held) == []  # not taken for abandoned
        assert os.listdir(temporary) == [others.name]


class TestBrokenOff:
    def test_at_every_step_the_first_is_complete_or_says_that_it_is_not(self, local, dest):
        said = {"complete": 0, "not": 0}
        for at in itertools.count(1):
            shutil.rmtree(dest, ignore_errors=True)
            try:
                with using(FailsAt(dest, at)):
                    backup(local.catalog, dest)
                break
            except KeyboardInterrupt:
                said["complete" if self.is_complete(dest) else "not"] += 1
            backup(local.catalog, dest)
            assert self.is_complete(dest)
        assert said["not"] > 10
        assert said["complete"] > 1

    def is_complete(self, dest):
        """Open it as a person would, and look at every byte."""
        said = "run `lookalike backup` into it again|nothing is indexed yet"
        if not os.path.exists(f"{dest}/catalog.sqlite"):
            with pytest.raises(CatalogError, match=said):
                Catalog.open(Home(dest), write=False)
            return False
        with Catalog.open(Home(dest), write=False) as copy:
            assert [f.what for f in check(copy, deep=True) if f.severity == "error"] == []
            assert len(vectors_of(copy)) == 20
        return True

    def test_at_every_step_a_later_one_leaves_the_earlier_or_the_new(self, local, dest, tmp_path):
        backup(local.catalog, dest)
        shutil.copytree(dest, tmp_path / "earlier")
        old = vectors_of(local.catalog)
        local.add(clustered(20, D, seed=5))
        lease = start_run(local.catalog, "index")
        compact(local.catalog, lease, local.space)
        publish(local.catalog, lease, local.space)
        new = vectors_of(local.catalog)
        seen = []
        for at in itertools.count(2, step=2):
            shutil.rmtree(dest)
            shutil.copytree(tmp_path / "earlier", dest)
            try:
                with using(FailsAt(dest, at)):
                    backup(local.catalog, dest)
                break
            except KeyboardInterrupt:
                pass
            restored = Home(str(tmp_path / f"restored-{at}"))
            restore(dest, restored)
            with Catalog.open(restored, write=False) as catalog:
                assert check(catalog, deep=True) == []
                found = vectors_of(catalog)
            assert found in (old, new)
            seen.append(found == new)
        assert seen == sorted(seen), "once it is the new one it stays that"
        assert True in seen
        assert False in seen

    def test_a_full_disk_leaves_the_earlier_backup(self, local, dest, tmp_path):
        backup(local.catalog, dest)
        before = vectors_of(local.catalog)
        local.add(clustered(20, D, seed=5))

        class Full(Fs):
            def write(self, fd, data):
                raise OSError(28, "No space left on device")

        with using(Full()), pytest.raises(DiskFull, match="make room"):
            backup(local.catalog, dest)
        with Catalog.open(Home(dest), write=False) as copy:
            assert vectors_of(copy) == before


class TestMeanwhile:
    def test_commits_compactions_and_publishes_go_on(self, filled, dest):
        """Each backup is some moment: it is sound, and its rows are those of the parts it has."""
        stop = threading.Event()
        rounds = 0

        def work():
            nonlocal rounds
            lease = start_run(filled.catalog, "index")
            while not stop.is_set():
                filled.add(clustered(20, D, seed=100 + rounds))
                if rounds % 3 == 1:
                    compact(filled.catalog, lease, filled.space, force=True)
                    publish(filled.catalog, lease, filled.space)
                rounds += 1

        writer = threading.Thread(target=work)
        writer.start()
        sizes = []
        try:
            for _ in range(8):
                result = backup(filled.catalog, dest)
                with Catalog.open(Home(dest), write=False) as copy:
                    errors = [f.what for f in check(copy, deep=True) if f.severity == "error"]
                    assert errors == []
                    assert len(vectors_of(copy)) == result.vectors
                sizes.append(result.vectors)
        finally:
            stop.set()
            writer.join()
        assert sizes == sorted(sizes)
        assert rounds > 3

    def test_files_that_forget_deletes_meanwhile_lead_to_a_later_moment(self, filled, lease, dest):
        class Forgets(Fs):
            """Forgets a picture while the first file is copied."""

            done = False

            def open_new(self, path, mode=0o600):
                if "/spaces/" in str(path) and str(path).startswith(dest) and not self.done:
                    self.done = True
                    with using(Fs()):
                        forget(filled.catalog, lease, [root_of(filled) + b"/0000000.jpg"])
                return super().open_new(path, mode)

        with using(Forgets()):
            result = backup(filled.catalog, dest)
        assert result.vectors == 59
        with Catalog.open(Home(dest), write=False) as copy:
            assert check(copy, deep=True) == []
            assert vectors_of(copy) == vectors_of(filled.catalog)


class TestRestore:
    def test_a_restored_store_is_the_one_that_was_copied(self, filled, dest, other_home):
        backup(filled.catalog, dest)
        expected, vectors = rows_of(filled.catalog), vectors_of(filled.catalog)
        result = restore(dest, other_home)
        assert (result.vectors, result.files, result.copied) == (60, 8, 8)
        with Catalog.open(other_home, write=True) as restored:
            assert restored.store_id == filled.catalog.store_id
            assert check(restored, deep=True) == []
            assert rows_of(restored) == expected
            assert vectors_of(restored) == vectors
            lease = start_run(restored, "index")
            publish(restored, lease, get_space(restored))
            assert delete_old_files(restored, lease) == 0
        assert not [path for path in files_below(other_home.path) if path.endswith(("lock", "tmp"))]

    @pytest.mark.postgres
    def test_a_catalog_changes_its_database_on_the_way(self, local, dest, tmp_path, postgres_url):
        backup(local.catalog, dest)
        there = Home(str(tmp_path / "there"), postgres_url)
        restore(dest, there)
        with Catalog.open(there, write=True) as catalog:
            assert rows_of(catalog) == rows_of(local.catalog)
            backup(catalog, str(tmp_path / "second"))
        back = Home(str(tmp_path / "back"))
        restore(str(tmp_path / "second"), back)
        with Catalog.open(back, write=False) as catalog:
            assert rows_of(catalog) == rows_of(local.catalog)
            assert check(catalog, deep=True) == []

    def test_files_that_are_there_are_kept(self, filled, dest, other_home):
        backup(filled.catalog, dest)
        shutil.copytree(f"{filled.catalog.home.path}/spaces", f"{other_home.path}/spaces")
        assert restore(dest, other_home).copied == 0
        with Catalog.open(other_home, write=False) as restored:
            assert check(restored, deep=True) == []

    def test_a_home_that_has_a_catalog_is_refused(self, filled, dest):
        backup(filled.catalog, dest)
        before = rows_of(filled.catalog)
        with pytest.raises(ExportError, match="there already"):
            restore(dest, filled.catalog.home)
        assert rows_of(filled.catalog) == before

    def test_the_files_of_another_store_are_refused(self, filled, dest, other_home):
        backup(filled.catalog, dest)
        os.mkdir(other_home.path)
        other_home.write_store_id("another")
        with pytest.raises(StoreMismatch, match="another store"):
            restore(dest, other_home)

    @pytest.mark.parametrize("harm", [flip, os.unlink])
    @pytest.mark.parametrize("kind", ["catalog.sqlite", ".faiss", ".rowmap.npy", ".ids.npy"])
    def test_damage_is_refused_and_no_catalog_appears(self, local, dest, tmp_path, harm, kind):
        backup(local.catalog, dest)
        [path] = [path for path in files_below(dest) if path.endswith(kind)]
        harm(os.path.join(dest, path))
        home = Home(str(tmp_path / "restored"))
        with pytest.raises((PartError, CatalogError)) as refused:
            restore(dest, home)
        assert "\n" not in str(refused.value)
        assert not os.path.exists(home.sqlite)
        shutil.rmtree(dest)
        backup(local.catalog, dest)
        restore(dest, home)
        with Catalog.open(home, write=False) as restored:
            assert check(restored, deep=True) == []

    def test_what_is_no_backup_is_refused(self, tmp_path, local):
        with pytest.raises(CatalogError, match="no backup"):
            restore(str(tmp_path / "nothing"), Home(str(tmp_path / "new")))
        with pytest.raises(CatalogError, match="no backup"):
            restore(local.catalog.home.path, Home(str(tmp_path / "new")))
        assert not os.path.exists(tmp_path / "new")

    @pytest.mark.parametrize(
        "content", [b"", b"[]", b'{"format": 2}', b'{"format": 1, "store_id": "x"}', b"\xff"]
    )
    def test_a_damaged_mark_is_refused(self, local, dest, tmp_path, content):
        backup(local.catalog, dest)
        with open(f"{dest}/backup.json", "wb") as file:
            file.write(content)
        with pytest.raises(CatalogError, match="new"):
            restore(dest, Home(str(tmp_path / "new")))
        with pytest.raises(CatalogError, match="new"):
            backup(local.catalog, dest)

    def test_broken_off_at_every_step_it_is_repeated_or_complete(self, local, dest, tmp_path):
        backup(local.catalog, dest)
        home, refused = Home(str(tmp_path / "restored")), 0
        for at in itertools.count(1, step=2):
            shutil.rmtree(home.path, ignore_errors=True)
            try:
                with using(FailsAt(home.path, at)):
                    restore(dest, home)
                break
            except KeyboardInterrupt:
                pass
            if os.path.exists(f"{home.path}/restoring.json"):
                for write in (False, True):
                    with pytest.raises(CatalogError, match="restore BACKUP` again"):
                        Catalog.open(home, write=write)
                refused += 1
            if os.path.exists(home.sqlite) and not os.path.exists(f"{home.path}/restoring.json"):
                with pytest.raises(ExportError):
                    restore(dest, home)
            else:
                restore(dest, home)
            assert not os.path.exists(f"{home.path}/restoring.json")
            with Catalog.open(home, write=True) as restored:
                assert check(restored, deep=True) == []
                assert vectors_of(restored) == vectors_of(local.catalog)
        assert at > 20
        assert refused > 10

    @pytest.mark.parametrize("last", [".ids.npy", "restoring.json"])
    def test_killed_it_leaves_a_home_that_only_a_restoring_opens(
        self, filled, dest, other_home, last
    ):
        """With the first of its files, or with nothing more to do than to say that it is done."""
        backup(filled.catalog, dest)
        assert killed_at(lambda: restore(dest, other_home), last, deletes=last.endswith("json"))
        for write in (False, True):
            with pytest.raises(CatalogError, match="restore BACKUP` again"):
                Catalog.open(other_home, write=write)
        with pytest.raises(ExportError, match="no backup and not empty"):
            backup(filled.catalog, other_home.path)
        assert restore(dest, other_home).vectors == 60
        with Catalog.open(other_home, write=True) as restored:
            assert check(restored, deep=True) == []
            assert vectors_of(restored) == vectors_of(filled.catalog)
        with pytest.raises(ExportError, match="there already"):
            restore(dest, other_home)

    def test_one_that_was_killed_at_its_end_is_not_ended_by_another_backup(
        self, filled, dest, other_home
    ):
        """The catalog that is in place is of the first; the files of the second would not fit."""
        backup(filled.catalog, dest)
        assert killed_at(lambda: restore(dest, other_home), "restoring.json", deletes=True)
        filled.add(clustered(20, D, seed=9))
        backup(filled.catalog, dest)
        with pytest.raises(ExportError, match="there already"):
            restore(dest, other_home)

    def test_where_nothing_was_begun_the_home_is_as_it_was(self, local, dest, tmp_path):
        backup(local.catalog, dest)
        flip(f"{dest}/catalog.sqlite")
        with pytest.raises(CatalogError, match="take another backup"):
            restore(dest, Home(str(tmp_path / "new")))
        assert os.listdir(tmp_path / "new") == []


def test_the_mark_tells_store_and_moment(local, dest):
    result = backup(local.catalog, dest)
    mark = read_mark(dest)
    assert mark.store_id == local.catalog.store_id
    assert list(mark.catalogs.values()) == [result.at]
    with open(f"{dest}/backup.json") as file:
        assert json.load(file)["format"] == 1


def test_an_older_schema_is_migrated_when_it_is_restored(tmp_path):
    old = tmp_path / "old"
    old.mkdir(mode=0o700)
    engine = create_engine(f"sqlite:///{old}/catalog.sqlite")
    with engine.begin() as conn:
        upgrade(conn, to="0001")
        conn.execute(text("INSERT INTO store VALUES ('one', 1, 0.0)"))
        columns = "(path, display, kind, excludes, added_at)"
        values = "(x'2f61', '/a', 'directory', '{}', 1.5)"
        conn.execute(text(f"INSERT INTO roots {columns} VALUES {values}"))
    engine.dispose()
    write_mark(str(old), Mark("one", {file_checksum(f"{old}/catalog.sqlite"): 7.0}))
    before = files_below(old)
    home = Home(str(tmp_path / "restored"))
    assert restore(str(old), home).at == 7.0
    assert files_below(old) == before
    with Catalog.open(home, write=False) as restored:
        assert restored.store_id == "one"
        with restored.read() as conn:
            assert conn.execute(select(Root.path, Root.added_at)).all() == [(b"/a", 1.5)]


def test_odd_values_come_through(filled, dest, other_home):
    """Bytes that are no text, the largest integers, exact floats, null and empty JSON."""
    with filled.catalog.write() as conn:
        odd = {"path": b"\xff\x00\n" + bytes(range(1, 40)), "seen_mtime_ns": 2**63 - 1}
        first = select(func.min(File.id)).scalar_subquery()
        conn.execute(update(File).where(File.id == first).values(odd))
        conn.execute(update(Root).values(scanned_at=0.1 + 0.2, excludes={"globs": ["é\u2028"]}))
        conn.execute(update(Part).values(facts={}, created_at=1e-300))
    expected = rows_of(filled.catalog)
    backup(filled.catalog, dest)
    restore(dest, other_home)
    with Catalog.open(other_home, write=False) as restored:
        assert rows_of(restored) == expected
        with restored.read() as conn:
            assert conn.execute(text("SELECT count(*) FROM roots WHERE place IS NULL")).scalar()


def test_a_place_that_can_not_be_written_is_one_line(local, tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(StorageError) as refused:
        backup(local.catalog, str(path / "below"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["-wal", "-journal"])
def test_a_log_that_a_lost_catalog_has_left_is_not_taken_for_that_of_the_backup(
    local, dest, tmp_path, kind
):
    backup(local.catalog, dest)
    home = Home(str(tmp_path / "back"))
    os.mkdir(home.path)
    (tmp_path / "back" / f"catalog.sqlite{kind}").write_bytes(b"what was written last")
    with pytest.raises(ExportError, match=f"catalog.sqlite{kind} is there already.*move it away"):
        restore(dest, home)
    os.unlink(home.sqlite + kind)
    restore(dest, home)
    with Catalog.open(home, write=False) as restored:
        assert check(restored, deep=True) == []


def test_a_flipped_byte_that_sqlite_does_not_mind_is_found_in_a_backup_s_catalog(local, dest):
    backup(local.catalog, dest)
    path = os.path.join(dest, "catalog.sqlite")
    with open(path, "rb") as file:
        content = file.read()
    name = snapshot(local.catalog, local.space).parts[0].checksum.encode()
    changed = name[:-1] + (b"0" if name[-1:] != b"0" else b"1")
    with Catalog.open(Home(dest), write=False) as copy:
        assert check(copy, deep=True) == []
    with open(path, "wb") as file:
        file.write(content.replace(name, changed))
    with Catalog.open(Home(dest), write=False) as copy:
        assert check(copy) == []
        [found] = check(copy, deep=True)
    assert "does not have the checksum of its backup.json" in found.what


def test_what_is_said_of_a_disk_that_is_full_names_the_copy_and_not_the_catalog(local, dest):
    with limited_files(50_000), pytest.raises(StorageError) as refused:
        backup(local.catalog, dest)
    assert "/lookalike-" in str(refused.value)
    assert local.catalog.home.path not in str(refused.value)


def test_the_file_of_a_whitening_is_copied_and_compared(local, dest, tmp_path):
    """A space names it by the SHA-256 of its bytes; several may share it."""
    data = b"whitening" * 1000
    digest = hashlib.sha256(data).hexdigest()
    path = f"{local.catalog.home.path}/whitening/{digest}.npz"
    os.mkdir(os.path.dirname(path))
    with open(path, "wb") as file:
        file.write(data)
    with local.catalog.write() as conn:
        conn.execute(update(Space).values(request={"model": "tiny", "whitening": digest}))
    assert backup(local.catalog, dest).files == 5
    home = Home(str(tmp_path / "restored"))
    restore(dest, home)
    with open(f"{home.path}/whitening/{digest}.npz", "rb") as file:
        assert file.read() == data
    flip(f"{dest}/whitening/{digest}.npz")
    assert backup(local.catalog, dest).copied == 1
    flip(path)
    os.unlink(f"{dest}/whitening/{digest}.npz")
    with pytest.raises(PartError, match="checksum"):
        backup(local.catalog, dest)
    with local.catalog.write() as conn:
        conn.execute(update(Space).values(request={"model": "tiny"}))
    backup(local.catalog, dest)
    assert not os.path.exists(f"{dest}/whitening")
