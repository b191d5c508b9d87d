"""Cut long lists into statements that a database takes: SQLite bounds a statement's variables."""

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

IN_LIST = 500
"""Values in one ``IN (...)``; old builds of SQLite take 999 variables a statement."""


def sliced(items: Iterable[T], size: int = IN_LIST) -> Iterator[list[T]]:
    """Yield the items in lists of at most ``size``, in order; nothing for no items."""
    iterator = iter(items)
    while some := list(itertools.islice(iterator, size)):
        yield some
