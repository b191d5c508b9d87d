"""Enter many rows at once, past the layers that would look at each value of each of them."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import InstrumentedAttribute


def insert_rows(
    conn: Connection,
    columns: Sequence[InstrumentedAttribute[Any]],
    rows: Iterable[tuple[Any, ...]],
) -> None:
    """Insert rows into a table; what is not among the columns takes its server's default.

    Values must be of the kinds that the driver itself knows: numbers, text, bytes, None.

    Parameters
    ----------
    columns
        Of one table, not an empty list.
    rows
        Values in the order of the columns.
    """
    table = columns[0].class_.__tablename__
    names = ", ".join(column.key for column in columns)
    if conn.dialect.name == "postgresql":
        _copy(conn, f"COPY {table} ({names}) FROM STDIN", rows)
        return
    marks = ", ".join("?" * len(columns))
    given = list(rows)
    if given:  # without values the statement would insert a row of nothing
        conn.exec_driver_sql(f"INSERT INTO {table} ({names}) VALUES ({marks})", given)  # noqa: S608 -- names of our own columns


def _copy(conn: Connection, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
    driver = conn.dialect.loaded_dbapi
    made: Any = conn.connection.cursor()
    try:
        with made as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(row)
    except driver.Error as error:  # as SQLAlchemy would have raised it
        raise DBAPIError.instance(
            statement, None, error, driver.Error, dialect=conn.dialect
        ) from error
