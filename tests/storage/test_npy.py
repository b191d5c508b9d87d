"""Npy files whose header is damaged: refused in one line, whatever numpy makes of it."""

import os
import random

import numpy as np
import pytest

from storage.errors import PartError, SourceError
from storage.npy import map_npy, write_npy
from storage.sources.npy import MappedNpy

SEED = 20261122
CHANGES = 1500


@pytest.fixture
def path(tmp_path):
    """Return an npy file of five vectors of ones."""
    path = str(tmp_path / "x.npy")
    write_npy(path, np.ones((5, 16), np.float32))
    return path


@pytest.mark.filterwarnings("ignore:Reading `.npy`:UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("read", "refusal"),
    [
        (lambda path: map_npy(path, "<f4", (5, 16)), PartError),
        (lambda path: MappedNpy(os.fsencode(path)).array, SourceError),
    ],
    ids=["part", "source"],
)
def test_a_changed_byte_of_the_header_is_refused_or_means_nothing(path, read, refusal):
    rng, refused = random.Random(SEED), 0
    with open(path, "r+b") as file:
        header = file.read(128)
        for number in range(CHANGES):
            at = rng.randrange(len(header))
            changed = bytes([rng.choice(b"\x00'(){}[],:L0 \\\n\"\xbe")])
            file.seek(0)
            file.write(header[:at] + changed + header[at + 1 :])
            file.flush()
            told = outcome(lambda: read(path), refusal)
            assert told is None or "\n" not in told, (SEED, number)
            refused += told is not None
    assert refused > CHANGES / 3


def outcome(read, refusal):
    """Return the refusal's line, None where the array is as large as it was."""
    try:
        array = read()
    except refusal as error:
        return str(error)
    assert array.dtype.itemsize * array.size == 5 * 16 * 4
    return None
