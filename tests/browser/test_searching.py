"""The search page in a browser: every way to ask, and every way to go on from there."""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.browser.shop import Shop, index
from tests.browser.watching import (
    PAGES,
    PHONE,
    classes,
    drop,
    hits,
    is_too_wide,
    scores,
    settle,
    shoot,
    watched,
)

PAGE = 60
"""Hits of one page."""


@pytest.fixture
def page(browser: Browser, drawn: Shop) -> Iterator[Page]:
    with watched(browser, drawn.url) as (page, _):
        yield page


@pytest.fixture
def plain(browser: Browser, drawn: Shop) -> Iterator[Page]:
    """Yield a page without JavaScript."""
    with watched(browser, drawn.url, java_script_enabled=False) as (page, _):
        yield page


def by_family(page: Page, family: int) -> int:
    """Search by an indexed picture of a family, and return its image."""
    page.goto("/folders")
    page.locator(".folders a").first.click()
    page.get_by_role("link", name=f"family-{family:03}").click()
    page.locator("#hits .tile .name").first.click()
    page.locator("#search-by").click()
    page.wait_for_url(re.compile("/search"))
    return hits(page)[0]


def test_a_dropped_file_is_searched_by(page: Page, drawn: Shop, tmp_path: Path) -> None:
    page.goto("/")
    drop(page, drawn.pictures / "family-005" / "plain.jpg")
    page.wait_for_url(re.compile("/search"))
    expect(page.get_by_role("heading", level=1)).to_have_text("Like your picture")
    assert scores(page)[0] == 1
    assert classes(page)[0] == "family-005"
    expect(page.locator("#sent img")).to_be_visible()  # what was sent is shown
    shoot(page, "sent", tmp_path)


def test_a_chosen_file_is_searched_by(page: Page, drawn: Shop, tmp_path: Path) -> None:
    new = tmp_path / "new.png"
    with Image.open(drawn.pictures / "family-006" / "plain.jpg") as picture:
        picture.resize((200, 150)).save(new)
    page.goto("/")
    page.get_by_label("Search by a picture").set_input_files(new)
    page.wait_for_url(re.compile("/search"))
    assert classes(page)[0] == "family-006"
    assert 0.9 < scores(page)[0] < 1.0001


def test_a_pasted_picture_is_searched_by(page: Page, drawn: Shop) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=drawn.url)
    out = io.BytesIO()
    with Image.open(drawn.pictures / "family-007" / "plain.jpg") as picture:
        picture.save(out, "PNG")
    page.goto("/")
    page.evaluate(
        """async (bytes) => {
          const blob = new Blob([new Uint8Array(bytes)], {type: "image/png"});
          await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
        }""",
        list(out.getvalue()),
    )
    page.keyboard.press("Control+V")
    page.wait_for_url(re.compile("/search"))
    assert classes(page)[0] == "family-007"


def test_a_click_searches_by_a_hit(page: Page, tmp_path: Path) -> None:
    page.goto("/")
    page.locator(".tile a.view").nth(4).click()
    page.wait_for_url(re.compile("/search"))
    first = hits(page)
    page.locator("#hits .tile a.view").nth(3).click()
    page.wait_for_url(re.compile(f"image={first[3]}"))
    assert hits(page)[0] == first[3] or first[3] not in hits(page)
    assert scores(page) == sorted(scores(page), reverse=True)
    shoot(page, "hits", tmp_path)
    page.go_back()
    page.wait_for_url(re.compile("image="))
    assert hits(page) == first


def test_plus_and_minus_refine_without_a_reload(page: Page, tmp_path: Path) -> None:
    by_family(page, 13)
    page.evaluate("window.here = true")
    before = hits(page)
    liked, disliked = before[1], before[5]
    page.locator(f"[data-image='{liked}']").hover()
    page.locator(f"[data-image='{liked}'] .act[data-act=plus]").click()
    expect(page.locator(".chip.more")).to_have_count(2)
    page.locator(f"[data-image='{disliked}']").hover()
    page.locator(f"[data-image='{disliked}'] .act[data-act=minus]").click()
    expect(page.locator(".chip.less")).to_have_count(1)
    asked = parse_qs(urlsplit(page.url).query)
    assert asked["plus"] == [str(liked)]
    assert asked["minus"] == [str(disliked)]
    assert disliked not in hits(page)
    assert page.evaluate("window.here") is True
    shoot(page, "refined", tmp_path)
    refined = hits(page)
    page.reload()  # the address says it all
    assert hits(page) == refined
    page.locator(".chip.less .drop").click()
    expect(page.locator(".chip.less")).to_have_count(0)
    page.go_back()
    expect(page.locator(".chip.less")).to_have_count(1)


def test_a_sent_picture_can_be_refined(page: Page, drawn: Shop) -> None:
    page.goto("/")
    page.get_by_label("Search by a picture").set_input_files(
        drawn.pictures / "family-002" / "dark.jpg"
    )
    page.wait_for_url(re.compile("/search"))
    before = hits(page)
    page.locator("#hits .tile").nth(2).hover()
    page.locator("#hits .tile").nth(2).locator(".act[data-act=minus]").click()
    expect(page.locator(".chip.less")).to_have_count(1)
    expect(page.locator("#sent")).to_be_visible()
    assert before[2] not in hits(page)
    page.locator(".chip.less .drop").click()
    expect(page.locator(".chip.less")).to_have_count(0)
    assert hits(page)[:10] == before[:10]


def test_filters_are_applied_as_they_are_set(page: Page) -> None:
    by_family(page, 3)
    before, all_scores = hits(page), scores(page)
    page.get_by_label("Least score").fill(f"{all_scores[10]:.3f}")
    page.get_by_label("Least score").press("Tab")
    expect(page.locator("#hits > .tile")).not_to_have_count(len(before))
    assert hits(page) == before[: len(hits(page))]
    assert scores(page)[-1] >= all_scores[10]
    page.get_by_label("Least score").fill("")
    page.get_by_label("Least score").press("Tab")
    expect(page.locator("#hits > .tile")).to_have_count(len(before))
    page.get_by_label("Hide near-duplicates").check()
    page.wait_for_url(re.compile("distinct="))
    expect(page.locator("#hits > .tile").nth(1)).to_be_visible()
    page.get_by_label("Hide near-duplicates").uncheck()
    page.wait_for_url(lambda url: "distinct=" not in url)
    page.get_by_label("Folder").select_option(index=1)  # the root
    page.wait_for_url(re.compile("within="))
    expect(page.get_by_label("Folder").locator("option")).not_to_have_count(2)
    family = page.get_by_label("Folder").locator("option", has_text="family-004")
    page.get_by_label("Folder").select_option(value=family.get_attribute("value"))
    page.wait_for_url(re.compile("within=f"))
    assert set(classes(page)) == {"family-004"}


def test_all_of_it_can_be_done_by_keys(page: Page) -> None:
    page.goto("/")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.wait_for_function("!document.activeElement.closest('dialog')")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.closest('#ask, #words') !== null")
    page.goto("/")
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.matches('.tile a')"), key
    image = page.evaluate("document.activeElement.closest('.tile').dataset.image")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(f"image={image}"))
    first = hits(page)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("+")
    page.wait_for_url(re.compile(f"plus={first[1]}"))
    expect(page.locator(".chip.more")).to_have_count(2)
    page.keyboard.press("ArrowRight")
    marked = page.evaluate("document.activeElement.closest('.tile').dataset.image")
    page.keyboard.press("-")
    page.wait_for_url(re.compile(f"minus={marked}"))


def test_the_hits_go_on_as_one_scrolls(page: Page) -> None:
    by_family(page, 2)
    first = hits(page)
    assert len(first) == PAGE
    for shown in (2 * PAGE, 125):  # all but the one that is searched by
        page.mouse.wheel(0, 100_000)
        expect(page.locator("#hits > .tile")).to_have_count(shown)
    expect(page.locator("#more")).to_have_count(0)
    every = hits(page)
    assert every[:PAGE] == first
    assert len(set(every)) == len(every)
    assert scores(page) == sorted(scores(page), reverse=True)


def test_several_files_of_one_image_are_one_hit(page: Page, tmp_path: Path) -> None:
    page.goto("/folders")
    page.locator(".folders a").first.click()
    page.get_by_role("link", name="again").click()
    page.locator("#hits .tile .name").first.click()
    expect(page.get_by_text("2 files")).to_be_visible()
    expect(page.get_by_text("copy of a plain one.jpg")).not_to_have_count(0)
    expect(page.get_by_text("family-000/plain.jpg")).not_to_have_count(0)
    expect(page.get_by_text("320 × 240")).to_be_visible()
    shoot(page, "picture", tmp_path)
    page.locator("#search-by").click()
    page.wait_for_url(re.compile("/search"))


def test_words_need_a_network_that_reads(page: Page) -> None:
    page.goto("/")
    expect(page.get_by_label("Search by words")).to_be_disabled()
    expect(page.locator("#words-hint")).to_contain_text("lookalike backfill --model clip:")


def test_what_is_no_picture_is_told_on_the_page(
    browser: Browser, drawn: Shop, tmp_path: Path
) -> None:
    text = tmp_path / "letter.jpg"
    text.write_text("no picture at all")
    with watched(browser, drawn.url) as (page, watch):
        page.goto("/")
        page.get_by_label("Search by a picture").set_input_files(text)
        page.wait_for_url(re.compile("/search"))
        expect(page.get_by_role("alert")).to_contain_text("no format that is decoded")
        watch.forgive("status of 400")
        page.goto("/images/99999")
        expect(page.get_by_role("alert")).to_be_visible()
        watch.forgive("status of 404")


class TestWithoutScript:
    """Every way but those that need it: drop, paste, endless scroll."""

    def test_a_picture_is_sent_and_refined(self, plain: Page, drawn: Shop, tmp_path: Path) -> None:
        plain.goto("/")
        path = drawn.pictures / "family-008" / "warm.jpg"
        plain.get_by_label("Search by a picture").set_input_files(path)
        plain.locator("#ask").get_by_role("button", name="Search", exact=True).click()
        assert classes(plain)[0] == "family-008"
        first = hits(plain)
        plain.locator("#more").click()
        assert not set(hits(plain)) & set(first)
        plain.get_by_role("button", name="Back").click()
        assert hits(plain) == first
        plain.locator("#hits .tile").nth(3).locator(".act[data-act=minus]").click()
        assert first[3] not in hits(plain)
        shoot(plain, "without-script", tmp_path)

    def test_hits_filters_and_pages_are_links_and_forms(self, plain: Page) -> None:
        by_family(plain, 9)
        first = hits(plain)
        plain.locator("a[rel=next]").click()
        assert not set(hits(plain)) & set(first)
        plain.locator("a[rel=prev]").click()
        assert hits(plain) == first
        plain.locator("#hits .tile").nth(1).locator(".act[data-act=plus]").click()
        assert f"plus={first[1]}" in plain.url
        plain.get_by_label("Least score").fill("0.5")
        plain.get_by_label("Hide near-duplicates").check()
        plain.get_by_role("button", name="Apply").click()
        asked = parse_qs(urlsplit(plain.url).query)
        assert (asked["min_score"], asked["plus"]) == (["0.5"], [str(first[1])])
        assert "distinct" in asked


class TestOnAPhone:
    @pytest.fixture
    def page(self, browser: Browser, drawn: Shop) -> Iterator[Page]:
        with watched(browser, drawn.url, **PHONE) as (page, _):
            yield page

    def test_nothing_lies_beside_the_screen(self, page: Page, tmp_path: Path) -> None:
        for name, path in PAGES:
            page.goto(path)
            settle(page)
            shoot(page, f"phone-{name}", tmp_path)
            assert not is_too_wide(page), path

    def test_a_hit_can_be_liked_by_touch(self, page: Page) -> None:
        page.goto("/search?image=5")
        second = hits(page)[1]
        page.locator(f"[data-image='{second}'] .act[data-act=plus]").tap()
        page.wait_for_url(re.compile(f"plus={second}"))


def test_new_pictures_appear_without_a_restart(page: Page, drawn: Shop) -> None:
    """Comes last: the collection has a picture more from here on."""
    by_family(page, 11)
    first = hits(page)
    new = drawn.pictures / "family-011" / "new.png"
    with Image.open(drawn.pictures / "family-011" / "plain.jpg") as picture:
        picture.save(new)
    index(drawn.home, drawn.pictures)
    page.reload()
    assert len(set(hits(page)) - set(first)) == 1
    expect(page.get_by_role("link", name="family-011/new.png")).to_have_count(1)
