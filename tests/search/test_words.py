"""Words against open_clip's own text tower, in a real store that its image tower has filled."""

import dataclasses
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.samples import draw_families
from search import Searcher
from search.errors import NoWords, QueryError
from search.questions import Example, Question, direction
from search.words import MOST_CHARACTERS, Words, answers_words, why_not
from storage.catalog import Catalog
from storage.errors import SpaceError
from storage.home import Home
from storage.spaces import SpaceInfo, list_spaces
from tests.flows.terminal import lookalike, python

torch: Any = pytest.importorskip("torch")
open_clip: Any = pytest.importorskip("open_clip")

from extractor import weights  # noqa: E402
from extractor.quiet import hushed  # noqa: E402

SMALL = "ViT-S-32-alt"
WORDS = ["red car", "a photo of a dog", "Blümchen & Bäume"]
INNER = "visual.transformer.resblocks.3"
PHOTOS = "pictures"


@pytest.fixture(scope="module")
def network() -> Any:
    with hushed("open_clip"):
        return weights.build(lambda: open_clip.create_model(SMALL), 3).eval()


@pytest.fixture(scope="module")
def shop(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a store that was filled from the command line, in two spaces."""
    base = tmp_path_factory.mktemp("shop")
    draw_families(str(base / PHOTOS), 2)
    torch.save(network.state_dict(), base / "small.pth")
    recipe = ["--model", f"clip:{SMALL}", "--weights", str(base / "small.pth"), "--no-prefect"]
    home = ["--home", str(base / "home")]
    done = lookalike("index", str(base / PHOTOS), *recipe, *home)
    assert "No pretrained weights" not in done.stderr
    lookalike("backfill", *recipe, "--layer", INNER, *home)
    return base


@pytest.fixture(scope="module")
def spaces(shop: Path) -> dict[str, SpaceInfo]:
    with Catalog.open(Home(str(shop / "home")), write=False) as catalog:
        return {space.name: space for space in list_spaces(catalog)}


@pytest.fixture(scope="module")
def space(spaces: dict[str, SpaceInfo]) -> SpaceInfo:
    return spaces[f"clip:{SMALL}-logits"]


@pytest.fixture(scope="module")
def wanted(network: Any) -> np.ndarray:
    with torch.inference_mode():
        tokens = open_clip.get_tokenizer(SMALL)(WORDS)
        found: np.ndarray = network.encode_text(tokens, normalize=True).numpy()
    return found


def test_words_are_those_of_open_clip(space: SpaceInfo, wanted: np.ndarray) -> None:
    assert answers_words(space)
    words = Words(space, "cpu")
    assert not words.is_open
    found = words.of(WORDS)
    assert words.is_open
    assert (found.shape, found.dtype) == ((3, space.dim), np.float32)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(words.of(WORDS[1:2]), wanted[1:2], atol=1e-5)
    assert words.of([]).shape == (0, space.dim)


def test_words_find_what_open_clip_finds(
    shop: Path, space: SpaceInfo, network: Any, wanted: np.ndarray
) -> None:
    from PIL import Image, ImageOps

    files = sorted((shop / PHOTOS).rglob("*.*"))
    transform = open_clip.image_transform(224, is_train=False)
    with torch.inference_mode():
        batch = torch.stack([transform(ImageOps.exif_transpose(Image.open(f))) for f in files])
        features = network.encode_image(batch, normalize=True).numpy()
    with Searcher(Home(str(shop / "home")), device="cpu") as searcher:
        answers = searcher.search_vectors(Words(space, "cpu").of(WORDS), len(files))
    for hits, scores in zip(answers, wanted @ features.T, strict=True):
        by_path = {bytes(file): score for file, score in zip(files, scores, strict=True)}
        assert len(hits) == len(files)
        # What decodes a JPEG at a smaller scale gives pixels that differ in the last place.
        np.testing.assert_allclose(
            [hit.score for hit in hits], [by_path[hit.path] for hit in hits], atol=5e-3
        )


def test_words_are_examples_beside_pictures(shop: Path, wanted: np.ndarray) -> None:
    picture = Example(path=bytes(min((shop / PHOTOS).rglob("*.*"))))
    red, dog = (Example(words=text) for text in WORDS[:2])
    with Searcher(Home(str(shop / "home")), device="cpu") as searcher:
        replies = searcher.replies([Question((Example(words=text),)) for text in WORDS])
        alone = searcher.reply(Question((picture,)))
        mixed = searcher.reply(Question((picture, red), (dog,)))
    for reply, vector in zip(replies, wanted, strict=True):
        np.testing.assert_allclose(reply.vector, vector, atol=1e-5)
        assert list(reply.hits) == sorted(reply.hits, key=lambda hit: -hit.score)
    both = direction(np.stack([alone.vector, wanted[0]]), wanted[1:2])
    np.testing.assert_allclose(mixed.vector, both, atol=1e-5)


def test_a_space_that_can_not_be_asked_says_how_to_get_one(
    space: SpaceInfo, spaces: dict[str, SpaceInfo]
) -> None:
    make = "with `lookalike backfill --model clip:ViT-B-32`, and go over to it with `lookalike"
    pictures = dataclasses.replace(space, name="p", spec={**space.spec, "architecture": "resnet50"})
    white = dataclasses.replace(space, spec={**space.spec, "whitening": "0" * 64})
    scaled = dataclasses.replace(space, spec={**space.spec, "scales": [1, 0.5]})
    inner = spaces[f"clip:{SMALL}-{INNER}"]
    for other in (pictures, white, scaled, inner):
        assert not answers_words(other)
        with pytest.raises(NoWords) as caught:
            Words(other, "cpu").of(["red car"])
        assert str(caught.value) == why_not(other)
        assert make in why_not(other)
        assert "\n" not in why_not(other)
    assert why_not(pictures).startswith("the space 'p' answers no words, since its network")
    assert "only what the network gives at its end" in why_not(inner)
    assert why_not(space) == ""


@pytest.mark.parametrize("key", ["text_projection", "visual.proj"])
def test_the_weights_of_either_tower_must_be_those_of_the_space(
    key: str, space: SpaceInfo, network: Any, tmp_path: Path
) -> None:
    state = dict(network.state_dict())
    state[key] = state[key] + 1e-3
    torch.save(state, tmp_path / "other.pth")
    request = {**space.request, "weights": str(tmp_path / "other.pth")}
    with pytest.raises(SpaceError, match=r"\(weights_digest differ\)"):
        Words(dataclasses.replace(space, request=request), "cpu").of(["red car"])


@pytest.mark.parametrize("text", ["", " \t\n", "x" * (MOST_CHARACTERS + 1)])
def test_what_is_no_question_is_refused(text: str, space: SpaceInfo) -> None:
    with pytest.raises(QueryError) as caught:
        Words(space, "cpu").of(["red car", text])
    assert "\n" not in str(caught.value)


def test_any_text_is_taken(space: SpaceInfo) -> None:
    words = Words(space, "cpu")
    odd = ["x" * MOST_CHARACTERS, "red " * 240, "\udcff", "\0", "<|endoftext|>", "🚗 赤い車"]
    vectors = words.of(odd)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


def test_threads_share_the_tower(space: SpaceInfo, wanted: np.ndarray) -> None:
    words = Words(space, "cpu")
    found: dict[int, np.ndarray] = {}

    def ask(number: int) -> None:
        found[number] = words.of([WORDS[number % 3]])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(6):
        np.testing.assert_allclose(found[number][0], wanted[number % 3], atol=1e-5)


def program(home: Path, code: str) -> str:
    """Return a program that has the current space as ``space`` before ``code``."""
    return (
        "from search.words import Words, answers_words, why_not\n"
        "from storage.catalog import Catalog\n"
        "from storage.home import Home\n"
        "from storage.spaces import get_space\n"
        f"with Catalog.open(Home({str(home)!r}), write=False) as catalog:\n"
        f"    space = get_space(catalog)\n{code}"
    )


def test_without_open_clip_the_line_says_how_to_get_it(shop: Path) -> None:
    code = (
        "from search.errors import NoWords\n"
        "print(why_not(space))\n"
        "try:\n    Words(space).of(['red car'])\n"
        "except NoWords as error:\n    print(error)\n"
    )
    blocked = "import sys; sys.modules['open_clip'] = None\n"
    done = python("-c", blocked + program(shop / "home", code))
    line = (
        f"words in the space 'clip:{SMALL}-logits' need open_clip: pip install 'lookalike[clip]'\n"
    )
    assert (done.stdout, done.stderr) == (line * 2, "")


def test_who_only_asks_whether_it_can_loads_no_torch(shop: Path) -> None:
    code = "import sys; print(answers_words(space), 'torch' in sys.modules)\n"
    done = python("-c", program(shop / "home", code + "Words(space)\n"))
    assert (done.stdout, done.stderr) == ("True False\n", "")
    assert "torch" in sys.modules
