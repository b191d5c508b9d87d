"""Words in the page's search box, answered by a network of images and text with random weights."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from flows.samples import draw_families
from tests.browser.shop import Shop, index, serving
from tests.browser.watching import hits, shoot, watched

pytest.importorskip("open_clip", reason="the extra `clip` is not installed")

MODEL = ("--model", "clip:ViT-S-32-alt", "--weights", "random:0")


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("reading")
    home, pictures = folder / "home", folder / "pictures"
    draw_families(str(pictures), 2, seed=3)
    index(home, pictures, *MODEL)
    with serving(home) as url:
        yield Shop(url, pictures, home)


@pytest.mark.parametrize("script", [True, False])
def test_words_are_answered_and_refined(
    script: bool, browser: Browser, reading: Shop, tmp_path: Path
) -> None:
    with watched(browser, reading.url, java_script_enabled=script) as (page, _):
        page.goto("/")
        page.get_by_label("Search by words").fill("a red car")
        page.get_by_label("Search by words").press("Enter")
        page.wait_for_url(re.compile("text=a\\+red\\+car"))
        expect(page.get_by_role("heading", level=1)).to_contain_text("“a red car”")
        found = hits(page)
        assert len(found) == 18
        tile = page.locator("#hits > .tile").nth(2)
        tile.hover()
        tile.locator(".act[data-act=plus]").click()
        page.wait_for_url(re.compile(f"plus={found[2]}"))
        expect(page.locator(".chip.more")).to_have_count(2)
        shoot(page, f"words-{'with' if script else 'without'}-script", tmp_path)
