"""The catalog's schema through time.  Migrations only grow: a released one is never changed.

Alembic is imported only where a schema changes; to know that a catalog is up to date takes a
comparison with `HEAD`.
"""

import os
from dataclasses import dataclass

from sqlalchemy import Connection

REVISIONS = ("0001", "0002", "0003", "0004", "0005")
"""All revisions, oldest first."""
HEAD = REVISIONS[-1]


@dataclass(frozen=True)
class Schema:
    """A history of the schema: its revisions, oldest first, and where their scripts are."""

    revisions: tuple[str, ...] = REVISIONS
    location: str = os.path.dirname(os.path.abspath(__file__))

    @property
    def head(self) -> str:
        """The newest revision."""
        return self.revisions[-1]


SCHEMA = Schema()


def upgrade(conn: Connection, schema: Schema = SCHEMA, to: str = "head") -> None:
    """Bring the catalog to a revision, inside the connection's transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", schema.location.replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = conn
    command.upgrade(config, to)
