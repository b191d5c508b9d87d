"""Small versions of the battery's checks: each raises `Wrong`, or what the store itself says.

A run of one is known by its seed.  ``share``, from 0 up to 1, says where in the work it strikes, so
that a number of runs meets all of it.
"""

import errno
import os
import random
import shutil
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import select

from storage.catalog import Catalog
from storage.check import check
from storage.cleanup import delete_old_files
from storage.compact import compact
from storage.errors import LeaseHeld, LeaseLost, SpaceError, StorageError
from storage.fs import Fs, using
from storage.home import Home
from storage.leases import finish_run, reap, start_run
from storage.publish import publish
from storage.spaces import get_space
from storage.tables import Base
from tests.reliability.cut_short import Batch, Saves
from tests.reliability.lives import (
    History,
    Known,
    Wrong,
    boot,
    judge,
    one_night,
    plant,
    refuse_damaged,
    refuse_unlike,
    the_space,
)


class Counted(Fs):
    """The file system as it is; before its ``at``-th change something is done.

    Where ``then`` says that it could not do anything yet, it is called again before the next one.
    """

    def __init__(self, at=0, then=lambda: True):
        self.at, self.then, self.calls, self.done = at, then, 0, False

    def count(self):
        self.calls += 1
        if self.calls >= self.at and not self.done:
            self.done = True  # what is done calls this too
            self.done = self.then()


def _counted(name):
    def call(self, *words):
        self.count()
        return getattr(Fs, name)(self, *words)

    return call


for _name in ("open_new", "write", "fsync", "replace", "unlink", "mkdir", "rmdir", "fsync_dir"):
    setattr(Counted, _name, _counted(_name))


@dataclass
class Bench:
    """What the checks begin with: pictures, and homes of which every run has a copy."""

    folder: str
    template: str

    def __post_init__(self):
        self.pictures = f"{self.folder}/pictures"
        self.expected = plant(self.pictures)
        self.new = f"{self.folder}/new"
        with Catalog.open(self._begin(self.new), write=True) as catalog:
            the_space(catalog)
        counted = Counted()
        with using(counted):
            one_night(self._copy(self.new), self.pictures, Known())
        self.calls = counted.calls
        self.gaps, self.other = f"{self.folder}/gaps", f"{self.folder}/other"
        self._fill(self.gaps)
        self._fill(self.other)

    def _begin(self, path):
        os.mkdir(path)
        shutil.copyfile(self.template, f"{path}/catalog.sqlite")
        return Home(path)

    def _fill(self, path):
        """Make a home that has lost most of its pictures, so that rows are missing in between."""
        more = f"{path}-pictures"
        plant(more, 40)
        home = self._begin(path)
        one_night(home, more, Known())
        for number in range(42):  # the last two are copies of the first two
            if number % 5:
                os.unlink(f"{more}/{number:02}.jpg")
        one_night(home, more, Known())

    def _copy(self, of):
        path = f"{self.folder}/home"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(of, path)
        return Home(path)

    def _point(self, share):
        return 1 + int(share * self.calls)

    # The checks.

    def power(self, seed, share):
        """Cut the power in the lives of a store."""
        folder = f"{self.folder}/history"
        shutil.rmtree(folder, ignore_errors=True)
        rng = random.Random(seed)
        History(folder, self.pictures, self.expected, self.template, rng).run()

    def saves(self, seed, share):
        """Cut the power while a file is replaced; a hundred times."""
        self._cut(Saves, seed)

    def batch(self, seed, share):
        """Cut the power while work for an output is done; a hundred times."""
        self._cut(Batch, seed)

    def _cut(self, kind, seed):
        for number in range(100):
            folder = f"{self.folder}/small"
            shutil.rmtree(folder, ignore_errors=True)
            kind(folder, random.Random(f"{seed} {number}")).run()

    def flip(self, seed, share):
        """Change one bit in one file of each kind; nothing that was changed may go unnoticed."""
        rng = random.Random(seed)
        for kind in (".npy", ".ids.npy", ".rows.npy", ".faiss", ".rowmap.npy"):
            home = self._copy(self.gaps)
            path = rng.choice(sorted(_of_kind(home, kind)))
            with open(path, "r+b") as file:
                at = rng.randrange(128, os.path.getsize(path), 8)  # what weighs least of a number
                file.seek(at)
                (byte,) = file.read(1)
                file.seek(at)
                file.write(bytes([byte ^ 1 << rng.randrange(4)]))
            if not _refused(home):
                raise Wrong(f"a bit of a {kind} was changed at {at}, and nobody noticed")

    def paused(self, seed, share):
        """Declare a run dead in its midst: from then on it writes nothing."""
        home, before = self._copy(self.new), []

        def declare_dead():
            with Catalog.open(home, write=True) as catalog, boot("other"):
                if not reap(catalog):
                    return False  # the run has not begun
                before.append(_dump(catalog))
                return True

        with using(Counted(self._point(share), declare_dead)), suppress(LeaseLost):
            one_night(home, self.pictures, Known())
            raise Wrong("a run that was declared dead went on to its end")
        with Catalog.open(home, write=False) as catalog:
            if [_dump(catalog)] != before:
                raise Wrong("a run that was declared dead has written")

    def beside(self, seed, share):
        """Let another run compact, publish and clear while one is at work."""
        home = self._copy(self.new)

        def other_run():
            with Catalog.open(home, write=True) as catalog:
                lease = start_run(catalog, "maintenance")
                with suppress(LeaseHeld, SpaceError):  # in use; no vectors yet
                    compact(catalog, lease, the_space(catalog), force=True)
                    publish(catalog, lease, the_space(catalog))
                delete_old_files(catalog, lease, keep_s=0.0)
                finish_run(catalog, lease, "done")
            return True

        known = Known()
        with using(Counted(self._point(share), other_run)):
            one_night(home, self.pictures, known)
        judge(home, known, self.expected)
        for problem in _errors(home):
            raise Wrong(problem)

    def short(self, seed, share):
        """Let the system take a part of what is written."""
        rng = random.Random(seed)

        class Short(Fs):
            def write(self, fd, data):
                return super().write(fd, data[: rng.randint(1, len(data))])

        home, known = self._copy(self.new), Known()
        with using(Short()):
            one_night(home, self.pictures, known)
        judge(home, known, self.expected)
        refuse_unlike(home, self.expected)

    def unsynced(self, seed, share):
        """Let a sync fail: the run must not take it for done, and the next one goes on."""
        home, known = self._copy(self.new), Known()

        class Failing(Counted):
            failed = False

            def fsync(self, fd):
                super().fsync(fd)
                if self.calls >= self.at and not self.failed:
                    self.failed = True
                    raise OSError(errno.EIO, os.strerror(errno.EIO))

        failing = Failing(self._point(share) // 2)
        with using(failing), suppress(StorageError):
            one_night(home, self.pictures, known)
            raise Wrong("a sync has failed, and the run has not")
        with boot("next"):
            one_night(home, self.pictures, known)
        judge(home, known, self.expected)

    def foreign(self, seed, share):
        """Put the catalog of another store into a home."""
        home = self._copy(self.gaps)
        shutil.copyfile(f"{self.other}/catalog.sqlite", home.sqlite)
        with suppress(StorageError):
            Catalog.open(home, write=seed % 2 == 0).close()
            raise Wrong("a catalog has met the files of another store")


def _errors(home):
    with Catalog.open(home, write=False) as catalog:
        return [found.what for found in check(catalog, deep=True) if found.severity == "error"]


def _refused(home):
    """Say whether a part is told to be damaged, or the index is not loaded."""
    with Catalog.open(home, write=False) as catalog:
        try:
            refuse_damaged(catalog, get_space(catalog), Known())
        except (Wrong, StorageError):
            return True
    return False


def _of_kind(home, kind):
    """Return the files of a store whose name ends after the first dot."""
    for folder, _, names in os.walk(home.spaces_dir):
        yield from (os.path.join(folder, name) for name in names if name[name.index(".") :] == kind)


def _dump(catalog):
    with catalog.read() as conn:
        return {
            table.name: sorted(map(tuple, conn.execute(select(table))), key=repr)
            for table in Base.metadata.sorted_tables
        }
