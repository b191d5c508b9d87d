"""The sweep: every call of a run that changes files fails in each way, and the next run mends.

Run as a program of one thread, which forks a child for each fault and one for each judgement::

    python -m tests.reliability.faults fs|sqlite FOLDER SHARE SEED [STAGE...]

It prints one JSON line for each stage.  A stage begins on a copy of a home that the stages before
it have made, so that only its own calls are counted.
"""

import functools
import glob
import hashlib
import json
import os
import random
import shutil
import sys
import traceback
from collections import Counter

import alembic.command
import faiss
import numpy as np
from sqlalchemy import func, select

from storage import build, cleanup, compact, generation, index, publish, recall
from storage.catalog import Catalog
from storage.check import check
from storage.chunks import claim_chunk
from storage.commit import FileRead, commit_chunk
from storage.database import make_engine
from storage.durable import create_private, make_dir
from storage.errors import StorageError
from storage.files import scan_root
from storage.fs import using
from storage.home import Home
from storage.leases import finish_run, reap, start_run
from storage.migrations import REVISIONS, upgrade
from storage.reading import Rows, open_store, snapshot
from storage.roots import add_root
from storage.scan import Signature
from storage.spaces import ensure_space, list_spaces
from storage.tables import Image, Part, Vector
from tests.reliability.faulty import KINDS, Faulty, Shim, points

LOADED = (alembic, faiss, build, generation, index, recall)
"""What a child would load by itself, each one again."""

D = 8
CHUNK = 2
PICTURES = 5


def digest_of(data):
    return hashlib.sha256(data).digest()


def vector_of(digest):
    """Return the vector that the picture of a digest has, float32, unit length."""
    x = np.random.default_rng(list(digest)).standard_normal(D)
    return (x / np.linalg.norm(x)).astype(np.float32)


def pictures_in(folder):
    return {digest_of(open(path, "rb").read()) for path in glob.glob(f"{folder}/*.jpg")}


def the_space(catalog):
    return ensure_space(
        catalog,
        name=None,
        spec={"dim": D, "dtype": "float32", "decode_version": 1, "architecture": "tiny"},
        request={"model": "tiny", "layer": "pool", "weights": "DEFAULT"},
        key="tiny:pool",
    )


# The stages.  Each takes the home, the folder of pictures, and what to call with the digests that
# a commit has acknowledged.


def opened(home, folder, ack):
    """Make a home, or open it."""
    Catalog.open(home, write=True).close()


def run(work):
    """Return a stage that does some work as one run in a space."""

    @functools.wraps(work)
    def stage(home, folder, ack):
        with Catalog.open(home, write=True) as catalog:
            reap(catalog)
            lease = start_run(catalog, "index")
            work(catalog, lease, the_space(catalog), folder, ack)
            finish_run(catalog, lease, "done")

    return stage


@run
def indexed(catalog, lease, space, folder, ack):
    """Scan, append and commit, chunk by chunk."""
    root = add_root(catalog, os.fsencode(folder))
    scan_root(catalog, root, confirm_missing=True, skip=None, lease=lease)
    store = open_store(catalog, space)
    number = after = 0
    while chunk := claim_chunk(
        catalog, lease, space, number=number, limit=CHUNK, after_file_id=after
    ):
        reads = []
        for work in chunk.work:
            with open(work.path, "rb") as file:
                seen = Signature.of(os.fstat(file.fileno()))
                reads.append(FileRead(work.file_id, digest_of(file.read()), seen, trusted=True))
        digests = sorted({read.digest for read in reads})
        part = store.append(lease.run_id, np.stack([vector_of(d) for d in digests]), digests)
        commit_chunk(catalog, lease, space, chunk, reads=reads, failures=[], part=part)
        ack(digests)
        number, after = number + 1, chunk.work[-1].file_id


@run
def published(catalog, lease, space, folder, ack):
    """Build and publish an index."""
    publish.publish(catalog, lease, space)


@run
def compacted(catalog, lease, space, folder, ack):
    """Make one part of the small ones, publish anew, and delete what was replaced."""
    compact.compact(catalog, lease, space, force=True)
    publish.publish(catalog, lease, space)
    cleanup.delete_old_files(catalog, lease, keep_s=0.0)


def earlier(home, folder, ack):
    """Make a home with the schema before this one."""
    make_dir(home.path)
    create_private(home.sqlite)
    engine = make_engine(home, write=True, migrate=True)
    with engine.begin() as conn:
        upgrade(conn, to=REVISIONS[-2])
    engine.dispose()


STAGES = {
    "open": ([], opened),
    "migrate": ([earlier], opened),
    "index": ([opened], indexed),
    "publish": ([opened, indexed], published),
    "compact": ([opened, indexed, published], compacted),
}


class Wrong(Exception):
    """The judge's word for what must not be."""


def judge(home, folder, acknowledged):
    """Hold the home that a fault has left against what was acknowledged, then mend it by a run."""
    if acknowledged:
        with Catalog.open(home, write=False) as catalog:
            found = vectors_in(catalog)
        if lost := [d for d in acknowledged if not same(found.get(d), vector_of(d))]:
            raise Wrong(f"{len(lost)} acknowledged vectors are lost or changed")
    for stage in (indexed, published, compacted):
        stage(home, folder, lambda digests: None)
    with Catalog.open(home, write=False) as catalog:
        whole(catalog, pictures_in(folder))


def whole(catalog, digests):
    if problems := [f.what for f in check(catalog, deep=True)]:
        raise Wrong("; ".join(problems))
    found = vectors_in(catalog)
    if found.keys() != digests or not all(same(found[d], vector_of(d)) for d in digests):
        raise Wrong("the next run did not make the store whole")
    with catalog.read() as conn:
        vectors = conn.execute(select(func.count()).select_from(Vector)).scalar_one()
        held = conn.execute(select(func.sum(Part.n))).scalar_one()
    if (vectors, held) != (len(digests), len(digests)):
        raise Wrong(f"{vectors} vectors and {held} rows for {len(digests)} pictures")
    if left := glob.glob(f"{glob.escape(catalog.home.path)}/**/*.tmp", recursive=True):
        raise Wrong(f"{left[0]} was left")


def vectors_in(catalog):
    """Return digest -> vector of every space."""
    found = {}
    for space in list_spaces(catalog):
        view = snapshot(catalog, space)
        with catalog.read() as conn:
            query = select(Vector.row, Image.digest).join(Image)
            pairs = conn.execute(query.where(Vector.space_id == space.id)).all()
        if pairs:
            rows = Rows(open_store(catalog, space), view.parts).gather([row for row, _ in pairs])
            found |= {digest: x for (_, digest), x in zip(pairs, rows, strict=True)}
    return found


def same(one, other):
    return one is not None and one.tobytes() == other.tobytes()


def in_child(work):
    """Do something in a forked child; return how it ended and the lines that it wrote."""
    out, into = os.pipe()
    pid = os.fork()
    if not pid:
        end = 1
        try:
            work(lambda line: os.write(into, line.encode() + b"\n"))
            end = 0
        except StorageError as error:
            end = 5 if "\n" not in str(error) and str(error) else 1
            os.write(into, f"{type(error).__name__}: {error}\n".encode())
        except BaseException:  # noqa: BLE001 - told to the parent
            os.write(into, f"{traceback.format_exc()[-900:]}\n".encode())
        finally:
            os._exit(end)
    os.close(into)
    with open(out, "rb") as file:
        lines = file.read().decode().splitlines()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), lines


class Sweep:
    """One stage under all faults of one kind of disk."""

    def __init__(self, what, folder, name):
        self.sqlite = what == "sqlite"
        self.base, self.home = os.path.join(folder, f"{name}.base"), os.path.join(folder, name)
        self.pictures = os.path.join(folder, "pictures")
        self.before, self.stage = STAGES[name]
        self.counts, self.ends, self.wrong = Counter(), Counter(), []
        self.acknowledged = set()  # by what was made before the stage

    def prepare(self):
        for stage in self.before:
            end, lines = in_child(lambda say, stage=stage: self._do(stage, self.base, say))
            assert end == 0, lines
            self.acknowledged |= set(lines)
        return self.attempt("", -1)[1]

    def attempt(self, kind, at):
        """Do the stage on a copy; return how it ended, and what it said or called."""
        shutil.rmtree(self.home, ignore_errors=True)
        if os.path.isdir(self.base):
            shutil.copytree(self.base, self.home)
        return in_child(lambda say: self._faulty(kind, at, say))

    def _faulty(self, kind, at, say):
        if self.sqlite:
            shim = Shim()
            shim.arm(kind or "kill", at)
            self._do(self.stage, self.home, say)
            calls = shim.calls()
        else:
            disk = Faulty(kind, at)
            with using(disk):
                self._do(self.stage, self.home, say)
            calls = disk.calls
        if not kind:
            say(" ".join(calls))

    def _do(self, stage, home, say):
        stage(Home(home), self.pictures, lambda digests: [say(digest.hex()) for digest in digests])

    def point(self, kind, at, call):
        end, lines = self.attempt(kind, at)
        word = {0: "done", 5: "error", -9: "killed"}.get(end, "wrong")
        self.counts[kind] += 1
        self.ends[word] += 1
        due = ("killed",) if kind.startswith(("kill", "torn")) else ("done", "error")
        if kind == "short":
            due = ("done",)
        if word not in due:
            self.wrong.append([kind, at, call, f"{word}: {' / '.join(lines)[-700:]}"])
        told = {line for line in lines if len(line) == 64}
        known = {bytes.fromhex(line) for line in told | self.acknowledged}
        end, lines = in_child(lambda say: judge(Home(self.home), self.pictures, known))
        if end:
            self.wrong.append([kind, at, call, "judge: " + " / ".join(lines)[-700:]])


def sweep(what, folder, share, seed, names):
    os.makedirs(f"{folder}/pictures")
    for n in range(PICTURES):
        path = f"{folder}/pictures/{n}.jpg"
        with open(path, "wb") as file:
            file.write(b"picture %d" % n)
        os.utime(path, (1_700_000_000, 1_700_000_000))
    rng = random.Random(seed)
    for name in names or STAGES:
        one = Sweep(what, folder, name)
        calls = one.prepare()[-1].split()
        faults = list(points(calls, ("lying",) if what == "lying" else KINDS))
        for kind, k in chosen(faults, share, rng):
            one.point(kind, k, calls[k])
        print(json.dumps({
            "stage": name, "calls": dict(Counter(calls)), "points": sum(one.counts.values()),
            "kinds": one.counts, "ends": one.ends, "wrong": one.wrong,
        }), flush=True)  # fmt: skip


def chosen(faults, share, rng):
    """Return a share of the faults, by chance; 0 is one for every call."""
    if share:
        return rng.sample(faults, max(1, round(share * len(faults))))
    one_each = {k: (kind, k) for kind, k in rng.sample(faults, len(faults))}
    return sorted(one_each.values(), key=lambda fault: fault[1])


if __name__ == "__main__":
    what, folder, share, seed, *names = sys.argv[1:]
    sweep(what, folder, float(share), int(seed), names)
