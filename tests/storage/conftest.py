"""Fixtures for the tests of the store."""

import pytest

from storage.catalog import Catalog
from storage.leases import Lease, start_run
from storage.spaces import SpaceInfo, ensure_space


@pytest.fixture
def lease(catalog: Catalog) -> Lease:
    """Return the lease of a run of this process."""
    return start_run(catalog, "index")


@pytest.fixture
def space(catalog: Catalog) -> SpaceInfo:
    """Return a space of dimension 8, float32; the current one."""
    return ensure_space(
        catalog,
        name=None,
        spec={"dim": 8, "dtype": "float32", "decode_version": 1, "architecture": "tiny"},
        request={"model": "tiny", "layer": "pool", "weights": "DEFAULT"},
        key="tiny:pool",
    )
