"""Too little of everything: disk, memory, open files, connections, and a database that is away."""

import contextlib
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time

import psycopg
import pytest
from sqlalchemy import func, select

from flows.job.patience import AGAIN_AFTER_S, patiently
from storage import vectors
from storage.backup import backup
from storage.catalog import Catalog
from storage.check import check
from storage.errors import CatalogError, DiskFull, StorageError
from storage.home import Home
from storage.leases import LEASE_S
from storage.reading import Rows, open_store, snapshot
from storage.tables import File, Run
from tests.postgres import FAST, _account, _initialise, _installations
from tests.reliability.lives import Known, boot, judge, one_night, plant, refuse_unlike
from tests.reliability.scale import scale, tally
from tests.storage.filled import Filled, clustered, local_catalog


@pytest.fixture
def small_disk(tmp_path):
    """Yield a folder on a disk of 3 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a disk of our own can't be mounted here: it takes root")
    yield str(folder)
    subprocess.run(["umount", str(folder)], check=True)


def leave_free(folder, n_bytes):
    """Fill a disk up but for some bytes."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{folder}/filler")
    free = shutil.disk_usage(folder).free
    with open(f"{folder}/filler", "wb") as file:
        file.write(bytes(max(0, free - n_bytes)))


class TestDiskFull:
    def test_at_any_point_of_a_night_it_is_one_line_and_the_next_run_makes_it_whole(
        self, small_disk, tmp_path, sqlite_template, monkeypatch
    ):
        monkeypatch.setitem(vectors.VectorStore.__init__.__kwdefaults__, "reserve_bytes", 0)
        pictures = str(tmp_path / "pictures")
        expected = plant(pictures)
        said = {}
        step = scale(ci=80, long=8) << 10
        for number, free in enumerate(range(0, 800 << 10, step)):
            home = Home(f"{small_disk}/home")
            shutil.rmtree(home.path, ignore_errors=True)
            os.mkdir(home.path)
            shutil.copyfile(sqlite_template, home.sqlite)
            known = Known()
            leave_free(small_disk, free)
            with boot(2 * number):
                try:
                    one_night(home, pictures, known)
                except StorageError as error:
                    said[free >> 10] = str(error)
            os.unlink(f"{small_disk}/filler")
            judge(home, known, expected)
            with boot(2 * number + 1):
                one_night(home, pictures, known)
            refuse_unlike(home, expected)
        tally("disk full", sizes=number + 1, refused=len(said))
        assert not [line for line in said.values() if "\n" in line]
        assert len(said) > 3
        assert number + 1 > len(said), "it was always full: nothing came through"

    def test_before_vectors_are_written_it_is_said_what_is_needed(self, small_disk, tmp_path):
        store = vectors.VectorStore(f"{small_disk}/space", 8, "float32")
        with pytest.raises(DiskFull, match="make room"):
            store.append("run", clustered(4, 8), [bytes(32)] * 4)
        assert os.listdir(store.folder) == []

    def test_a_backup_onto_a_full_disk_leaves_the_earlier_one(
        self, small_disk, tmp_path, sqlite_template
    ):
        dest = f"{small_disk}/backup"
        with local_catalog(sqlite_template, tmp_path) as catalog:
            filled = Filled(catalog, 64)
            filled.add(clustered(500, 64))
            backup(catalog, dest)
            filled.add(clustered(2000, 64, seed=1))
            for free in (0, 4 << 10, 100 << 10, 600 << 10):
                leave_free(small_disk, free)
                with pytest.raises(DiskFull, match=r"make room|no space left"):
                    backup(catalog, dest)
                with Catalog.open(Home(dest), write=False) as copy:
                    assert [f.what for f in check(copy, deep=True) if f.severity == "error"] == []
                    assert check_vectors(copy) == 500
            os.unlink(f"{small_disk}/filler")
            assert backup(catalog, dest).vectors == 2500


def check_vectors(catalog):
    from storage.spaces import get_space

    return snapshot(catalog, get_space(catalog)).n


CLAIMS = """
import resource, struct, sys, tempfile, threading, zlib
from extractor.loader import Source, load
from extractor.preprocess import Preprocess

def png(width, height):
    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1 << 20), 9)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return b"\\x89PNG\\r\\n\\x1a\\n" + chunks

def gif(width, height):
    side = struct.pack("<HH", width, height)
    frame = b"\\x00\\x00\\x00,\\x00\\x00\\x00\\x00" + side
    return b"GIF89a" + side + frame + b"\\x00\\x02\\x02L\\x01\\x00;"

def bmp(width, height):
    sizes = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + sizes

sides = [(20_000, 20_000), (60_000, 60_000), (2**31 - 1, 1), (1, 2**31 - 1), (2**31 - 1, 2**31 - 1)]
pictures = [png(*side) for side in sides] + [bmp(*side) for side in sides]
pictures += [gif(65_535, 65_535), gif(65_535, 1)]
with tempfile.TemporaryDirectory() as folder:
    sources = []
    for number, data in enumerate(pictures * 4):
        path = f"{folder}/{number}.png".encode()
        with open(path, "wb") as file:
            file.write(data)
        sources.append(Source(key=number, path=path))
    threads = 0
    failed = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    preprocess = Preprocess(**PREPROCESS)
    for loaded in load(sources, wants=lambda _: True, preprocess=preprocess, workers=4):
        threads = max(threads, threading.active_count())
        failed += loaded.failure is not None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(sources), failed, threads, (peak - before) >> 10)
"""


def test_memory_and_threads_are_bounded_whatever_pictures_claim():
    from tests.extractor.small import PREPROCESS

    script = CLAIMS.replace("Preprocess(**PREPROCESS)", "Preprocess.from_json(PREPROCESS)")
    script = f"PREPROCESS = {PREPROCESS.to_json()!r}\n{script}"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    pictures, failed, threads, mib = map(int, done.stdout.split())
    tally("large pictures", pictures=pictures, failed=failed, threads=threads, mib=mib)
    assert failed >= pictures * 3 // 4
    assert threads <= 4 + 8
    assert mib < 2200


def test_open_files_are_bounded_however_many_parts_there_are(tmp_path, sqlite_template):
    with local_catalog(sqlite_template, tmp_path) as catalog:
        filled = Filled(catalog, 8)
        for seed in range(300):
            filled.add(clustered(2, 8, seed=seed))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 280, hard))
        try:
            view = snapshot(catalog, filled.space)
            rows = Rows(open_store(catalog, filled.space), view.parts)
            assert sum(len(block) for block, _ in rows.blocks()) == 600
            assert check(catalog, deep=True) == []
            assert backup(catalog, str(tmp_path / "backup")).files == 600
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        del rows


def test_a_busy_catalog_is_waited_for(tmp_path, sqlite_template):
    """Another process has SQLite's lock for some seconds."""
    with local_catalog(sqlite_template, tmp_path) as catalog:
        Filled(catalog, 8).add(clustered(2, 8))
        other = sqlite3.connect(catalog.home.sqlite, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        for_s = scale(ci=2, long=20)
        ended = threading.Timer(for_s, lambda: other.execute("COMMIT"))
        started = time.monotonic()
        ended.start()
        with catalog.write() as conn:
            assert conn.execute(select(func.count()).select_from(File)).scalar_one() == 2
        assert time.monotonic() - started > for_s - 0.1
        ended.join()
        other.close()


class Restarted:
    """A Postgres server that can be stopped and started, with few connections."""

    def __init__(self):
        self.binaries = _installations()[0]
        self.folder = tempfile.mkdtemp(prefix="lookalike-pg-")
        account = _account()
        self.options = {"cwd": self.folder}
        if account is not None:
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            who = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            self.options |= who
        _initialise(self.binaries, self.folder, self.options)
        self.url = f"postgresql://postgres@/postgres?host={self.folder.replace('/', '%2F')}"

    def start(self):
        few = ["-c", "max_connections=12", "-c", "superuser_reserved_connections=0"]
        command = [f"{self.binaries}/postgres", "-D", "data", "-k", self.folder, "-h", "", *few]
        fast = [f"--{name}=off" for name in FAST if name != "fsync"]
        with open(f"{self.folder}/log", "ab") as log:
            self.process = subprocess.Popen(
                [*command, *fast], stdout=log, stderr=log, **self.options
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def stop(self):
        self.process.send_signal(signal.SIGINT)  # at once: open transactions are rolled back
        self.process.wait(60)


@pytest.fixture
def server(postgres_server):
    """Yield a server of the test's own; skipped or failed as the other Postgres tests are."""
    if not _installations():
        pytest.skip("no Postgres that can be started here")
    made = Restarted()
    made.start()
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(made.folder)


@pytest.mark.postgres
class TestDatabase:
    def test_one_that_is_away_for_a_while_is_waited_for(self, server, tmp_path):
        away_s = scale(ci=3, long=60)
        with Catalog.open(Home(str(tmp_path / "home"), server.url), write=True) as catalog:
            server.stop()
            with pytest.raises(CatalogError) as refused, catalog.read():
                pass
            assert "\n" not in str(refused.value)
            back = threading.Timer(away_s, server.start)
            started = time.monotonic()
            back.start()

            def question():
                with catalog.read() as conn:
                    return conn.execute(select(func.count()).select_from(Run)).scalar_one()

            assert patiently(threading.Event(), question) == 0
            assert time.monotonic() - started >= away_s - 0.1
            back.join()

    def test_the_patience_lasts_a_minute_and_ends_before_a_lease(self):
        assert 60 < sum(AGAIN_AFTER_S) < LEASE_S

    def test_a_night_goes_on_with_what_was_committed(self, server, tmp_path):
        """The server stops in the midst of a night; what the run had said was done, is there."""
        pictures = str(tmp_path / "pictures")
        expected = plant(pictures, 20)
        home, known, stopped = Home(str(tmp_path / "home"), server.url), Known(), 0
        Catalog.open(home, write=True).close()
        for number, after_s in enumerate((0.1, 0.3, 0.6)):
            stopping = threading.Timer(after_s, server.stop)
            stopping.start()
            with boot(number), contextlib.suppress(CatalogError):
                one_night(home, pictures, known)
                stopped -= 1
            stopped += 1
            stopping.join()
            server.start()
            judge(home, known, expected)
            with psycopg.connect(server.url) as conn:  # its lease runs out
                conn.execute("UPDATE runs SET expires_at = 0 WHERE state = 'running'")
            conn.close()
        with boot(3):
            one_night(home, pictures, known)
        refuse_unlike(home, expected)
        tally("database stopped", times=3, in_the_midst=stopped)
        assert stopped > 0

    def test_one_without_a_free_connection_says_so(self, server, tmp_path):
        home = Home(str(tmp_path / "home"), server.url)
        Catalog.open(home, write=True).close()
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(psycopg.OperationalError):
                while True:
                    stack.enter_context(psycopg.connect(server.url))
            with pytest.raises(CatalogError, match=r"no free connection|can't be reached") as said:
                Catalog.open(home, write=True)
            assert "\n" not in str(said.value)
        with Catalog.open(home, write=True) as catalog, catalog.read() as conn:
            assert conn.execute(select(func.count()).select_from(Run)).scalar_one() == 0
