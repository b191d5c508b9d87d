"""A run that is interrupted again and again ends as the one that never was: byte for byte."""

import contextlib
import os
import random
import signal
from pathlib import Path

import pytest

from storage.catalog import Catalog
from storage.compact import compact
from storage.leases import finish_run, reap, start_run
from storage.publish import publish
from storage.reading import generation_paths, open_store, snapshot
from storage.spaces import get_space
from tests.reliability import writers
from tests.reliability.children import forked, lightly
from tests.reliability.scale import scale, tally

POINTS = 20
"""Interruptions of one store, each at another call or commit."""


def interrupted(home, after, connection):
    """Do a run that kills itself after it has said so many things."""
    said = 0

    def say(message):
        nonlocal said
        said += 1
        connection.send_bytes(message)
        if said == after:
            os.kill(os.getpid(), signal.SIGKILL)

    with writers.using(writers.Telling(say)), Catalog.open(home, write=True) as catalog:
        writers.Run(catalog, say).extract()


def interrupt(home, after):
    """Return what a run said until it ended or was killed, and whether it was killed."""
    said, saying = forked.Pipe(duplex=False)
    process = forked.Process(target=interrupted, args=(home, after, saying))
    process.start()
    saying.close()
    heard = []
    with contextlib.suppress(EOFError):
        while True:
            heard.append(said.recv_bytes())
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return heard, process.exitcode != 0


def contents(home):
    """Finish a store, and return the bytes of its parts, of its index and of their sidecars."""
    with Catalog.open(home, write=True) as catalog:
        reap(catalog)
        lease = start_run(catalog, "compact")
        space = get_space(catalog)
        compact(catalog, lease, space)
        publish(catalog, lease, space)
        finish_run(catalog, lease, "done")
        view, store = snapshot(catalog, space), open_store(catalog, space)
        index = generation_paths(home.index_dir(space.fingerprint), view.generation.name)
        (part,) = view.parts
        return {
            "rows": writers.vectors_in(catalog),
            "part": Path(store.path(part.name)).read_bytes(),
            "ids": Path(store.path(part.name, ".ids")).read_bytes(),
            "index": Path(index[0]).read_bytes(),
            "rowmap": Path(index[1]).read_bytes(),
        }


def compare(stores, folder, times):
    """Interrupt some stores' runs and compare them with one run; return how often."""
    whole = stores.copy(f"{folder}/whole")
    with Catalog.open(whole, write=True) as catalog:
        writers.Run(catalog).extract()
    expected, points = contents(whole), 0
    assert len(expected["rows"]) == writers.IMAGES
    for seed in range(times):
        rng = random.Random(seed)
        home = stores.copy(f"{folder}/interrupted-{seed}")
        heard, through = [], False
        for _ in range(POINTS):
            some, killed = interrupt(home, rng.randrange(1, 14))
            heard += some
            points += killed
            through = through or not killed
        assert not through, "it was through before its last interruption"
        interrupt(home, 0)
        with Catalog.open(home, write=False) as catalog:
            writers.Ledger().hold(catalog, heard)
        assert contents(home) == expected
        stores.drop(home)
    return points


@pytest.fixture
def stores(request, database, catalog_home):
    server = request.getfixturevalue("postgres_server") if database == "postgres" else None
    return writers.Stores(catalog_home, server)


def test_a_run_interrupted_at_many_points_is_byte_for_byte_one_run(stores, database, tmp_path):
    times = scale(ci=1, long=100)
    points = lightly(compare, stores, str(tmp_path), times)
    tally(f"interrupted runs, {database}", seeds=times, points=points)
    assert points == times * POINTS
