"""A state machine that does to a root what people, cameras, disks and clocks do to it.

After every scan the catalog must say what ``trees_model.Model`` says, and what was extracted must
be each content once.  Disks are folders that are moved to the root's path and away from it: other
inodes on one file system.  Real mounts are in ``test_mounts.py``.
"""

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from sqlalchemy import select, update

from storage.catalog import Catalog
from storage.errors import RootUnavailable
from storage.file_rows import prune_root
from storage.files import scan_root
from storage.home import Home
from storage.leases import start_run
from storage.roots import find_root
from storage.scan import EXACT_MARGIN_NS
from storage.spaces import ensure_space
from storage.tables import File, Image, Root
from tests.reliability.trees_model import MONTH_S, Model, Seen, below, digest_of, look
from tests.storage.job import OLD_NS, Job, dump
from tests.storage.trees import unprivileged

FOLDERS = [b"", b"a", b"a/b", b"a-b", b"c"]
NAMES = [b"1.jpg", b"2.PNG", b"caf\xe9.jpg", b"new\nline.gif", "é.webp".encode(), "é.webp".encode()]
CONTENTS = [b"%03d" % i * (1 + i % 3) for i in range(12)]
TIMES_NS = [0, -(10**9), 4_354_819_200 * 10**9, OLD_NS, OLD_NS + 1]

places = st.builds(os.path.join, st.sampled_from(FOLDERS), st.sampled_from(NAMES))
contents = st.sampled_from(CONTENTS)
choices = st.integers(0, 1 << 16)

counts = {"runs": 0, "steps": 0, "scans": 0, "refused": 0, "extracted": 0}


class Young:
    """The paths whose files are too young to be trusted, by a clock that can be set."""

    def __init__(self):
        self.skew_ns = 0

    def __contains__(self, path):
        status = os.lstat(path)
        now_ns = time.time_ns() + self.skew_ns
        return max(status.st_mtime_ns, status.st_ctime_ns) > now_ns - EXACT_MARGIN_NS


class Vanished:
    """The trouble of reading files that are not there any more."""

    def __contains__(self, path):
        return not os.path.isfile(path)

    def __getitem__(self, path):
        return "vanished", True


class Reader(Job):
    """A job that counts what it reads."""

    reads = 0

    def commit(self, chunk):
        self.reads += len(chunk.work)
        return super().commit(chunk)


class TreeMachine(RuleBasedStateMachine):
    """One root, its disks, its catalog, and the model of it."""

    make_home = None
    """Returns a home whose catalog has its schema, for a folder; set by the test."""

    def __init__(self):
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.base = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="tree")))
        self.base.chmod(0o755)
        self.root = os.fsencode(self.base / "root")
        os.mkdir(self.root)
        home = self.stack.enter_context(type(self).make_home(self.base / "home"))
        catalog = self.stack.enter_context(Catalog.open(home, write=True))
        spec = {"dim": 8, "dtype": "float32", "decode_version": 1}
        space = ensure_space(catalog, name=None, spec=spec, request={"model": "m"}, key="m")
        self.catalog, self.young = catalog, Young()
        self.job = Reader(catalog, start_run(catalog, "index"), space, self.base / "root")
        self.job.trouble, self.job.untrusted = Vanished(), self.young
        self.model, self.extracted = Model(), 0
        self.mounted = "own"
        self.away = {"own": None, "foreign": self.base / "foreign"}
        counts["runs"] += 1

    def teardown(self):
        self.stack.close()

    # -- the tree --------------------------------------------------------------------------------

    def path(self, place):
        return os.path.join(self.root, place)

    def put(self, place, data, mtime_ns=OLD_NS, folder=None):
        path = os.path.join(folder or self.root, place)
        with contextlib.suppress(NotADirectoryError, FileExistsError):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if os.path.lexists(path):
                os.unlink(path)
            with open(path, "wb") as file:
                file.write(data)
            os.utime(path, ns=(mtime_ns, mtime_ns))

    def any_file(self, choice):
        files = sorted(look(self.root))
        return files[choice % len(files)] if files else None

    @initialize(places=st.lists(places, min_size=1, max_size=6), many=st.sampled_from([0, 0, 44]))
    def begin(self, places, many):
        for i, place in enumerate(places):
            self.put(place, CONTENTS[i])
        for i in range(many):
            self.put(b"c/%02d.jpg" % i, b"many %d" % i)
        foreign = os.fsencode(self.base / "foreign")
        for i, place in enumerate(places):  # the same names, as cameras give them
            self.put(place, b"foreign %d" % i * 2, OLD_NS + 7, folder=foreign)
        self.put(b"theirs.jpg", b"theirs", folder=foreign)
        self.job.root  # noqa: B018 - it is registered now
        self.scan(False, None)

    def step(self):
        counts["steps"] += 1

    @rule(place=places, data=contents)
    def create(self, place, data):
        self.step()
        if not os.path.lexists(self.path(place)):
            self.put(place, data, time.time_ns())

    @rule(choice=choices, data=contents)
    def edit(self, choice, data):
        self.step()
        if place := self.any_file(choice):
            with open(self.path(place), "r+b") as file:
                file.write(data)

    @rule(choice=choices, byte=st.integers(0, 255))
    def edit_and_restore_the_time(self, choice, byte):
        """Change one byte: size, date and inode stay."""
        self.step()
        if place := self.any_file(choice):
            status = os.lstat(self.path(place))
            with open(self.path(place), "r+b") as file:
                file.write(bytes([byte]))
            os.utime(self.path(place), ns=(status.st_atime_ns, status.st_mtime_ns))

    @rule(choice=choices, byte=st.integers(0, 255))
    def replace_with_the_same_size_and_time(self, choice, byte):
        """Do what ``rsync`` and ``cp -p`` do: another file of that size and date."""
        self.step()
        if place := self.any_file(choice):
            status = os.lstat(self.path(place))
            new = self.path(place) + b".new"
            with open(new, "wb") as file:
                file.write(bytes([byte]) * status.st_size)
            os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
            os.replace(new, self.path(place))

    @rule(choice=choices, place=places)
    def rename(self, choice, place):
        self.step()
        if (old := self.any_file(choice)) and os.path.isdir(os.path.dirname(self.path(place))):
            os.replace(self.path(old), self.path(place))

    @rule(one=choices, two=choices)
    def swap(self, one, two):
        self.step()
        a, b = self.any_file(one), self.any_file(two)
        if a and a != b:
            aside = self.path(a) + b".aside"
            os.rename(self.path(a), aside)
            os.rename(self.path(b), self.path(a))
            os.rename(aside, self.path(b))

    @rule(choice=choices, place=places, link=st.booleans())
    def copy_or_link(self, choice, place, link):
        self.step()
        old, new = self.any_file(choice), self.path(place)
        if old and not os.path.lexists(new) and os.path.isdir(os.path.dirname(new)):
            os.link(self.path(old), new) if link else shutil.copy2(self.path(old), new)

    @rule(choice=choices, back=st.booleans())
    def delete(self, choice, back):
        """Delete a file, and perhaps make it again with the same bytes and date."""
        self.step()
        if place := self.any_file(choice):
            with open(self.path(place), "rb") as file:
                data = file.read()
            mtime_ns = os.lstat(self.path(place)).st_mtime_ns
            os.unlink(self.path(place))
            if back:
                self.put(place, data, mtime_ns)

    @rule(choice=choices, mtime_ns=st.sampled_from(TIMES_NS))
    def touch(self, choice, mtime_ns):
        self.step()
        if place := self.any_file(choice):
            os.utime(self.path(place), ns=(mtime_ns, mtime_ns))
            os.chmod(self.path(place), 0o640)

    @rule(choice=choices, kind=st.sampled_from(["link", "pipe", "folder", "dangling"]))
    def replace_with_no_file(self, choice, kind):
        self.step()
        if place := self.any_file(choice):
            path = self.path(place)
            os.unlink(path)
            if kind == "link":
                os.symlink(os.path.join(self.root, b"c", b"1.jpg"), path)
            elif kind == "dangling":
                os.symlink(b"nowhere", path)
            else:
                os.mkfifo(path) if kind == "pipe" else os.mkdir(path)

    @rule(old=st.sampled_from(FOLDERS[1:]), new=st.sampled_from([b"a", b"d", b"c"]))
    def rename_folder(self, old, new):
        self.step()
        if os.path.isdir(self.path(old)) and not os.path.lexists(self.path(new)):
            os.rename(self.path(old), self.path(new))

    @rule(folder=st.sampled_from(FOLDERS[1:]))
    def delete_folder(self, folder):
        self.step()
        shutil.rmtree(self.path(folder), ignore_errors=True)

    # -- the disks -------------------------------------------------------------------------------

    def unmount(self, *, mount_point=True):
        if self.mounted is not None:
            self.away[self.mounted] = self.base / self.mounted
            os.rename(self.root, self.away[self.mounted])
            self.mounted = None
        shutil.rmtree(self.root, ignore_errors=True)
        if mount_point:
            os.mkdir(self.root)

    def mount(self, disk):
        self.unmount(mount_point=False)
        os.rename(self.away[disk], self.root)
        self.mounted = disk

    @rule(mount_point=st.booleans())
    def take_the_disk_away(self, mount_point):
        self.step()
        self.unmount(mount_point=mount_point)

    @rule(disk=st.sampled_from(["own", "own", "foreign"]))
    def put_a_disk_in(self, disk):
        self.step()
        if disk != self.mounted:
            self.mount(disk)

    @precondition(lambda self: self.mounted)
    @rule()
    def restore_from_a_copy(self):
        """Put a copy with the same dates in the place of the root: a new disk, a backup."""
        self.step()
        aside = self.base / "aside"
        os.rename(self.root, aside)
        shutil.copytree(os.fsencode(aside), self.root, symlinks=True, ignore=_pipes)
        shutil.rmtree(aside)

    # -- the clock -------------------------------------------------------------------------------

    @rule(by_s=st.sampled_from([3, 3, -3600, -86400, 7200]))
    def set_the_clock(self, by_s):
        self.step()
        self.young.skew_ns += by_s * 10**9

    @rule()
    def let_a_month_pass(self):
        self.step()
        self.model.now += MONTH_S
        with self.catalog.write() as conn:
            since = File.missing_since - MONTH_S
            conn.execute(update(File).values(missing_since=since))
            before = Root.scanned_before_at - MONTH_S
            times = {"scanned_at": Root.scanned_at - MONTH_S, "scanned_before_at": before}
            conn.execute(update(Root).values(times))

    # -- the scans -------------------------------------------------------------------------------

    @rule(confirm=st.sampled_from([False, False, False, True]))
    def scan_all(self, confirm):
        self.step()
        self.scan(confirm, None)

    @rule(hidden=st.sampled_from(FOLDERS[1:]))
    def scan_with_an_unreadable_folder(self, hidden):
        self.step()
        self.scan(False, hidden if os.path.isdir(self.path(hidden)) else None)

    @rule(under=st.sampled_from([b"a", b"a/b", b"c"]))
    def scan_a_part(self, under):
        self.step()
        if os.path.realpath(self.path(under)) == self.path(under):
            self.scan(False, None, under)

    @rule()
    def prune(self):
        self.step()
        root = find_root(self.catalog, self.root)
        assert prune_root(self.catalog, self.job.lease, root) == self.model.prune()
        self.compare()

    def scan(self, confirm, hidden, under=b""):
        counts["scans"] += 1
        refuse = self.model.expect(self.root, under, hidden)
        if confirm and os.path.isdir(self.root):
            refuse = False
        before = dump(self.catalog)
        try:
            self.run_scan(confirm, hidden, under)
        except RootUnavailable as error:
            said = str(error)
        else:
            said = ""
        if said:
            assert refuse is not False, said
            assert "\n" not in said
            assert dump(self.catalog) == before
            counts["refused"] += 1
            return
        assert refuse is not True, "a root was believed that must not be"
        self.read()
        known = dict(self.model.files)
        self.model.accept(self.root, under, hidden)
        self.catch_up_where_nobody_looked(known, hidden, under)
        self.compare()

    def run_scan(self, confirm, hidden, under=b""):
        """Scan; one folder can't be listed meanwhile."""
        place = find_root(self.catalog, os.path.join(self.root, under) if under else self.root)
        if hidden is None:
            return self._scan(place, confirm)
        mode = os.stat(self.path(hidden)).st_mode
        os.chmod(self.path(hidden), 0)
        try:
            with unprivileged():
                return self._scan(place, confirm)
        finally:
            os.chmod(self.path(hidden), mode)

    def _scan(self, place, confirm):
        return scan_root(
            self.catalog, place, confirm_missing=confirm, skip=None, lease=self.job.lease
        )

    def read(self):
        done = self.job.extract()["extracted"]
        self.extracted += done
        counts["extracted"] += done
        time.sleep(0.005)  # kernels before 6.13 give what happens at once the same time

    def catch_up_where_nobody_looked(self, known, hidden, under):
        """Take over what was read again because it was too young, though no scan looked there."""
        visible = look(self.root)
        digests = self.known()
        for path, seen in known.items():
            looked = below(path, under) and not below(path, hidden)
            found = visible.get(path)
            if looked or seen.state != "live" or found is None:
                continue
            if digests[path][1] == found.digest:
                self.model.hold(path, Seen(seen.size_bytes, seen.mtime_ns, found.digest))
        self.model.settle_moves(set(digests))

    def known(self):
        query = select(File.path, File.state, Image.digest)
        with self.catalog.read() as conn:
            rows = conn.execute(query.outerjoin(Image, Image.id == File.image_id))
            return {row.path: (row.state, row.digest) for row in rows}

    def compare(self):
        model = {path: (seen.state, seen.digest) for path, seen in self.model.files.items()}
        known = self.known()
        differ = {p: (known.get(p), model.get(p)) for p in known | model}
        wrong = {p: pair for p, pair in differ.items() if pair[0] != pair[1]}
        assert not wrong, wrong
        assert self.extracted == len(self.model.contents)

    @precondition(lambda self: self.mounted)
    @rule()
    def scan_twice_when_all_is_quiet(self):
        """Scan after a while, and again: the second time nothing is read and nothing written."""
        self.step()
        if self.model.expect(self.root, b"", None) is not False:
            return
        self.young.skew_ns = max(self.young.skew_ns, 0) + 3 * 10**9
        self.scan(False, None)
        future = [seen for seen in look(self.root).values() if self._is_future(seen)]
        before, reads = dump(self.catalog), self.job.reads
        result = self.run_scan(False, None)
        assert result.reasons == ({"racy": len(future)} if future else {})
        self.model.accept(self.root, b"", None)
        self.model.settle_moves(set(self.known()))
        after = dump(self.catalog)
        gone = len(before["files"]) - len(after["files"])  # what two scans have missed is forgotten
        if not gone:
            assert {**after, "roots": []} == {**before, "roots": []}
        self.read()
        assert self.job.reads - reads == len(future)
        self.compare()

    def _is_future(self, seen):
        return seen.mtime_ns > time.time_ns() + self.young.skew_ns


def _pipes(folder, names):
    return [name for name in names if not os.path.isfile(os.path.join(folder, name))
            and not os.path.isdir(os.path.join(folder, name))]  # fmt: skip


def local_home(template: str):
    """Return how to make homes with a SQLite catalog."""

    @contextlib.contextmanager
    def make(path: Path):
        path.mkdir(mode=0o700)
        home = Home(str(path))
        shutil.copy(template, home.sqlite)
        yield home

    return make


__all__ = ["TreeMachine", "counts", "digest_of", "local_home"]
