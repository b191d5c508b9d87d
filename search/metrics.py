"""What a server counts, for Prometheus."""

from typing import Any, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from sqlalchemy import func, select
from starlette.responses import Response
from starlette.types import Scope

from search.desk import Desk
from search.records import vectors_in
from storage.catalog import Catalog
from storage.errors import SpaceError
from storage.tables import Generation

METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
"""Others are counted as one: who asks must not make series."""
SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 90.0)


class Metrics:
    """Counts answers as they go out; the rest is looked up when somebody wants to know.

    Parameters
    ----------
    desk
        Whose threads, space and vectors are told.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "lookalike_requests",
            "Requests that were answered.",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "lookalike_request_seconds",
            "From the first byte of a request to the last of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._lines = self._gauge(
            "lookalike_questions", "Questions now, by who answers.", "line", "state"
        )
        self._vectors = self._gauge("lookalike_vectors", "Vectors of the current space.", "space")
        self._generation = self._gauge(
            "lookalike_generation", "Number of its published index; 0 for none.", "space"
        )
        self._model = self._gauge("lookalike_model_loaded", "Whether its network is in memory.")

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """Count an answer; status 0: whoever asked went away before."""
        route = _route(scope)
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._requests.labels(route, method, str(status) if status else "gone").inc()
        self._seconds.labels(route).observe(seconds)

    async def answer(self) -> Response:
        """Return all of it in Prometheus' text format."""
        vectors = await self._desk.look(self._counted)
        for gauge in (self._vectors, self._generation):
            gauge.clear()
        for name, n, generation in vectors:
            self._vectors.labels(name).set(n)
            self._generation.labels(name).set(generation)
        self._model.set(self._desk.follower.has_model)
        for name, line in self._desk.lines.items():
            self._lines.labels(name, "running").set(line.running)
            self._lines.labels(name, "waiting").set(line.waiting)
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    def _counted(self, catalog: Catalog) -> list[tuple[str, int, int]]:
        """Return the space that answers with its vectors and its index; nothing without one."""
        try:
            space = self._desk.follower.space()
        except SpaceError:
            return []
        live = select(func.max(Generation.id)).where(
            Generation.space_id == space.id, Generation.state == "live"
        )
        with catalog.read() as conn:
            generation = conn.execute(live).scalar_one() or 0
            return [(space.name, vectors_in(conn, space.id), generation)]

    def _gauge(self, name: str, said: str, *labels: str) -> Gauge:
        return Gauge(name, said, labels, registry=self._registry)


def _route(scope: Scope) -> str:
    """Return the pattern of the address that was asked, never the address itself."""
    route: Any = scope.get("route")
    return getattr(route, "path_format", None) or getattr(route, "path", None) or "none"
