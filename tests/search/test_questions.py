"""Questions of several examples, pages and near-duplicates, against what numpy finds."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from search import Searcher
from search.errors import NoWords, QueryError, SearchError, UnknownImage, VectorError
from search.questions import MINUS, MOST, Example, Question, Reply, Wanted, direction
from storage.errors import PartError, RootError
from storage.leases import start_run
from storage.publish import publish
from storage.reading import open_store, snapshot
from tests.search.stores import DIM, Store, digest_of, draw, vector_of
from tests.storage.filled import Filled, clustered, local_catalog, root_of

N = 40


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Return pictures in three folders."""
    root = tmp_path / "pictures"
    return sorted(draw(root / "abc"[i % 3] / f"{i:02}.png", i, size=(8, 8)) for i in range(N))


@pytest.fixture
def vectors(photos: list[Path]) -> dict[Path, np.ndarray]:
    """Return for each picture a vector near that of four others: some are near-duplicates."""
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(N // 5, DIM))
    x = centres[rng.integers(N // 5, size=N)] + 0.2 * rng.normal(size=(N, DIM))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return dict(zip(photos, x.astype(np.float32), strict=True))


@pytest.fixture
def searcher(store: Store, vectors: dict[Path, np.ndarray]) -> Iterator[Searcher]:
    known = {digest_of(path): vector for path, vector in vectors.items()}
    root = next(iter(vectors)).parents[1]
    store.index(root, store.space(), chunk=15, vectors=known)
    with Searcher(store.catalog.home) as made:
        yield made


def of(path: Path) -> Example:
    return Example(path=os.fsencode(path))


def paths_of(reply: Reply) -> list[Path]:
    return [Path(os.fsdecode(hit.path)) for hit in reply.hits]


def ranked(vectors: dict[Path, np.ndarray], q: np.ndarray) -> list[Path]:
    scores = {path: float(x.astype(np.float64) @ q) for path, x in vectors.items()}
    return sorted(scores, key=scores.__getitem__, reverse=True)


def unlike(vectors: dict[Path, np.ndarray], order: list[Path], least: float) -> list[Path]:
    """Keep the best, then each that is like none that is kept."""
    kept: list[Path] = []
    for path in order:
        if all(float(vectors[path] @ vectors[other]) < least for other in kept):
            kept.append(path)
    return kept


def wanted_direction(plus: list[np.ndarray], minus: list[np.ndarray]) -> np.ndarray:
    q = np.mean(np.array(plus, np.float64), axis=0)
    if minus:
        q -= MINUS * np.mean(np.array(minus, np.float64), axis=0)
    return q / np.linalg.norm(q)


@pytest.mark.parametrize(("likes", "dislikes"), [(1, 0), (3, 0), (1, 1), (2, 3)])
def test_plus_and_minus_are_searched_for_as_one_direction(
    searcher: Searcher,
    vectors: dict[Path, np.ndarray],
    photos: list[Path],
    likes: int,
    dislikes: int,
) -> None:
    plus, minus = photos[:likes], photos[10 : 10 + dislikes]
    question = Question(tuple(map(of, plus)), tuple(map(of, minus)))
    reply = searcher.reply(question, Wanted(12))
    q = wanted_direction([vectors[p] for p in plus], [vectors[p] for p in minus])
    assert reply.space == "known"
    assert reply.vector.shape == (DIM,)
    assert reply.vector == pytest.approx(q, abs=1e-6)
    assert np.linalg.norm(reply.vector) == pytest.approx(1, abs=1e-6)
    assert paths_of(reply) == ranked(vectors, q)[:12]
    assert [hit.score for hit in reply.hits] == pytest.approx(
        [vectors[path] @ q for path in paths_of(reply)], abs=1e-6
    )


def test_examples_of_each_sort_mean_the_same(
    searcher: Searcher, vectors: dict[Path, np.ndarray], photos: list[Path], tmp_path: Path
) -> None:
    image_id = searcher.reply(Question((of(photos[4]),)), Wanted(1)).hits[0].image_id
    copy = tmp_path / "elsewhere"
    copy.write_bytes(photos[4].read_bytes())
    sorts = [
        of(photos[4]),
        of(copy),
        Example(data=photos[4].read_bytes()),
        Example(image_id=image_id),
        Example(vector=vectors[photos[4]]),
    ]
    replies = searcher.replies([Question((sort,), (of(photos[9]),)) for sort in sorts], Wanted(9))
    q = wanted_direction([vectors[photos[4]]], [vectors[photos[9]]])
    for reply in replies:
        assert paths_of(reply) == ranked(vectors, q)[:9]
    together = searcher.reply(Question(tuple(sorts)), Wanted(9))
    assert paths_of(together) == ranked(vectors, vectors[photos[4]])[:9]


def test_the_vector_of_a_reply_asks_the_same_again(searcher: Searcher, photos: list[Path]) -> None:
    first = searcher.reply(Question((of(photos[0]), of(photos[1])), (of(photos[2]),)))
    again = searcher.reply(Question((Example(vector=first.vector),)))
    assert again.hits == first.hits
    assert np.array_equal(again.vector, first.vector)
    alone = searcher.reply(Question((of(photos[0]),)))
    assert list(alone.hits) == searcher.search_image(alone.hits[0].image_id)
    assert alone.vector == pytest.approx(vector_like(searcher, photos[0]), abs=1e-6)


@pytest.mark.parametrize("value", [np.nan, 0.0, np.inf])
def test_a_damaged_vector_is_refused_where_its_picture_asks(
    searcher: Searcher, store: Store, photos: list[Path], value: float
) -> None:
    [hit] = searcher.search(photos[0], 1)
    for part in snapshot(store.catalog, searcher.space).parts:
        files = open_store(store.catalog, searcher.space)
        rows = files.rows(part)
        if hit.row in rows:
            x = np.load(files.path(part.name))
            x[rows == hit.row] = value
            Path(files.path(part.name)).chmod(0o600)
            np.save(files.path(part.name), x)
    with Searcher(store.catalog.home) as other:
        for question in (Question((of(photos[0]),)), Question((of(photos[0]), of(photos[1])))):
            with pytest.raises(PartError, match=f"row {hit.row} is damaged, its length is"):
                other.reply(question)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32])
def test_numbers_of_numpy_are_numbers_of_images(
    searcher: Searcher, photos: list[Path], kind: type[np.integer]
) -> None:
    number = searcher.search(photos[7], 1)[0].image_id
    wanted = searcher.search_image(number, 5, no_self=True)
    assert searcher.search_image(kind(number), 5, no_self=True) == wanted
    reply = searcher.reply(Question((Example(image_id=kind(number)),)), Wanted(5, no_self=True))
    assert list(reply.hits) == wanted
    with pytest.raises(UnknownImage, match="no image 99 "):
        searcher.search_image(kind(99))


def vector_like(searcher: Searcher, path: Path) -> np.ndarray:
    """Return the stored vector of a picture."""
    [hit] = searcher.search(path, 1)
    with searcher.catalog.read() as conn:
        return searcher._answers.lookup.vectors_in(conn, [hit.row])[0]


@pytest.mark.parametrize(
    "others",
    [{}, {"min_score": 0.1}, {"no_self": True}, {"distinct": 0.8}, {"distinct": 0.8, "under": "a"}],
)
def test_pages_follow_each_other(
    searcher: Searcher,
    vectors: dict[Path, np.ndarray],
    photos: list[Path],
    others: dict[str, object],
) -> None:
    question = Question((of(photos[0]),), (of(photos[1]),))
    q = wanted_direction([vectors[photos[0]]], [vectors[photos[1]]])
    order = ranked(vectors, q)
    if others.get("no_self"):
        order = [path for path in order if path not in photos[:2]]
    if others.get("under"):
        order = [path for path in order if path.parent.name == "a"]
        others = others | {"under": (os.fsencode(photos[0].parents[1] / "a"),)}
    if others.get("min_score"):
        order = [path for path in order if vectors[path] @ q >= 0.1]
    if others.get("distinct"):
        order = unlike(vectors, order, 0.8)
        assert len(order) < 3 * N // 4
    for k in (1, 3, 7, 13, len(order), N, 100):
        found: list[Path] = []
        more = True
        while more:
            reply = searcher.reply(question, Wanted(k, skip=len(found), **others))
            found += paths_of(reply)
            more = reply.more
            assert len(reply.hits) == k or not more
        assert found == order
        past = searcher.reply(question, Wanted(k, skip=len(found), **others))
        assert (past.hits, past.more) == ((), False)


@pytest.mark.parametrize("folders", ["ab", "ac", "abc", "b"])
def test_under_several_folders(
    searcher: Searcher, vectors: dict[Path, np.ndarray], photos: list[Path], folders: str
) -> None:
    root = photos[0].parents[1]
    places = tuple(os.fsencode(root / name) for name in folders)
    inside = {p: x for p, x in vectors.items() if p.parent.name in folders}
    for under in (places, (*places, os.fsencode(photos[0].parent / "00.png"), *places)):
        reply = searcher.reply(Question((of(photos[20]),)), Wanted(N, under=under))
        extra = {} if len(under) == len(places) else {photos[0]: vectors[photos[0]]}
        assert paths_of(reply) == ranked(inside | extra, vectors[photos[20]])
    with pytest.raises(RootError, match="not in any root"):
        searcher.reply(Question((of(photos[20]),)), Wanted(under=(*places, b"/nowhere")))


def test_a_hit_is_shown_by_its_path_at_any_of_the_places(store: Store, tree: Path) -> None:
    store.index(tree, store.space())
    places = (os.fsencode(tree / "a/0.png"), os.fsencode(tree / "b"))
    with Searcher(store.catalog.home) as searcher:
        reply = searcher.reply(Question((of(tree / "a/3.png"),)), Wanted(1, under=places))
    assert paths_of(reply) == [tree / "b/copy.png"]
    assert reply.hits[0].paths == (
        os.fsencode(tree / "a/3.png"),
        os.fsencode(tree / "b/copy.png"),
    )


def test_distinct_of_one_hides_equal_vectors_alone(store: Store, photos: list[Path]) -> None:
    same = vector_of(b"same")
    known = {digest_of(p): same if i < 5 else vector_of(digest_of(p)) for i, p in enumerate(photos)}
    store.index(photos[0].parents[1], store.space("half", "float16"), vectors=known)
    with Searcher(store.catalog.home) as searcher:
        reply = searcher.reply(Question((of(photos[2]),)), Wanted(N, distinct=1.0))
    assert len(reply.hits) == N - 4
    assert paths_of(reply)[0] == photos[0]


@pytest.fixture
def crowded(sqlite_template: str, tmp_path: Path) -> Iterator[Filled]:
    """2,000 near-duplicates of one image, 500 others, and an index that approximates a lot."""
    rng = np.random.default_rng(1)
    crowd = clustered(1, 32, seed=2) + 0.002 * rng.standard_normal((2000, 32))
    crowd /= np.linalg.norm(crowd, axis=1, keepdims=True)
    with local_catalog(sqlite_template, tmp_path) as catalog:
        filled = Filled(catalog, 32)
        filled.add(np.concatenate([crowd.astype(np.float32), clustered(500, 32, seed=3)]))
        publish(catalog, start_run(catalog, "index"), filled.space, "PQ4x4")
        yield filled


def by_index(filled: Filled) -> Searcher:
    searcher = Searcher(filled.catalog.home)
    searcher._answers.lookup.exact_below = 0  # use the index however small the space is
    return searcher


def test_a_crowd_of_near_duplicates_is_looked_past(crowded: Filled) -> None:
    x = crowded.x.astype(np.float64)
    order = np.argsort(-(x @ x[7]), kind="stable")
    kept: list[int] = []
    for row in order.tolist():
        if not kept or (x[kept] @ x[row]).max() < 0.99:
            kept.append(row)
    assert kept[1] >= 2000
    question = Question((Example(vector=crowded.x[7]),))
    with Searcher(crowded.catalog.home) as searcher:
        one = searcher.reply(question, Wanted(30, distinct=0.99))
        pages = [searcher.reply(question, Wanted(10, at, distinct=0.99)) for at in (0, 10, 20)]
    assert [hit.row for hit in one.hits] == kept[:30]
    assert [hit.row for page in pages for hit in page.hits] == kept[:30]
    assert one.more


@pytest.mark.parametrize("distinct", [None, 0.9])
def test_pages_lose_and_repeat_nothing_where_the_index_approximates(
    crowded: Filled, distinct: float | None
) -> None:
    question = Question((Example(vector=crowded.x[7]),))
    rows: list[int] = []
    more = True
    with by_index(crowded) as searcher:
        wide = searcher.reply(question, Wanted(1000)).hits[:60]
        narrow = searcher.reply(question, Wanted(60)).hits
        assert [hit.row for hit in wide] != [hit.row for hit in narrow]  # or this shows nothing
        while more:
            reply = searcher.reply(question, Wanted(60, len(rows), distinct=distinct))
            rows += [hit.row for hit in reply.hits]
            more = reply.more
    assert len(set(rows)) == len(rows)
    if distinct is None:
        assert sorted(rows) == list(range(2500))
    else:
        x = crowded.x[rows].astype(np.float64)
        cosines = x @ x.T - np.eye(len(rows))
        assert cosines.max() < distinct
        hidden = np.setdiff1d(np.arange(2500), rows)
        assert (crowded.x[hidden] @ x.T).max(axis=1).min() >= distinct - 1e-6


def test_no_self_leaves_out_more_images_than_are_fetched_at_first(crowded: Filled) -> None:
    x = crowded.x.astype(np.float64)
    q = x[2000:2300].mean(axis=0)
    order = [row for row in np.argsort(-(x @ q), kind="stable") if not 2000 <= row < 2300]
    ids = tuple(Example(image_id=1000 + row) for row in range(2000, 2300))
    for under in ((), (root_of(crowded),)):
        with Searcher(crowded.catalog.home) as searcher:
            reply = searcher.reply(Question(ids), Wanted(20, under=under, no_self=True))
        assert [hit.row for hit in reply.hits] == order[:20]


def test_images_of_minus_are_no_self_either(
    searcher: Searcher, vectors: dict[Path, np.ndarray], photos: list[Path]
) -> None:
    question = Question((of(photos[3]),), (of(photos[8]), of(photos[9])))
    with_all = searcher.reply(question, Wanted(N))
    reply = searcher.reply(question, Wanted(N, no_self=True))
    assert len(with_all.hits) == N
    own = {photos[3], photos[8], photos[9]}
    assert paths_of(reply) == [path for path in paths_of(with_all) if path not in own]


def test_examples_that_cancel_each_other_out(searcher: Searcher, photos: list[Path]) -> None:
    x = np.zeros((2, DIM), np.float32)
    x[:, 0] = 1, -1
    with pytest.raises(SearchError, match="cancel each other out"):
        searcher.reply(Question((Example(vector=x[0]), Example(vector=x[1]))))
    with pytest.raises(SearchError, match="cancel each other out"):
        direction(x, x[:0])
    assert direction(x[:1], x[1:]) == pytest.approx(x[0])
    assert direction(x[:1], x[:1]) == pytest.approx(x[0])


def test_a_question_about_an_unknown_image(searcher: Searcher, photos: list[Path]) -> None:
    for question in (
        Question((Example(image_id=10**9),)),
        Question((of(photos[0]),), (Example(image_id=10**9),)),
    ):
        with pytest.raises(UnknownImage, match="no image 1000000000 has a vector in the space"):
            searcher.replies([Question((of(photos[0]),)), question])
    assert searcher.replies([]) == []


def test_a_vector_that_does_not_fit(searcher: Searcher) -> None:
    ones = np.ones(DIM, np.float32)
    for vector, message in (
        (ones, "has norm 4, it must be 1"),
        (ones * np.nan, "has norm nan"),
        (ones[:3], f"has 3 numbers, the space 'known' has {DIM}"),
        (ones[None], r"has the shape \(1, 16\)"),
    ):
        with pytest.raises(VectorError, match=message):
            searcher.reply(Question((Example(vector=vector),)))


def test_words_need_a_network_that_knows_them(searcher: Searcher, photos: list[Path]) -> None:
    with pytest.raises(NoWords) as caught:
        searcher.reply(Question((of(photos[0]), Example(words="red car"))))
    assert "backfill --model clip:" in str(caught.value)


def test_a_picture_that_is_none_is_named(searcher: Searcher, photos: list[Path]) -> None:
    with pytest.raises(QueryError, match="the picture: "):
        searcher.reply(Question((of(photos[0]),), (Example(data=b"no picture"),)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"skip": -1}, "skip is -1"),
        ({"k": 1, "skip": MOST}, "skip and k make 10,001"),
        ({"k": MOST + 1}, "beyond the 10,000th"),
        ({"min_score": float("nan")}, "min_score is not a number"),
        ({"distinct": 0.0}, "distinct is 0,"),
        ({"distinct": 1.1}, "distinct is 1.1,"),
        ({"distinct": float("nan")}, "distinct is nan,"),
    ],
)
def test_wishes_that_make_no_sense(values: dict[str, float], message: str) -> None:
    with pytest.raises(SearchError, match=message):
        Wanted(**values)


def test_what_is_no_question() -> None:
    with pytest.raises(SearchError, match="at least one example"):
        Question(())
    with pytest.raises(ValueError, match="an example is"):
        Example()
    with pytest.raises(ValueError, match="an example is"):
        Example(path=b"/a", words="a")


def test_in_five_lines(
    store: Store, searcher: Searcher, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos[0].parent)
    home = store.catalog.home
    with Searcher(home if home.catalog_url else home.path) as other:
        hits = other.search(photos[0].name, k=5)
        more = other.search(photos[0], plus=[photos[1]], minus=[hits[4].image_id], no_self=True)
    assert hits == list(searcher.reply(Question((of(photos[0]),)), Wanted(5)).hits)
    question = Question((of(photos[0]), of(photos[1])), (Example(image_id=hits[4].image_id),))
    assert more == list(searcher.reply(question, Wanted(no_self=True)).hits)


def test_one_thing_stands_for_a_list_of_it(searcher: Searcher, photos: list[Path]) -> None:
    asked, other = photos[:2]
    wanted = searcher.search(asked, plus=[other], minus=[photos[2]], under=[photos[0].parent])
    folder = photos[0].parent
    for kind in (str, os.fsencode, Path):
        one = searcher.search(asked, plus=kind(other), minus=kind(photos[2]), under=kind(folder))
        assert one == wanted
    assert wanted
    image = searcher.search(other, 1)[0].image_id
    by_path = searcher.search(asked, plus=[other])
    assert searcher.search(asked, plus=image) == by_path
    assert searcher.search(asked, plus=np.array([image])) == by_path
    assert searcher.search(asked, plus=vector_like(searcher, other)) == by_path
