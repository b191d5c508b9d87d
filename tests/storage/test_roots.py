import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage.catalog import Catalog
from storage.errors import LeaseHeld, ManifestError, RootError, RootUnavailable
from storage.failures import list_failures
from storage.files import scan_root
from storage.guard import guard_losses, preflight
from storage.leases import Lease, start_run
from storage.moving import move_root, remove_root
from storage.recognition import count_live
from storage.roots import (
    RootInfo,
    add_root,
    display,
    find_root,
    inside,
    list_roots,
    resolve_root,
)
from storage.runs import claim, release
from storage.spaces import SpaceInfo
from tests.storage.job import Job, dump, put, rows_of, states


def as_bytes(path: Path) -> bytes:
    return os.fsencode(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    put(folder, {f"2019/{i}.jpg": b"%d" % i for i in range(6)})
    return folder


def test_a_root_is_added_once_and_keeps_its_excludes(catalog: Catalog, photos: Path) -> None:
    first = add_root(catalog, as_bytes(photos), excludes=["*.tmp"])
    assert (first.path, first.kind, first.excludes) == (as_bytes(photos), "directory", ("*.tmp",))
    assert first.id
    assert add_root(catalog, as_bytes(photos)) == first
    changed = add_root(catalog, as_bytes(photos), excludes=["a", "b"])
    assert (changed.id, changed.excludes) == (first.id, ("a", "b"))
    assert list_roots(catalog) == [changed]


def test_a_root_that_many_add_at_once_is_one_root(catalog: Catalog, photos: Path) -> None:
    """Runs that begin at one moment each bring the root with them, or a folder above or below."""
    at_once = threading.Barrier(8)

    def add(number: int) -> RootInfo | RootError:
        at_once.wait()
        try:
            return add_root(catalog, as_bytes(photos.parent if number == 7 else photos))
        except RootError as error:
            return error

    for _ in range(5):
        with ThreadPoolExecutor(8) as pool:
            *same, above = pool.map(add, range(8))
        (root,) = list_roots(catalog)
        if isinstance(above, RootInfo):
            assert root == above
            assert all(isinstance(one, RootError) or one.id == root.id for one in same)
        else:
            assert [one.id for one in same if isinstance(one, RootInfo)] == 7 * [root.id]
        remove_root(catalog, root.path)


def test_roots_are_listed_by_path(catalog: Catalog, tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / name).mkdir()
        add_root(catalog, as_bytes(tmp_path / name))
    assert [root.path[-1:] for root in list_roots(catalog)] == [b"a", b"b", b"c"]


def test_a_symbolic_link_is_followed_once(catalog: Catalog, photos: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(photos)
    root = add_root(catalog, as_bytes(link))
    assert root.path == as_bytes(photos)
    assert find_root(catalog, as_bytes(link / "2019")).under == b"2019"


def test_a_relative_path_is_made_absolute(
    catalog: Catalog, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    assert add_root(catalog, b".").path == as_bytes(photos)


def test_a_sub_path_is_part_of_its_root(catalog: Catalog, photos: Path) -> None:
    root = add_root(catalog, as_bytes(photos))
    part = add_root(catalog, as_bytes(photos / "2019"))
    assert (part.id, part.under) == (root.id, b"2019")
    assert part.target == as_bytes(photos / "2019")
    assert part.display == str(photos / "2019")
    picture = add_root(catalog, as_bytes(photos / "2019" / "1.jpg"))
    assert (picture.id, picture.under) == (root.id, b"2019/1.jpg")
    with pytest.raises(RootError, match="excludes belong to a root"):
        add_root(catalog, as_bytes(photos / "2019"), excludes=["x"])


def test_a_parent_of_a_root_is_refused_and_names_both(catalog: Catalog, photos: Path) -> None:
    add_root(catalog, as_bytes(photos / "2019"))
    with pytest.raises(RootError) as refusal:
        add_root(catalog, as_bytes(photos))
    assert f"{photos} holds the root {photos / '2019'}" in str(refusal.value)


def test_a_sibling_with_the_same_beginning_is_another_root(catalog: Catalog, photos: Path) -> None:
    add_root(catalog, as_bytes(photos / "2019"))
    (photos / "2019-b").mkdir()
    assert add_root(catalog, as_bytes(photos / "2019-b")).under == b""
    assert not inside(b"/a-b", b"/a")
    assert inside(b"/a/b", b"/a")
    assert inside(b"/a", b"/")
    assert not inside(b"/", b"/")


def test_what_is_neither_directory_nor_manifest_is_refused(
    catalog: Catalog, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(RootError, match="neither a directory nor a manifest"):
        add_root(catalog, as_bytes(tmp_path / "nowhere"))
    with pytest.raises(RootError, match="one picture outside every root"):
        add_root(catalog, as_bytes(photos / "2019" / "1.jpg"))


@pytest.mark.parametrize("glob", ["", "/", "./"])
def test_a_glob_that_names_nothing_is_refused_before_it_is_stored(
    catalog: Catalog, photos: Path, glob: str
) -> None:
    with pytest.raises(RootError, match="names nothing"):
        add_root(catalog, as_bytes(photos), excludes=["raw", glob])
    assert list_roots(catalog) == []
    root = add_root(catalog, as_bytes(photos), excludes=["raw"])
    with pytest.raises(RootError, match="names nothing"):
        add_root(catalog, as_bytes(photos), excludes=[glob])
    assert list_roots(catalog) == [root]


def test_a_file_that_is_no_manifest_is_refused_before_it_is_stored(
    catalog: Catalog, tmp_path: Path
) -> None:
    (tmp_path / "movie.mp4").write_bytes(b"\0\0\0 ftypisom\0\0\2\0isomiso2\n\t\0")
    (tmp_path / "twice.txt").write_text("a.jpg\na.jpg\n")
    for name in ("movie.mp4", "twice.txt"):
        with pytest.raises(ManifestError, match=name):
            add_root(catalog, as_bytes(tmp_path / name))
    assert list_roots(catalog) == []


def test_the_home_and_what_lies_in_it_are_no_roots(
    catalog: Catalog, photos: Path, tmp_path: Path
) -> None:
    home = Path(catalog.home.path)
    (home / "inner").mkdir(parents=True, exist_ok=True)
    (tmp_path / "link").symlink_to(home)
    for path in (home, home / "inner", tmp_path / "link"):
        with pytest.raises(RootError, match="own home") as refused:
            add_root(catalog, as_bytes(path))
        assert str(home) in str(refused.value)
    add_root(catalog, as_bytes(photos))
    with pytest.raises(RootError, match="own home"):
        move_root(catalog, as_bytes(photos), as_bytes(home))
    assert [root.path for root in list_roots(catalog)] == [as_bytes(photos)]
    remove_root(catalog, as_bytes(photos))
    assert add_root(catalog, as_bytes(tmp_path)).id  # it holds the home, which is left out


def test_a_link_inside_a_root_means_what_it_leads_to(
    catalog: Catalog, photos: Path, tmp_path: Path
) -> None:
    add_root(catalog, as_bytes(photos))
    (photos / "link").symlink_to("2019")
    (photos / "out").symlink_to(tmp_path)
    (photos / "dangling").symlink_to(tmp_path / "nowhere")
    assert find_root(catalog, as_bytes(photos / "link")).under == b"2019"
    assert find_root(catalog, as_bytes(photos / "link" / "1.jpg")).under == b"2019/1.jpg"
    assert find_root(catalog, as_bytes(photos / "dangling")).under == b"dangling"
    with pytest.raises(RootError, match="not in any root"):
        find_root(catalog, as_bytes(photos / "out"))


def test_a_root_that_became_a_link_is_still_found_by_its_path(
    catalog: Catalog, photos: Path, tmp_path: Path
) -> None:
    root = add_root(catalog, as_bytes(photos))
    photos.rename(tmp_path / "moved")
    photos.symlink_to(tmp_path / "moved")
    assert find_root(catalog, as_bytes(photos)) == root
    moved = move_root(catalog, as_bytes(photos), as_bytes(tmp_path / "moved"))
    assert moved.path == as_bytes(tmp_path / "moved")


def test_a_manifest_inside_a_root_does_not_overlap(
    catalog: Catalog, photos: Path, tmp_path: Path
) -> None:
    root = add_root(catalog, as_bytes(photos))
    (photos / "list.txt").write_text("2019/1.jpg\n")
    manifest = add_root(catalog, as_bytes(photos / "list.txt"))
    assert manifest.kind == "manifest"
    assert manifest.id != root.id
    assert manifest.under == b""
    assert add_root(catalog, as_bytes(photos / "2019")).id == root.id
    (tmp_path / "link").symlink_to(photos)
    for folder in (photos, tmp_path / "link"):
        assert find_root(catalog, as_bytes(folder / "list.txt")) == manifest


def test_resolve_root_registers_nothing(catalog: Catalog, photos: Path) -> None:
    root = resolve_root([], as_bytes(photos), excludes=["x"])
    assert root == RootInfo(0, as_bytes(photos), "directory", ("x",))
    assert list_roots(catalog) == []


def test_find_root_needs_no_files_but_a_root(catalog: Catalog, photos: Path) -> None:
    root = add_root(catalog, as_bytes(photos))
    assert find_root(catalog, as_bytes(photos)) == root
    assert find_root(catalog, as_bytes(photos / "gone" / "x.jpg")).under == b"gone/x.jpg"
    with pytest.raises(RootError, match="not in any root"):
        find_root(catalog, as_bytes(photos.parent))


def test_names_that_are_no_utf8_are_shown_escaped(catalog: Catalog, tmp_path: Path) -> None:
    path = as_bytes(tmp_path) + b"/caf\xe9"
    os.mkdir(path)
    root = add_root(catalog, path)
    assert list_roots(catalog) == [root]
    assert root.display.endswith(r"caf\xe9")
    assert display(b"a/\xff") == r"a/\xff"


def test_removing_a_root_forgets_its_files_alone(
    catalog: Catalog, lease: Lease, space: SpaceInfo, photos: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    put(other, {"kept.jpg": b"kept"})
    unreadable = as_bytes(photos / "2019" / "3.jpg")
    Job(catalog, lease, space, photos, trouble={unreadable: ("permission", False)}).run()
    Job(catalog, lease, space, other).run()
    claimed = Job(catalog, lease, space, photos, chunks=50)
    put(photos, {"2019/new.jpg": b"new"})
    claimed.scan()
    assert claimed.claim() is not None
    assert len(list_failures(catalog)) == 1
    with pytest.raises(RootError, match="is no root, but a part of"):
        remove_root(catalog, as_bytes(photos / "2019"))
    assert remove_root(catalog, as_bytes(photos)) == 7
    assert states(catalog) == {b"kept.jpg": "live"}
    after = dump(catalog)
    assert after["failures"] == []
    assert after["claims"] == []
    assert [root.path for root in list_roots(catalog)] == [as_bytes(other)]
    assert len(rows_of(catalog, space)) == 6


def test_a_root_that_is_being_scanned_stays(catalog: Catalog, lease: Lease, photos: Path) -> None:
    root = add_root(catalog, as_bytes(photos))
    claim(catalog, lease, "root", root.id)
    for change in (
        lambda: remove_root(catalog, as_bytes(photos)),
        lambda: move_root(catalog, as_bytes(photos), as_bytes(photos)),
    ):
        with pytest.raises(LeaseHeld, match=lease.run_id):
            change()
    release(catalog, lease, "root", root.id)
    assert remove_root(catalog, as_bytes(photos)) == 0


def test_a_root_moves_without_reading_anything_again(
    catalog: Catalog, lease: Lease, space: SpaceInfo, photos: Path, tmp_path: Path
) -> None:
    job = Job(catalog, lease, space, photos)
    assert job.run() == {"extracted": 6}
    new = tmp_path / "elsewhere" / "photos"
    new.parent.mkdir()
    with pytest.raises(RootError, match="neither a directory"):
        move_root(catalog, as_bytes(photos), as_bytes(new))
    photos.rename(new)
    moved = move_root(catalog, as_bytes(photos), as_bytes(new))
    assert list_roots(catalog) == [moved]
    assert moved.path == as_bytes(new)
    job.folder = new
    result = job.scan(confirm_missing=False)
    assert (result.scanned, result.unchanged, result.reasons) == (6, 6, {})
    assert job.extract() == {}


def test_a_root_does_not_move_where_its_files_are_not(
    catalog: Catalog, lease: Lease, space: SpaceInfo, photos: Path, tmp_path: Path
) -> None:
    Job(catalog, lease, space, photos).scan()
    wrong = tmp_path / "wrong"
    put(wrong, {"2019/1.jpg": b"x", "2019/2.jpg": b"x"})
    with pytest.raises(RootError, match="only 2 of 6 files"):
        move_root(catalog, as_bytes(photos), as_bytes(wrong))
    put(wrong, {"2019/3.jpg": b"x"})
    assert move_root(catalog, as_bytes(photos), as_bytes(wrong)).path == as_bytes(wrong)


def test_a_root_does_not_move_into_another_one(
    catalog: Catalog, photos: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    (other / "sub").mkdir(parents=True)
    add_root(catalog, as_bytes(photos))
    add_root(catalog, as_bytes(other))
    for new in (other, other / "sub"):
        with pytest.raises(RootError, match="can't take the place"):
            move_root(catalog, as_bytes(photos), as_bytes(new))
    with pytest.raises(RootError, match="holds the root"):
        move_root(catalog, as_bytes(photos), as_bytes(tmp_path))
    # A root may move into its own former place.
    inner = photos / "2019"
    assert move_root(catalog, as_bytes(photos), as_bytes(inner)).path == as_bytes(inner)


def test_a_manifest_moves_to_a_manifest_only(
    catalog: Catalog, photos: Path, tmp_path: Path
) -> None:
    old, new = tmp_path / "old.txt", tmp_path / "new.txt"
    old.write_text("photos/2019/1.jpg\n")
    add_root(catalog, as_bytes(old))
    with pytest.raises(RootError, match="can't take the place of the manifest"):
        move_root(catalog, as_bytes(old), as_bytes(photos))
    old.rename(new)
    assert move_root(catalog, as_bytes(old), as_bytes(new)).path == as_bytes(new)


def test_preflight_refuses_missing_unreadable_and_emptied_roots(
    catalog: Catalog, lease: Lease, photos: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    preflight(catalog, add_root(catalog, as_bytes(empty)))  # never held anything
    root = add_root(catalog, as_bytes(photos))
    scan_root(catalog, root, confirm_missing=False, skip=None, lease=lease)
    preflight(catalog, root)
    away = photos.rename(tmp_path / "away")
    with pytest.raises(RootUnavailable, match="roots remove"):
        preflight(catalog, root, confirm_missing=True)
    photos.write_text("a file now")
    with pytest.raises(RootUnavailable, match="can't be read"):
        preflight(catalog, root)
    photos.unlink()
    photos.mkdir()
    with pytest.raises(RootUnavailable, match=r"6 of 6 .*--confirm-missing"):
        preflight(catalog, root)
    preflight(catalog, root, confirm_missing=True)
    photos.rmdir()
    away.rename(photos)
    (photos / "2019").rename(photos / "2020")
    with pytest.raises(RootUnavailable):
        preflight(catalog, find_root(catalog, as_bytes(photos / "2019")))


def test_preflight_refuses_an_emptied_manifest(
    catalog: Catalog, lease: Lease, photos: Path
) -> None:
    lines = photos / "list.txt"
    lines.write_text("2019/1.jpg\n2019/2.jpg\n")
    root = add_root(catalog, as_bytes(lines))
    scan_root(catalog, root, confirm_missing=False, skip=None, lease=lease)
    preflight(catalog, root)
    lines.write_text("")
    with pytest.raises(RootUnavailable, match="2 of 2"):
        preflight(catalog, root)
    lines.unlink()
    with pytest.raises(RootUnavailable, match="can't be read"):
        preflight(catalog, root)


def test_count_live_counts_a_subtree_exactly(
    catalog: Catalog, lease: Lease, tmp_path: Path
) -> None:
    folder = tmp_path / "p"
    names = ["a.jpg", "a/1.jpg", "a/b/2.jpg", "a-b/3.jpg", "a0/4.jpg", "b.jpg"]
    put(folder, dict.fromkeys(names, b"x"))
    root = add_root(catalog, as_bytes(folder))
    scan_root(catalog, root, confirm_missing=False, skip=None, lease=lease)
    assert count_live(catalog, root) == 6
    for under, count in (("a", 2), ("a/b", 1), ("a.jpg", 1), ("a-b", 1), ("a0", 1)):
        assert count_live(catalog, find_root(catalog, as_bytes(folder / under))) == count


@pytest.mark.parametrize(
    ("known", "lost", "refused"),
    [(40, 20, False), (20, 20, False), (41, 21, True), (42, 21, False), (100, 100, True)],
)
def test_more_than_half_and_more_than_twenty_need_a_word(
    known: int, lost: int, refused: bool
) -> None:
    guard_losses(known, lost, True)
    if refused:
        with pytest.raises(RootUnavailable, match=f"{lost} of {known} .*--confirm-missing"):
            guard_losses(known, lost, False)
    else:
        guard_losses(known, lost, False)


def test_a_dead_run_does_not_keep_a_root(catalog: Catalog, photos: Path) -> None:
    from sqlalchemy import update

    from storage.tables import Run

    dead = start_run(catalog, "index")
    root = add_root(catalog, as_bytes(photos))
    claim(catalog, dead, "root", root.id)
    with catalog.write() as conn:
        gone = {"boot": "another", "expires_at": 0.0}
        conn.execute(update(Run).where(Run.id == dead.run_id).values(gone))
    assert remove_root(catalog, as_bytes(photos)) == 0
