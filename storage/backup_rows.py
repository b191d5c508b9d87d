"""A catalog's rows, carried from one database to another, with the numbers that come next."""

from collections.abc import Mapping

from sqlalchemy import Connection, delete, func, insert, select, text

from storage.slices import PAGE
from storage.tables import Base


def copy_rows(source: Connection, target: Connection) -> None:
    """Give the target, whose schema is the same, exactly the rows that the source has."""
    tables = Base.metadata.sorted_tables
    for table in reversed(tables):
        target.execute(delete(table))
    for table in tables:
        found = source.execute(select(table).execution_options(yield_per=PAGE))
        for rows in found.mappings().partitions():
            target.execute(insert(table), [dict(row) for row in rows])
    _set_last_numbers(target, _last_numbers(source))


def _numbered() -> list[str]:
    """Return the tables whose rows are numbered by the database."""
    return [
        table.name
        for table in Base.metadata.sorted_tables
        if table.autoincrement_column is not None and table.autoincrement_column.name == "id"
    ]


def _last_numbers(conn: Connection) -> dict[str, int]:
    """Return the number that was given last in each table, also where its row is gone."""
    last = {}
    for name in _numbered():
        top = select(func.max(Base.metadata.tables[name].c.id))
        last[name] = max(conn.execute(top).scalar() or 0, _counter(conn, name))
    return last


def _counter(conn: Connection, table: str) -> int:
    if conn.dialect.name == "sqlite":
        query = text("SELECT seq FROM sqlite_sequence WHERE name = :name")
        return int(conn.execute(query, {"name": table}).scalar() or 0)
    sequence = conn.execute(_SEQUENCE, {"name": table}).scalar_one()
    query = text(f"SELECT last_value, is_called FROM {sequence}")  # noqa: S608 - the server's word
    value, called = conn.execute(query).one()
    return int(value) if called else 0


_SEQUENCE = text("SELECT pg_get_serial_sequence(:name, 'id')")


def _set_last_numbers(conn: Connection, last: Mapping[str, int]) -> None:
    for name, number in last.items():
        values = {"name": name, "number": number}
        if conn.dialect.name != "sqlite":
            if number:
                next_one = "SELECT setval(pg_get_serial_sequence(:name, 'id'), :number)"
                conn.execute(text(next_one), values)
        elif "sqlite_autoincrement" in Base.metadata.tables[name].dialect_kwargs:
            conn.execute(text("DELETE FROM sqlite_sequence WHERE name = :name"), values)
            conn.execute(text("INSERT INTO sqlite_sequence VALUES (:name, :number)"), values)
