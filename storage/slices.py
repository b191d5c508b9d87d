"""Cut long lists into statements that a database takes, and long answers into pages.

SQLite bounds a statement's variables, and whoever keeps a transaction open keeps others waiting.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import Select, tuple_
from sqlalchemy.orm import InstrumentedAttribute

from storage.catalog import Catalog

T = TypeVar("T")

IN_LIST = 500
"""Values in one ``IN (...)``; old builds of SQLite take 999 variables a statement."""

PAGE = 5000
"""Rows that are read with one transaction."""


def sliced(items: Iterable[T], size: int = IN_LIST) -> Iterator[list[T]]:
    """Yield the items in lists of at most ``size``, in order; nothing for no items."""
    iterator = iter(items)
    while some := list(itertools.islice(iterator, size)):
        yield some


def pages(
    catalog: Catalog,
    query: Select[Any],
    *key: InstrumentedAttribute[Any],
    size: int = PAGE,
) -> Iterator[Sequence[Any]]:
    """Yield what a query finds in lists of at most ``size``, with no transaction open in between.

    Parameters
    ----------
    key
        The first columns of the query.  No two rows share them, and rows come in their order.
    """
    query = query.order_by(*key).limit(size)
    page = query
    while True:
        with catalog.read() as conn:
            rows = conn.execute(page).all()
        if rows:
            yield rows
        if len(rows) < size:
            return
        page = query.where(tuple_(*key) > tuple(rows[-1][: len(key)]))
