"""Runs at storage level that are killed while they write, and the judge of what they leave."""

import contextlib
import random
import signal
import time

from storage.catalog import Catalog
from storage.check import check
from storage.cleanup import delete_old_files
from storage.leases import start_run
from tests.reliability import writers
from tests.reliability.children import forked

MOST_SAID = 40
"""Before it has said so many things a run is killed: it names its calls of the file system too."""


class Victims:
    """Runs at storage level that are killed a moment after something that they say."""

    def __init__(self, stores, folder, seed):
        self.stores = stores
        self.folder = folder
        self.rng = random.Random(seed)
        self.kills = self.tails = self.rounds = 0

    def start(self, home):
        said, saying = forked.Pipe(duplex=False)
        child = forked.Process(target=writers.run_here, args=(home, saying))
        child.start()
        saying.close()
        return child, said

    def kill_once(self, home):
        """Start a run and kill it; return what it said, and whether it was done before."""
        child, said = self.start(home)
        heard, most = [], self.rng.randrange(MOST_SAID)
        with contextlib.suppress(EOFError):
            while len(heard) < most:
                heard.append(said.recv_bytes())
        time.sleep(self.rng.choice([0, self.rng.uniform(0, 0.01)]))
        child.kill()
        with contextlib.suppress(EOFError):
            while True:
                heard.append(said.recv_bytes())
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        return heard, child.exitcode == 0

    def kill_through(self, most):
        """Kill one store's runs until one of them gets to its end; it must be whole then."""
        home = self.stores.copy(f"{self.folder}/round-{self.rounds}")
        self.rounds += 1
        ledger, unnamed, done = writers.Ledger(), set(), False
        while not done and self.kills < most:
            heard, done = self.kill_once(home)
            with Catalog.open(home, write=False) as catalog:
                ledger.hold(catalog, heard)
                left = writers.unnamed_files(catalog)
            self.kills += not done
            self.tails += not done and left > unnamed
            unnamed = left
        writers.run_here(home)
        with Catalog.open(home, write=True) as catalog:
            ledger.hold(catalog, [])
            self.judge(catalog)
        self.stores.drop(home)

    def judge(self, catalog):
        """Nothing lost, nothing repeated, and no file that the next nights would not delete."""
        assert writers.counts(catalog) == (writers.IMAGES,) * 3
        assert [f.what for f in check(catalog, deep=True) if f.severity == "error"] == []
        delete_old_files(catalog, start_run(catalog, "tidy"), keep_s=0)
        assert writers.unnamed_files(catalog) == set()


def kill_often(stores, folder, most, seed):
    """Kill runs so often, store after store; return what was counted."""
    victims = Victims(stores, folder, seed)
    while victims.kills < most:
        victims.kill_through(most)
    return {"kills": victims.kills, "with_a_tail": victims.tails, "stores": victims.rounds}
