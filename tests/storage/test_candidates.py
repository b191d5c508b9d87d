import numpy as np
import pytest

from storage.leases import start_run
from storage.lookup import Lookup
from storage.publish import publish
from tests.storage.filled import Filled, clustered, local_catalog

N, D = 200, 100


@pytest.mark.parametrize("exact_below", [0, 50_000])
def test_a_least_score_of_one_finds_equal_vectors(sqlite_template, tmp_path, exact_below):
    x = np.repeat(clustered(N, D), 2, axis=0)
    with local_catalog(sqlite_template, tmp_path) as catalog:
        filled = Filled(catalog, D, dtype="float16")
        filled.add(x)
        publish(catalog, start_run(catalog, "index"), filled.space)
        lookup = Lookup(catalog, filled.space, exact_below=exact_below)
        with catalog.read() as conn:
            xq = lookup.vectors_in(conn, np.arange(0, 2 * N, 2))
        xq /= np.linalg.norm(xq, axis=1, keepdims=True)
        found = lookup.nearest(xq, 5, min_score=1).neighbours
    assert min(hit.score for hits in found for hit in hits) < 1  # by rounding
    assert [[hit.row for hit in hits] for hits in found] == [[2 * i, 2 * i + 1] for i in range(N)]
