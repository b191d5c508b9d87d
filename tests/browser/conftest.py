"""A browser, and servers for it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.browser.shop import TINY, Shop, draw_collection, index, serving

CHROMIUM = os.environ.get("LOOKALIKE_CHROMIUM", "/usr/bin/chromium")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
EACH = 30
"""Photos of each class."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Yield a Chromium.  Without one the test is skipped, but fails where ``CI`` is set."""
    path = shutil.which(CHROMIUM)
    if path is None:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(f"no Chromium: {CHROMIUM} is missing")
        pytest.skip(f"no Chromium: {CHROMIUM} is missing, set LOOKALIKE_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Yield a server over drawn pictures."""
    folder = tmp_path_factory.mktemp("drawn")
    home, pictures = folder / "home", draw_collection(folder)
    index(home, pictures, *TINY, code=3)
    with serving(home) as url:
        yield Shop(url, pictures, home)


@pytest.fixture(scope="module")
def photos(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Yield a server over photos of ten classes, by a network that was trained."""
    folder = tmp_path_factory.mktemp("photos")
    home, pictures = folder / "home", folder / "corel"
    for number in range(10):
        (pictures / str(number)).mkdir(parents=True)
        for photo in sorted((data_dir / "photos" / "corel-1k" / str(number)).iterdir())[:EACH]:
            shutil.copyfile(photo, pictures / str(number) / photo.name)
    weights = str(data_dir / "weights" / "resnet18.pth")
    index(home, pictures, "--model", "resnet18", "--weights", weights)
    with serving(home) as url:
        yield Shop(url, pictures, home)
