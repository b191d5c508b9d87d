"""Statements that are asked so often that what SQLAlchemy adds to each would be most of the time.

They are compiled once for each kind of database and then go to the driver as they are; what comes
back are the driver's own values, so it is for columns of numbers, bytes and text alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, Select
from sqlalchemy.engine.interfaces import Dialect


class Prepared:
    """One statement.

    Parameters
    ----------
    make
        Called once with the name of each kind of database that it is asked of.
    """

    def __init__(self, make: Callable[[str], Select[Any]]) -> None:
        self._make = make
        self._compiled: dict[str, tuple[str, Sequence[str] | None, dict[str, Any]]] = {}

    def rows(self, conn: Connection, **values: Any) -> Sequence[Any]:
        """Return all that it finds; ``values`` are those of its named parameters."""
        name = conn.dialect.name
        if name not in self._compiled:
            self._compiled[name] = _compiled(self._make(name), conn.dialect)
        sql, order, constants = self._compiled[name]
        bound = {**constants, **values}
        if order is None:
            return conn.exec_driver_sql(sql, bound).fetchall()
        # SQLite's own errors are known to `storage.database.plain_errors`.
        driver: Any = conn.connection.driver_connection
        found: Sequence[Any] = driver.execute(sql, [bound[key] for key in order]).fetchall()
        return found


def _compiled(
    statement: Select[Any], dialect: Dialect
) -> tuple[str, Sequence[str] | None, dict[str, Any]]:
    made: Any = statement.compile(dialect=dialect)
    constants = {key: bind.value for key, bind in made.binds.items() if not bind.required}
    return str(made), made.positiontup, constants
