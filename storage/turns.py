"""Turns at the list of spaces: one transaction at a time says which there are."""

from sqlalchemy import Connection, text

_SPACES = 7205759403792794
"""Postgres: number of the lock for changes of the spaces."""


def take_turns(conn: Connection) -> None:
    """Let one transaction at a time change which spaces there are, as it always is on SQLite."""
    if conn.dialect.name == "postgresql":
        conn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _SPACES})
