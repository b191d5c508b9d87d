"""Two runs over one store, and a run that is stopped until another one has taken its lease."""

import contextlib
import os
import random
import signal

import pytest
from sqlalchemy import func, select, update

import storage.chunks
import storage.commit
import storage.compact
import storage.publish
import storage.runs
from storage import leases
from storage.catalog import Catalog
from storage.check import check
from storage.errors import LeaseLost
from storage.fs import using
from storage.leases import reap
from storage.tables import Claim, Part
from storage.tables import Run as RunRow
from tests.reliability import writers
from tests.reliability.children import forked, lightly
from tests.reliability.scale import scale, tally

SEED = 20261123
FILES = 28
"""No two of one content: while nobody has read them, two runs can't know of it."""
PAIRS = {"sqlite": scale(ci=20, long=200), "postgres": scale(ci=6, long=100)}
UNCHECKED = {"sqlite": scale(ci=10, long=200), "postgres": scale(ci=3, long=100)}
CHECKED = (storage.chunks, storage.commit, storage.compact, storage.publish, storage.runs)
"""Modules that ask whether the run still has its lease."""


@pytest.fixture
def stores(request, database, catalog_home):
    server = request.getfixturevalue("postgres_server") if database == "postgres" else None
    return writers.Stores(catalog_home, server, FILES)


def child(target, *args):
    """Start a process, and return it with the connection through which it speaks."""
    said, saying = forked.Pipe(duplex=False)
    process = forked.Process(target=target, args=(*args, saying))
    process.start()
    saying.close()
    return process, said


def hear(said):
    """Return everything that a process says until its end."""
    heard = []
    with contextlib.suppress(EOFError):
        while True:
            heard.append(said.recv_bytes())
    return heard


def errors(catalog):
    return [found.what for found in check(catalog, deep=True) if found.severity == "error"]


def commits(heard):
    return [message for message in heard if len(message) % 32 == 0]


def share(stores, folder, pairs):
    """Let pairs of runs do the work of a store each; return how many pairs shared it."""
    shared = 0
    for pair in range(pairs):
        home = stores.copy(f"{folder}/pair-{pair}")
        two = [child(writers.run_here, home) for _ in range(2)]
        heard = [hear(said) for _, said in two]
        for process, _ in two:
            process.join()
            assert process.exitcode == 0
        with Catalog.open(home, write=False) as catalog:
            writers.Ledger().hold(catalog, [*heard[0], *heard[1]])
            assert writers.counts(catalog) == (FILES,) * 3
            assert errors(catalog) == []
            assert writers.unnamed_files(catalog) == set()
        said = [sum(len(message) // 32 for message in commits(each)) for each in heard]
        assert sum(said) == FILES
        shared += min(said) > 0
        stores.drop(home)
    return shared


def test_two_writers_share_the_work_and_do_none_of_it_twice(stores, database, tmp_path):
    pairs = PAIRS[database]
    shared = lightly(share, stores, str(tmp_path), pairs)
    tally(f"two writers, {database}", pairs=pairs, pairs_that_shared=shared)
    assert shared > pairs // 3, "one of the two was through before the other began"


def unchecked():
    """Put the check of the lease out of force, in this process."""
    for module in CHECKED:
        module.check_lease = lambda *_: None


class Waiting(writers.Run):
    """A run that has written its first part when its lease is taken away, and commits it then."""

    def __init__(self, catalog, say, written, stolen):
        super().__init__(catalog, say)
        self.written = written
        self.stolen = stolen

    def append(self, digests):
        part = super().append(digests)
        self.written.set()
        assert self.stolen.wait(60)
        return part


def run_unchecked(home, written, stolen, connection):
    """Commit as a run does that nobody asks for its lease."""
    unchecked()
    with Catalog.open(home, write=True) as catalog:
        Waiting(catalog, connection.send_bytes, written, stolen).extract()


def steal(home, written, stolen, connection):
    """Take everybody's lease and claims away, again and again, and commit the same files."""
    unchecked()
    with Catalog.open(home, write=True) as catalog:
        run = writers.Run(catalog, connection.send_bytes)
        assert written.wait(60)
        for _ in range(15):
            with catalog.write() as conn:
                conn.execute(update(RunRow).values(state="crashed", token=""))
                conn.execute(Claim.__table__.delete())
            run.extract(1)
            stolen.set()


def repeat(stores, folder, pairs):
    """Let pairs of runs do the same work; return how many pairs did some of it twice."""
    repeated = 0
    for pair in range(pairs):
        home = stores.copy(f"{folder}/pair-{pair}")
        events = forked.Event(), forked.Event()
        two = [child(run_unchecked, home, *events), child(steal, home, *events)]
        heard = [hear(said) for _, said in two]
        for process, _ in two:
            process.join()
            assert process.exitcode == 0
        writers.run_here(home)
        with Catalog.open(home, write=False) as catalog:
            writers.Ledger().hold(catalog, [*heard[0], *heard[1]])
            entered, _, ever = writers.counts(catalog)
            assert entered == FILES
            assert errors(catalog) == []
        repeated += ever > FILES
        stores.drop(home)
    return repeated


def test_two_writers_without_the_lease_check_repeat_work_and_damage_nothing(
    stores, database, tmp_path
):
    pairs = UNCHECKED[database]
    repeated = lightly(repeat, stores, str(tmp_path), pairs)
    tally(f"two writers without the check, {database}", pairs=pairs, pairs_that_repeated=repeated)
    assert repeated == pairs, "the lease check was not missed, so the other test proves nothing"


class Stopping(writers.Telling):
    """Stops the process just before one of the calls of the file system."""

    def __init__(self, connection, call):
        super().__init__(self._count)
        self.connection = connection
        self.call = call
        self.calls = 0

    def _count(self, _):
        self.calls += 1
        if self.calls == self.call:
            self.connection.send_bytes(b"stopped")
            os.kill(os.getpid(), signal.SIGSTOP)


def run_stopped(home, call, connection):
    """Do a whole run that stops before a call; say how it ended, and what it committed."""
    with Catalog.open(home, write=True) as catalog:
        run = writers.Run(catalog, connection.send_bytes)
        try:
            with using(Stopping(connection, call)):
                run.whole()
        except LeaseLost as error:
            connection.send_bytes(b"lease lost: " + str(error).encode())
        else:
            connection.send_bytes(b"done")


def calls_of_a_run(stores, tmp_path):
    home = stores.copy(str(tmp_path / "counted"))
    counted = Stopping(None, -1)
    with Catalog.open(home, write=True) as catalog:
        run = writers.Run(catalog)
        with using(counted):
            run.whole()
    stores.drop(home)
    return counted.calls


def let_lapse(catalog):
    """Make the one running run look like that of another host which was not heard of for long."""
    elsewhere = {"host": "elsewhere", "boot": "another boot", "expires_at": 0.0}
    with catalog.write() as conn:
        run_id = conn.execute(select(RunRow.id).where(RunRow.state == "running")).scalar_one()
        conn.execute(update(RunRow).where(RunRow.id == run_id).values(elsewhere))
    return run_id


def rows_of(catalog, run_id):
    with catalog.read() as conn:
        return conn.execute(select(func.count(Part.id)).where(Part.run_id == run_id)).scalar_one()


def stop_at(stores, folder, picked):
    """Stop runs before these calls, let others take over, and wake them."""
    for call in picked:
        home = stores.copy(f"{folder}/call-{call}")
        process, said = child(run_stopped, home, call)
        heard = []
        while not heard or heard[-1] != b"stopped":
            heard.append(said.recv_bytes())
        ledger = writers.Ledger()
        with Catalog.open(home, write=True) as catalog:
            ledger.hold(catalog, heard)
            stopped = let_lapse(catalog)
            before = rows_of(catalog, stopped)
            assert reap(catalog) == [stopped]
            writers.Run(catalog).whole()
            ledger.hold(catalog, [])
        os.kill(process.pid, signal.SIGCONT)
        heard = hear(said)
        process.join()
        assert process.exitcode == 0
        assert heard[-1].startswith(b"lease lost: run "), heard
        assert commits(heard) == []
        with Catalog.open(home, write=False) as catalog:
            ledger.hold(catalog, [])
            assert rows_of(catalog, stopped) == before
            assert writers.counts(catalog) == (FILES,) * 3
            assert errors(catalog) == []
        stores.drop(home)


def test_a_writer_that_was_stopped_past_its_lease_commits_nothing_more(stores, database, tmp_path):
    total = calls_of_a_run(stores, tmp_path)
    most = {"sqlite": scale(ci=5, long=total), "postgres": scale(ci=2, long=total)}[database]
    # In the first chunk, while the index is published, and anywhere in between.
    among = random.Random(SEED).sample(range(1, total + 1), most)
    picked = sorted({1, 2, 7, *among, total - 6, total - 1, total})
    lightly(stop_at, stores, str(tmp_path), picked)
    tally(f"stopped writers, {database}", seed=SEED, stops=len(picked), calls_of_a_run=total)


def test_a_stopped_writer_would_commit_without_the_check(stores, tmp_path, monkeypatch):
    home = stores.copy(str(tmp_path / "late"))
    with Catalog.open(home, write=True) as catalog:
        late = writers.Run(catalog)
        chunk = late.claim()
        lapsed = let_lapse(catalog)
        assert reap(catalog) == [lapsed]
        writers.Run(catalog).extract()
        with pytest.raises(LeaseLost, match=lapsed):
            late.commit(chunk)
        assert rows_of(catalog, lapsed) == 0
        ledger = writers.Ledger()
        ledger.hold(catalog, [])
        for module in CHECKED:
            assert module.check_lease is leases.check_lease
            monkeypatch.setattr(module, "check_lease", lambda *_: None)
        monkeypatch.setattr(late, "missing", lambda digests: [*dict.fromkeys(digests)])
        late.commit(chunk)
        assert rows_of(catalog, lapsed) == 1, "nothing else keeps it out"
        ledger.hold(catalog, [])  # what is committed stays as it is even then
