"""Moments as people type them."""

import re
from datetime import UTC, datetime, timedelta

from flows.errors import FlowError

AGO = re.compile(r"(\d+) ?([hdw])")
HOURS = {"h": 1, "d": 24, "w": 7 * 24}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOST_NS = 2**63 - 1
"""What the catalog can hold: the years 1677 to 2262."""


def moment_ns(text: str, now: datetime | None = None) -> int:
    """Return what a typed moment means, in ns since 1970.

    Parameters
    ----------
    text
        An ISO date (its midnight) or date and time, of this machine's time zone where it names
        none; or ``36h``, ``7d``, ``2w`` for so many hours, days, weeks ago.
    now
        What "ago" counts from; None is now.

    Raises
    ------
    FlowError
        The text is none of these.
    """
    try:
        ago = AGO.fullmatch(text.strip().lower())
        if ago:
            back = timedelta(hours=int(ago[1]) * HOURS[ago[2]])
            when = (now or datetime.now(UTC)) - back
        else:
            when = datetime.fromisoformat(text.strip()).astimezone()
        ns = (when - EPOCH) // timedelta(microseconds=1) * 1000
        if abs(ns) > MOST_NS:
            raise OverflowError
        return ns
    except (ValueError, OverflowError):
        raise FlowError(
            f"{text!r} is no date: write 2026-11-22, 2026-11-22T14:30, or 7d for 7 days ago"
        ) from None


def moment_text(ns: int) -> str:
    """Return a moment as ISO date and time of this machine's time zone."""
    return (EPOCH + timedelta(microseconds=ns // 1000)).astimezone().isoformat()
