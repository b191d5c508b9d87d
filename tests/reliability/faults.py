"""The sweep: every call of a run that changes files fails in each way, and the next run mends.

Run as a program of one thread, which forks a child for each fault and one for each judgement::

    python -m tests.reliability.faults fs|postgres|sqlite|lying FOLDER SHARE SEED [STAGE...]

``postgres`` is ``fs`` with the catalog on a server, whose own disk never fails.  It prints one JSON
line for each stage.  A stage begins on a copy of a home that the stages before it have made, so
that only its own calls are counted.
"""

import json
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from contextlib import nullcontext

from storage.errors import StorageError
from storage.fs import using
from storage.home import Home
from tests.postgres import running_server
from tests.reliability.faulty import KINDS, Faulty, Shim, points
from tests.reliability.stages import STAGES, judge

PICTURES = 5


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


class Places:
    """Homes, each in a folder that has room beside it; with a server, where their catalogs are."""

    def __init__(self, server=None):
        self.server, self.names = server, {}

    def make(self, folder):
        os.mkdir(folder)
        if self.server:
            self.names[folder] = self.server.create()

    def copy(self, base, folder):
        self.clear(folder)
        shutil.copytree(base, folder)
        if self.server:
            self.names[folder] = self.server.create(self.names[base])

    def clear(self, folder):
        shutil.rmtree(folder, ignore_errors=True)
        if folder in self.names:
            self.server.drop(self.names.pop(folder))

    def home(self, folder):
        url = self.server.database(self.names[folder]) if self.server else None
        return Home(os.path.join(folder, "home"), url)


class Sweep:
    """One stage under all faults of one kind of disk."""

    def __init__(self, what, places, folder, name):
        self.sqlite, self.places = what == "sqlite", places
        self.base, self.home = os.path.join(folder, f"{name}.base"), os.path.join(folder, name)
        self.pictures = os.path.join(folder, "pictures")
        self.before, self.stage = STAGES[name]
        self.counts, self.ends, self.wrong = Counter(), Counter(), []
        self.acknowledged = set()  # by what was made before the stage

    def rehearse(self):
        """Do everything once in this process, so that no child has to warm up."""
        self.places.make(self.base)
        for stage in (*self.before, self.stage):
            self._do(stage, self.base, lambda line: None)
        judge(self.places.home(self.base), self.pictures, set())
        self.places.clear(self.base)

    def prepare(self):
        """Do what comes before the stage; return the calls of the stage."""
        self.places.make(self.base)
        for stage in self.before:
            end, lines = in_child(lambda say, stage=stage: self._do(stage, self.base, say))
            assert end == 0, lines
            self.acknowledged |= set(lines)
        return self.attempt("", -1)[1]

    def attempt(self, kind, at):
        """Do the stage on a copy; return how it ended, and what it said or called."""
        self.places.copy(self.base, self.home)
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

    def _do(self, stage, folder, say):
        def ack(digests):
            for digest in digests:
                say(digest.hex())

        stage(self.places.home(folder), self.pictures, ack)

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
        end, lines = in_child(lambda say: judge(self.places.home(self.home), self.pictures, known))
        if end:
            self.wrong.append([kind, at, call, "judge: " + " / ".join(lines)[-700:]])


def sweep(what, folder, share, seed, names):
    with running_server() if what == "postgres" else nullcontext() as server:
        _sweep(what, Places(server), folder, share, seed, names)


def _sweep(what, places, folder, share, seed, names):
    for name in ("pictures", "tmp"):
        os.makedirs(f"{folder}/{name}")
    tempfile.tempdir = f"{folder}/tmp"  # where what a kill leaves of a backup goes with the rest
    for n in range(PICTURES):
        path = f"{folder}/pictures/{n}.jpg"
        with open(path, "wb") as file:
            file.write(b"picture %d" % n)
        os.utime(path, (1_700_000_000, 1_700_000_000))
    rng = random.Random(seed)
    Sweep(what, places, folder, "backup again").rehearse()
    for name in names or STAGES:
        one = Sweep(what, places, folder, name)
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
