import errno
import itertools
import os
from pathlib import Path

import pytest

from storage.errors import SourceError
from storage.scan import SUFFIXES
from storage.sources.items import Item, Unreadable
from storage.sources.opening import SourceOptions, open_source
from storage.sources.shard import Shard
from tests.storage.trees import plant, public_folder, unprivileged

TREE = [
    b"b.jpg",
    b"cats/1.jpg",
    b"cats/old/2.JPEG",
    b"cats-2/1.png",
    b"d\xffgs/x.webp",
    b"dogs/.hidden.jpg",
    b"dogs/notes.txt",
    b".git/x.jpg",
    b"node_modules/x.jpg",
    b"empty/",
]


def walked(root: bytes) -> list[bytes]:
    """List the pictures as plain ``os.walk`` finds them."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [each for each in folders if not each.startswith(b".")]
        folders[:] = [each for each in folders if each != b"node_modules"]
        for name in names:
            is_picture = name.rpartition(b".")[2].lower() in SUFFIXES and not name.startswith(b".")
            path = os.path.join(folder, name)
            if is_picture and not os.path.islink(path):
                found.append(os.path.relpath(path, root))
    return sorted(found)


@pytest.fixture
def root(tmp_path: Path) -> bytes:
    """A tree of class folders, with a link and what is no picture."""
    path = os.fsencode(tmp_path / "root")
    plant(path, TREE)
    os.symlink(b"b.jpg", path + b"/link.jpg")
    return path


def test_pictures_come_in_order_with_their_first_folder_as_label(root: bytes) -> None:
    with open_source(os.fsdecode(root)) as source:
        items = [item for item in source.items() if isinstance(item, Item)]
    assert [item.id for item in items] == walked(root)
    assert all(item.path == os.path.join(root, item.id) and item.row is None for item in items)
    assert {item.id: item.label for item in items} == {
        b"b.jpg": None,
        b"cats/1.jpg": "cats",
        b"cats/old/2.JPEG": "cats",
        b"cats-2/1.png": "cats-2",
        b"d\xffgs/x.webp": "d\\xffgs",
    }


def test_parts_together_are_the_whole(root: bytes) -> None:
    with open_source(os.fsdecode(root)) as source:
        whole = list(source.items())
        parts = [list(source.items(Shard(i, 3))) for i in (1, 2, 3)]
        assert source.count_hint() is None
    assert sorted(itertools.chain(*parts), key=whole.index) == whole
    for part in parts:
        assert part == [item for item in whole if item in part]


def test_a_relative_directory_is_the_same_source(
    root: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(os.fsdecode(os.path.dirname(root)))
    here, there = open_source("root"), open_source(os.fsdecode(root) + "/")
    assert here.identity == there.identity == {"kind": "directory", "path": os.fsdecode(root)}
    assert list(here.items()) == list(there.items())


def test_a_folder_that_cannot_be_read_is_told_in_its_place() -> None:
    with public_folder() as root:
        plant(root, [b"a/1.jpg", b"b/2.jpg", b"c/3.jpg"])
        os.chmod(root + b"/b", 0)
        with unprivileged():
            found = list(open_source(os.fsdecode(root)).items())
            parts = [list(open_source(os.fsdecode(root)).items(Shard(i, 2))) for i in (1, 2)]
        os.chmod(root + b"/b", 0o755)
    assert found[1] == Unreadable(b"b", errno.EACCES, True)
    assert [getattr(item, "id", None) for item in found] == [b"a/1.jpg", None, b"c/3.jpg"]
    assert sum(isinstance(item, Unreadable) for part in parts for item in part) == 1


def test_a_directory_that_cannot_be_read_at_all_is_refused() -> None:
    with public_folder() as root:
        os.chmod(root, 0)
        with unprivileged(), pytest.raises(SourceError, match="Permission denied"):
            list(open_source(os.fsdecode(root)).items())


def test_pixels_are_not_had_from_files(root: bytes) -> None:
    with pytest.raises(LookupError, match="has files, not pixels"):
        open_source(os.fsdecode(root)).pixels(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SourceOptions(columns="path"), "--columns is for lists; the source is a directory"),
        (SourceOptions(values="unit"), "--values is for an npy array; the source is a directory"),
    ],
)
def test_options_of_other_sources_are_refused(
    root: bytes, options: SourceOptions, message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(os.fsdecode(root), options)
