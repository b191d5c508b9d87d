import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.exact import is_in, search_exact
from tests.storage.filled import clustered


def blocks_of(x, rows, size):
    for start in range(0, len(x), size):
        yield rows[start : start + size], x[start : start + size]


def oracle(x, rows, xq, k):
    """Sort everything by product and then row; fill up with -1."""
    scores = xq @ x.T
    d = np.full((len(xq), k), -np.inf, np.float32)
    i = np.full((len(xq), k), -1)
    for query, line in enumerate(scores):
        order = np.lexsort((rows, -line))[:k]
        d[query, : len(order)], i[query, : len(order)] = line[order], rows[order]
    return d, i


@pytest.mark.parametrize("k", [1, 10, 700, 2000])
@pytest.mark.parametrize("size", [100, 333, 5000])
def test_like_a_full_sort(k, size):
    # Whole numbers: their products are exact, in whatever order they are added.
    x, xq = np.round(64 * clustered(1500, 32)), np.round(64 * clustered(9, 32, seed=1))
    rows = np.arange(1500) * 3
    d, i = search_exact(blocks_of(x, rows, size), xq, k)
    want_d, want_i = oracle(x, rows, xq, k)
    np.testing.assert_array_equal(i, want_i)
    np.testing.assert_array_equal(d, want_d)
    assert (d.dtype, i.dtype) == (np.float32, np.int64)


# Small whole numbers have exact products, so that ties are exact too.
@given(
    data=st.lists(st.integers(0, 2), min_size=1, max_size=60),
    k=st.integers(1, 8),
    size=st.integers(1, 20),
)
def test_ties_go_to_the_lower_row(data, k, size):
    x = np.array(data, np.float32)[:, None]
    xq = np.array([[1.0], [-1.0], [0.0]], np.float32)
    rows = np.arange(len(data))
    got = search_exact(blocks_of(x, rows, size), xq, k)
    want = oracle(x, rows, xq, k)
    np.testing.assert_array_equal(got[1], want[1])
    np.testing.assert_array_equal(got[0], want[0])


def test_nothing_there_is_all_minus_one():
    xq = clustered(2, 16)
    empty = np.empty(0, np.int64)
    d, i = search_exact([(empty, np.empty((0, 16), np.float32))], xq, 3)
    assert (i == -1).all()
    assert (d == -np.inf).all()
    assert not is_in(np.arange(3), empty).any()


def test_does_not_import_faiss():
    code = "import sys, storage.exact, storage.lookup; sys.exit('faiss' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
