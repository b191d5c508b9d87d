"""Awkward and broken pictures, decoded apart: each has a status, that of a thread, and ends nobody.

The process that decodes them is one and the same from the first to the last.
"""

import random
from collections import Counter

import numpy as np
import pytest

from extractor.guarded import Bounds, Guarded
from extractor.loader import Failure, Source, load
from extractor.preprocess import Preprocess
from tests.extractor.test_torture import CLASSES, mutated, seeds
from tests.reliability.scale import scale, tally

P = Preprocess(resize=40, crop=32)
SEED = 20261124
MUTATIONS = scale(ci=1000, long=20_000)
AT_ONCE = 500
MOST_BYTES = 2200 * 10**6


@pytest.fixture
def aside():
    decoder = Guarded(Bounds(time_s=60.0, memory_bytes=MOST_BYTES))
    yield decoder
    decoder.close()


def told(aside, folder, pictures):
    """Return how often each status came, the same from a thread and from a process apart."""
    found, processes = Counter(), set()
    for n, data in enumerate(pictures):
        path = folder / f"{n % AT_ONCE}"
        path.write_bytes(data)
        (here,) = load([Source(n, bytes(path))], wants=lambda _: True, preprocess=P)
        there = aside.decode(data, P, lambda: False)
        processes.add(aside._child._process.pid)
        if here.failure is not None:
            assert isinstance(there, Failure), (n, here.failure)
            assert there == here.failure
            assert there.failure_class in CLASSES
            found[there.failure_class] += 1
            continue
        assert not isinstance(there, Failure), (n, there)
        np.testing.assert_array_equal(there, here.pixels)
        found["decoded"] += 1
    assert len(processes) == 1, "a picture has ended the process that decoded it"
    return found


def test_mutated_pictures_have_a_status_and_end_no_process(aside, tmp_path):
    rng, whole = random.Random(SEED), list(seeds())
    found = told(aside, tmp_path, (mutated(rng.choice(whole), rng) for _ in range(MUTATIONS)))
    tally("zoo-mutations", seed=SEED, pictures=found.total(), **found)
    assert found.total() == MUTATIONS
    assert MUTATIONS // 10 < found["decoded"] < MUTATIONS * 9 // 10


@pytest.mark.data
def test_the_torture_set_has_a_status_and_ends_no_process(aside, tmp_path, data_dir):
    paths = sorted(path for path in (data_dir / "torture").rglob("*") if path.is_file())
    if not paths:
        pytest.skip(f"no torture files in {data_dir}")
    found = told(aside, tmp_path, (path.read_bytes() for path in paths))
    tally("zoo-torture", pictures=found.total(), **found)
    assert found["decoded"] > found.total() // 3
