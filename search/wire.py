"""HTTP on the socket: uvicorn's, with bounds on connections that ask nothing, and our refusals.

What is no HTTP never reaches the application, so its refusal is written here, in the one shape.
"""

import asyncio
import sys
from typing import Any, ClassVar, Final

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol, RequestResponseCycle

from search.bodies import Limits
from search.door import large_headers
from search.headers import SECURITY
from search.refusals import Trouble, failed

LINGER_S: Final = 10.0
"""How long what is still sent after its refusal is read and thrown away, so that it is seen."""


class Wire(H11Protocol):
    """One connection."""

    limits: ClassVar[Limits] = Limits()
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or refuse it where too many are open."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(Trouble(503, "busy", "too many connections; ask again later"))
        else:
            self._wait(self.limits.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; the head of a request must be there in time."""
        super().data_received(data)
        if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
            return
        if self._patience is None and self.conn.trailing_data[0]:
            self._wait(self.limits.head_seconds)

    def handle_events(self) -> None:
        """Hand on what has come."""
        super().handle_events()
        if self.conn.their_state is not h11.IDLE and not self._answered():
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """Go on; a body that nobody wants any more is read for a while only."""
        self._stop_waiting()
        if self._answered() and not self.transport.is_closing():
            self._wait(LINGER_S)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        error = sys.exc_info()[1]
        if getattr(error, "error_status_hint", 400) == 431:
            self._refuse(large_headers().trouble)
        else:
            self._refuse(Trouble(400, "bad_request", "this is no HTTP request"))

    def _answered(self) -> bool:
        """Return whether the answer is out while the body is still coming."""
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

    def _wait(self, seconds: float) -> None:
        self._patience = self.loop.call_later(seconds, self._lost_patience)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _lost_patience(self) -> None:
        self._patience = None
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            late = f"the request did not arrive within {self.limits.head_seconds:g} s"
            self._refuse(Trouble(408, "too_slow", late))
        else:
            self.transport.close()

    def _refuse(self, trouble: Trouble) -> None:
        """Write a refusal, where none of the answer is out yet, and close."""
        self._stop_waiting()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            answer = failed(trouble)
            headers = [*answer.raw_headers, (b"connection", b"close")]
            headers += [(name.lower().encode(), text.encode()) for name, text in SECURITY.items()]
            reason = STATUS_PHRASES[trouble.status]
            events: tuple[Any, ...] = (
                h11.Response(status_code=trouble.status, headers=headers, reason=reason),
                h11.Data(data=bytes(answer.body)),
                h11.EndOfMessage(),
            )
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        asked: RequestResponseCycle | None = self.cycle
        if asked is not None and not asked.response_complete:
            asked.disconnected = True
            asked.message_event.set()
        self.transport.close()


def wire(limits: Limits) -> type[Wire]:
    """Return connections with these limits."""
    return type("BoundedWire", (Wire,), {"limits": limits})
