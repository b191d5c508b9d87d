import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Connection, insert, select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from storage import database, opening
from storage.catalog import Catalog, insert_into
from storage.database import catalog_url, where
from storage.durable import make_dir
from storage.errors import CatalogError, DiskFull, StoreMismatch
from storage.home import Home
from storage.spaces import SpaceInfo
from storage.tables import Part, Root, Space, SpaceKey, Store
from tests.conftest import OpenCatalog

OPEN = """
import sys
from storage.catalog import Catalog
from storage.home import Home
path, url, write = sys.argv[1:]
with Catalog.open(Home(path, url or None), write=write == "write") as catalog:
    print(catalog.store_id, "alembic" in sys.modules)
"""


@pytest.fixture
def fresh_home(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> Home:
    """Return a home for either database where nothing exists yet, no schema either."""
    url = request.getfixturevalue("postgres_url") if database == "postgres" else None
    return Home(str(tmp_path / "fresh"), url)


def _root(path: bytes = b"/photos") -> dict[str, object]:
    return {
        "path": path,
        "display": "a root",
        "kind": "directory",
        "excludes": {"globs": []},
        "added_at": 1.5,
    }


def _start(home: Home, mode: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OPEN, home.path, home.catalog_url or "", mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _output(process: subprocess.Popen[str]) -> list[str]:
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return out.split()


def _add_part(catalog: Catalog, space: SpaceInfo) -> None:
    part = {
        "space_id": space.id,
        "name": "r-1",
        "state": "live",
        "row_start": 0,
        "row_end": 1,
        "n": 1,
        "size_bytes": 160,
        "checksum": "",
        "ids_checksum": "",
        "run_id": "r",
        "facts": {},
        "created_at": 1.0,
    }
    with catalog.write() as conn:
        conn.execute(insert(Part).values(part))


def test_a_new_store_is_made_once_and_found_again(fresh_home: Home) -> None:
    with Catalog.open(fresh_home, write=True) as made:
        assert json.loads(Path(fresh_home.store_json).read_bytes()) == {
            "format": 1,
            "store_id": made.store_id,
        }
        with made.read() as conn:
            assert conn.execute(select(Store.store_id, Store.format)).all() == [(made.store_id, 1)]
    assert os.stat(fresh_home.path).st_mode & 0o777 == 0o700
    for write in (False, True):
        with Catalog.open(fresh_home, write=write) as found:
            assert found.store_id == made.store_id
            assert found.writable is write


def test_processes_that_meet_a_fresh_home_agree_on_one_store(fresh_home: Home) -> None:
    outputs = [_output(process) for process in [_start(fresh_home, "write") for _ in range(3)]]
    assert len({store_id for store_id, _ in outputs}) == 1
    assert outputs[0][0] == fresh_home.read_store_id()


def test_a_reader_needs_no_alembic(catalog: Catalog, catalog_home: Home) -> None:
    assert _output(_start(catalog_home, "read")) == [catalog.store_id, "False"]


def test_a_reader_of_nothing_is_told_how_to_begin_and_leaves_no_trace(fresh_home: Home) -> None:
    with pytest.raises(CatalogError, match=r"nothing is indexed yet .*`lookalike index"):
        Catalog.open(fresh_home, write=False)
    assert not os.path.exists(fresh_home.path)


def test_a_home_that_was_half_made_is_adopted(fresh_home: Home) -> None:
    make_dir(fresh_home.path)
    fresh_home.write_store_id("half-made")
    with pytest.raises(CatalogError, match="nothing is indexed yet"):
        Catalog.open(fresh_home, write=False)
    with Catalog.open(fresh_home, write=True) as catalog:
        assert catalog.store_id == "half-made"


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("emptied", [False, True])
def test_a_lost_catalog_is_never_replaced_in_silence(
    write: bool, emptied: bool, home: Home
) -> None:
    Catalog.open(home, write=True).close()
    make_dir(home.parts_dir("d" * 64))
    for name in ("", "-wal", "-shm"):
        Path(home.sqlite + name).unlink(missing_ok=True)
    if emptied:
        Path(home.sqlite).touch()
    with pytest.raises(CatalogError, match=r"is gone, but .* holds vectors: restore"):
        Catalog.open(home, write=write)
    assert os.path.exists(home.sqlite) is emptied


@pytest.mark.postgres
@pytest.mark.parametrize("write", [False, True])
def test_vectors_never_meet_a_fresh_server(write: bool, home: Home, postgres_url: str) -> None:
    Catalog.open(home, write=True).close()
    make_dir(home.parts_dir("d" * 64))
    kind = StoreMismatch if write else CatalogError
    with pytest.raises(kind, match=r"it is empty|is gone"):
        Catalog.open(Home(home.path, postgres_url), write=write)
    with psycopg.connect(postgres_url) as connection:
        tables = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        assert tables.fetchone() == (0,)


@pytest.mark.parametrize("write", [False, True])
def test_a_catalog_never_meets_another_homes_files(
    write: bool, open_catalog: OpenCatalog, catalog_home: Home
) -> None:
    first = open_catalog()
    first.close()
    catalog_home.write_store_id("another")
    with pytest.raises(StoreMismatch, match=f"belongs to store {first.store_id}.* to another;"):
        open_catalog(write=write)


def test_a_lost_store_file_is_replaced_only_where_nothing_can_be_lost(
    catalog: Catalog,
    space: SpaceInfo,
    catalog_home: Home,
    open_catalog: OpenCatalog,
    database: str,
) -> None:
    os.unlink(catalog_home.store_json)
    with pytest.raises(StoreMismatch, match=r"has no store\.json: mount .* or bring the file back"):
        open_catalog(write=False)
    if database == "sqlite":
        assert open_catalog().store_id == catalog.store_id == catalog_home.read_store_id()
        os.unlink(catalog_home.store_json)
        _add_part(catalog, space)
    with pytest.raises(StoreMismatch, match=r"has no store\.json: mount .* or bring the file back"):
        open_catalog(write=True)


@pytest.mark.postgres
def test_a_second_home_never_shares_a_server(tmp_path: Path, postgres_url: str, home: Home) -> None:
    Catalog.open(Home(home.path, postgres_url), write=True).close()
    with pytest.raises(StoreMismatch, match=r"no store\.json"):
        Catalog.open(Home(str(tmp_path / "second"), postgres_url), write=True)


@pytest.mark.parametrize("write", [False, True])
def test_a_network_file_system_is_refused(
    write: bool, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "fs_type", lambda path: "nfs4" if path == home.path else "")
    with pytest.raises(CatalogError, match=r"network file system \(nfs4\).*LOOKALIKE_CATALOG_URL"):
        Catalog.open(home, write=write)
    assert not os.path.exists(home.path)


def test_what_is_written_is_read_and_what_fails_is_not(catalog: Catalog) -> None:
    with catalog.write() as conn:
        conn.execute(insert(Root).values(_root(b"/caf\xff\x00")))

    def fail(conn: Connection) -> None:
        conn.execute(insert(Root).values(_root(b"/lost")))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), catalog.write() as conn:
        fail(conn)
    with catalog.read() as conn:
        assert conn.execute(select(Root.path, Root.excludes)).all() == [
            (b"/caf\xff\x00", {"globs": []})
        ]


def test_a_read_sees_one_state_while_others_write(catalog: Catalog) -> None:
    with catalog.read() as reading:
        before = reading.execute(select(Root.path)).all()
        with catalog.write() as conn:
            conn.execute(insert(Root).values(_root()))
        assert reading.execute(select(Root.path)).all() == before == []
    with catalog.read() as reading:
        assert len(reading.execute(select(Root.path)).all()) == 1


def test_a_connection_is_read_with_again_unless_something_went_wrong(home: Home) -> None:
    Catalog.open(home, write=True).close()
    with Catalog.open(home, write=False) as catalog:

        def connection() -> Connection:
            with catalog.read() as conn:
                return conn

        first = connection()
        assert connection() is first
        with catalog.read() as conn, catalog.read() as other:
            assert conn is first is not other
        with pytest.raises(CatalogError, match="damaged"), catalog.read() as conn:
            raise json.JSONDecodeError("no JSON", "", 0)
        assert conn.closed
        with catalog.read() as late:
            catalog.close()
    assert first.closed
    assert other.closed
    assert late.closed


def test_writers_take_turns(catalog: Catalog) -> None:
    with catalog.write() as conn:
        conn.execute(insert(Root).values(_root()))

    def count() -> None:
        for _ in range(20):
            with catalog.write() as conn:
                query = select(Root.scanned_at).with_for_update()
                value = conn.execute(query).scalar_one() or 0.0
                time.sleep(0.001)
                conn.execute(update(Root).values(scanned_at=value + 1))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with catalog.read() as conn:
        assert conn.execute(select(Root.scanned_at)).scalar_one() == 80.0


def test_a_reader_can_not_write(open_catalog: OpenCatalog, catalog: Catalog) -> None:
    reader = open_catalog(write=False)
    with pytest.raises(CatalogError, match="open for reading only"):
        reader.write()
    with pytest.raises(CatalogError, match="can't be written"), reader.read() as conn:
        conn.execute(insert(Root).values(_root()))


def test_the_clock_is_the_databases_and_moves(catalog: Catalog) -> None:
    with catalog.read() as conn:
        first = catalog.now(conn)
        time.sleep(0.02)
        second = catalog.now(conn)
    assert abs(first - time.time()) < 5
    assert 0.01 < second - first < 5


def test_an_insert_that_meets_its_key_does_as_told(catalog: Catalog) -> None:
    with catalog.write() as conn:
        new = insert_into(conn, Root).values(_root())
        conn.execute(new)
        again = new.on_conflict_do_nothing().returning(Root.id)
        assert conn.execute(again).all() == []
        better = {"kind": new.excluded.display}
        conn.execute(new.on_conflict_do_update(index_elements=["path"], set_=better))
        assert conn.execute(select(Root.kind)).all() == [("a root",)]


def test_mistakes_of_the_program_are_not_dressed_up(catalog: Catalog) -> None:
    with catalog.write() as conn:
        conn.execute(insert(Root).values(_root()))
    with pytest.raises(IntegrityError), catalog.write() as conn:
        conn.execute(insert(Root).values(_root()))
    with pytest.raises((OperationalError, ProgrammingError)), catalog.read() as conn:
        conn.execute(text("SELECT 1 FORM nowhere AND"))


def test_what_refers_to_nothing_is_refused(catalog: Catalog) -> None:
    with pytest.raises(IntegrityError), catalog.write() as conn:
        conn.execute(insert(SpaceKey).values(key="k", space_id=4711))


# What SQLite says when it can't go on.


def test_the_files_of_a_sqlite_catalog_are_for_the_owner_alone(home: Home) -> None:
    before = os.umask(0o022)
    try:
        with Catalog.open(home, write=True) as catalog, catalog.write() as conn:
            conn.execute(update(Root).values(scanned_at=1.0))
            for suffix in ("", "-wal", "-shm"):
                assert os.stat(home.sqlite + suffix).st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_sqlite_is_durable_and_waits(home: Home) -> None:
    with Catalog.open(home, write=True) as catalog, catalog.read() as conn:
        facts = {
            name: conn.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
        }
    assert facts == {
        "journal_mode": "wal",
        "synchronous": 2,
        "busy_timeout": 30_000,
        "foreign_keys": 1,
    }


def test_a_catalog_that_stays_locked_is_said_so(home: Home) -> None:
    with Catalog.open(home, write=True) as catalog:
        with catalog.read() as conn:
            conn.exec_driver_sql("PRAGMA busy_timeout = 20")
        other = sqlite3.connect(home.sqlite, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(CatalogError, match="was locked by another process"), catalog.write():
            pass
        other.close()
        with catalog.write() as conn:
            conn.execute(insert(Root).values(_root()))


ON_A_FULL_DISK = """
import sys
from sqlalchemy import text
from storage.catalog import Catalog
from storage.errors import DiskFull
from storage.home import Home
home = Home(sys.argv[1] + "/home")
Catalog.open(home, write=True).close()
with open(sys.argv[1] + "/ballast", "wb", buffering=0) as file:
    try:
        while file.write(bytes(4096)):
            pass
    except OSError:
        pass
for write in (True, False):
    try:
        with Catalog.open(home, write=write) as catalog, catalog.read() as conn:
            conn.execute(text("SELECT 1 FROM roots")).all()
    except DiskFull as error:
        print(error.__cause__.orig.sqlite_errorname)
"""


def test_no_room_for_the_shared_memory_is_a_full_disk_as_well() -> None:
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=2m none /mnt && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], check=False).returncode:
        pytest.skip("no small disk can be mounted here")
    command = [*mount, sys.executable, "-c", ON_A_FULL_DISK, "/mnt"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["SQLITE_IOERR_SHMSIZE"] * 2


def test_a_full_disk_loses_only_what_was_not_committed(home: Home) -> None:
    with Catalog.open(home, write=True) as catalog:
        with catalog.write() as conn:
            conn.execute(insert(Root).values(_root()))
        with catalog.write() as conn:
            pages = conn.exec_driver_sql("PRAGMA page_count").scalar_one()
            conn.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(DiskFull, match="disk is full; free some"), catalog.write() as conn:
            conn.execute(insert(Root).values(_root(b"/big" + b"x" * 100_000)))
        with catalog.read() as conn:
            assert conn.execute(select(Root.path)).all() == [(b"/photos",)]


@pytest.mark.parametrize("write", [False, True])
def test_a_file_that_is_no_catalog_is_said_so(write: bool, home: Home) -> None:
    make_dir(home.path)
    Path(home.sqlite).write_bytes(b"no database " * 1000)
    with pytest.raises(CatalogError, match=r"catalog\.sqlite is not a catalog; restore"):
        Catalog.open(home, write=write)


def test_damage_is_said_so(home: Home) -> None:
    with Catalog.open(home, write=True) as catalog, catalog.write() as conn:
        for number in range(2000):
            conn.execute(insert(Root).values(_root(b"/%d" % number)))
    size = os.path.getsize(home.sqlite)
    with open(home.sqlite, "r+b") as file:
        file.seek(size // 2)
        file.write(b"\xff" * (size // 2))
    with (
        pytest.raises(CatalogError, match="is damaged; restore"),
        Catalog.open(home, write=True) as catalog,
        catalog.read() as conn,
    ):
        conn.execute(select(Root)).all()


def test_a_file_in_the_homes_place_is_said_so(home: Home) -> None:
    Path(home.path).write_bytes(b"")
    with pytest.raises(CatalogError, match=r"the home .* can't be used: .*Not a directory"):
        Catalog.open(Home(f"{home.path}/below"), write=True)


def test_a_folder_in_the_catalogs_place_is_said_so(home: Home) -> None:
    make_dir(home.sqlite)
    with pytest.raises(CatalogError, match="can't be opened; check the permissions"):
        Catalog.open(home, write=True)


def test_a_catalog_without_its_log_mode_gets_it_back_though_it_is_busy(
    home: Home, tmp_path: Path
) -> None:
    Catalog.open(home, write=True).close()
    other = sqlite3.connect(home.sqlite, isolation_level=None, check_same_thread=False)
    assert other.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.2, other.close)
    timer.start()
    with Catalog.open(home, write=True) as catalog, catalog.read() as conn:
        assert conn.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    timer.join()


def test_a_log_mode_that_can_not_be_had_is_said_so(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    Catalog.open(home, write=True).close()
    other = sqlite3.connect(home.sqlite, isolation_level=None)
    assert other.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(database, "BUSY_S", 0.1)
    with pytest.raises(CatalogError, match="was locked by another process"):
        Catalog.open(home, write=True)
    other.close()


def test_a_killed_writer_leaves_a_catalog_that_a_reader_can_open(home: Home) -> None:
    code = OPEN.replace("print", "catalog.write().__enter__(); os.kill(os.getpid(), 9) #")
    command = [sys.executable, "-c", "import os\n" + code, home.path, "", "write"]
    assert subprocess.run(command).returncode == -9
    with Catalog.open(home, write=False) as catalog, catalog.read() as conn:
        assert conn.execute(select(Store.store_id)).scalar() == catalog.store_id


def test_a_home_with_a_strange_name_works(tmp_path: Path) -> None:
    home = Home(os.fsdecode(bytes(tmp_path) + b"/a b?c#d%41\xff"))
    Catalog.open(home, write=True).close()
    with Catalog.open(home, write=False) as catalog:
        assert catalog.store_id == home.read_store_id()


# What Postgres says.


@pytest.mark.parametrize(
    "given",
    [
        "postgres://me:secret@db/x",
        "postgresql://me:secret@db/x",
        "postgresql+psycopg://me:secret@db/x",
    ],
)
def test_all_ways_to_name_postgres_mean_the_same_and_hide_the_password(given: str) -> None:
    home = Home("/nowhere", given)
    url = catalog_url(home)
    assert url is not None
    assert url.render_as_string(hide_password=False) == "postgresql+psycopg://me:secret@db/x"
    assert where(home) == "postgresql+psycopg://me:***@db/x"


@pytest.mark.parametrize("url", ["mysql://db/x", "sqlite:///x", "no url", "postgresql://h:no/x"])
def test_other_databases_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="the catalog's URL"):
        Catalog.open(Home(str(tmp_path), url), write=True)


def test_a_server_that_is_not_there_is_said_so_without_the_password(tmp_path: Path) -> None:
    home = Home(str(tmp_path / "home"), f"postgresql://me:secret@/x?host={tmp_path}")
    with pytest.raises(CatalogError, match=r"can't be reached: .*; start the server") as caught:
        Catalog.open(home, write=True)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def _read_soon(conn: Connection) -> None:
    conn.execute(text("SET LOCAL lock_timeout = '20ms'"))
    conn.execute(select(Root.id))


def _end_session(other: psycopg.Connection, conn: Connection) -> None:
    pid = conn.execute(text("SELECT pg_backend_pid()")).scalar_one()
    other.execute("SELECT pg_terminate_backend(%s)", [pid])
    conn.execute(select(Root.id))


@pytest.mark.postgres
def test_postgres_troubles_are_named(postgres_url: str, home: Home) -> None:
    with Catalog.open(Home(home.path, postgres_url), write=True) as catalog:
        with catalog.write() as conn:
            conn.execute(text("LOCK TABLE roots"))
            with pytest.raises(CatalogError, match="was locked"), catalog.write() as other:
                _read_soon(other)
        with catalog.read() as conn:
            assert conn.execute(text("SHOW lock_timeout")).scalar() == "30s"
        with (
            psycopg.connect(postgres_url, autocommit=True) as other,
            pytest.raises(CatalogError, match="was shut down"),
            catalog.write() as conn,
        ):
            _end_session(other, conn)
        with catalog.read() as conn:  # and a new connection is made by itself
            assert conn.execute(select(Root.id)).all() == []


@pytest.mark.postgres
def test_own_options_in_the_url_are_kept(postgres_url: str, home: Home) -> None:
    url = f"{postgres_url}&options=-c%20lock_timeout%3D7s"
    with Catalog.open(Home(home.path, url), write=True) as catalog, catalog.read() as conn:
        assert conn.execute(text("SHOW lock_timeout")).scalar() == "7s"


def test_json_and_booleans_come_back_as_they_went(catalog: Catalog, space: SpaceInfo) -> None:
    with catalog.read() as conn:
        row = conn.execute(select(Space.next_row, Space.current, Space.spec)).one()
    assert row == (0, True, space.spec)


def test_no_copy_is_made_where_nothing_is_migrated(home: Home) -> None:
    for _ in range(2):
        Catalog.open(home, write=True).close()
    names = {name for name in os.listdir(home.path) if not name.endswith(("-wal", "-shm"))}
    assert names == {"catalog.sqlite", "store.json"}
    shutil.rmtree(home.path)
