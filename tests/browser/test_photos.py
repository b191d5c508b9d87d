"""Real photos of ten classes, and a network that was trained: the pages as people see them."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import select

from storage.catalog import Catalog
from storage.home import Home
from storage.tables import File
from tests.browser.conftest import EACH
from tests.browser.shop import Shop
from tests.browser.watching import (
    PAGES,
    PHONE,
    SCHEMES,
    classes,
    drop,
    is_too_wide,
    scores,
    shoot,
    watched,
)

pytestmark = pytest.mark.data

BEACH, DINOSAUR, HORSE, MOUNTAIN = "1", "4", "7", "8"


@pytest.fixture
def page(browser: Browser, photos: Shop) -> Iterator[Page]:
    with watched(browser, photos.url) as (page, _):
        yield page


def unseen(data_dir: Path, name: str, n: int = 0) -> Path:
    """Return a photo of a class that is not indexed."""
    return sorted((data_dir / "photos" / "corel-1k" / name).iterdir())[EACH + n]


def test_photos_that_were_never_seen_find_their_class(
    page: Page, data_dir: Path, tmp_path: Path
) -> None:
    for name in (DINOSAUR, HORSE):
        page.goto("/")
        drop(page, unseen(data_dir, name))
        page.wait_for_url(re.compile("/search"))
        assert set(classes(page)[:10]) == {name}
        assert scores(page) == sorted(scores(page), reverse=True)
        assert scores(page)[0] < 1
        shoot(page, f"photos-sent-{name}", tmp_path)


def test_less_like_that_pushes_a_class_away(page: Page, data_dir: Path, tmp_path: Path) -> None:
    page.goto("/")
    page.get_by_label("Search by a picture").set_input_files(unseen(data_dir, BEACH, 2))
    page.wait_for_url(re.compile("/search"))
    before = classes(page)
    assert before[:10].count(BEACH) >= 5
    unlike = before.index(MOUNTAIN)
    tile = page.locator("#hits > .tile").nth(unlike)
    tile.scroll_into_view_if_needed()
    tile.hover()
    tile.locator(".act[data-act=minus]").click()
    expect(page.locator(".chip.less")).to_have_count(1)
    after = classes(page)
    assert after[:20].count(MOUNTAIN) < before[:20].count(MOUNTAIN) or MOUNTAIN not in after[:20]
    assert after[:20].count(BEACH) >= before[:20].count(BEACH)
    shoot(page, "photos-refined", tmp_path)


def test_photos_of_one_class_lie_together_on_the_map(
    page: Page, photos: Shop, tmp_path: Path
) -> None:
    page.goto("/map")
    expect(page.locator("#map-canvas")).to_be_visible()
    shoot(page, "photos-map", tmp_path)
    for _ in range(3):
        page.locator("[data-zoom=in]").click()
    page.wait_for_timeout(1000)
    shoot(page, "photos-map-near", tmp_path)

    told = page.request.get("/api/map").json()
    with Catalog.open(Home(str(photos.home)), write=False) as catalog, catalog.read() as conn:
        held = dict(conn.execute(select(File.image_id, File.display)).all())
    names = np.array([held[image].partition("/")[0] for image in told["images"]])
    at = np.array([told["x"], told["y"]], float).T
    apart = np.linalg.norm(at[:, None] - at[None], axis=2)
    for name in (DINOSAUR, HORSE, MOUNTAIN):
        inside = names == name
        assert np.median(apart[inside][:, inside]) < 0.6 * np.median(apart)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pages_of_photos_fit_the_screen(
    scheme: str, browser: Browser, photos: Shop, tmp_path: Path
) -> None:
    for place, options in (("desk", {}), ("phone", PHONE)):
        with watched(browser, photos.url, color_scheme=scheme, **options) as (page, _):
            for name, path in PAGES[:4]:
                page.goto(path)
                shoot(page, f"photos-{name}-{place}-{scheme}", tmp_path)
                assert not is_too_wide(page)
