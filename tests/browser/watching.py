"""A browser's pages, and everything on them that a person would call broken."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    WebError,
    expect,
)

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
DESK = {"viewport": {"width": 1280, "height": 860}}
SCHEMES = ("light", "dark")
PAGES = (
    ("start", "/"),
    ("hits", "/search?image=5&plus=6&minus=70"),
    ("picture", "/images/5"),
    ("folders", "/folders/r1"),
    ("map", "/map"),
    ("status", "/status"),
    ("docs", "/api/docs"),
    ("login", "/login"),
)
"""Names for screenshots, and addresses in any collection of a hundred images."""
SERIOUS = ("serious", "critical")
PATIENCE_MS = 30_000
expect.set_options(timeout=PATIENCE_MS)


class Watch:
    """Listens to all pages of a context.

    Attributes
    ----------
    troubles
        What was said in the console as an error or a warning (a breach of the content security
        policy is said there), raised in a script, or asked for in vain.
    """

    def __init__(self, context: BrowserContext) -> None:
        self.troubles: list[str] = []
        context.on("console", self._console)
        context.on("weberror", self._error)
        context.on("requestfailed", self._failed)

    def forgive(self, pattern: str) -> None:
        """Take back what a test brought about itself; there must be some."""
        found = [trouble for trouble in self.troubles if re.search(pattern, trouble)]
        assert found, self.troubles
        self.troubles = [trouble for trouble in self.troubles if trouble not in found]

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.troubles.append(f"{message.type}: {message.text} ({message.location['url']})")

    def _error(self, error: WebError) -> None:
        self.troubles.append(f"script: {error.error}")

    def _failed(self, request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # who leaves a page stops its pictures
            self.troubles.append(f"{request.url}: {request.failure}")


@contextmanager
def watched(browser: Browser, url: str, **options: Any) -> Iterator[tuple[Page, Watch]]:
    """Open a page in a context of its own; at the end nothing may have been wrong on it."""
    context = browser.new_context(base_url=url, **(DESK | options))
    try:
        watch = Watch(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        yield page, watch
        assert not watch.troubles, watch.troubles
    finally:
        context.close()


def shoot(page: Page, name: str, folder: Path) -> None:
    """Save a screenshot of what is in sight, with all of its pictures."""
    settle(page)
    folder = Path(os.environ.get("LOOKALIKE_SCREENSHOTS") or folder)
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png", animations="disabled")


def settle(page: Page) -> None:
    """Wait until all pictures in sight are there."""
    page.wait_for_load_state("networkidle")
    page.wait_for_function(
        """[...document.images].every((one) => one.complete
          || one.getBoundingClientRect().top > innerHeight)"""
    )


def is_too_wide(page: Page) -> bool:
    """Say whether the page can be scrolled sideways."""
    return bool(
        page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    )


def hits(page: Page) -> list[int]:
    """Return the images that are shown, in their order."""
    tiles = page.locator("#hits > .tile")
    expect(tiles.first).to_be_visible()
    return [int(tile.get_attribute("data-image") or "") for tile in tiles.all()]


def scores(page: Page) -> list[float]:
    return [float(text) for text in page.locator("#hits .score").all_text_contents()]


def classes(page: Page) -> list[str]:
    """Return the folders of the hits, by what their captions say."""
    names = page.locator("#hits .name").all_text_contents()
    return [name.removeprefix("About ").partition("/")[0] for name in names]


def drop(page: Page, path: Path) -> None:
    """Drop a file on the page, as from a file manager."""
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        if kind == "drop":
            expect(page.locator("body.dropping")).to_have_count(1)
        at = {"type": kind, "x": 640, "y": 500, "data": data}
        session.send("Input.dispatchDragEvent", at)


def findings(page: Page, name: str) -> list[str]:
    """Return what is serious on a page, one line for each place; keep all of it where asked."""
    settle(page)
    violations: list[dict[str, Any]] = Axe().run(page).response["violations"]
    if folder := os.environ.get("LOOKALIKE_SCREENSHOTS"):
        Path(folder, f"axe-{name}.json").write_text(json.dumps(violations, indent=1))
    return [
        f"{name}: {found['impact']} {found['id']}: {node['target']} {node['html'][:150]}"
        for found in violations
        for node in found["nodes"]
        if found["impact"] in SERIOUS
    ]
