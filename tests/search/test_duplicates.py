import hashlib
import math
import os
import shutil
import tracemalloc
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Picture
from sqlalchemy import insert, select

from search import duplicates, groups
from search.duplicates import Near, exact_groups
from search.groups import Group
from search.mutual import Join, Pairs
from search.picture_sizes import size_of
from search.stars import stars
from storage.catalog import Catalog
from storage.errors import PartError, RootError
from storage.reading import open_store, snapshot
from storage.slices import sliced
from storage.spaces import SpaceInfo
from storage.tables import File, Image
from storage.tables import Root as RootRow
from tests.search.stores import DIM, Store, digest_of, draw

FloatArray = npt.NDArray[np.float32]
LEAST = 0.9
KIND = pytest.mark.parametrize("dtype", ["float32", "float16"])


def families(n: int, d: int = DIM, seed: int = 0) -> FloatArray:
    """Return unit vectors, most of which have some that are near: shape ``(n, d)``."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, n // 6), d))
    x = centres[rng.integers(len(centres), size=n)]
    x = x + rng.choice([0.02, 0.1, 0.3], (n, 1)) * rng.standard_normal((n, d))
    return unit(x)


def unit(x: Any) -> FloatArray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def fill(store: Store, root: Path, x: FloatArray, space: SpaceInfo, first: int = 0) -> list[Path]:
    """Index a picture for each vector; each has the next size, so that none is as good as another.

    The first has the most pixels.
    """
    made = []
    for i in range(len(x)):
        number = first + i
        path = root / f"{number % 3}" / f"{number:04}.png"
        made.append(draw(path, number, size=(400 - number, 2)))
    given = {digest_of(path): vector for path, vector in zip(made, x, strict=True)}
    known = {digest_of(path): x[0] for path in root.rglob("*.png")}
    store.index(root, space, vectors={**known, **given})
    return made


def stored(store: Store, space: SpaceInfo) -> tuple[list[int], FloatArray]:
    """Return rows and vectors as the files hold them."""
    view = snapshot(store.catalog, space)
    parts = open_store(store.catalog, space)
    rows = [row for part in view.parts for row in parts.rows(part).tolist()]
    return rows, unit(
        np.concatenate([np.array(parts.open(part), np.float64) for part in view.parts])
    )


def mutual(x: FloatArray, k: int, least: float) -> dict[tuple[int, int], float]:
    """Compare all with all: pairs where each has fewer than k that are nearer than the other."""
    scores = x.astype(np.float64) @ x.T.astype(np.float64)
    np.fill_diagonal(scores, -np.inf)
    found = {}
    for a in range(len(x)):
        for b in range(a + 1, len(x)):
            score = scores[a, b]
            nearer = max((scores[a] > score + 1e-6).sum(), (scores[b] > score + 1e-6).sum())
            if score >= least and nearer < k:
                found[a, b] = score
    return found


def told(pairs: Pairs) -> dict[tuple[int, int], float]:
    return {
        (a, b): score
        for a, b, score in zip(
            pairs.a.tolist(), pairs.b.tolist(), pairs.scores.tolist(), strict=True
        )
    }


def same_pairs(found: dict[tuple[int, int], float], due: dict[tuple[int, int], float]) -> bool:
    return found.keys() == due.keys() and all(
        found[pair] == pytest.approx(score, abs=1e-5) for pair, score in due.items()
    )


def shown(group: Group) -> tuple[str, tuple[str, ...]]:
    return os.fsdecode(group.keep.held.path), tuple(
        os.fsdecode(each.held.path) for each in group.others
    )


class TestPairs:
    @KIND
    @pytest.mark.parametrize("k", [2, 16])
    def test_they_are_those_of_a_comparison_of_all(
        self, store: Store, tmp_path: Path, dtype: str, k: int
    ) -> None:
        space = store.space(dtype=dtype)
        fill(store, tmp_path / "p", families(60), space)
        rows, x = stored(store, space)
        assert rows == list(range(60))
        due = mutual(x, k, LEAST)
        assert len(due) > 20
        join = Join(store.catalog, space, nearest=k)
        assert join.is_exact
        assert same_pairs(told(join.pairs(LEAST)), due)

    @KIND
    def test_an_index_and_the_vectors_that_it_lacks_find_the_same(
        self, store: Store, tmp_path: Path, dtype: str
    ) -> None:
        space = store.space(dtype=dtype)
        x = families(80)
        fill(store, tmp_path / "p", x[:60], space)
        store.publish(space)
        fill(store, tmp_path / "p", x[60:], space, first=60)
        join = Join(store.catalog, space, nearest=4, exact_below=0)
        assert not join.is_exact
        due = mutual(stored(store, space)[1], 4, LEAST)
        assert any(b >= 60 for _, b in due)
        assert same_pairs(told(join.pairs(LEAST)), due)

    def test_the_part_below_a_path_is_compared_by_itself(
        self, store: Store, tmp_path: Path
    ) -> None:
        space = store.space()
        fill(store, tmp_path / "p", families(60), space)
        store.publish(space)
        under = os.fsencode(tmp_path / "p" / "1")
        here = np.arange(1, 60, 3)
        by_number = mutual(stored(store, space)[1][_rows(store, space, here)], 3, LEAST)
        for exact_below in (0, 50_000):
            join = Join(store.catalog, space, under, nearest=3, exact_below=exact_below)
            assert join.is_exact == bool(exact_below)
            assert len(join.rows) == 20
            found = told(join.pairs(LEAST))
            at = {row: i for i, row in enumerate(join.rows.tolist())}
            assert same_pairs({(at[a], at[b]): s for (a, b), s in found.items()}, by_number)

    def test_more_equal_vectors_than_neighbours_are_all_found(
        self, store: Store, tmp_path: Path
    ) -> None:
        space = store.space()
        x = np.repeat(families(1), 30, axis=0)
        paths = fill(store, tmp_path / "p", x, space)
        [group] = Near(store.catalog, space, nearest=4).groups()
        assert shown(group)[0] == str(paths[0])
        assert set(shown(group)[1]) == {str(path) for path in paths[1:]}

    def test_dead_images_are_in_no_pair(self, store: Store, tmp_path: Path) -> None:
        space = store.space()
        paths = fill(store, tmp_path / "p", families(40), space)
        store.publish(space)
        for path in paths[::2]:
            path.rename(tmp_path / path.name)
        store.index(tmp_path / "p", space)
        rows = [row for row in range(40) if _path_of(store, space, row) is not None]
        due = mutual(stored(store, space)[1][rows], 16, LEAST)
        for exact_below in (0, 50_000):
            found = told(Join(store.catalog, space, exact_below=exact_below).pairs(LEAST))
            assert same_pairs(
                {(rows.index(a), rows.index(b)): s for (a, b), s in found.items()}, due
            )

    def test_a_damaged_vector_is_refused(self, store: Store, tmp_path: Path) -> None:
        space = store.space()
        fill(store, tmp_path / "p", families(6), space)
        [part] = snapshot(store.catalog, space).parts
        path = Path(open_store(store.catalog, space).path(part.name))
        data = bytearray(path.read_bytes())
        data[-4 * DIM + 3] ^= 0x40  # an exponent
        path.write_bytes(data)
        with pytest.raises(PartError, match="row 5 is damaged"):
            Join(store.catalog, space).pairs(LEAST)

    def test_a_broken_index_is_told_and_gone_round(self, store: Store, tmp_path: Path) -> None:
        space = store.space()
        fill(store, tmp_path / "p", families(20), space)
        store.publish(space)
        folder = store.catalog.home.index_dir(space.fingerprint)
        [index] = Path(folder).glob("*.faiss")
        index.write_bytes(index.read_bytes()[:-1])
        join = Join(store.catalog, space, exact_below=0)
        [line] = join.warnings
        assert "check --repair" in line
        assert same_pairs(told(join.pairs(LEAST)), mutual(stored(store, space)[1], 16, LEAST))

    def test_progress_comes_to_all(self, store: Store, tmp_path: Path) -> None:
        space = store.space()
        fill(store, tmp_path / "p", families(10), space)
        told_: list[tuple[int, int]] = []
        Join(store.catalog, space).pairs(LEAST, lambda done, of: told_.append((done, of)))
        assert told_[-1] == (10, 10)

    def test_an_empty_space_has_none(self, store: Store, tmp_path: Path) -> None:
        assert told(Join(store.catalog, store.space()).pairs(LEAST)) == {}
        assert list(Near(store.catalog, store.space()).groups()) == []


def _rows(store: Store, space: SpaceInfo, numbers: Any) -> list[int]:
    """Return the rows of pictures by their numbers."""
    by_path = {_path_of(store, space, row): row for row in range(snapshot(store.catalog, space).n)}
    found = {int(os.path.basename(path)[:-4]): row for path, row in by_path.items() if path}
    return sorted(found[number] for number in numbers)


def _path_of(store: Store, space: SpaceInfo, row: int) -> bytes | None:
    from storage.dead import live_rows

    with store.catalog.read() as conn:
        image = live_rows(conn, space.id, [row]).get(row)
        if image is None:
            return None
        query = select(File.path).where(File.image_id == image, File.state == "live")
        return conn.execute(query).scalar()


def grown(order: list[int], linked: set[frozenset[int]], scores: Any, least: float) -> list[Any]:
    """Make the groups slowly: add what is linked to the group and near its best, until none is."""
    left, found = list(order), []
    while left:
        best = left.pop(0)
        group = {best}
        while True:
            more = {
                row
                for row in left
                if row not in group
                and scores[best][row] >= least
                and any(frozenset((row, each)) in linked for each in group)
            }
            if not more:
                break
            group |= more
        left = [row for row in left if row not in group]
        if len(group) > 1:
            found.append((best, group - {best}))
    return found


class TestGroups:
    @given(st.data())
    def test_they_are_those_that_grow_by_hand(self, data: st.DataObject) -> None:
        n = data.draw(st.integers(1, 9))
        x = np.array(data.draw(st.lists(st.floats(0, 3), min_size=n, max_size=n)))
        scores = np.cos(x[:, None] - x[None, :]).astype(np.float32)
        both = [(a, b) for a in range(n) for b in range(a + 1, n)]
        pairs = data.draw(st.lists(st.sampled_from(both), unique=True)) if both else []
        order = data.draw(st.permutations(range(n)))
        a, b = (np.array([pair[i] for pair in pairs], np.int64) for i in (0, 1))
        found = list(stars(order, a, b, lambda row, rows: scores[row, rows], 0.8))
        linked = {frozenset(pair) for pair in pairs}
        due = grown(list(order), linked, scores, np.float32(0.8))
        assert [(star.best, set(star.others)) for star in found] == due
        for star in found:
            assert list(star.scores) == sorted(star.scores, reverse=True)
            assert star.scores == tuple(scores[star.best, list(star.others)].tolist())

    def test_steps_that_are_small_each_join_nothing_that_is_far(
        self, store: Store, tmp_path: Path
    ) -> None:
        space = store.space()
        angles = np.radians(np.arange(0, 90, 5))
        x = np.zeros((len(angles), DIM), np.float32)
        x[:, 0], x[:, 1] = np.cos(angles), np.sin(angles)
        paths = fill(store, tmp_path / "p", x, space)
        found = [shown(group) for group in Near(store.catalog, space, math.cos(0.19)).groups()]
        names = [[paths.index(Path(path)) for path in (keep, *others)] for keep, others in found]
        assert [sorted(group) for group in names] == [[i, i + 1, i + 2] for i in range(0, 18, 3)]
        assert [group[0] for group in names] == list(range(0, 18, 3))  # the largest picture

    @KIND
    def test_they_are_those_of_a_comparison_of_all(
        self, store: Store, tmp_path: Path, dtype: str
    ) -> None:
        space = store.space(dtype=dtype)
        root = tmp_path / "p"
        x = families(45)
        paths = fill(store, root, x, space)
        for i in (3, 7, 20):
            shutil.copy(paths[i], root / "1" / f"copy-{i}.png")
        store.index(root, space)
        near = Near(store.catalog, space, LEAST)
        found = list(near.groups())
        due = _slowly(store, space, paths)
        assert [(shown(group)[0], set(shown(group)[1])) for group in found] == due
        assert [group.number for group in found] == list(range(1, len(found) + 1))
        assert all(len({m.held.path for m in g.others}) == len(g.others) for g in found)
        for group in found:
            assert group.keep.score == 1
            assert all(each.score >= LEAST - 1e-6 for each in group.others)

    def test_the_best_has_most_pixels_then_most_bytes_then_is_oldest(
        self, store: Store, tmp_path: Path
    ) -> None:
        root, space = tmp_path / "p", store.space()
        names = ["small.png", "large.bmp", "large.png", "copy.bmp", "broken.png"]
        draw(root / "small.png", 1, size=(90, 50))
        picture = Picture.new("RGB", (100, 50), (9, 200, 30))  # fewer bytes as PNG
        picture.save(root / "large.bmp")
        picture.save(root / "large.png")
        shutil.copy(root / "large.bmp", root / "copy.bmp")
        (root / "broken.png").write_bytes(bytes(60_000))
        for i, name in enumerate(names):
            os.utime(root / name, (2_000_000 - i, 2_000_000 - i))
        one = families(1)[0]
        store.index(root, space, vectors=dict.fromkeys(map(digest_of, root.iterdir()), one))
        [group] = Near(store.catalog, space).groups()
        keep, others = shown(group)
        assert keep == str(root / "copy.bmp")
        assert others[0] == str(root / "large.bmp")
        assert group.keep.size == (100, 50)
        assert {
            os.path.basename(path): each.size
            for path, each in zip(others, group.others, strict=True)
        } == {
            "large.bmp": (100, 50),
            "large.png": (100, 50),
            "small.png": (90, 50),
            "broken.png": None,
        }
        (root / "copy.bmp").unlink()
        (root / "large.bmp").unlink()
        store.index(root, space)
        [group] = Near(store.catalog, space).groups()
        assert shown(group)[0] == str(root / "large.png")

    @KIND
    def test_equal_vectors_have_a_cosine_of_one(
        self, store: Store, tmp_path: Path, dtype: str
    ) -> None:
        space = store.space(dtype=dtype)
        fill(store, tmp_path / "p", np.repeat(families(20, seed=3), 2, axis=0), space)
        found = list(Near(store.catalog, space, 1).groups())
        assert len(found) == 20
        assert {each.to_json()["score"] for group in found for each in group.others} == {1}

    def test_an_image_that_went_or_changed_is_in_no_group(
        self, store: Store, tmp_path: Path
    ) -> None:
        root, space = tmp_path / "p", store.space()
        x = np.repeat(families(1), 4, axis=0)
        paths = fill(store, root, x, space)
        paths[0].unlink()
        paths[1].write_bytes(b"another content")
        from storage.files import scan_root
        from storage.roots import find_root

        info = find_root(store.catalog, os.fsencode(root))
        scan_root(store.catalog, info, confirm_missing=True, skip=None, lease=store.lease)
        [group] = Near(store.catalog, space).groups()
        assert shown(group) == (str(paths[2]), (str(paths[3]),))


def _slowly(store: Store, space: SpaceInfo, paths: list[Path]) -> list[tuple[str, set[str]]]:
    _, x = stored(store, space)
    row_of = {}
    for row in range(len(x)):
        path = _path_of(store, space, row)
        if path is None:  # the second vector of an image
            continue
        with open(os.path.join(paths[0].parents[1], os.fsdecode(path)), "rb") as file:
            row_of[hashlib.sha256(file.read()).digest()] = row
    files = defaultdict(set)
    for path in paths[0].parents[1].rglob("*.png"):
        files[row_of[digest_of(path)]].add(str(path))
    order = [row_of[digest_of(path)] for path in paths]  # by falling size
    scores = x @ x.T
    linked = {frozenset(pair) for pair in mutual(x, 16, LEAST)}
    oldest = {row_of[digest_of(path)]: str(path) for path in paths}
    found = []
    for best, others in grown(order, linked, scores, LEAST):
        all_files = set().union(*(files[row] for row in (best, *others)))
        found.append((oldest[best], all_files - {oldest[best]}))
    grouped = set().union(*(some for _, some in found), {best for best, _ in found})
    alone = [row for row, some in files.items() if len(some) > 1 and not some & grouped]
    alone.sort(key=lambda row: _image_id(store, oldest[row]))
    return found + [(oldest[row], files[row] - {oldest[row]}) for row in alone]


def _image_id(store: Store, path: str) -> int:
    digest = digest_of(Path(path))
    with store.catalog.read() as conn:
        return conn.execute(select(Image.id).where(Image.digest == digest)).scalar_one()


class TestExact:
    def test_they_are_those_of_equal_digests(self, store: Store, tmp_path: Path) -> None:
        root = tmp_path / "p"
        for i in range(12):
            path = draw(root / f"{i}.png", i % 5 if i < 9 else i)
            os.utime(path, (2_000_000 - i, 2_000_000 - i))
        store.index(root, store.space())
        found = list(exact_groups(store.catalog))
        due = defaultdict(list)
        for path in root.iterdir():
            due[digest_of(path)].append(path)
        due_groups = {
            str(min(some, key=lambda path: path.stat().st_mtime_ns)): {str(path) for path in some}
            for some in due.values()
            if len(some) > 1
        }
        assert len(due_groups) == 4
        assert {keep: {keep, *others} for keep, others in map(shown, found)} == due_groups
        for group in found:
            assert group.is_exact
            assert group.size_bytes == sum(os.path.getsize(p) for p in shown(group)[1])
            assert [each.held.mtime_ns for each in group.others] == sorted(
                each.held.mtime_ns for each in group.others
            )

    def test_only_files_below_a_path_count(self, store: Store, tree: Path) -> None:
        shutil.copy(tree / "a/5.png", tree / "a/again.png")
        store.index(tree, store.space())
        assert len(list(exact_groups(store.catalog))) == 2
        [group] = exact_groups(store.catalog, os.fsencode(tree / "a"))
        assert {shown(group)[0], *shown(group)[1]} == {
            str(tree / "a/5.png"),
            str(tree / "a/again.png"),
        }
        assert list(exact_groups(store.catalog, os.fsencode(tree / "b"))) == []
        with pytest.raises(RootError, match="not in any root"):
            exact_groups(store.catalog, b"/nowhere")

    def test_files_that_are_not_there_any_more_are_left_out(self, store: Store, tree: Path) -> None:
        space = store.space()
        store.index(tree, space)
        assert len(list(exact_groups(store.catalog))) == 1
        (tree / "b/copy.png").unlink()
        store.index(tree, space)
        assert list(exact_groups(store.catalog)) == []

    def test_files_of_several_roots_and_manifests_are_copies(
        self, store: Store, tree: Path
    ) -> None:
        other = tree.parent / "other"
        draw(other / "own.png", 900)
        (tree.parent / "shop.tsv").write_text("id\tpath\nsku\tother/own.png\n")
        shutil.copy(other / "own.png", tree / "a" / "own.png")
        space = store.space()
        store.index(tree.parent / "shop.tsv", space)
        store.index(tree, space)
        found = {frozenset({shown(g)[0], *shown(g)[1]}) for g in exact_groups(store.catalog)}
        assert frozenset({str(other / "own.png"), str(tree / "a" / "own.png")}) in found

    def test_a_file_that_several_roots_and_lines_know_is_no_copy_of_itself(
        self, store: Store, tree: Path
    ) -> None:
        alone, copied, touched = (tree / f"a/{name}.png" for name in (1, 3, 5))
        known = [path.relative_to(tree.parent) for path in (alone, alone, copied, touched)]
        lines = [f"sku-{i}\t{path}\n" for i, path in enumerate(known)]
        (tree.parent / "shop.tsv").write_text("id\tpath\n" + "".join(lines))
        space = store.space()
        store.index(tree.parent / "shop.tsv", space)
        os.utime(touched, (3_000_000, 3_000_000))  # the manifest is not read again
        store.index(tree, space)
        copies = {str(copied), str(tree / "b/copy.png")}
        for found in (exact_groups(store.catalog), Near(store.catalog, space).groups()):
            [group] = found
            assert sorted({shown(group)[0], *shown(group)[1]}) == sorted(copies)
            assert len(group.others) == 1

    def test_a_group_of_many_comes_in_pieces(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(groups, "MOST_TOLD", 3)
        root = tmp_path / "p"
        first = draw(root / "0.png", 1)
        for i in range(1, 9):
            shutil.copy(first, root / f"{i}.png")
        draw(root / "x.png", 2), draw(root / "y.png", 2)
        store.index(root, store.space())
        found = list(exact_groups(store.catalog))
        by_number = defaultdict(list)
        for group in found:
            by_number[group.number].append(group)
        assert sorted(by_number) == [1, 2]
        [long] = [some for some in by_number.values() if len(some) > 1]
        assert [(len(g.others), g.before, g.goes_on) for g in long] == [
            (3, 0, True),
            (3, 3, True),
            (2, 6, False),
        ]
        assert len({path for group in long for path in shown(group)[1]}) == 8
        assert len({group.keep for group in long}) == 1

    def test_memory_does_not_grow_with_the_files(self, catalog: Catalog) -> None:
        def peak() -> tuple[int, int]:
            tracemalloc.start()
            n = sum(len(group.others) for group in exact_groups(catalog))
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return n, most

        copies(catalog, 10_400)
        n, few = peak()
        assert n == 5_200
        copies(catalog, 13_600, first=10_400)
        n, many = peak()
        assert n == 12_000
        assert many < 1.25 * few


def copies(catalog: Catalog, n: int, first: int = 0) -> None:
    """Enter files without any on the disk, two of each image."""
    signature = {
        f"{which}_{name}": 1
        for which in ("seen", "digest")
        for name in ("size_bytes", "mtime_ns", "ctime_ns", "inode")
    }
    with catalog.write() as conn:
        if not first:
            root = {"path": b"/r", "display": "/r", "kind": "directory", "added_at": 0.0}
            conn.execute(insert(RootRow).values(id=1, excludes={"globs": []}, **root))
        for some in sliced(range(first, first + n), 4000):
            numbers = sorted({i // 2 + 1 for i in some})
            conn.execute(
                insert(Image),
                [
                    {"id": i, "digest": i.to_bytes(32), "size_bytes": 1, "first_seen_at": 0.0}
                    for i in numbers
                ],
            )
            conn.execute(
                insert(File),
                [
                    {
                        "root_id": 1,
                        "path": b"%09d" % i,
                        "display": str(i),
                        "state": "live",
                        "first_seen_at": 0.0,
                        "image_id": i // 2 + 1,
                        **signature,
                    }
                    for i in some
                ],
            )


class TestSizes:
    @pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif", "tiff"])
    def test_they_are_those_of_the_file(self, store: Store, tmp_path: Path, suffix: str) -> None:
        root = tmp_path / "p"
        path = draw(root / f"one.{suffix}", 5, size=(301, 207))
        shutil.copy(path, root / f"two.{suffix}")
        store.index(root, store.space())
        [group] = exact_groups(store.catalog)
        assert size_of(group.keep.held) == (301, 207)
        path.write_bytes(path.read_bytes() + b"\0")  # not what was hashed any more
        sizes = [size_of(group.keep.held), *(size_of(each.held) for each in group.others)]
        assert sorted(sizes, key=str) == [(301, 207), None]

    def test_what_is_behind_the_first_bytes_is_read_too(self, store: Store, tmp_path: Path) -> None:
        root = tmp_path / "p"
        exif = Picture.Exif()
        exif[0x010E] = "x" * 60_000
        path = draw(root / "one.jpg", 6, size=(33, 44), exif=exif, icc_profile=bytes(100_000))
        assert path.stat().st_size > 150_000
        shutil.copy(path, root / "two.jpg")
        store.index(root, store.space())
        [group] = exact_groups(store.catalog)
        assert size_of(group.keep.held) == (33, 44)

    @pytest.mark.parametrize("put", ["gone", "fifo", "link", "folder"])
    def test_what_is_no_plain_file_has_none(self, store: Store, tmp_path: Path, put: str) -> None:
        root = tmp_path / "p"
        path = draw(root / "one.png", 5)
        shutil.copy(path, root / "two.png")
        store.index(root, store.space())
        [group] = exact_groups(store.catalog)
        held = group.keep.held
        where = Path(os.fsdecode(held.path))
        where.unlink()
        make: dict[str, Callable[[], object]] = {
            "gone": lambda: None,
            "fifo": lambda: os.mkfifo(where),
            "link": lambda: where.symlink_to("two.png"),
            "folder": where.mkdir,
        }
        make[put]()
        assert size_of(held) is None


def test_the_threshold_that_the_help_names_is_the_one_used() -> None:
    from click.testing import CliRunner

    from flows.cli import cli

    said = CliRunner().invoke(cli, ["duplicates", "--help"]).stdout
    assert f"[default: {duplicates.NEAR}]" in said
