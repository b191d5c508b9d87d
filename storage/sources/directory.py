"""A directory as a source: its pictures by relative path, the first folder as their label."""

import os
from collections.abc import Iterator
from typing import Any

from storage.errors import SourceError
from storage.scan import SEP, Unreadable, walk
from storage.sources.items import Item, Source
from storage.sources.shard import Shard


class DirectorySource(Source):
    """The pictures below a directory, found and ordered as `storage.scan.walk` does it.

    The id is the path relative to the directory.  The label is the first folder of that path, as in
    a directory of class folders; a picture beside those folders has none.

    Raises
    ------
    SourceError
        While it is read: the directory itself can't be.
    """

    def __init__(self, path: bytes) -> None:
        self._path = self.inside = os.path.abspath(path)
        self._shown = self._path.decode("utf-8", "backslashreplace")
        self.description = f"directory {self._shown}"

    @property
    def identity(self) -> dict[str, Any]:
        """The absolute path; what lies there may change between two runs."""
        return {"kind": "directory", "path": self._shown}

    def items(self, shard: Shard | None = None) -> Iterator[Item | Unreadable]:
        """Yield the pictures in the order of their paths as bytes; see `Source.items`."""
        for seen in walk(self._path):
            if isinstance(seen, Unreadable) and not seen.path:
                raise SourceError(f"{self.description}: {os.strerror(seen.errno)}")
            if shard is not None and not shard.holds(seen.path):
                continue
            if isinstance(seen, Unreadable):
                yield seen
                continue
            yield Item(seen.path, os.path.join(self._path, seen.path), label_of(seen.path))

    def close(self) -> None:
        """Do nothing: no folder stays open."""


def label_of(path: bytes) -> str | None:
    """Return the first folder of a relative path, or None where it has none."""
    folder, separator, _ = path.partition(SEP)
    return folder.decode("utf-8", "backslashreplace") if separator else None
