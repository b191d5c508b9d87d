"""What every answer says to browsers, and what every answer is counted by."""

import time
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from search.metrics import Metrics

POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "img-src 'self' blob: data:",
        "style-src 'self'",
        "script-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
SECURITY: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
FRESH: Final = "private, no-cache"
"""For answers that say nothing else: they are asked for anew, and shared with nobody."""


class Outside:
    """Adds the headers of all answers, and counts them.

    Parameters
    ----------
    app
        What answers.
    metrics
        Where they are counted.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, and count its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, text in SECURITY.items():
                    headers[name] = text
                headers.setdefault("Cache-Control", FRESH)
            await send(message)

        try:
            await self.app(scope, receive, sent)
        finally:
            self._metrics.count(scope, status, time.perf_counter() - started)
