"""Folders, map, status and sign-in in a browser; light and dark."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.shop import TOKEN, Shop, serving
from tests.browser.watching import PAGES, SCHEMES, settle, shoot, watched


@pytest.fixture
def page(browser: Browser, drawn: Shop) -> Iterator[Page]:
    with watched(browser, drawn.url) as (page, _):
        yield page


def ground(page: Page) -> int:
    """Return how light the page's ground is, 0 to 255, as it is drawn."""
    colour = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    parts = [int(part) for part in re.findall(r"\d+", colour)[:3]]
    return sum(parts) // len(parts)


def test_folders_lead_from_root_to_picture_and_back(page: Page, tmp_path: Path) -> None:
    page.goto("/")
    page.get_by_role("link", name="Folders").click()
    page.locator(".folders a").first.click()
    expect(page.locator(".folders > li")).to_have_count(15)
    shoot(page, "folders", tmp_path)
    page.get_by_role("link", name="family-003").click()
    expect(page.locator("#hits > .tile")).to_have_count(9)
    shoot(page, "folder", tmp_path)
    page.locator("#hits .tile a.view").first.click()
    page.go_back()
    page.locator(".crumbs a").last.click()
    expect(page.locator(".folders > li")).to_have_count(15)
    assert "/pictures" not in page.url


def test_a_search_can_begin_in_a_folder(page: Page, drawn: Shop) -> None:
    page.goto("/folders")
    page.locator(".folders a").first.click()
    page.get_by_role("link", name="family-003").click()
    page.get_by_text("Search in here").click()
    page.get_by_label("Search by a picture").set_input_files(
        drawn.pictures / "family-012" / "plain.jpg"
    )
    page.wait_for_url(re.compile("/search"))
    expect(page.locator("#hits > .tile")).to_have_count(9)
    for name in page.locator("#hits .name").all_text_contents():
        assert "family-003/" in name


def test_the_map_shows_pictures_on_zoom_and_opens_one(page: Page, tmp_path: Path) -> None:
    page.goto("/map")
    canvas = page.locator("#map-canvas")
    expect(canvas).to_be_visible()
    settle(page)
    shoot(page, "map", tmp_path)
    far = canvas.screenshot()
    for _ in range(4):
        page.locator("[data-zoom=in]").click()
    page.wait_for_timeout(500)
    settle(page)
    assert canvas.screenshot() != far
    shoot(page, "map-near", tmp_path)
    page.locator("[data-zoom=all]").click()
    canvas.focus()
    for key in ("+", "ArrowLeft", "ArrowUp", "-", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/images/\d+"))


def test_the_map_is_there_without_script(browser: Browser, drawn: Shop, tmp_path: Path) -> None:
    with watched(browser, drawn.url, java_script_enabled=False) as (page, _):
        page.goto("/map")
        shoot(page, "map-without-script", tmp_path)
        page.locator("#map svg a").first.click()
        page.wait_for_url(re.compile(r"/images/\d+"))


def test_a_failure_is_told_and_armed_again(page: Page, drawn: Shop, tmp_path: Path) -> None:
    page.goto("/status")
    shoot(page, "status", tmp_path)
    failure = page.locator(".failure")
    expect(failure).to_contain_text("truncated")
    expect(failure).to_contain_text("cut short.jpg")
    failure.scroll_into_view_if_needed()
    shoot(page, "status-failures", tmp_path)
    failure.get_by_role("button").click()
    expect(page.get_by_role("status").first).to_contain_text("1 failure armed again")
    expect(page.get_by_text("No file has failed.")).to_be_visible()
    page.reload()
    expect(page.get_by_text("No file has failed.")).to_be_visible()


def test_status_names_roots_runs_and_recall(page: Page, drawn: Shop) -> None:
    page.goto("/status")
    expect(page.locator(".numbers")).to_contain_text("126")
    expect(page.get_by_role("link", name=str(drawn.pictures))).to_be_visible()
    expect(page.locator(".run").first).to_contain_text("index")
    expect(page.locator("svg.plot")).to_be_visible()
    expect(page.get_by_text("SQ8").first).to_be_visible()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pages_follow_the_system_and_the_switch(
    scheme: str, browser: Browser, drawn: Shop, tmp_path: Path
) -> None:
    other = SCHEMES[1 - SCHEMES.index(scheme)]
    lightness = {"light": range(200, 256), "dark": range(60)}
    with watched(browser, drawn.url, color_scheme=scheme) as (page, _):
        for name, path in PAGES:
            page.goto(path)
            assert ground(page) in lightness[scheme]
            shoot(page, f"{name}-{scheme}", tmp_path)
        page.locator("#theme-button").click()
        assert ground(page) in lightness[other]
        page.goto("/")
        assert ground(page) in lightness[other]


def test_a_server_with_a_token_asks_for_it(browser: Browser, drawn: Shop, tmp_path: Path) -> None:
    with serving(drawn.home, TOKEN) as url, watched(browser, url) as (page, watch):
        page.goto("/images/5")
        shoot(page, "login", tmp_path)
        page.get_by_label("Token").fill("a wrong one")
        page.get_by_label("Token").press("Enter")
        expect(page.get_by_role("alert")).to_be_visible()
        watch.forgive("status of 401")
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(f"{url}/images/5")
        settle(page)
        assert page.evaluate("document.cookie") == ""  # no script can read it
        [cookie] = page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        page.goto("/search?image=5")
        expect(page.locator("#hits > .tile").first).to_be_visible()
