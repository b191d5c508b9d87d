"""Fixtures of the search's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.catalog import Catalog
from tests.search.stores import Store, draw


@pytest.fixture
def store(catalog: Catalog) -> Iterator[Store]:
    """Yield an empty store on SQLite, and then on Postgres."""
    made = Store(catalog)
    yield made
    made.close()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a root with 12 pictures in two folders, two of them copies of one image."""
    root = tmp_path / "pictures"
    for i in range(6):
        draw(root / "a" / f"{i}.png", i)
        draw(root / "b" / f"{i}.png", 100 + i)
    draw(root / "b" / "copy.png", 3)
    return root
