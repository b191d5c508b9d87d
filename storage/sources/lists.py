"""A list of paths as a source: TSV, CSV or one path a line, read as a stream.

Without a header the first of two columns holds ids in a TSV and labels in a CSV, whatever its
values are: one that repeats by mistake can't turn all ids into labels.

The lines are read once to check them, and again each time that items are asked for, so that memory
holds eight bytes a line and not the lines: ids that repeat are found by their hashes.
"""

import itertools
import os
from collections.abc import Iterator
from typing import Any

from storage.errors import SourceError
from storage.scan import SEP
from storage.sources.items import Item, Source
from storage.sources.repeats import Hashes
from storage.sources.shard import Shard
from storage.sources.table import (
    Columns,
    Row,
    Wrong,
    as_bytes,
    as_text,
    find_form,
    find_header,
    read_entry,
    read_rows,
    said_columns,
    trouble_of,
    without_header,
)
from storage.sources.text import ListText

_OR_LABELS = " (if they are labels and no ids, say --columns label,path)"
_FEW = 1000  # values of an unsaid column that are held to see labels early


class ListSource(Source):
    """The pictures that a list names, in the order of its lines; see `storage.sources.table`.

    The id is that of the line, or else the path as written.  No picture is looked at.

    Parameters
    ----------
    path
        The list; ``None`` is standard input.
    columns
        What its columns are, where a person says it; see `said_columns`.

    Attributes
    ----------
    form
        ``csv``, ``tsv`` or ``lines``.
    header
        The cells of its header, if it has one.
    columns
        What its columns are.
    said
        What a person said that they are.
    guessed
        Whether the values had to tell ids from labels.
    path
        The list; ``None`` is standard input.
    folder
        Where relative paths start.

    Raises
    ------
    SourceError
        It can't be read, or has other columns than were said.
    ManifestError
        Lines are wrong or ids repeat; the message gives the numbers of the first ten.
    """

    def __init__(self, path: bytes | None, columns: str | None = None) -> None:
        said = None if columns is None else said_columns(columns)
        self.path = path
        self.said = columns
        self.guessed = False
        self._text = ListText(path)
        self.folder = self._text.folder
        self.header: list[str] | None = None
        try:
            with self._text.lines() as lines:
                self.form = find_form(self._text.name, lines, 0 if said is None else said.count)
            self.columns = self._find_columns(said)
            self._count = self._survey()
            self._checksum = self._text.checksum()
        except BaseException:
            self.close()
            raise
        self.description = f"{self._text.title}: {self._count:,} lines of {self._shown_columns()}"

    @property
    def identity(self) -> dict[str, Any]:
        """Checksum of the bytes and what gives them their meaning; not where they are stored."""
        return {
            "kind": "list",
            "form": self.form,
            "columns": self.said,
            "folder": as_text(self.folder),
            "checksum": self._checksum,
        }

    def count_hint(self) -> int:
        """Return the number of lines that name a picture."""
        return self._count

    def rows(self) -> Iterator[Row]:
        """Yield the rows behind the header: number of the line, and its cells."""
        with self._text.lines() as lines:
            rows = read_rows(lines, self.form, self._text.title)
            yield from itertools.islice(rows, 1 if self.header else 0, None)

    def items(self, shard: Shard | None = None) -> Iterator[Item]:
        """Yield the pictures in the order of the lines; see `Source.items`.

        Raises
        ------
        SourceError
            The list is no longer what it was.
        """
        n = 0
        for line, cells in self.rows():
            if len(cells) != self.columns.count:
                raise SourceError(f"{self._text.title}: line {line} changed while it was in use")
            entry = read_entry(cells, self.columns)
            n += 1
            if shard is None or shard.holds(entry.key):
                yield Item(entry.key, full_path(self.folder, entry.path), entry.label)
        if n != self._count:
            raise SourceError(
                f"{self._text.title} changed while it was in use: {self._count:,} lines, then {n:,}"
            )

    def close(self) -> None:
        """Close the list."""
        self._text.close()

    @property
    def _holds_ids(self) -> bool:
        """Whether a column that nobody has named holds ids: in a TSV, where a CSV has labels."""
        return self.form == "tsv" and self.header is None

    def _find_columns(self, said: Columns | None) -> Columns:
        first = next(self.rows(), None)
        if first is None:
            return said or Columns(1, 0)
        header = find_header(first[1])
        if header is not None:
            self.header = first[1]
        if said is None:
            found = header or without_header(first, self._text.title)
            return found.settled(are_ids=self._holds_ids) if self.header is None else found
        if said.count != len(first[1]):
            raise SourceError(
                f"{self._text.title}: line {first[0]} has {len(first[1])} columns, "
                f"--columns says {said.count}"
            )
        return said

    def _survey(self) -> int:
        """Check all lines and settle which column is what; return how many there are."""
        wrong = Wrong(self._text.title)
        keys, unsaid = Hashes(), _Unsaid()
        key, guess = _key(self.columns), self.columns.unsaid
        n = 0
        for line, cells in self.rows():
            n += 1
            if trouble := trouble_of(cells, self.columns):
                wrong.add(f"line {line}: {trouble}")
                continue
            keys.add(as_bytes(cells[key]))
            if guess is not None:
                unsaid.add(cells[guess])
        wrong.refuse()
        if guess is not None:
            self.guessed = True
            are_ids = unsaid.are_ids(self._cells(guess))
            self.columns = self.columns.settled(are_ids=are_ids)
            if are_ids:
                return n
        self._refuse_repeats(keys)
        return n

    def _cells(self, column: int) -> Iterator[bytes]:
        return (as_bytes(cells[column]) for _, cells in self.rows())

    def _refuse_repeats(self, keys: Hashes) -> None:
        found, n = keys.repeats(self._cells(_key(self.columns)))
        if not found:
            return
        wrong = Wrong(self._text.title)
        lines = self._lines_of({position for pair in found for position in pair})
        for position, earlier in found:
            wrong.add(f"line {lines[position]} repeats line {lines[earlier]}")
        if n > len(found):
            wrong.add("", n - len(found))
        may_be_labels = self.said is None and self._holds_ids and self.columns.id is not None
        wrong.refuse(_OR_LABELS if may_be_labels else "")

    def _lines_of(self, positions: set[int]) -> dict[int, int]:
        last = max(positions) + 1
        rows = enumerate(itertools.islice(self.rows(), last))
        return {position: line for position, (line, _) in rows if position in positions}

    def _shown_columns(self) -> str:
        columns = self.columns
        parts = ["id"] * (columns.id is not None) + ["path"]
        return ", ".join(parts + ["label"] * (columns.label is not None))


def _key(columns: Columns) -> int:
    """Return the column of what tells images apart."""
    return columns.path if columns.id is None else columns.id


class _Unsaid:
    """Decides whether a column holds ids, none of which repeats or is empty, or labels."""

    def __init__(self) -> None:
        self._hashes = Hashes()
        self._few: set[str] = set()
        self._are_labels = False

    def add(self, cell: str) -> None:
        if self._are_labels:
            return
        if not cell or cell in self._few:
            self._are_labels = True
            self._hashes = Hashes()
            return
        if len(self._few) < _FEW:
            self._few.add(cell)
        self._hashes.add(as_bytes(cell))

    def are_ids(self, cells: Iterator[bytes]) -> bool:
        return not self._are_labels and not self._hashes.repeats(cells)[0]


def full_path(folder: bytes, path: bytes) -> bytes:
    """Return a written path as an absolute one, plain where that surely means the same file."""
    full = os.path.join(folder, path)
    if os.pardir.encode() in full.split(SEP):
        return full  # behind a symbolic link it leads elsewhere than it reads
    return os.path.normpath(full)
