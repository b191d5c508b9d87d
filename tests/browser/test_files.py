"""Pages that commands write into a file: they need no server, no network and no script."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.shop import Shop, settings
from tests.browser.watching import PHONE, SCHEMES, findings, is_too_wide, settle, shoot, watched
from tests.flows.terminal import lookalike


@pytest.fixture(scope="module")
def written(drawn: Shop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a page of duplicates and one of hits."""
    folder = tmp_path_factory.mktemp("written")
    review, found = folder / "review.html", folder / "hits.html"
    env = settings(drawn.home)
    lookalike("duplicates", "--near", "0.99", "--report", str(review), "--quiet", env=env)
    first, second = (str(drawn.pictures / f"family-00{n}" / "plain.jpg") for n in (3, 4))
    lookalike("search", first, "--plus", second, "-k", "12", "--html", str(found), env=env)
    return {"review": review, "found": found}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["review", "found"])
def test_a_written_page_is_whole_and_fit_for_all(
    name: str, scheme: str, browser: Browser, written: dict[str, Path], tmp_path: Path
) -> None:
    for place, options in (("desk", {}), ("phone", PHONE)):
        with watched(browser, "", color_scheme=scheme, **options) as (page, _):
            asked: list[str] = []
            page.on("request", lambda request: asked.append(request.url))  # noqa: B023
            page.goto(written[name].as_uri())
            settle(page)
            assert {url for url in asked if not url.startswith("data:")} == {written[name].as_uri()}
            pictures = page.locator("img")
            assert pictures.count() >= 12
            expect(pictures.first).to_be_visible()
            pictures.evaluate_all("those => those.forEach(one => one.loading = 'eager')")
            page.wait_for_function("[...document.images].every((one) => one.complete)")
            assert pictures.evaluate_all("those => those.every(one => one.naturalWidth)")
            shoot(page, f"{name}-{place}-{scheme}", tmp_path)
            assert not is_too_wide(page)
            assert findings(page, f"{name}-{place}-{scheme}") == []
