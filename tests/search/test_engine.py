import gc
import json
import os
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from search import Searcher
from search.answers import Answer
from search.errors import QueryError
from search.query import check_same
from search.questions import Example, Question, Wanted
from storage.errors import CatalogError, RootError, SpaceError
from storage.home import Home
from storage.spaces import ensure_space
from tests.flows.terminal import python
from tests.search.stores import DIM, PREPROCESS, Store, digest_of, draw, vector_of


@pytest.fixture
def searcher(store: Store, tree: Path) -> Iterator[Searcher]:
    store.index(tree, store.space(), chunk=5)
    with Searcher(store.catalog.home) as made:
        yield made


def ranked(query: Path, among: list[Path]) -> list[tuple[str, float]]:
    """Rank the distinct images by the dot product with the query, as numpy sees it."""
    q = vector_of(digest_of(query)).astype(np.float64)
    scores = {digest_of(path): float(vector_of(digest_of(path)) @ q) for path in among}
    first = {digest_of(path): str(path) for path in sorted(among, reverse=True)}
    return [(first[d], scores[d]) for d in sorted(scores, key=scores.__getitem__, reverse=True)]


def shown(answer: Answer) -> list[tuple[str, float]]:
    return [(os.fsdecode(hit.path), hit.score) for hit in answer.hits]


def pictures(tree: Path) -> list[Path]:
    return sorted(tree.rglob("*.png"))


def same(found: list[tuple[str, float]], wanted: list[tuple[str, float]]) -> bool:
    paths = [path for path, _ in found] == [path for path, _ in wanted]
    return paths and np.allclose([s for _, s in found], [s for _, s in wanted], atol=1e-6)


def test_hits_are_those_of_numpy(searcher: Searcher, tree: Path) -> None:
    queries = [tree / "a/0.png", tree / "b/4.png", tree / "a/3.png"]
    answers = searcher.search_paths([os.fsencode(path) for path in queries], 7)
    for query, answer in zip(queries, answers, strict=True):
        assert (answer.query, answer.space) == (os.fsencode(query), "known")
        assert same(shown(answer), ranked(query, pictures(tree))[:7])
        assert answer.hits[0].score == pytest.approx(1.0, abs=1e-6)


def test_an_image_is_one_hit_with_all_its_paths(searcher: Searcher, tree: Path) -> None:
    [answer] = searcher.search_paths([os.fsencode(tree / "b/copy.png")], 20)
    assert len(answer.hits) == 12
    best = answer.hits[0]
    assert best.paths == (os.fsencode(tree / "a/3.png"), os.fsencode(tree / "b/copy.png"))
    assert best.path == best.paths[0]
    assert len({hit.image_id for hit in answer.hits}) == len({hit.row for hit in answer.hits}) == 12


def test_a_copy_elsewhere_is_known_by_its_content(
    searcher: Searcher, tree: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "elsewhere.bin"
    copy.write_bytes((tree / "a/2.png").read_bytes())
    [answer] = searcher.search_paths([os.fsencode(copy)], 3)
    assert os.fsdecode(answer.hits[0].path) == str(tree / "a/2.png")
    assert same(shown(answer), ranked(tree / "a/2.png", pictures(tree))[:3])


def test_no_self_leaves_out_the_own_image_and_still_fills_k(searcher: Searcher, tree: Path) -> None:
    [answer] = searcher.search_paths([os.fsencode(tree / "a/3.png")], 4, no_self=True)
    assert same(shown(answer), ranked(tree / "a/3.png", pictures(tree))[1:5])


def test_under_keeps_to_a_folder_and_shows_the_path_there(searcher: Searcher, tree: Path) -> None:
    query = tree / "a/3.png"
    [answer] = searcher.search_paths([os.fsencode(query)], 20, under=os.fsencode(tree / "b"))
    below = [path for path in pictures(tree) if path.parent.name == "b"]
    assert same(shown(answer), ranked(query, below))
    assert os.fsdecode(answer.hits[0].path) == str(tree / "b/copy.png")
    [answer] = searcher.search_paths(
        [os.fsencode(query)], 20, under=os.fsencode(tree / "b/copy.png")
    )
    assert [path for path, _ in shown(answer)] == [str(tree / "b/copy.png")]
    [whole] = searcher.search_paths([os.fsencode(query)], 20, under=os.fsencode(tree))
    assert len(whole.hits) == 12


def test_under_means_the_files_of_manifests_too(store: Store, tree: Path) -> None:
    away = tree.parent / "away"
    tree.rename(away)
    lines = [f"sku-{i}\taway/{name}\n" for i, name in enumerate(("a/3.png", "a/4.png", "b/4.png"))]
    (tree.parent / "shop.tsv").write_text("id\tpath\n" + "".join(lines))
    (tree / "a").mkdir(parents=True)
    (away / "a/3.png").rename(tree / "a/other.png")
    (away / "a/3.png").symlink_to(tree / "a/other.png")
    space = store.space()
    store.index(tree.parent / "shop.tsv", space)
    store.index(tree, space)
    query = os.fsencode(away / "b/4.png")

    def found(under: Path) -> list[tuple[str, str | None]]:
        [answer] = searcher.search_paths([query], under=os.fsencode(under))
        return sorted((os.fsdecode(hit.path), hit.id) for hit in answer.hits)

    three, four = str(away / "a/3.png"), str(away / "a/4.png")
    with Searcher(store.catalog.home) as searcher:
        assert found(away / "a") == [(three, "sku-0"), (four, "sku-1")]
        assert found(away / "b/4.png") == [(str(away / "b/4.png"), "sku-2")]
        assert len(found(tree.parent / "shop.tsv")) == 3
        assert found(tree) == [(str(tree / "a/other.png"), "sku-0")]
        with pytest.raises(RootError, match="not in any root"):
            found(away / "none")


def test_under_must_lie_in_a_root(searcher: Searcher, tree: Path) -> None:
    with pytest.raises(RootError, match="not in any root"):
        searcher.search_paths([os.fsencode(tree / "a/3.png")], under=b"/nowhere")


def test_min_score_cuts_off(searcher: Searcher, tree: Path) -> None:
    query = tree / "a/1.png"
    wanted = [(p, s) for p, s in ranked(query, pictures(tree)) if s >= 0.2]
    assert 1 < len(wanted) < 12
    [answer] = searcher.search_paths([os.fsencode(query)], 20, min_score=0.2)
    assert same(shown(answer), wanted)


def test_vectors_can_be_asked_for(searcher: Searcher, tree: Path) -> None:
    q = vector_of(digest_of(tree / "b/0.png"))
    [hits] = searcher.search_vectors(q[None, :], 3)
    assert same(
        [(os.fsdecode(h.path), h.score) for h in hits], ranked(tree / "b/0.png", pictures(tree))[:3]
    )


def test_files_that_went_missing_are_no_hits(store: Store, tree: Path) -> None:
    space = store.space()
    store.index(tree, space)
    kept = tree.parent / "kept.png"
    (tree / "a/5.png").rename(kept)
    store.index(tree, space)
    with Searcher(store.catalog.home) as searcher:
        [answer] = searcher.search_paths([os.fsencode(kept)], 20)
    assert same(shown(answer), ranked(kept, pictures(tree)))
    assert answer.hits[0].score < 0.999


def test_a_published_index_and_float16_give_the_same_hits(store: Store, tree: Path) -> None:
    space = store.space("half", "float16")
    store.index(tree, space)
    store.publish(space)
    with Searcher(store.catalog.home, "half") as searcher:
        [answer] = searcher.search_paths([os.fsencode(tree / "a/0.png")], 5)
        assert searcher.warnings == []
    wanted = ranked(tree / "a/0.png", pictures(tree))[:5]
    assert [path for path, _ in shown(answer)] == [path for path, _ in wanted]
    assert np.allclose([s for _, s in shown(answer)], [s for _, s in wanted], atol=2e-3)
    assert answer.hits[0].score == pytest.approx(1.0, abs=1e-6)


def test_spaces_do_not_mix(store: Store, tree: Path) -> None:
    first, second = store.space("first"), store.space("second")
    store.index(tree / "a", first)
    with Searcher(store.catalog.home, "second") as searcher:
        assert searcher.space.id == second.id
        [hits] = searcher.search_vectors(vector_of(b"x")[None, :])
        assert hits == []
    with pytest.raises(SpaceError, match="'third'; there are: first, second"):
        Searcher(store.catalog.home, "third")


def test_nothing_indexed_yet_is_said(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="nothing is indexed yet"):
        Searcher(Home(str(tmp_path / "none")))


@pytest.mark.parametrize(("word", "value"), [("id", "sku-1"), ("label", "red")])
def test_ids_and_labels_of_a_manifest_are_shown(
    store: Store, tree: Path, word: str, value: str
) -> None:
    manifest = tree.parent / "shop.tsv"
    values = {"id": ["sku-0", "sku-1"], "label": ["red", "red"]}[word]
    lines = [f"{v}\tpictures/a/{i}.png\n" for i, v in enumerate(values)]
    manifest.write_text(f"{word}\tpath\n" + "".join(lines))
    store.index(manifest, store.space())
    with Searcher(store.catalog.home) as searcher:
        [answer] = searcher.search_paths([os.fsencode(tree / "a/1.png")], 1)
    hit = answer.to_json()["hits"][0]
    assert hit[word] == value
    assert hit["path"] == str(tree / "a/1.png")


def test_json_has_the_keys_that_scripts_rely_on(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    odd = root / os.fsdecode(b"caf\xe9.png")
    draw(root / "plain.png", 1).rename(odd)
    store.index(root, store.space())
    with Searcher(store.catalog.home) as searcher:
        [answer] = searcher.search_paths([os.fsencode(odd)])
    values = json.loads(json.dumps(answer.to_json()))
    assert list(values) == ["query", "space", "hits"]
    [hit] = values["hits"]
    assert list(hit) == ["score", "path", "paths", "image_id", "row"]
    assert hit["score"] == 1.0
    assert os.fsencode(hit["path"]) == os.fsencode(odd)
    assert hit["paths"] == [hit["path"]]


@pytest.mark.parametrize("name", ["missing.png", "broken.png", "."])
def test_a_query_that_is_no_picture_is_one_line(
    searcher: Searcher, tmp_path: Path, name: str
) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    path = os.fsencode(tmp_path / name)
    with pytest.raises(QueryError) as caught:
        searcher.search_paths([path])
    assert str(caught.value).startswith(f"{os.fsdecode(path)}: ")
    assert "\n" not in str(caught.value)


def test_a_model_that_gives_other_vectors_is_refused(store: Store) -> None:
    space = store.space()
    spec = dict(space.spec)
    check_same(space, {key: value for key, value in spec.items() if key != "dtype"})
    with pytest.raises(SpaceError) as caught:
        check_same(space, {**spec, "architecture": "another", "node": "fc7"})
    message = str(caught.value)
    assert space.fingerprint[:16] in message
    assert "(architecture, node differ)" in message


def test_a_picture_without_a_direction_is_refused(store: Store) -> None:
    import torch

    from extractor.engine import Engine
    from extractor.models import Model, ModelSpec
    from search.query import Vectors

    class Nothing(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.new_zeros(len(x), DIM) + x.amax((1, 2, 3)).clamp(min=0)[:, None]

    spec = ModelSpec("nothing", "", "x", "none", False, PREPROCESS, DIM)
    vectors = Vectors(store.space())
    vectors._engine = Engine(Model((spec,), Nothing(), ("x",)), device="cpu")
    white, black = np.full((3, 32, 32), 255, np.uint8), np.zeros((3, 32, 32), np.uint8)
    assert vectors.of([white] * 70, ["white"] * 70).shape == (70, DIM)
    with pytest.raises(QueryError, match=r"black\.png: the network gives no finite vector"):
        vectors.of([white, black], ["white.png", "black.png"])


def test_the_package_gives_the_searcher_and_nothing_else() -> None:
    import search

    assert search.Searcher is Searcher
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        search.Nothing  # noqa: B018
    done = python(
        "-c", "import search, sys; print(len({'numpy', 'sqlalchemy'} & set(sys.modules)))"
    )
    assert done.stdout == "0\n"


def test_a_new_picture_is_run_through_the_network(store: Store, tree: Path, tmp_path: Path) -> None:
    from extractor.engine import Engine
    from extractor.loader import Source, load
    from extractor.models import ModelRequest, open_model

    request = ModelRequest("resnet18", None, "random:0")
    model = open_model(request)
    spec = {**model.spec.to_json(), "dtype": "float32"}
    asked = {"model": "resnet18", "layer": None, "weights": "random:0"}
    space = ensure_space(store.catalog, name="net", spec=spec, request=asked, key="net")
    engine = Engine(model, device="cpu")

    def vectors(paths: list[Path]) -> np.ndarray:
        sources = [Source(i, os.fsencode(path)) for i, path in enumerate(paths)]
        loaded = load(sources, wants=lambda _: True, preprocess=model.preprocess)
        return engine.forward(np.stack([one.pixels for one in loaded]))

    known = pictures(tree)
    x = vectors(known)
    store.index(tree, space, vectors={digest_of(p): v for p, v in zip(known, x, strict=True)})
    new = [draw(tmp_path / f"new-{i}.jpg", 50 + i, size=(70, 50)) for i in range(2)]
    queries = [new[0], known[0], new[1]]
    with Searcher(store.catalog.home, device="cpu") as searcher:
        answers = searcher.search_paths([os.fsencode(path) for path in queries], 5, no_self=True)
        again = searcher.search_paths([os.fsencode(new[0])], 5)
        sorts = [Example(path=os.fsencode(new[0])), Example(data=new[1].read_bytes())]
        both = searcher.replies([Question((sort,)) for sort in sorts], Wanted(5))
        turned = searcher.replies([Question((sort,)) for sort in sorts[::-1]], Wanted(5))
        apart = searcher.search_paths([os.fsencode(path) for path in new], 5)
    assert [reply.hits for reply in both] == [reply.hits for reply in turned[::-1]]
    assert [reply.hits for reply in both] == [answer.hits for answer in apart]
    assert again[0].hits == answers[0].hits
    for query, answer in ((new[0], answers[0]), (new[1], answers[2])):
        best = np.unique(np.sort(x @ vectors([query])[0])[::-1].round(5))[::-1][:5]
        assert np.allclose([hit.score for hit in answer.hits], best, atol=2e-5)
    assert os.fsencode(known[0]) not in [path for hit in answers[1].hits for path in hit.paths]
    assert "torch" in sys.modules


def test_a_closed_searcher_goes_without_the_garbage_collector(store: Store, tree: Path) -> None:
    """A server settles its objects, and none of them is then found in a cycle."""
    store.index(tree, store.space())
    gc.disable()
    try:
        with Searcher(store.catalog.home) as searcher:
            searcher.search_vectors(np.stack([vector_of(digest_of(tree / "a/0.png"))]), 3)
            parts = (searcher, searcher._answers.lookup, searcher._pictures.network)
            held = [weakref.ref(part) for part in parts]
        del searcher, parts
        assert [one() for one in held] == [None] * 3
    finally:
        gc.enable()


def test_only_a_process_that_settled_leaves_later_modules_to_the_end_too() -> None:
    settled = "settle(); first = gc.get_freeze_count(); bring('wave')"
    for begin, wanted in ((settled, "True"), ("first = 0; bring('wave')", "False")):
        code = f"import gc; from search.garbage import bring, settle; {begin}"
        done = python("-c", f"{code}; print(gc.get_freeze_count() > first)")
        assert (done.stdout, done.stderr) == (f"{wanted}\n", "")
