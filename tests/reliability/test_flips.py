"""Bytes flipped and cut in every file of a store: nothing dies, and no answer is wrong unheard.

Each harm ends in one of three ways: a search refuses or warns in one line, it answers as before, or
it answers otherwise and `lookalike check --deep` says what is damaged.  Every harm of a file with a
checksum is found by that, whatever a search makes of it.
"""

import contextlib
import glob
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from storage.catalog import Catalog
from storage.check import check
from storage.cleanup import delete_old_files
from storage.compact import compact
from storage.errors import PartError, StorageError
from storage.home import Home
from storage.leases import finish_run, start_run
from storage.lookup import Lookup
from storage.publish import publish
from storage.reading import open_store, snapshot
from storage.spaces import get_space
from storage.tables import File, Image, Root
from tests.reliability import writers
from tests.reliability.children import children
from tests.reliability.scale import scale, tally

SEED = 20261124
HARMS = scale(ci=300, long=3_000)
REPAIRED = 10
"""Of so many harms one is repaired too, and the next run must make the store whole."""
FINE = ("told", "unharmed", "found by the deep check")
AT_ONCE = 125
"""Harms of one process, whose death would be seen."""


@pytest.fixture(scope="module")
def home(sqlite_template, tmp_path_factory):
    """Return a store with dense parts, one with a rows sidecar, an index and a tail."""
    home = Home(str(tmp_path_factory.mktemp("flips") / "home"))
    os.mkdir(home.path, 0o700)
    shutil.copy(sqlite_template, home.sqlite)
    writers.Stores(home, None)
    with Catalog.open(home, write=True) as catalog:
        run = writers.Run(catalog)
        run.extract(7)
        with catalog.write() as conn:  # two images lose their files, and with them their rows
            gone = File.__table__.update().where(File.id.in_([3, 9]))
            conn.execute(gone.values(state="excluded"))
        compact(catalog, run.lease, run.space, force=True)
        delete_old_files(catalog, run.lease, keep_s=0)  # damage of what was replaced is none
        publish(catalog, run.lease, run.space)
        run.extract(5)
        finish_run(catalog, run.lease, "done")
    assert glob.glob(f"{home.spaces_dir}/*/parts/*.rows.npy")
    return home


def files_of(home):
    found = [os.path.join(at, name) for at, _, names in os.walk(home.path) for name in names]
    return sorted(found)


def harm(data, rng):
    """Return a file's bytes, damaged: bits flipped, bytes overwritten, cut short or grown."""
    data = bytearray(data)
    at = rng.randrange(len(data))
    match rng.randrange(6):
        case 0:
            return bytes(data[:at])
        case 1:
            return bytes(data) + rng.randbytes(rng.choice([1, 8, 4096]))
        case 2:
            end = min(len(data), at + rng.choice([16, 512]))
            inverted = bytes(255 - byte for byte in data[at:end])
            data[at:end] = rng.choice([rng.randbytes(end - at), inverted])
        case _:
            others = rng.choice([0, 0, 3, 31])
            for place in {at, *(rng.randrange(len(data)) for _ in range(others))}:
                data[place] ^= 1 << rng.randrange(8)
    return bytes(data)


def look(home):
    """Search, and return what is found; a StorageError or a warning tells of the harm."""
    with Catalog.open(home, write=False) as catalog:
        return (*writers.answers(catalog), shown(catalog))


def shown(catalog):
    """Return which live paths hold which digests, as a search shows them."""
    query = select(Root.path, File.path, Image.digest).select_from(File).join(Root).join(Image)
    with catalog.read() as conn:
        return sorted(map(tuple, conn.execute(query.where(File.state == "live"))))


def deep(home):
    """Return what the deep check says, a refusal included."""
    try:
        with Catalog.open(home, write=False) as catalog:
            return [f.what for f in check(catalog, deep=True) if f.severity == "error"]
    except StorageError as error:
        return [str(error)]


def judge(home, right):
    """Return how a damaged store behaves: told, unharmed, found or wrong."""
    try:
        found, warnings, paths = look(home)
    except StorageError as error:
        return "told" if "\n" not in str(error) else f"more than one line: {error}"
    if (found, paths) == (right[0], right[2]):
        return "told" if warnings else "unharmed"
    return "found by the deep check" if deep(home) else "wrong"


def mend(home):
    """Repair; return whether nothing was left that only a backup could mend."""
    try:
        with Catalog.open(home, write=True) as catalog:
            check(catalog, repair=True, deep=True, lease=start_run(catalog, "check"))
            if deep(home):
                return False
        writers.run_here(home)
    except StorageError:
        return False
    with Catalog.open(home, write=False) as catalog:
        writers.Ledger().hold(catalog, [])
        entered = writers.counts(catalog)[0]
    return entered == writers.IMAGES


def batch(home, seeds, connection):
    """Harm one file for each seed, look, and put it back; say each seed and how it went."""
    kept = {path: Path(path).read_bytes() for path in files_of(home)}
    right, kinds = look(home), by_kind(kept)
    for seed in seeds:
        rng = random.Random(f"{SEED} {seed}")
        path = rng.choice(kinds[seed % len(kinds)])
        connection.send((seed, os.path.basename(path), "begun"))
        Path(path).write_bytes(harm(kept[path], rng))
        try:
            how = judge(home, right)
            if has_checksum(path) and not deep(home):
                how = "not found by the deep check"
            if has_checksum(path) and rng.randrange(REPAIRED) == 0 and not mend(home):
                how = "not repaired"
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is no line for a person
            how = f"{type(error).__name__}: {error}"
        connection.send((seed, os.path.basename(path), how))
        put_back(home, kept)


def put_back(home, kept):
    for path in files_of(home):
        if path not in kept:
            os.unlink(path)
    for path, data in kept.items():
        Path(path).write_bytes(data)


def has_checksum(path):
    return path.endswith((".npy", ".faiss"))


def kind_of(path):
    name = os.path.basename(path)
    return name.split(".", 1)[1] if has_checksum(path) else name


def by_kind(paths):
    """Return the files of each kind; the catalog, which has most to say, counts three times."""
    kinds = {}
    for path in sorted(paths):
        kinds.setdefault(kind_of(path), []).append(path)
    return [*kinds.values(), *[kinds["catalog.sqlite"]] * 2]


def test_flips_and_cuts_kill_nothing_and_no_answer_is_wrong_unheard(home, tmp_path):
    ways = {kind_of(path): Counter() for path in files_of(home)}
    wrong = []
    for first in range(0, HARMS, AT_ONCE):
        copy = Home(str(tmp_path / f"copy-{first}"))
        shutil.copytree(home.path, copy.path)
        said, saying = children.Pipe(duplex=False)
        seeds = range(first, min(first + AT_ONCE, HARMS))
        process = children.Process(target=batch, args=(copy, seeds, saying))
        process.start()
        saying.close()
        heard = []
        with contextlib.suppress(EOFError):
            while True:
                heard.append(said.recv())
        process.join()
        assert process.exitcode == 0, f"the process died at {heard[-1:]}"
        shutil.rmtree(copy.path)
        for seed, name, how in heard:
            if how != "begun":
                ways[kind_of(name)][how] += 1
                if how not in FINE:
                    wrong.append((SEED, seed, name, how))
    for kind, how in ways.items():
        tally(f"flips of {kind}", seed=SEED, **how)
    assert wrong == []
    assert sum(how.total() for how in ways.values()) == HARMS
    unread = [kind for kind, how in ways.items() if how["unharmed"] == how.total()]
    assert unread == ["ids.npy"], "only the deep check reads these"


@pytest.mark.parametrize("value", [1e38, -1e38, np.inf, np.nan, 2.0])
def test_a_vector_out_of_length_is_nobodys_nearest(home, tmp_path, value):
    copy = Home(str(tmp_path / "copy"))
    shutil.copytree(home.path, copy.path)
    with Catalog.open(copy, write=False) as catalog:
        space = get_space(catalog)
        tail = open_store(catalog, space).path(snapshot(catalog, space).parts[-1].name)
    x = np.load(tail, mmap_mode="r+")
    x[0, 3] = value * np.sign(writers.queries()[0, 3])
    x.flush()
    with Catalog.open(copy, write=False) as catalog:
        lookup = Lookup(catalog, get_space(catalog), exact_below=0)
        with pytest.raises(PartError, match=r"is damaged.*lookalike check --deep --repair"):
            lookup.nearest(writers.queries()[:1], writers.IMAGES)
