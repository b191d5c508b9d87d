"""Which files a run is about: places, globs, dates and failures, against plain loops."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, event, update

from storage.catalog import Catalog
from storage.chunks import claim_chunk, give_back, pending_elsewhere
from storage.errors import RootError
from storage.excludes import Globs
from storage.leases import Lease, start_run
from storage.pending import Pending, Scope, pending_counts
from storage.roots import RootInfo
from storage.slices import PAGE
from storage.spaces import SpaceInfo
from storage.tables import Claim, File
from tests.storage.copies import SIG, enter_copies, root_at

NAMES = ["a", "b", "ab", ".a", "b.a"]
PARTS = ["a", "b", "*", "?", "a*", "*a", "[ab]", "**", ".a", "?b"]

paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map("/".join)
globs = st.builds(
    lambda parts, end: "/".join(parts) + end,
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=4),
    st.sampled_from(["", "/"]),
)


def meant(glob: str, path: str) -> bool:
    """Say the same with one regular expression over the whole path, and those of its folders."""
    parts = [part for part in glob.split("/") if part]
    if "/" not in glob.rstrip("/"):
        parts.insert(0, "**")
    signs = {"**": "(?:[^/]+/)*", "*": "[^/]*", "?": "[^/]", "[ab]": "[ab]"}
    cut = re.compile(r"\[ab\]|\*|\?|[^*?\[]+")

    def component(part: str) -> str:
        if part == "**":
            return signs[part]
        return "".join(signs.get(sign) or re.escape(sign) for sign in cut.findall(part)) + "/"

    wanted = re.compile("".join(map(component, parts)))
    names = path.split("/")
    depths = range(1, len(names) + (not glob.endswith("/")))
    return any(wanted.fullmatch("/".join(names[:depth]) + "/") for depth in depths)


@given(glob=globs, path=paths)
@example(glob="2021/**", path="2021/x/y.jpg")
@example(glob="holiday/", path="2021/holiday/x.jpg")
@example(glob="holiday/", path="2021/holiday")
@example(glob="*.jpg", path="2021/.hidden/x.jpg")
@settings(max_examples=500, deadline=None)
def test_a_glob_means_what_it_says(glob: str, path: str) -> None:
    assert Globs([glob]).match(os.fsencode(path)) == meant(glob, path)


@pytest.mark.parametrize(
    ("glob", "path", "means"),
    [
        ("*.jpg", b"a/b/c.jpg", True),
        ("*.jpg", b"a.jpg/b.png", True),  # a folder: what lies below it
        ("*.jpg", b"a/b/c.png", False),
        ("holiday/", b"2021/holiday/beach/x.jpg", True),
        ("holiday/", b"holiday", False),  # a file of that name
        ("holiday", b"holiday", True),
        ("2021/**", b"2021/a/b.jpg", True),
        ("2021/**", b"old/2021/a.jpg", False),
        ("2021", b"old/2021/a.jpg", True),
        ("2021/*", b"2021/a/b.jpg", True),
        ("/2021", b"old/2021/a.jpg", False),
        ("**/2021/*.jpg", b"x/y/2021/a.jpg", True),
        ("2021/*.jpg", b"2021/x/a.jpg", False),
        ("\udce9*", b"\xe9t\xe9.jpg", True),
        ("data/*", b"./data/x.jpg", True),  # a manifest's key as it was written
        ("srv/*", b"/srv/x.jpg", True),
        ("A.jpg", b"a.jpg", False),
    ],
)
def test_globs_by_example(glob: str, path: bytes, means: bool) -> None:
    assert Globs([glob]).match(path) is means
    assert Globs(["nothing like it", glob]).match(path) is means


def test_without_a_glob_every_file_is_meant() -> None:
    assert Globs().match(b"x")
    assert not Globs()
    assert Globs(["x"])


def test_only_no_places_are_no_scope() -> None:
    assert not Scope(())
    assert Scope()
    assert Scope(((1, b""),))
    assert Scope(globs=("x",))
    assert not Scope((), globs=("x",))


@pytest.mark.parametrize("glob", ["", "/", "./"])
def test_an_empty_glob_is_refused(
    catalog: Catalog, lease: Lease, space: SpaceInfo, glob: str
) -> None:
    scope = Scope(globs=(glob,))
    with pytest.raises(RootError, match="names nothing"):
        pending_counts(catalog, space, scope)
    with pytest.raises(RootError, match="names nothing"):
        claim_chunk(catalog, lease, space, number=1, limit=1, scope=scope)


class World:
    """Files of two roots, written anew for each example."""

    def __init__(
        self, catalog: Catalog, lease: Lease, space: SpaceInfo, roots: list[RootInfo]
    ) -> None:
        self.catalog, self.lease, self.space, self.roots = catalog, lease, space, roots
        self.chunks = 0

    def write(self, rows: dict[tuple[int, str], tuple[int | None, int]]) -> dict[int, Any]:
        """Enter files by root and path, with image and date; return them by id."""
        with self.catalog.write() as conn:
            conn.execute(delete(Claim))
            conn.execute(delete(File))
        entered: dict[int, Any] = {}
        for number, root in enumerate(self.roots):
            here = {path: row for (at, path), row in rows.items() if at == number}
            if not here:
                continue
            ids = enter_copies(
                self.catalog,
                root,
                [image for image, _ in here.values()],
                [os.fsencode(path) for path in here],
                [mtime for _, mtime in here.values()],
            )
            for file_id, (path, (image, mtime)) in zip(ids, here.items(), strict=True):
                entered[file_id] = (root.id, path, image, mtime)
        return entered

    def claim_all(self, scope: Scope, limit: int) -> list[int]:
        """Claim everything in chunks, and return the ids."""
        ids: list[int] = []
        passed: list[int] = []
        chunks = []
        after = 0
        while True:
            self.chunks += 1
            chunk = claim_chunk(
                self.catalog,
                self.lease,
                self.space,
                number=self.chunks,
                limit=limit,
                after_file_id=after,
                scope=scope,
                passed=passed,
            )
            if chunk is None:
                break
            assert len(chunk.work) <= limit
            chunks.append(chunk)
            ids += [work.file_id for work in chunk.work]
            after = ids[-1]
        assert ids == sorted(ids)
        for chunk in chunks:
            give_back(self.catalog, self.lease, chunk)
        return sorted({*ids, *passed})


@pytest.fixture
def world(catalog: Catalog, lease: Lease, space: SpaceInfo, tmp_path: Path) -> World:
    roots = [root_at(catalog, tmp_path / name) for name in ("one", "two")]
    return World(catalog, lease, space, roots)


@settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    rows=st.dictionaries(
        st.tuples(st.integers(0, 1), paths),
        st.tuples(st.none() | st.integers(1, 3), st.integers(1, 4)),
        max_size=8,
    ),
    places=st.none() | st.lists(st.tuples(st.integers(0, 1), st.just("") | paths), max_size=3),
    wanted=st.lists(globs, max_size=2),
    since=st.none() | st.integers(0, 5),
    until=st.none() | st.integers(0, 5),
    limit=st.integers(1, 9),
)
def test_a_scope_narrows_as_its_definition_says(
    world: World,
    rows: dict[tuple[int, str], tuple[int | None, int]],
    places: list[tuple[int, str]] | None,
    wanted: list[str],
    since: int | None,
    until: int | None,
    limit: int,
) -> None:
    entered = world.write(rows)
    at = None if places is None else [(world.roots[number].id, under) for number, under in places]
    scope = Scope(
        None if at is None else tuple((root, os.fsencode(under)) for root, under in at),
        tuple(wanted),
        since,
        until,
    )

    def expected(root: int, path: str, mtime: int) -> bool:
        here = at is None or any(
            root == one and (not under or (path + "/").startswith(under + "/")) for one, under in at
        )
        then = (since is None or mtime >= since) and (until is None or mtime < until)
        return here and then and (not wanted or any(meant(glob, path) for glob in wanted))

    ids = [i for i, (root, path, _, mtime) in entered.items() if expected(root, path, mtime)]
    images = {entered[i][2] for i in ids} - {None}
    to_read = sum(entered[i][2] is None for i in ids)
    size = SIG.size_bytes * len(ids)
    assert pending_counts(world.catalog, world.space, scope) == Pending(
        to_read, len(images), len(ids), size
    )
    assert world.claim_all(scope, limit) == sorted(ids)
    chunk = claim_chunk(world.catalog, world.lease, world.space, number=0, limit=99)
    other = start_run(world.catalog, "index")
    held = len(ids) if chunk else 0
    assert pending_elsewhere(world.catalog, other, world.space, scope) == held
    with world.catalog.write() as conn:
        conn.execute(update(File).values(state="missing"))
    assert pending_counts(world.catalog, world.space, scope).total == 0


def test_pages_count_and_claim_what_one_query_does(
    catalog: Catalog, lease: Lease, space: SpaceInfo, tmp_path: Path
) -> None:
    root = root_at(catalog, tmp_path / "photos")
    n = PAGE + 20
    # One image has more copies than a page, and others have theirs far from each other.
    images = [*range(100, 200), *([7] * n), None, None, None, *range(100, 200)]
    total = len(images)
    enter_copies(catalog, root, images, [b"d%d/%06d.jpg" % (i % 3, i) for i in range(total)])
    all_of_it = pending_counts(catalog, space)
    assert all_of_it == Pending(3, 101, total, SIG.size_bytes * total)
    ended: list[str] = []

    def note(*_: object) -> None:
        ended.append("")

    event.listen(catalog.engine, "commit", note)
    assert pending_counts(catalog, space, Scope(globs=("*.jpg",))) == all_of_it
    event.remove(catalog.engine, "commit", note)
    assert len(ended) == 2  # each page by itself
    thirds = [pending_counts(catalog, space, Scope(globs=(f"d{i}/",))) for i in range(3)]
    assert sum(third.total for third in thirds) == total
    assert [third.to_read for third in thirds] == [1, 1, 1]
    late = Scope(globs=("*521?.jpg",))
    assert pending_counts(catalog, space, late).total == 10
    chunk = claim_chunk(catalog, lease, space, number=1, limit=99, scope=late)
    assert chunk is not None
    assert len(chunk.work) == 10
