import json
import os
from dataclasses import asdict, replace
from pathlib import Path

from sqlalchemy import select

from search.overview import overview, roots_overview, spaces_overview
from storage.reading import snapshot
from storage.recall import record, series
from storage.tables import Run
from tests.flows.terminal import python
from tests.search.stores import Store, digest_of

STARTS_A_RUN = """
import os, sys
from storage.catalog import Catalog
from storage.home import Home
from storage.leases import start_run

catalog = Catalog.open(Home(sys.argv[1], sys.argv[2] or None), write=True)
print(start_run(catalog, "index").run_id, flush=True)
os._exit(9)
"""


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


def test_what_the_indexes_found_is_shown(store: Store, tree: Path) -> None:
    first, second = store.space("first"), store.space("second", "float16")
    for space in (first, second):
        store.index(tree, space)
    store.publish(first)
    store.publish(first)
    one, two = spaces_overview(store.catalog)
    assert (one.recalls, two.recalls) == (series(store.catalog, first), [])
    newest, before = one.recalls
    assert newest.generation == snapshot(store.catalog, first).generation.name
    assert (newest.factory, newest.n, newest.recall) == ("SQ8", 12, 1.0)
    assert one.to_json()["recalls"] == [asdict(newest), asdict(before)]
    shown = overview(store.catalog)["spaces"]
    assert [space["recall"] for space in shown] == [asdict(newest), None]
    assert [space["fallen"] for space in shown] == [None, None]
    with store.catalog.write() as conn:
        record(conn, first.id, replace(newest, recall=0.5))
    assert "finds 50.0 % of the 10 nearest" in overview(store.catalog)["spaces"][0]["fallen"]


def test_a_run_whose_process_is_gone_has_crashed_and_nothing_is_written(store: Store) -> None:
    home = store.catalog.home
    killed = python("-c", STARTS_A_RUN, home.path, home.catalog_url or "").stdout.strip()
    runs = {run["id"]: run for run in overview(store.catalog)["runs"]}
    assert (runs[killed]["state"], runs[killed]["ended_at"]) == ("crashed", None)
    assert runs[store.lease.run_id]["state"] == "running"
    assert list(runs[killed]) == ["id", "kind", "state", "started_at", "ended_at"]
    with store.catalog.read() as conn:
        states = conn.execute(select(Run.state)).scalars().all()
    assert states == ["running", "running"]
