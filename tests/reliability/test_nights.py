"""Twenty-four nights, each with another fault: nothing is lost, and no file outlives its grace.

The clocks are moved by hand: of the files by their times, of the catalog by the times in its rows.
"""

import os
import random
import shutil
import time

import pytest
from sqlalchemy import select, text

from storage.backup import backup
from storage.catalog import Catalog
from storage.check import check
from storage.cleanup import KEEP_S, delete_old_files
from storage.compact import compact
from storage.errors import StorageError
from storage.files import scan_root
from storage.fs import Fs, using
from storage.home import Home
from storage.leases import finish_run, reap, start_run
from storage.publish import publish
from storage.roots import add_root
from storage.spaces import list_spaces
from storage.tables import Generation, Part
from tests.reliability.lives import (
    Known,
    boot,
    digest_of,
    extract,
    judge,
    the_space,
    vector_of,
    vectors_in,
)
from tests.reliability.scale import scale, tally

SEED = 20261122
NIGHTS = 24
NIGHT_S = 24 * 3600.0


class Killed(BaseException):
    """The process ends here."""


class Faulty(Fs):
    """Fails at its ``at``-th change: ends the process, or says what a disk in trouble says."""

    def __init__(self, at, what):
        self.at, self.what, self.calls = at, what, 0

    def strike(self):
        self.calls += 1
        if self.calls == self.at and self.what == "killed":
            raise Killed
        if self.calls >= self.at and self.what in ("full", "broken"):
            raise OSError(28 if self.what == "full" else 5, "No")


def _striking(name):
    def call(self, *words):
        if self.what == "killed" or name in ("open_new", "write", "fsync", "replace"):
            self.strike()
        return getattr(Fs, name)(self, *words)

    return call


for _name in ("open_new", "write", "fsync", "replace", "unlink", "fsync_dir"):
    setattr(Faulty, _name, _striking(_name))


def one_night(home, pictures, known):
    """Do what a night does, with the grace that a night gives."""
    with Catalog.open(home, write=True) as catalog:
        known.opened = True
        reap(catalog)
        root = add_root(catalog, os.fsencode(pictures))
        lease = start_run(catalog, "index")
        space = the_space(catalog)
        scan_root(catalog, root, confirm_missing=True, skip=None, lease=lease)
        extract(catalog, lease, space, known)
        compact(catalog, lease, space)
        publish(catalog, lease, space)
        known.published = True
        delete_old_files(catalog, lease)
        finish_run(catalog, lease, "done")


def a_day_passes(home):
    """Make everything a day older, files and rows."""
    for folder, _, names in os.walk(home.path):
        for path in (os.path.join(folder, name) for name in names):
            status = os.stat(path)
            os.utime(path, (status.st_atime - NIGHT_S, status.st_mtime - NIGHT_S))
    if os.path.exists(home.sqlite):
        with Catalog.open(home, write=True) as catalog, catalog.write() as conn:
            for table, column in (("parts", "replaced_at"), ("generations", "replaced_at")):
                conn.execute(text(f"UPDATE {table} SET {column} = {column} - {NIGHT_S}"))


def left_over(home):
    """Return how long, in days, each file of the spaces has been of no use.

    A replaced one since it was replaced, one that no row names since it was written.
    """
    with Catalog.open(home, write=False) as catalog, catalog.read() as conn:
        rows = [
            row
            for table in (Part, Generation)
            for row in conn.execute(select(table.name, table.state, table.replaced_at))
        ]
        now = catalog.now(conn)
    since = {name: now if state == "live" else at for name, state, at in rows}
    ages = []
    for folder, _, names in os.walk(home.spaces_dir):
        for name in names:
            written = os.stat(os.path.join(folder, name)).st_mtime
            begun = written if name.endswith(".tmp") else since.get(name.split(".")[0], written)
            if begun != now:
                ages.append((time.time() - begun) / NIGHT_S)
    return ages


def live_through(folder, rng, template):
    """Live through the nights; return what was counted, and how old the oldest left-over was."""
    pictures = os.path.join(folder, "pictures")
    os.mkdir(pictures)
    home = Home(os.path.join(folder, "home"))
    os.mkdir(home.path)
    shutil.copyfile(template, home.sqlite)
    known, expected = Known(), {}
    counts = {"faults": 0, "left": 0, "nights": 0, "oldest": 0.0}
    for night in range(NIGHTS):
        for number in range(rng.randint(1, 6)):
            data = b"night %d picture %d %d" % (night, number, rng.randint(0, 9))
            expected[digest_of(data)] = vector_of(digest_of(data))
            with open(f"{pictures}/{night:02}-{number}.jpg", "wb") as file:
                file.write(data)
        what = rng.choice(("killed", "killed", "full", "broken", "none"))
        faulty = Faulty(rng.randint(1, 60), what)
        with boot(night):
            try:
                with using(faulty):
                    one_night(home, pictures, known)
            except (Killed, StorageError):
                counts["faults"] += 1
                judge(home, known, expected)
                if known.opened:  # else it failed before there was a store
                    counts["left"] += len(left_over(home))
        if rng.random() < 0.5:  # the morning after a person tries again
            with boot(night + 0.5):
                one_night(home, pictures, known)
                judge(home, known, expected)
                ages = left_over(home)
                counts["oldest"] = max(counts["oldest"], *ages, 0.0)
                if ages:
                    assert max(ages) < 1.01 * KEEP_S / NIGHT_S
        counts["nights"] += 1
        a_day_passes(home)
    with boot(NIGHTS):
        one_night(home, pictures, known)
    with Catalog.open(home, write=True) as catalog:
        (space,) = list_spaces(catalog)
        assert vectors_in(catalog, space).keys() == expected.keys()
        assert [f.what for f in check(catalog, deep=True) if f.severity == "error"] == []
    a_day_passes(home)
    with boot(NIGHTS + 1):
        one_night(home, pictures, known)
    assert [age for age in left_over(home) if age >= 1] == []
    return counts


def test_nights_with_faults_leave_nothing_behind(tmp_path, sqlite_template):
    total = {"faults": 0, "left": 0, "nights": 0, "oldest": 0.0}
    for run in range(scale(ci=1, long=12)):
        rng = random.Random(SEED + run)
        folder = tmp_path / str(run)
        folder.mkdir()
        counts = live_through(str(folder), rng, sqlite_template)
        total = {
            name: max(total[name], counts[name]) if name == "oldest" else total[name] + counts[name]
            for name in total
        }
        shutil.rmtree(folder)
    tally("nights", seed=SEED, hours=24 * total["nights"], **total)
    assert total["faults"] >= total["nights"] // 3
    assert total["left"] > 0, "no fault has left anything behind: the test proves nothing"


def test_it_bites_where_orphans_are_never_deleted(tmp_path, sqlite_template, monkeypatch):
    import storage.cleanup

    monkeypatch.setattr(storage.cleanup, "_delete_orphans", lambda paths, keep_s: 0)
    with pytest.raises(AssertionError):
        live_through(str(tmp_path), random.Random(SEED), sqlite_template)


def test_a_backup_after_every_night_is_that_night_s(tmp_path, sqlite_template):
    """Backups of a store with faults are sound, and hold what was committed before them."""
    pictures, home = tmp_path / "pictures", Home(str(tmp_path / "home"))
    pictures.mkdir()
    os.mkdir(home.path)
    shutil.copyfile(sqlite_template, home.sqlite)
    rng, known = random.Random(SEED), Known()
    for night in range(8):
        (pictures / f"{night}.jpg").write_bytes(b"night %d" % night)
        with boot(night):
            try:
                with using(Faulty(rng.randint(1, 60), "killed" if night % 2 else "none")):
                    one_night(home, str(pictures), known)
            except Killed:
                pass
        with Catalog.open(home, write=False) as catalog:
            backup(catalog, str(tmp_path / "backup"))
        with Catalog.open(Home(str(tmp_path / "backup")), write=False) as copy:
            assert check(copy, deep=True) == []
            spaces = list_spaces(copy)
            found = vectors_in(copy, spaces[0]).keys() if spaces else set()
            assert found >= known.digests
