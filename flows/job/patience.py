"""Trying again where the catalog was busy or out of reach."""

import sqlite3
from collections.abc import Callable
from threading import Event
from typing import TypeVar

from sqlalchemy.exc import InterfaceError, OperationalError

from storage.errors import StorageError

T = TypeVar("T")

AGAIN_AFTER_S = (1.0, 5.0, 15.0, 20.0, 30.0)
"""Together longer than a minute, in which a server is started anew, and shorter than a lease."""
LASTING = ("53100", "25006", "42501", "3D000")
"""What Postgres says where waiting is no help: disk full, read-only, no right, no database."""


def passing(error: BaseException | None) -> bool:
    """Return whether an error may be gone the next time: the catalog was busy or out of reach."""
    while error is not None:
        if isinstance(error, OperationalError | InterfaceError):
            return _passing(error.orig)
        if isinstance(error, sqlite3.Error):  # of a transaction's beginning
            return _passing(error)
        error = error.__cause__
    return False


def _passing(error: BaseException | None) -> bool:
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorname", "")
        return code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
    return not str(getattr(error, "sqlstate", None) or "").startswith(LASTING)


def patiently(stop: Event, act: Callable[[], T]) -> T:
    """Do something with the catalog; try again later where it was busy, unless the run stops.

    Raises
    ------
    StorageError
        Trying again did not help, or can't.
    """
    for wait_s in AGAIN_AFTER_S:
        try:
            return act()
        except StorageError as error:
            if not passing(error) or stop.wait(wait_s):
                raise
    return act()
