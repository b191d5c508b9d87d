"""The page for whoever looks after the collection."""

import os
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query
from starlette.responses import RedirectResponse, Response

from search.collection import failure_classes, recall_series, retry, run_reports
from search.overview import overview
from search.pages import plot
from search.pages.layout import Pages
from search.places import roots
from storage.catalog import Catalog

FailureName = Annotated[str | None, Query(alias="class", max_length=64)]
SpaceName = Annotated[str | None, Query(max_length=255)]
Armed = Annotated[int | None, Query(ge=0, lt=1 << 63)]


def router(pages: Pages) -> APIRouter:
    """Return the routes of the status page."""
    made = pages.router()

    @made.get("/status")
    async def status(armed: Armed = None) -> Response:
        values = await pages.desk.look(_gathered)
        return pages.render("status.html", armed=armed, duration=duration_text, **values)

    @made.post("/status/retry")
    async def arm(failure_class: FailureName = None, space: SpaceName = None) -> Response:
        # All that it needs is in its address: nothing of a body is read.
        n = await pages.desk.change(
            lambda catalog: retry(catalog, failure_class=failure_class, space=space)
        )
        return RedirectResponse(f"/status?{urlencode({'armed': n})}#failures", 303)

    return made


def duration_text(seconds: float | None) -> str:
    """Return a length of time for people: ``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def _gathered(catalog: Catalog) -> dict[str, Any]:
    """Return what the page shows, by the names in its template."""
    store = overview(catalog)
    with catalog.read() as conn:
        places = {os.fsdecode(root.name): root.place for root in roots(conn)}
    series = recall_series(catalog)
    return {
        "store": store,
        "places": places,
        "reports": run_reports(catalog, [run["id"] for run in store["runs"]]),
        "failures": failure_classes(catalog),
        "plots": {name: plot.recall_plot(measured) for name, measured in series.items()},
        "frame": plot,
    }
