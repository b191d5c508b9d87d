"""What axe-core finds on each page, light and dark, on a desk and on a phone."""

from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.shop import TOKEN, Shop, serving
from tests.browser.watching import PAGES, PHONE, SCHEMES, findings, watched


@pytest.mark.parametrize(
    ("scheme", "options"),
    [("light", {}), ("dark", {}), ("light", PHONE)],
    ids=["light", "dark", "phone"],
)
def test_no_page_has_a_serious_finding(
    scheme: str, options: dict[str, Any], browser: Browser, drawn: Shop
) -> None:
    found = []
    with watched(browser, drawn.url, color_scheme=scheme, **options) as (page, watch):
        for name, path in PAGES:
            page.goto(path)
            found += findings(page, f"{name}-{scheme}")
        page.goto("/")
        page.locator("#keys-button").click()
        expect(page.get_by_role("dialog")).to_be_visible()
        found += findings(page, f"keys-{scheme}")
        page.goto("/images/99999")
        found += findings(page, f"error-{scheme}")
        watch.forgive("status of 404")
    assert found == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_signing_in_has_none(scheme: str, browser: Browser, drawn: Shop) -> None:
    with (
        serving(drawn.home, TOKEN) as url,
        watched(browser, url, color_scheme=scheme) as (page, watch),
    ):
        page.goto("/")
        page.get_by_label("Token").fill("a wrong one")
        page.get_by_label("Token").press("Enter")
        expect(page.get_by_role("alert")).to_be_visible()
        assert findings(page, f"login-{scheme}") == []
        watch.forgive("status of 401")


def test_what_is_wrong_is_found(browser: Browser, drawn: Shop) -> None:
    with watched(browser, drawn.url) as (page, _):
        page.goto("/")
        page.evaluate("document.querySelector('.tile img').removeAttribute('alt')")
        assert any("image-alt" in line for line in findings(page, "spoilt"))
