"""Catalog and files that were restored from different days, or from another store.

Each mixture is refused in one line that says what to do, or works; and what works ends, after the
repair that it asks for and another run, in the store that it would have been.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from sqlalchemy import update

from storage.catalog import Catalog
from storage.check import check
from storage.cleanup import delete_old_files
from storage.errors import CatalogError, PartError, StorageError, StoreMismatch
from storage.home import Home
from storage.leases import Lease, finish_run, start_run
from storage.reading import generation_paths, open_store, snapshot
from storage.spaces import get_space
from storage.tables import Store
from tests.reliability import writers
from tests.reliability.scale import tally

OTHER_ID = "11111111-2222-3333-4444-555555555555"
REPAIR = "lookalike check (--deep )?--repair"


@dataclass
class Shelf:
    """Three backups: of a store and of the same one later, and of another store."""

    stores: writers.Stores
    folder: str
    older: Home
    newer: Home
    foreign: Home
    restored: list[Home] = field(default_factory=list)
    cases: int = 0

    def restore(self, files: Home, catalog: Home) -> Home:
        """Return a home with the files of one backup and the catalog of another one."""
        path = f"{self.folder}/restored"
        shutil.copytree(files.path, path)
        if self.stores.server is None:
            shutil.copy(catalog.sqlite, path)
        self.restored.append(self.stores.with_catalog_of(path, catalog))
        return self.restored[-1]

    def newer_home(self) -> Home:
        """Return a home like the newer backup."""
        return self.restore(self.newer, self.newer)

    def clear(self) -> None:
        """Delete what was restored."""
        while self.restored:
            self.stores.drop(self.restored.pop())


def published(home: Home) -> tuple[str, str]:
    """Return the paths of a store's index and rowmap."""
    with Catalog.open(home, write=False) as catalog:
        space = get_space(catalog)
        name = snapshot(catalog, space).generation.name
        return generation_paths(home.index_dir(space.fingerprint), name)


def parts_of(home: Home, kind: str = "") -> list[str]:
    with Catalog.open(home, write=False) as catalog:
        space = get_space(catalog)
        store = open_store(catalog, space)
        return [store.path(part.name, kind) for part in snapshot(catalog, space).parts]


@pytest.fixture(scope="module")
def shelves():
    """Return the shelf of each database that has one already."""
    shelves = {}
    yield shelves
    for database, shelf in shelves.items():
        tally(f"restore matrix, {database}", cases=shelf.cases)
        for home in (shelf.older, shelf.newer, shelf.foreign):
            shelf.stores.drop(home)


@pytest.fixture
def shelf(request, database, shelves, tmp_path_factory, monkeypatch):
    if database not in shelves:
        server = request.getfixturevalue("postgres_server") if database == "postgres" else None
        stores = writers.Stores(request.getfixturevalue("catalog_home"), server)
        folder = str(tmp_path_factory.mktemp(database))
        shelves[database] = fill(stores, folder, monkeypatch)
    shelves[database].cases += 1
    yield shelves[database]
    shelves[database].clear()


def fill(stores: writers.Stores, folder: str, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    older = stores.copy(f"{folder}/older")
    grow(older, 5, 1)
    newer = stores.copy(f"{folder}/newer", older)
    grow(newer, 6, 1)
    foreign = stores.copy(f"{folder}/foreign")
    right = writers.vector_of
    with monkeypatch.context() as patch:
        patch.setattr(writers, "vector_of", lambda image: -right(image))
        grow(foreign, 5, 1)
        grow(foreign, 6, 1)
    with Catalog.open(foreign, write=True) as catalog, catalog.write() as conn:
        conn.execute(update(Store).values(store_id=OTHER_ID))
    foreign.write_store_id(OTHER_ID)
    return Shelf(stores, folder, older, newer, foreign)


def grow(home: Home, chunks: int, tail: int) -> None:
    """Commit some chunks, merge and publish, and commit some more."""
    with Catalog.open(home, write=True) as catalog:
        run = writers.Run(catalog)
        run.extract(chunks)
        run.tidy()
        run.extract(tail)
        finish_run(catalog, run.lease, "done")


def sound(home: Home) -> bool:
    """Say whether searches are right and without a warning."""
    with Catalog.open(home, write=False) as catalog:
        found, warnings = writers.answers(catalog)
        there = writers.vectors_in(catalog)
    assert found == writers.truth(there)
    return not warnings


def errors(home: Home, *, deep: bool = True) -> list[str]:
    with Catalog.open(home, write=False) as catalog:
        return [found.what for found in check(catalog, deep=deep) if found.severity == "error"]


def repair(home: Home, *, confirm: bool = False) -> None:
    with Catalog.open(home, write=True) as catalog:
        lease = start_run(catalog, "check")
        if confirm:
            refused(catalog, lease)
        found = check(catalog, repair=True, deep=True, lease=lease, confirm_missing=confirm)
        assert all(finding.repaired for finding in found if finding.severity == "error")
    assert errors(home) == []


def refused(catalog: Catalog, lease: Lease) -> None:
    """Hold that a repair says what is missing and how to confirm it, and changes nothing."""
    view, before = snapshot(catalog, get_space(catalog)), bytes_below(catalog.home)
    told = check(catalog, repair=True, lease=lease)
    [found] = [finding for finding in told if finding.severity == "error"]
    assert "lookalike check --repair --confirm-missing" in found.what
    assert "\n" not in found.what
    assert not found.repaired
    assert snapshot(catalog, get_space(catalog)) == view
    delete_old_files(catalog, lease, keep_s=0)
    assert bytes_below(catalog.home) == before


def complete(home: Home) -> None:
    """Let the next run do what is pending; the store is whole then, and nothing else changed."""
    writers.run_here(home)
    with Catalog.open(home, write=False) as catalog:
        writers.Ledger().hold(catalog, [])
        assert writers.counts(catalog)[0] == writers.IMAGES
        found, warnings = writers.answers(catalog)
    assert (found, warnings) == (writers.truth(map(writers.digest, range(writers.IMAGES))), [])
    assert errors(home) == []


def test_an_older_catalog_works_as_far_as_it_goes_and_the_next_run_completes_it(shelf):
    home = shelf.restore(shelf.newer, shelf.older)
    assert sound(home)
    assert errors(home) == []
    complete(home)


def test_an_older_catalog_whose_files_were_compacted_away_is_repaired(shelf):
    tidied = shelf.newer_home()
    with Catalog.open(tidied, write=True) as catalog:
        assert delete_old_files(catalog, start_run(catalog, "tidy"), keep_s=0)
    shutil.move(tidied.spaces_dir, f"{tidied.path}-spaces")
    shelf.clear()
    home = shelf.restore(shelf.newer, shelf.older)
    shutil.rmtree(home.spaces_dir)
    shutil.move(f"{home.path}-spaces", home.spaces_dir)
    with pytest.raises(PartError, match=REPAIR):
        sound(home)
    repair(home, confirm=True)
    complete(home)


def test_a_newer_catalog_than_the_files_is_repaired(shelf):
    home = shelf.newer_home()
    shutil.rmtree(home.spaces_dir)
    shutil.copytree(shelf.older.spaces_dir, home.spaces_dir)
    with pytest.raises(PartError, match=REPAIR):
        sound(home)
    repair(home, confirm=True)
    complete(home)


def test_a_store_without_its_folder_of_spaces_is_repaired_once_that_is_confirmed(shelf):
    home = shelf.newer_home()
    shutil.rmtree(home.spaces_dir)
    with pytest.raises(PartError, match=REPAIR):
        sound(home)
    repair(home, confirm=True)
    complete(home)


def test_a_disk_that_is_mounted_again_has_lost_nothing(shelf):
    home = shelf.newer_home()
    os.rename(home.spaces_dir, f"{home.path}-away")
    shutil.copytree(shelf.foreign.spaces_dir, home.spaces_dir)  # another disk in its place
    with Catalog.open(home, write=True) as catalog:
        refused(catalog, start_run(catalog, "check"))
    shutil.rmtree(home.spaces_dir)
    os.rename(f"{home.path}-away", home.spaces_dir)
    assert errors(home) == []
    complete(home)


@pytest.mark.parametrize("kinds", [("",), (".ids",), ("", ".ids")])
def test_a_missing_part_is_repaired(shelf, kinds):
    home = shelf.newer_home()
    for kind in kinds:
        os.unlink(parts_of(home, kind)[-1])
    if "" in kinds:
        with pytest.raises(PartError, match=REPAIR):
            sound(home)
    else:
        assert sound(home)
    assert errors(home, deep=False)
    repair(home)
    complete(home)


def test_a_part_of_another_store_is_found_by_the_deep_check_and_repaired(shelf):
    home = shelf.newer_home()
    for kind in ("", ".ids"):
        ours, theirs = parts_of(home, kind)[0], parts_of(shelf.foreign, kind)[0]
        shutil.copy(theirs, ours)
    assert errors(home)
    repair(home)
    complete(home)


def test_a_part_of_the_same_name_and_another_length_is_refused(shelf):
    home = shelf.newer_home()
    np.save(parts_of(home)[0], np.load(parts_of(home)[-1]))
    with pytest.raises(PartError, match="the catalog says"):
        sound(home)
    repair(home)
    complete(home)


INDEX: dict[str, Callable[[Shelf, Home], None]] = {
    "no index": lambda _, home: os.unlink(published(home)[0]),
    "no rowmap": lambda _, home: os.unlink(published(home)[1]),
    "stale index": lambda shelf, home: shutil.copy(published(shelf.older)[0], published(home)[0]),
    "stale rowmap": lambda shelf, home: shutil.copy(published(shelf.older)[1], published(home)[1]),
    "foreign index": lambda shelf, home: shutil.copy(
        published(shelf.foreign)[0], published(home)[0]
    ),
    "index for the rowmap": lambda _, home: shutil.copy(*published(home)),
    "no folder of indexes": lambda _, home: shutil.rmtree(os.path.dirname(published(home)[0])),
}


@pytest.mark.parametrize("case", INDEX)
def test_an_index_that_is_not_the_catalogs_is_left_aside_and_built_anew(shelf, case):
    home = shelf.newer_home()
    INDEX[case](shelf, home)
    assert not sound(home), "no word of it"
    assert errors(home)
    repair(home)
    assert sound(home)
    complete(home)


def lost_catalog(shelf: Shelf) -> Home:
    home = shelf.newer_home()
    if shelf.stores.server is None:
        os.unlink(home.sqlite)
        return home
    server = shelf.stores.server
    shelf.restored.append(Home(f"{home.path}-empty", server.database(server.create())))
    os.mkdir(shelf.restored[-1].path)
    return Home(home.path, shelf.restored[-1].catalog_url)


def emptied_catalog(shelf: Shelf) -> Home:
    home = lost_catalog(shelf)
    if shelf.stores.server is None:
        open(home.sqlite, "wb").close()
    return home


def other_store_json(shelf: Shelf) -> Home:
    home = shelf.newer_home()
    shutil.copy(shelf.foreign.store_json, home.store_json)
    return home


def no_store_json(shelf: Shelf) -> Home:
    home = shelf.newer_home()
    os.unlink(home.store_json)
    return home


def torn_store_json(shelf: Shelf) -> Home:
    home = shelf.newer_home()
    os.truncate(home.store_json, 20)
    return home


REFUSED: dict[str, tuple[Callable[[Shelf], Home], type[StorageError], str]] = {
    "foreign catalog": (
        lambda shelf: shelf.restore(shelf.newer, shelf.foreign),
        StoreMismatch,
        "use the catalog and the home that belong together",
    ),
    "foreign store.json": (
        other_store_json,
        StoreMismatch,
        "use the catalog and the home that belong together",
    ),
    "no store.json": (
        no_store_json,
        StoreMismatch,
        "no store.json: mount its disk, or use the catalog and the home that belong together, or",
    ),
    "torn store.json": (torn_store_json, CatalogError, "restore it from a backup"),
    "no catalog": (
        lost_catalog,
        StorageError,
        "restore the catalog from a backup|belong together",
    ),
    "empty catalog": (
        emptied_catalog,
        StorageError,
        "restore the catalog from a backup|belong together",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_belongs_to_different_stores_is_refused_and_left_as_it_is(shelf, case):
    harm, kind, advice = REFUSED[case]
    home = harm(shelf)
    before = bytes_below(home)
    for write in (False, True, False):
        with pytest.raises(kind, match=advice) as refused, Catalog.open(home, write=write):
            pytest.fail("opened")
        assert "\n" not in str(refused.value)
    assert bytes_below(home) == before


def bytes_below(home: Home) -> dict[str, bytes]:
    """Return what every file of a home holds, but SQLite's own."""
    found = {}
    for folder, _, names in os.walk(home.path):
        for name in names:
            if not name.startswith("catalog.sqlite"):
                with open(os.path.join(folder, name), "rb") as file:
                    found[os.path.join(folder, name)] = file.read()
    return found


def test_a_catalog_that_was_copied_without_its_log_is_an_older_one(sqlite_template, tmp_path, home):
    os.mkdir(home.path, 0o700)
    shutil.copy(sqlite_template, home.sqlite)
    writers.Stores(home, None)
    copied = Home(str(tmp_path / "copied"))
    with Catalog.open(home, write=True) as catalog:
        run = writers.Run(catalog)
        run.extract(5)
        run.tidy()
        assert os.path.getsize(f"{home.sqlite}-wal") > 0
        shutil.copytree(home.path, copied.path, ignore=shutil.ignore_patterns("*-wal", "*-shm"))
    assert errors(copied) == []
    complete(copied)
