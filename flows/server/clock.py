"""When something runs: at a time of day, on a weekday, by a cron expression; in which time zone."""

import os
import re
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from flows.errors import FlowError

DAYS = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
NEVER = "never"
LOCALTIME = "/etc/localtime"
TIMEZONE = "/etc/timezone"

_TIME = re.compile(r"(?:([a-z]+)\s+)?([01]?\d|2[0-3]):([0-5]\d)")


@dataclass(frozen=True)
class When:
    """A schedule as it was typed, and as Prefect takes it."""

    typed: str
    cron: str


def when(typed: str) -> When:
    """Return the schedule of ``02:00``, ``sunday 04:00`` or five fields of cron.

    Raises
    ------
    FlowError
        It is none of these.
    """
    text = " ".join(typed.lower().split())
    if len(text.split()) == 5:
        return When(text, _checked(text))
    found = _TIME.fullmatch(text)
    if found is None or (found[1] and not _days(found[1])):
        raise FlowError(
            f"{typed!r} is no time: 02:00, 'sunday 04:00', or five fields of cron like '0 2 * * *'"
        )
    hour, minute = int(found[2]), int(found[3])
    [day] = _days(found[1]) if found[1] else ["*"]
    each = "every day" if day == "*" else f"every {DAYS[int(day)]}"
    return When(f"{each} at {hour:02}:{minute:02}", f"{minute} {hour} * * {day}")


def _days(typed: str) -> list[str]:
    """Return the number of the weekday that begins with ``typed``, three letters at least."""
    found = [str(n) for n, day in enumerate(DAYS) if day.startswith(typed)]
    return found if len(typed) >= 3 else []


def _checked(cron: str) -> str:
    """Return a cron expression that Prefect takes.  Only this needs Prefect."""
    from flows.engine.environment import tame_environment

    tame_environment()
    from prefect.client.schemas.schedules import CronSchedule

    try:
        return CronSchedule(cron=cron).cron
    except ValueError:
        raise FlowError(f"{cron!r} is no cron expression that Prefect takes") from None


def zone(typed: str | None = None) -> str:
    """Return the name of a time zone: the one that was typed, else the machine's.

    Raises
    ------
    FlowError
        There is no zone of the name that was typed.
    """
    if typed is None:
        return machine_zone()
    if not _is_zone(typed):
        raise FlowError(f"{typed!r} is no time zone; Europe/Berlin or UTC are")
    return typed


def machine_zone(localtime: str = LOCALTIME, timezone: str = TIMEZONE) -> str:
    """Return the name of the machine's time zone, ``UTC`` where it has none.

    It is that of ``TZ``, else of the file that ``/etc/localtime`` links to, else the one that
    ``/etc/timezone`` holds.
    """
    candidates = [os.environ.get("TZ", "").lstrip(":"), os.path.realpath(localtime)]
    try:
        with open(timezone, encoding="utf-8") as file:
            candidates.append(file.readline().strip())
    except (OSError, UnicodeDecodeError):
        pass
    names = (name.rpartition("zoneinfo/")[2] for name in candidates)
    return next((name for name in names if _is_zone(name)), "UTC")


def _is_zone(name: str) -> bool:
    try:
        return bool(ZoneInfo(name).key)
    except (KeyError, OSError, ValueError):  # unknown, a folder, or nothing that a name can be
        return False
