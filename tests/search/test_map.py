import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select

import search.map
from search.engine import Searcher
from search.map import EXTENT, Map, map_of, some_rows
from search.pages.map import SIDE, WIDTH, drawing_of
from search.projection import principal_plane
from storage.compact import compact
from storage.dead import entered_rows
from storage.reading import open_store, snapshot
from storage.tables import File, Image
from tests.search.stores import DIM, Store, digest_of, draw, vector_of

Floats = npt.NDArray[np.float64]


@pytest.fixture
def searcher(store: Store, tree: Path) -> Iterator[Searcher]:
    """Yield a searcher over the tree's 12 images, which are not published."""
    store.index(tree, store.space(), chunk=5)
    with Searcher(store.catalog.home) as made:
        yield made


def by_svd(x: npt.ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Return middle, first two directions and shares of all variance, by numpy's own SVD."""
    x = np.asarray(x, np.float64)
    mean = x.mean(axis=0)
    _, lengths, directions = np.linalg.svd(x - mean, full_matrices=False)
    signs = np.sign(directions[range(len(directions)), np.abs(directions).argmax(axis=1)])
    shares = lengths**2 / max((lengths**2).sum(), 1e-300)
    return mean, (directions * signs[:, None])[:2].T, shares[:2]


def spread(n: int, d: int, seed: int) -> npt.NDArray[np.float32]:
    """Return vectors whose directions differ clearly in how much of the variance they have."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * 0.6 ** np.arange(d)
    turned = x @ np.linalg.qr(rng.normal(size=(d, d)))[0] + rng.normal(size=d)
    return turned.astype(np.float32)


@given(st.integers(3, 200), st.integers(2, 60), st.integers(0, 2**20))
@settings(max_examples=60)
def test_the_plane_is_that_of_the_svd(n: int, d: int, seed: int) -> None:
    x = spread(n, d, seed)
    mean, axes, shares = by_svd(x)
    plane = principal_plane(x)
    assert np.allclose(plane.mean, mean, atol=1e-5)
    assert np.allclose(plane.shares, shares, atol=1e-5)
    projected = plane.project(x)
    # No direction is better known than the gap to the next one says.
    expected = (x - mean) @ axes
    assert np.allclose((projected**2).sum(), (expected**2).sum(), rtol=1e-4)
    assert np.allclose(plane.axes.T @ plane.axes, np.eye(2), atol=1e-5)


def test_clear_directions_are_those_of_the_svd() -> None:
    x = spread(500, 40, 1)
    _, axes, _ = by_svd(x)
    assert np.allclose(principal_plane(x).axes, axes, atol=2e-3)
    assert np.allclose(principal_plane(x, seed=9).axes, axes, atol=2e-3)


def test_no_directions_stand_out_and_two_good_ones_are_found() -> None:
    x = np.random.default_rng(0).normal(size=(2000, 64)).astype(np.float32)
    assert sum(principal_plane(x).shares) > 0.97 * by_svd(x)[2].sum()


@pytest.mark.parametrize(
    ("x", "axes"),
    [
        (np.ones((1, 5)), 0),
        (np.ones((7, 5)), 0),
        (np.outer(np.arange(6), np.ones(5)), 1),
        (np.arange(4)[:, None], 1),
        (np.arange(10).reshape(2, 5), 1),
    ],
)
def test_vectors_that_differ_no_two_ways_have_a_plane_too(x: Floats, axes: int) -> None:
    plane = principal_plane(x.astype(np.float32))
    assert (np.linalg.norm(plane.axes, axis=0) > 0.5).sum() == axes
    xy = plane.project(x.astype(np.float32))
    assert np.isfinite(xy).all()
    assert np.allclose((xy**2).sum(), ((x - x.mean(axis=0)) ** 2).sum(), rtol=1e-4)


def places(found: Map) -> dict[int, tuple[int, ...]]:
    return {
        image: tuple(xy) for image, xy in zip(found.images.tolist(), found.xy.tolist(), strict=True)
    }


def test_images_lie_where_the_svd_puts_them(searcher: Searcher, store: Store, tree: Path) -> None:
    found = map_of(searcher)
    with store.catalog.read() as conn:
        digests = dict(conn.execute(select(Image.id, Image.digest)).tuples().all())
    assert sorted(found.images.tolist()) == sorted(digests)
    x = np.stack([vector_of(digests[image]) for image in found.images.tolist()])
    mean, axes, shares = by_svd(x)
    xy = (x - mean) @ axes
    scale = EXTENT / (xy.max(axis=0) - xy.min(axis=0)).max()
    assert np.allclose(found.xy, (xy - xy.min(axis=0)) * scale, atol=0.01 * EXTENT)
    assert np.allclose(found.shares, shares, atol=1e-3)
    assert max(found.size) == EXTENT
    assert found.xy.min() == 0


def test_a_browser_gets_all_of_it(searcher: Searcher) -> None:
    found = map_of(searcher)
    told = orjson.loads(found.json)
    assert told.pop("images") == found.images.tolist()
    assert [told.pop("x"), told.pop("y")] == found.xy.T.tolist()
    assert told == {
        "space": "known",
        "generation": None,
        "vectors": snapshot(searcher.catalog, searcher.space).n,
        "shares": list(found.shares),
    }


def test_a_map_stays_until_another_index_is_published(
    searcher: Searcher, store: Store, tree: Path
) -> None:
    space = searcher.space
    store.publish(space)
    first = map_of(searcher)
    assert map_of(searcher) is first
    name = snapshot(store.catalog, space).generation.name
    assert (first.generation, len(first.images)) == (name, 12)
    new = draw(tree / "new.png", 500)
    (tree / "a/0.png").unlink()
    store.index(tree, space)
    assert map_of(searcher) is first
    store.publish(space)
    second = map_of(searcher)
    assert second.tag != first.tag
    with store.catalog.read() as conn:
        digests = dict(conn.execute(select(Image.digest, Image.id)).tuples().all())
    assert digests[digest_of(new)] in second.images
    gone = set(first.images.tolist()) - set(second.images.tolist())
    assert len(gone) == 1
    assert len(second.images) == 12


def test_without_an_index_each_new_vector_is_on_the_map(
    searcher: Searcher, store: Store, tree: Path
) -> None:
    assert len(map_of(searcher).images) == 12
    draw(tree / "new.png", 500)
    store.index(tree, searcher.space)
    assert len(map_of(searcher).images) == 13


def test_of_many_images_a_sample_is_drawn(
    searcher: Searcher, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = places(map_of(searcher))
    monkeypatch.setattr(search.map, "MOST_POINTS", 5)
    monkeypatch.setattr(search.map, "MOST_SAMPLE", 4)
    samples = []
    for _ in range(2):
        with Searcher(store.catalog.home) as other:
            samples.append(map_of(other))
    assert len(samples[0].images) == 5
    assert set(samples[0].images.tolist()) < set(whole)
    assert samples[0].json == samples[1].json


def test_sampled_rows_are_there_after_compaction(store: Store, tree: Path) -> None:
    space = store.space()
    store.index(tree, space, chunk=4)
    for name in ("a/1.png", "a/4.png", "b/0.png", "b/3.png"):
        (tree / name).unlink()
    store.index(tree, space)
    with store.catalog.write() as conn:
        conn.execute(delete(File).where(File.state == "missing"))
    compact(store.catalog, store.lease, space, force=True)
    view, files = snapshot(store.catalog, space), open_store(store.catalog, space)
    assert any(part.rows_checksum for part in view.parts)
    with store.catalog.read() as conn:
        live = entered_rows(conn, space.id, live=True)
    assert some_rows(files, view, 100).tolist() == live.tolist()
    picked = some_rows(files, view, 5)
    assert len(picked) == 5
    assert set(picked.tolist()) < set(live.tolist())
    assert np.array_equal(picked, some_rows(files, view, 5))
    assert not np.array_equal(picked, some_rows(files, view, 5, seed=1))
    with Searcher(store.catalog.home) as searcher:
        assert len(map_of(searcher).images) == len(live)


def test_whoever_asks_at_once_gets_one_map(searcher: Searcher) -> None:
    with ThreadPoolExecutor(8) as threads:
        maps = list(threads.map(lambda _: map_of(searcher), range(16)))
    assert len({id(found) for found in maps}) == 1


def test_a_damaged_vector_is_left_out(store: Store, tree: Path) -> None:
    space = store.space()
    store.index(tree, space, chunk=100)
    [part] = snapshot(store.catalog, space).parts
    path = open_store(store.catalog, space).path(part.name)
    with open(path, "r+b") as file:
        file.seek(-4 * DIM, 2)
        file.write(np.full(DIM, np.nan, "<f4").tobytes())
    with Searcher(store.catalog.home) as searcher:
        found = map_of(searcher)
    assert len(found.images) == len(found.xy) == 11
    assert max(found.size) == EXTENT


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_few_images_have_a_map(store: Store, tmp_path: Path, dtype: str) -> None:
    root = tmp_path / "few"
    draw(root / "0.png", 0)
    space = store.space(dtype, dtype)
    store.index(root, space)
    with Searcher(store.catalog.home) as searcher:
        only = map_of(searcher)
        assert (len(only.images), only.size) == (1, (0, 0))
        draw(root / "1.png", 1)
        store.index(root, space)
        two = map_of(searcher)
        assert (len(two.images), two.size) == (2, (EXTENT, 0))
        for found in (only, two):
            drawing = drawing_of(found)
            assert [at.image_id for at in drawing.pictures] == found.images.tolist()
        for picture in root.iterdir():
            picture.unlink()
        store.index(root, space)
        store.publish(space)
        empty = map_of(searcher)
        assert (len(empty.images), drawing_of(empty).pictures) == (0, ())


def test_the_servers_drawing_shows_points_in_place(searcher: Searcher) -> None:
    rng = np.random.default_rng(0)
    n = 3000
    xy = np.rint(rng.uniform(0, 1, (n, 2)) * (EXTENT, EXTENT / 3)).astype(np.int64)
    xy[0], xy[1] = (0, 0), (EXTENT, EXTENT // 3)
    found = Map("any", None, n, np.arange(n), xy, (0.5, 0.2), b"")
    drawing = drawing_of(found)
    points = [(int(x), int(y)) for x, y in re.findall(r"M(\d+) (\d+)h0", drawing.dots)]
    assert len(points) == len(set(points))
    assert min(x for x, _ in points) >= 0
    assert max(x for x, _ in points) <= WIDTH
    assert max(y for _, y in points) <= drawing.height
    scale = (points[1][0] - points[0][0]) / EXTENT
    drawn = dict.fromkeys(
        (round(points[0][0] + scale * x), round(points[0][1] + scale * y)) for x, y in xy
    )
    assert all(min(abs(x - u) + abs(y - v) for u, v in points) <= 2 for x, y in list(drawn)[:50])
    pictures = drawing.pictures
    assert len(pictures) > 20
    for at, one in enumerate(pictures):
        assert (one.x, one.y) in points
        for other in pictures[:at]:
            assert max(abs(one.x - other.x), abs(one.y - other.y)) >= SIDE
