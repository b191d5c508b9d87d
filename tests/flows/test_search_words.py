"""``lookalike search`` with words, in a store that a network of pictures and words has filled."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from flows.cli import cli
from flows.samples import draw_families
from search.engine import Searcher
from search.errors import QueryError
from search.questions import Example, Question, direction
from search.words import Words
from storage.home import Home

pytest.importorskip("open_clip")

CLIP = ("--model", "clip:ViT-S-32-alt", "--weights", "random:3", "--no-prefect")
WORDS = "red car"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with pictures, and a store of them that words can be asked of."""
    base = tmp_path_factory.mktemp("shop")
    draw_families(str(base / "pictures"), 1, seed=4)
    home = ("--home", str(base / "home"))
    done = CliRunner().invoke(cli, [*home, "index", str(base / "pictures"), *CLIP])
    assert done.exit_code == 0, done.output
    return base


def search(shop: Path, *words: str) -> Result:
    home = ("--home", str(shop / "home"))
    result = CliRunner().invoke(cli, [*home, "search", *words, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    return result


def scores(hits: list[dict[str, Any]]) -> dict[int, float]:
    return {hit["image_id"]: hit["score"] for hit in hits}


def test_words_are_asked_as_words_and_beside_pictures(shop: Path) -> None:
    picture = str(shop / "pictures/family-000/plain.jpg")
    done = search(shop, WORDS, picture, "--minus", "a dog", "--json", "-k", "50")
    first, second = json.loads(done.stdout)
    with Searcher(Home(str(shop / "home")), device="cpu") as searcher:
        said = Words(searcher.space, "cpu").of([WORDS, "a dog"])
        known = searcher.reply(Question((Example(path=os.fsencode(picture)),))).vector
        xq = np.stack([direction(plus[None], said[1:]) for plus in (said[0], known)])
        wanted = searcher.search_vectors(xq, 50)
    assert (first["query"], first["words"], first["minus"]) == (WORDS, True, ["a dog"])
    assert (second["query"], "words" in second, second["minus"]) == (picture, False, ["a dog"])
    for answer, hits in zip((first, second), wanted, strict=True):
        exact = {hit.image_id: hit.score for hit in hits}
        assert scores(answer["hits"]) == pytest.approx(exact, abs=1e-4)


def test_a_file_of_that_name_comes_first_unless_words_are_meant(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = json.loads(search(shop, WORDS, "--json").stdout)[0]
    assert words["words"] is True
    with Image.open(shop / "pictures/family-000/plain.jpg") as picture:
        picture.rotate(5).save(tmp_path / WORDS, "JPEG")
    [found, meant] = json.loads(search(shop, WORDS, "--text", WORDS, "--json").stdout)
    assert found["query"] == str(tmp_path / WORDS)
    assert "words" not in found
    assert meant == words


@pytest.mark.parametrize("typed", ["black/white cat", "cat.jpg"])
def test_words_that_are_named_like_a_file_are_told_how_to_be_words(shop: Path, typed: str) -> None:
    home = ("--home", str(shop / "home"))
    with pytest.raises(QueryError) as error:
        CliRunner().invoke(cli, [*home, "search", typed], catch_exceptions=False)
    assert str(error.value) == f"{typed}: there is no such file; if these are words, use --text"
    assert json.loads(search(shop, "--text", typed, "--json").stdout)[0]["words"] is True


def test_sheets_and_tables_show_words(shop: Path, tmp_path: Path) -> None:
    png, html, table = (tmp_path / f"hits.{kind}" for kind in ("png", "html", "csv"))
    files = ("--sheet", str(png), "--html", str(html), "--export", str(table))
    done = search(shop, WORDS, "--plus", "blue <sky>", "-k", "2", *files)
    assert done.stdout.splitlines()[0].startswith(f"{WORDS} + blue <sky> in space clip:")
    assert table.read_text().splitlines()[1].startswith(f"{WORDS},1,")
    assert re.search(r'<div class="words">blue &lt;sky&gt;</div>', html.read_text())
    with Image.open(png) as sheet:
        assert sheet.width > 4 * 160
