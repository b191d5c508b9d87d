import json
import os
from pathlib import Path

from search.overview import overview, roots_overview, spaces_overview
from tests.search.stores import Store, digest_of


def test_an_empty_store_is_counted_too(store: Store) -> None:
    found = overview(store.catalog)
    assert (found["images"], found["roots"], found["spaces"]) == (0, [], [])
    assert found["store_id"] == store.catalog.store_id
    assert [run["state"] for run in found["runs"]] == ["running"]


def test_counts_are_those_of_the_files(store: Store, tree: Path) -> None:
    first, second = store.space("first"), store.space("second", "float16")
    store.index(tree, first, chunk=5)
    store.index(tree / "a", second)
    store.publish(first)
    (tree / "a/0.png").unlink()
    store.index(tree, first)
    [root] = roots_overview(store.catalog)
    assert (root.path, root.kind, root.live, root.missing) == (str(tree), "directory", 12, 1)
    assert root.scanned_at is not None
    one, two = spaces_overview(store.catalog)
    images = {digest_of(path) for path in tree.rglob("*.png")}
    assert (one.name, one.current, one.vectors, one.index_rows) == (
        "first",
        True,
        len(images) + 1,
        12,
    )
    assert (two.name, two.current, two.dtype, two.index) == ("second", False, "float16", None)
    parts = (Path(store.catalog.home.space_dir(two.fingerprint)) / "parts").glob("*[0-9a-f].npy")
    assert two.size_bytes == sum(os.path.getsize(part) for part in parts)
    found = overview(store.catalog)
    assert [space["pending"] for space in found["spaces"]] == [0, len(images) - two.vectors + 1]
    assert found["images"] == len(images) + 1
    assert json.loads(json.dumps(found)) == found
