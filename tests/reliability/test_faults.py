"""Every call of a run that changes files fails, in every way: nothing acknowledged is lost.

The errors that are seen are one line, and the next run makes the store whole.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

import pytest

from tests.reliability.faulty import KINDS, build_shim
from tests.reliability.scale import scale, tally
from tests.reliability.stages import STAGES

SEED = 20261122
ENDS = ("done", "error", "killed")
MEMORY = "/dev/shm"
"""The faults are in the calls: where the files lie makes no difference but to the time."""


@pytest.fixture
def disk():
    with tempfile.TemporaryDirectory(dir=MEMORY if os.path.isdir(MEMORY) else None) as folder:
        yield folder


def swept(what, folder, share, *stages, shim=None, server=None):
    """Run the sweep in a process of its own; return what it tells of each stage."""
    words = [sys.executable, "-m", "tests.reliability.faults", what, folder, str(share), str(SEED)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"LD_PRELOAD": shim} if shim else {})
    env |= {"TEST_POSTGRES_URL": server.url} if server else {}
    did = subprocess.run([*words, *stages], env=env, capture_output=True, text=True)
    assert did.returncode == 0, did.stderr
    return [json.loads(line) for line in did.stdout.splitlines()]


def judged(name, told, began, stages=STAGES):
    """Tell what was tried, and fail where a stage went wrong."""
    kinds = {kind: sum(stage["kinds"].get(kind, 0) for stage in told) for kind in KINDS}
    ends = {end: sum(stage["ends"].get(end, 0) for stage in told) for end in ENDS}
    calls = {stage["stage"]: sum(stage["calls"].values()) for stage in told}
    wrong = [[stage["stage"], *one] for stage in told for one in stage["wrong"]]
    points, seconds = sum(kinds.values()), round(time.monotonic() - began)
    tally(name, seed=SEED, points=points, kinds=kinds, ends=ends, calls=calls, wrong=len(wrong),
          seconds=seconds)  # fmt: skip
    assert wrong == []
    assert [stage["stage"] for stage in told] == list(stages)
    assert all(kinds.values()) or len(stages) < len(STAGES)
    assert ends["killed"] == kinds["kill"] + kinds["killed after"] + kinds["torn"]
    assert ends["error"] > points / 4
    return calls


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fault_at_every_call_of_the_store(disk):
    """Those of a backup take longest to judge: each of them in the long form, else some."""
    began = time.monotonic()
    stages = [name for name in STAGES if not name.startswith("backup")]
    told = swept("fs", f"{disk}/store", scale(ci=0, long=1), *stages)
    told += swept("fs", f"{disk}/backup", scale(ci=0.05, long=1), "backup", "backup again")
    calls = judged("faults of the store's calls", told, began)
    assert calls["index"] > 40


@pytest.mark.postgres
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fault_at_a_call_of_a_store_with_its_catalog_on_a_server(disk, postgres_server):
    """A file and its row are in two places then: whatever fails of the one, the other holds."""
    began = time.monotonic()
    stages = ("index", "compact")
    told = swept("postgres", disk, scale(ci=0.025, long=1), *stages, server=postgres_server)
    judged("faults of the store's calls, postgres", told, began, stages)


@pytest.mark.skipif(sys.platform != "linux", reason="the shim is for Linux")
def test_a_fault_at_the_calls_of_sqlite(disk, tmp_path):
    shim = build_shim(str(tmp_path))
    if shim is None:
        pytest.skip("no C compiler")
    began = time.monotonic()
    told = swept("sqlite", disk, scale(ci=0.012, long=1), shim=shim)
    calls = judged("faults of SQLite's calls", told, began)
    assert calls["index"] > 100


def test_a_disk_that_lies_is_caught(disk):
    """The judge bites: a write that was told to be done and was not is never passed over."""
    (told,) = swept("lying", disk, scale(ci=0, long=1), "index")
    assert told["points"] == told["calls"]["write"] > 10
    assert len(told["wrong"]) == told["points"]
