"""Numbers that a statement looks up one by one, handed to it as one value.

A list behind ``IN`` is another statement for each length; and where SQLite has no statistics it
would rather read a whole space than look a hundred rows up by their index.
"""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import BigInteger, Connection, TableValuedAlias, bindparam, func

NUMBERS = "numbers"


def listed(dialect: str) -> TableValuedAlias:
    """Return a table of one column, ``value``: the numbers that are bound under `NUMBERS`."""
    if dialect == "postgresql":
        from sqlalchemy.dialects.postgresql import ARRAY  # SQLite alone does not load it

        array = bindparam(NUMBERS, type_=ARRAY(BigInteger))
        return func.unnest(array).table_valued("value", name="wanted").render_derived()
    return func.json_each(bindparam(NUMBERS)).table_valued("value", name="wanted")


def binding(conn: Connection, numbers: Iterable[int]) -> dict[str, Any]:
    """Return what binds the numbers, integers of any type, on the database of a connection."""
    values = list(map(int, numbers))  # those of numpy are no JSON
    return {NUMBERS: values if conn.dialect.name == "postgresql" else str(values)}
