"""Which roots a run means by what it was given."""

import os
from pathlib import Path

import pytest

from flows.job.loop import IndexOptions
from flows.job.scanning import chosen_roots, named_roots
from storage.catalog import Catalog
from storage.errors import RootError
from storage.roots import RootInfo, add_root, list_roots
from tests.storage.job import put


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of two folders and a list."""
    folder = tmp_path / "photos"
    put(folder, {"2019/1.jpg": b"1", "2020/2.jpg": b"2", "list.tsv": b"a\t2019/1.jpg\n"})
    return folder


def options(catalog: Catalog, *paths: Path, **others: object) -> IndexOptions:
    return IndexOptions(catalog.home.path, roots=tuple(map(str, paths)), **others)


def found(roots: list[RootInfo]) -> list[tuple[str, str]]:
    return [(os.fsdecode(root.target), root.kind) for root in roots]


def test_a_list_in_a_known_folder_is_a_root_of_its_own(catalog: Catalog, photos: Path) -> None:
    add_root(catalog, os.fsencode(photos))
    wanted = options(catalog, photos / "list.tsv")
    assert found(named_roots(catalog, wanted)) == [(str(photos / "list.tsv"), "manifest")]
    with pytest.raises(RootError, match=r"list\.tsv is no root yet; `lookalike index`"):
        chosen_roots(catalog, options(catalog, photos / "list.tsv", kind="backfill"))
    [made] = chosen_roots(catalog, wanted)
    assert (made.kind, made.under) == ("manifest", b"")
    assert chosen_roots(catalog, options(catalog, photos / "list.tsv", kind="backfill")) == [made]
    [part] = chosen_roots(catalog, options(catalog, photos / "2019" / "1.jpg"))
    assert part.under == b"2019/1.jpg"


def test_a_folder_and_a_list_in_it_are_both_meant(catalog: Catalog, photos: Path) -> None:
    wanted = options(catalog, photos, photos / "list.tsv", photos / "2019", photos)
    both = [(str(photos), "directory"), (str(photos / "list.tsv"), "manifest")]
    assert found(named_roots(catalog, wanted)) == both
    for _ in range(2):
        assert found(chosen_roots(catalog, wanted)) == both


def test_of_folders_in_each_other_the_outer_one_is_the_root(catalog: Catalog, photos: Path) -> None:
    wanted = options(catalog, photos / "2019", photos, excludes=("*.tmp",))
    assert found(chosen_roots(catalog, wanted)) == [(str(photos), "directory")]
    assert found(chosen_roots(catalog, options(catalog, photos / "2019", photos))) == [
        (str(photos), "directory")
    ]
    [root] = list_roots(catalog)
    assert (root.path, root.excludes) == (os.fsencode(photos), ("*.tmp",))


def test_where_one_can_be_no_root_none_is_registered(catalog: Catalog, photos: Path) -> None:
    with pytest.raises(RootError, match="neither a directory nor a manifest"):
        chosen_roots(catalog, options(catalog, photos, photos / "gone"))
    assert list_roots(catalog) == []
