"""Turns at the lists of spaces and roots: one transaction at a time says which there are."""

from sqlalchemy import Connection, text

_LISTS = 7205759403792794
"""Postgres: number of the lock for changes of the two lists."""


def take_turns(conn: Connection) -> None:
    """Let one transaction at a time change which spaces and roots there are.

    On SQLite no two write at once anyway.
    """
    if conn.dialect.name == "postgresql":
        conn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LISTS})
