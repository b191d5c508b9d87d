import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event, insert, select

import storage.folders
from search.browsing import listing, pictures
from search.errors import UnknownPlace
from search.places import (
    Place,
    crumbs,
    folder_of,
    folders,
    path_of,
    place_of_file,
    roots,
)
from storage.catalog import Catalog
from storage.tables import File, Image, Root, Vector
from tests.search.stores import Store, draw

ODD = [b"a b", b"\xff\xfe", "ä".encode(), b"a-b", b"a.jpg", b"a0", b"a'\"%_", b"a\nb"]
"""Names of folders that sort around each other, or are no text."""


def fill(catalog: Catalog, path: bytes, files: dict[bytes, str], kind: str = "directory") -> int:
    """Register a root with files by path and state, each with an image of its own."""
    with catalog.write() as conn:
        now = catalog.now(conn)
        root = {"path": path, "display": "", "kind": kind, "excludes": {"globs": []}}
        root_id = conn.execute(
            insert(Root).values(**root, added_at=now).returning(Root.id)
        ).scalar_one()
        for number, (name, state) in enumerate(files.items()):
            digest = b"%d %d" % (root_id, number)
            image = {"digest": digest.ljust(32), "size_bytes": 1, "first_seen_at": now}
            image_id = conn.execute(insert(Image).values(**image).returning(Image.id)).scalar_one()
            seen = {f"seen_{each}": 1 for each in ("size_bytes", "mtime_ns", "ctime_ns", "inode")}
            file = {"root_id": root_id, "path": name, "display": "", "state": state, **seen}
            conn.execute(insert(File).values(**file, image_id=image_id, first_seen_at=now))
    return root_id


def all_folders(catalog: Catalog, place: Place, limit: int = 3) -> list[tuple[Place, bytes]]:
    """Return the folders of all pages."""
    found, after = [], None
    while True:
        with catalog.read() as conn:
            page = folders(conn, place, after, limit)
        assert len(page.folders) <= limit
        found += [(folder.place, folder.name) for folder in page.folders]
        after = page.after
        if after is None:
            return found


def all_pictures(catalog: Catalog, place: Place, limit: int = 3, **how: bool) -> list[bytes]:
    """Return the names of the pictures of all pages."""
    found, after = [], None
    while True:
        with catalog.read() as conn:
            page = pictures(conn, place, after, limit, **how)
        assert len(page.pictures) <= limit
        found += [picture.name for picture in page.pictures]
        after = page.after
        if after is None:
            return found


def walked(catalog: Catalog, place: Place) -> set[bytes]:
    """Return the paths of all pictures that browsing comes to."""
    with catalog.read() as conn:
        here = path_of(conn, place)
    found = {os.path.join(here, name) for name in all_pictures(catalog, place)}
    for inner, name in all_folders(catalog, place):
        with catalog.read() as conn:
            assert path_of(conn, inner) == os.path.join(here, name)
        found |= walked(catalog, inner)
    return found


@pytest.mark.parametrize("text", ["r1", "f1-1", "r9223372036854775807", "f12-4095"])
def test_a_place_is_written_as_it_is_read(text: str) -> None:
    assert str(Place.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "r", "r0", "r01", "r-1", "f1", "f1-0", "f1-", "f0-1", "r1\n", " r1", "r1/..", "R1",
     "r9223372036854775808", "f99999999999999999999-1", "f1-99999", "r１", "../etc", "/etc"],
)  # fmt: skip
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(UnknownPlace, match="r1 or f12-3"):
        Place.parse(text)


@given(st.text())
@settings(max_examples=200)
def test_no_text_is_read_as_another_place(text: str) -> None:
    try:
        place = Place.parse(text)
    except UnknownPlace:
        return
    assert str(place) == text


def test_browsing_comes_to_every_live_picture(catalog: Catalog) -> None:
    names = [b"/".join([*above, b"%d.jpg" % n]) for n in range(5) for above in _ways()]
    states = dict.fromkeys(names, "live") | {b"gone/1.jpg": "missing", b"a0/x.jpg": "excluded"}
    root_id = fill(catalog, b"/pics", states)
    live = {os.path.join(b"/pics", name) for name, state in states.items() if state == "live"}
    assert walked(catalog, Place(root_id=root_id)) == live


def _ways() -> Iterator[list[bytes]]:
    yield []
    for name in ODD:
        yield [name]
        yield [name, b"deep", name]


def test_folders_stand_in_the_order_of_their_names_each_once(catalog: Catalog) -> None:
    root_id = fill(catalog, b"/pics", {name + b"/1.jpg": "live" for name in ODD})
    fill(catalog, b"/pics2", {b"other/1.jpg": "live"})
    place = Place(root_id=root_id)
    for limit in (1, 2, 100):
        names = [name for _, name in all_folders(catalog, place, limit)]
        assert names == sorted(ODD, key=lambda name: name + b"/")
    assert all_pictures(catalog, place) == []
    assert len(all_pictures(catalog, place, below=True)) == len(ODD)


def test_folders_below_are_those_of_the_place(catalog: Catalog) -> None:
    files = dict.fromkeys(
        (b"a/b/1.jpg", b"a/c/1.jpg", b"a/2.jpg", b"a-b/d/1.jpg", b"3.jpg"), "live"
    )
    root_id = fill(catalog, b"/pics", files)
    [(dash, _), (place, name)] = all_folders(catalog, Place(root_id=root_id))
    assert (name, all_pictures(catalog, place)) == (b"a", [b"2.jpg"])
    assert [name for _, name in all_folders(catalog, place)] == [b"b", b"c"]
    assert all_pictures(catalog, place, below=True) == [b"2.jpg", b"b/1.jpg", b"c/1.jpg"]
    assert [name for _, name in all_folders(catalog, dash)] == [b"d"]
    [(inner, _), _] = all_folders(catalog, place)
    with catalog.read() as conn:
        assert [crumb.name for crumb in crumbs(conn, inner)] == [b"/pics", b"a", b"b"]
        assert [path_of(conn, crumb.place) for crumb in crumbs(conn, inner)] == [
            b"/pics",
            b"/pics/a",
            b"/pics/a/b",
        ]


def test_the_folder_of_a_file_is_where_it_lies(catalog: Catalog) -> None:
    root_id = fill(catalog, b"/pics", dict.fromkeys((b"a/b/1.jpg", b"2.jpg"), "live"))
    with catalog.read() as conn:
        rows = conn.execute(select(File.id, File.path).order_by(File.path)).all()
        found = {row.path: path_of(conn, place_of_file(conn, row.id)) for row in rows}
        assert found == {b"a/b/1.jpg": b"/pics/a/b", b"2.jpg": b"/pics"}
        for row in rows:
            assert folder_of(root_id, row.id, row.path) == place_of_file(conn, row.id)
        with pytest.raises(UnknownPlace, match="no file 999"):
            place_of_file(conn, 999)


def test_a_folder_vanishes_with_its_last_live_file(store: Store, tree: Path) -> None:
    space = store.space()
    store.index(tree, space)
    [(a, _), (b, _)] = all_folders(store.catalog, _only_root(store.catalog))
    for picture in (tree / "a").iterdir():
        picture.unlink()
    store.index(tree, space)
    [(left, name)] = all_folders(store.catalog, _only_root(store.catalog))
    assert (left, name) == (b, b"b")
    assert all_pictures(store.catalog, a) == []  # a tab that was open meanwhile
    with store.catalog.write() as conn:
        conn.execute(File.__table__.delete().where(File.state == "missing"))
    with store.catalog.read() as conn, pytest.raises(UnknownPlace, match="any more"):
        path_of(conn, a)


def test_a_page_goes_on_after_a_file_that_went(catalog: Catalog) -> None:
    files = dict.fromkeys((b"%d/%d.jpg" % (n, i) for n in range(4) for i in range(3)), "live")
    place = Place(root_id=fill(catalog, b"/pics", files))
    with catalog.read() as conn:
        first = folders(conn, place, limit=2)
    with catalog.write() as conn:
        gone = File.__table__.update().where(File.id == first.after)
        conn.execute(gone.values(state="missing"))
    with catalog.read() as conn:
        names = [folder.name for folder in folders(conn, place, first.after, 10).folders]
    assert names[-2:] == [b"2", b"3"]
    with catalog.write() as conn:
        conn.execute(File.__table__.delete().where(File.id == first.after))
    with catalog.read() as conn, pytest.raises(UnknownPlace, match="open it anew"):
        folders(conn, place, first.after)


def test_what_lies_elsewhere_is_no_place_to_go_on_after(catalog: Catalog) -> None:
    one = fill(catalog, b"/one", {b"a/1.jpg": "live", b"b/1.jpg": "live"})
    two = fill(catalog, b"/two", {b"a/1.jpg": "live"})
    with catalog.read() as conn:
        [foreign] = pictures(conn, Place(root_id=two), below=True).pictures
        a, b = folders(conn, Place(root_id=one)).folders
        for place in (Place(root_id=one), a.place):
            with pytest.raises(UnknownPlace):
                pictures(conn, place, foreign.file_id)
        with pytest.raises(UnknownPlace):
            pictures(conn, a.place, b.place.file_id)
        for place in (Place(root_id=99), Place(file_id=99, depth=1), Place(file_id=1, depth=2)):
            with pytest.raises(UnknownPlace, match="any more"):
                path_of(conn, place)


def test_a_folder_is_shown_by_its_first_picture_that_has_a_vector(store: Store) -> None:
    catalog, space = store.catalog, store.space()
    files = {b"a/0.jpg": "missing", **dict.fromkeys((b"a/1.jpg", b"a/2.jpg", b"a/3.jpg"), "live")}
    root_id = fill(catalog, b"/pics", files | {b"b/1.jpg": "live", b"c/1.jpg": "live"})
    with catalog.write() as conn:
        images = dict(conn.execute(select(File.path, File.image_id)).tuples().all())
        for row, path in enumerate((b"a/0.jpg", b"a/3.jpg")):
            vector = {"space_id": space.id, "image_id": images[path], "row": row}
            conn.execute(insert(Vector).values(**vector))
        waiting = File.path.in_((b"a/1.jpg", b"b/1.jpg"))  # seen by a scan, and not yet read
        conn.execute(File.__table__.update().where(waiting).values(image_id=None))
    with catalog.read() as conn:
        found = folders(conn, Place(root_id=root_id)).folders
        assert [folder.cover for folder in found] == [images[b"a/3.jpg"], None, None]
        assert [root.cover for root in roots(conn)] == [images[b"a/3.jpg"]]
        assert [root.name for root in roots(conn)] == [b"/pics"]
    assert all_pictures(catalog, Place(root_id=root_id), below=True) == [
        b"a/2.jpg",
        b"a/3.jpg",
        b"c/1.jpg",
    ]


def test_a_manifest_is_browsed_by_its_keys(store: Store, tmp_path: Path) -> None:
    for name in ("x/y/1.png", "x/2.png", "z.png"):
        draw(tmp_path / "far" / name, len(name))
    paths = tmp_path / "paths.tsv"
    paths.write_text("path\nfar/x/y/1.png\nfar/./x/2.png\nfar/z.png\n")
    absolute = tmp_path / "absolute.tsv"
    absolute.write_text(f"path\n{tmp_path}/far/x/2.png\n")
    ids = tmp_path / "ids.tsv"
    ids.write_text("id\tpath\ncats/1\tfar/x/2.png\ncats/2\tfar/z.png\n3\tfar/x/y/1.png\n")
    space = store.space()
    for manifest in (paths, absolute, ids):
        store.index(manifest, space)
    with store.catalog.read() as conn:
        by_name = {root.name: root.place for root in roots(conn)}
        for manifest in (paths, absolute, ids):
            assert path_of(conn, by_name[os.fsencode(manifest)]) == os.fsencode(manifest)
    [(far, _)] = all_folders(store.catalog, by_name[os.fsencode(paths)])
    found = {name: place for place, name in all_folders(store.catalog, far)}
    with store.catalog.read() as conn:
        assert path_of(conn, far) == os.fsencode(tmp_path / "far")
        assert path_of(conn, found[b"x"]) == os.fsencode(tmp_path / "far/x")
    assert all_pictures(store.catalog, far) == [b"z.png"]
    place, parts = by_name[os.fsencode(absolute)], []
    while inner := all_folders(store.catalog, place):
        [(place, name)] = inner
        parts.append(name)
    assert b"/".join(parts).lstrip(b"/") == os.fsencode(tmp_path / "far/x").lstrip(b"/")
    with store.catalog.read() as conn:
        assert path_of(conn, place) == os.fsencode(tmp_path / "far/x")
    [(cats, name)] = all_folders(store.catalog, by_name[os.fsencode(ids)])
    assert (name, all_pictures(store.catalog, cats)) == (b"cats", [b"1", b"2"])
    assert all_pictures(store.catalog, by_name[os.fsencode(ids)]) == [b"3"]
    with store.catalog.read() as conn:
        with pytest.raises(UnknownPlace, match="made of ids"):
            path_of(conn, cats)
        assert not listing(conn, cats).within
        assert listing(conn, far).within


def test_a_listing_goes_on_with_folders_or_with_pictures(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = dict.fromkeys([b"%03d/1.jpg" % n for n in range(70)], "live")
    files |= dict.fromkeys([b"x%03d.jpg" % n for n in range(70)], "live")
    place = Place(root_id=fill(catalog, b"/pics", files))
    with catalog.read() as conn:
        first = listing(conn, place)
        assert (len(first.folders), len(first.pictures)) == (60, 60)
        inside = listing(conn, place, folders_after=first.folders_after)
        held = listing(conn, place, after=first.after)
        assert (len(inside.folders), inside.pictures, inside.folders_after) == (10, (), None)
        assert (held.folders, len(held.pictures), held.after) == ((), 10, None)
        told = first.to_json()
        assert told["place"] == str(place)
        assert told["folders"][0]["name"] == "000"
        assert told["pictures"][0]["name"] == "x000.jpg"
        assert listing(conn, None).to_json()["folders"][0]["name"] == "/pics"


@pytest.mark.parametrize("kind", ["folders", "pictures"])
def test_a_page_looks_at_so_many_files_at_most(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """What it gives up to look for is found from where it stopped."""
    monkeypatch.setattr(storage.folders, "MOST_ROWS", 20)
    monkeypatch.setattr(storage.folders, "MOST_PASSED", 250)
    gone = {b"a/%03d.jpg" % n: "missing" for n in range(100)}
    many = {b"b%03d/1.jpg" % n: "live" for n in range(20)}
    root_id = fill(catalog, b"/pics", {**gone, b"a/zzz.jpg": "live", **many, b"z.jpg": "live"})
    place = Place(root_id=root_id)
    if kind == "folders":
        assert len(all_folders(catalog, place, 100)) == 21
    else:
        assert all_pictures(catalog, place) == [b"z.jpg"]
    with catalog.read() as conn:
        page = folders(conn, place) if kind == "folders" else pictures(conn, place)
    assert page.after is not None


def test_a_page_costs_no_more_where_folders_are_large(catalog: Catalog) -> None:
    names = [b"%d/%04d.jpg" % (n, i) for n in range(4) for i in range(1)]
    small = Place(root_id=fill(catalog, b"/small", dict.fromkeys(names, "live")))
    names = [b"%d/%04d.jpg" % (n, i) for n in range(4) for i in range(300)]
    large = Place(root_id=fill(catalog, b"/large", dict.fromkeys(names, "live")))
    assert _asked(catalog, small) == _asked(catalog, large)


def _asked(catalog: Catalog, place: Place) -> int:
    """Return how many statements a listing takes."""
    seen: list[str] = []

    def count(*args: object) -> None:
        seen.append(str(args[2]))

    with catalog.read() as conn:
        event.listen(conn, "before_cursor_execute", count)
        found = listing(conn, place)
    assert len(found.folders) == 4
    return len(seen)


def _only_root(catalog: Catalog) -> Place:
    with catalog.read() as conn:
        [root] = roots(conn)
    return root.place
