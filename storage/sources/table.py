"""Read the lines of a manifest or list: cells, and which column is what.

Three forms, told apart by suffix and first line:

* ``.csv``: columns separated by commas, quoted as spreadsheets do it;
* ``.tsv``, or any other file whose first line has a tab: columns separated by tabs, no quoting;
* anything else: one path a line, unless the first line is a header with commas, which makes it CSV.

A first line with a column called ``path`` (or another of `PATH_WORDS`) is a header; it may name an
id column (`ID_WORDS`), a label column (`LABEL_WORDS`), both, and others, which are ignored; of
several such words the first in the list counts.  Without a header, or where it does not say what
the other of two columns is, the path is the last of two columns, and the first holds ids if no
value of it repeats, else labels.

UTF-8 with or without byte order mark, LF or CRLF; blank lines are skipped, and bytes of a path that
are not UTF-8 are kept.  There are no comments: a file name may begin with #.
"""

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from storage.errors import ManifestError, SourceError

PATH_WORDS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image_path")
ID_WORDS = ("id", "key", "image_id", "file_id", "uid", "uuid")
LABEL_WORDS = ("label", "labels", "class", "category", "target")

SHOWN = 10  # lines named in an error message

Form = Literal["csv", "tsv", "lines"]

Row = tuple[int, list[str]]
"""Number of the line that a row ends on, and its cells."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column is what; ``unsaid`` holds ids or labels, as its values will tell."""

    count: int
    path: int
    id: int | None = None
    label: int | None = None
    unsaid: int | None = None

    def settled(self, *, are_ids: bool) -> "Columns":
        """Return the columns with the ``unsaid`` one as ids or as labels."""
        if self.unsaid is None:
            return self
        if are_ids:
            return replace(self, id=self.unsaid, unsaid=None)
        return replace(self, label=self.unsaid, unsaid=None)


class Entry(NamedTuple):
    """What a row says: the id (or the path as written), the path as written, and the label."""

    key: bytes
    path: bytes
    label: str | None


class Wrong:
    """Collects what is wrong with a file's lines, in memory that does not grow with them.

    Parameters
    ----------
    title
        The file as messages call it: ``manifest /data/list.tsv``.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._shown: list[str] = []
        self._more = 0

    def add(self, what: str, n: int = 1) -> None:
        """Note a trouble, or the last of ``n`` that are like it."""
        if len(self._shown) < SHOWN:
            self._shown.append(what)
            n -= 1
        self._more += n

    def refuse(self, hint: str = "") -> None:
        """Raise `ManifestError` if there was any; ``hint`` ends its message."""
        if self._shown:
            more = f"; and {self._more} more" if self._more else ""
            raise ManifestError(f"{self._title}: {'; '.join(self._shown)}{more}{hint}")


def find_form(name: bytes, lines: Iterable[str], width: int = 0) -> Form:
    """Tell the form by the file's name and its first line that is not blank.

    Parameters
    ----------
    name
        The file's name; ``b""`` where it has none.
    lines
        Its lines from the first one on.
    width
        How many columns it is said to have; 0 where nothing is said.
    """
    suffix = os.path.splitext(name)[1].lower()
    if suffix in (b".csv", b".tsv"):
        return "csv" if suffix == b".csv" else "tsv"
    first = next((line for raw in lines if (line := _bare(raw))), "")
    if "\t" in first:
        return "tsv"
    has_commas = "," in first and (width > 1 or find_header(first.split(",")) is not None)
    return "csv" if has_commas else "lines"


def read_rows(lines: Iterable[str], form: Form, title: str) -> Iterator[Row]:
    """Split the lines into cells; a blank line is no row.

    Raises
    ------
    ManifestError
        Quotes of a CSV are wrong.
    """
    if form == "csv":
        yield from _csv_rows(lines, title)
        return
    for number, raw in enumerate(lines, 1):
        if line := _bare(raw):
            yield number, line.split("\t") if form == "tsv" else [line]


def _bare(raw: str) -> str:
    return raw.removesuffix("\n").removesuffix("\r")


def _csv_rows(lines: Iterable[str], title: str) -> Iterator[Row]:
    reader = csv.reader(lines, strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as trouble:
        raise ManifestError(f"{title}: line {reader.line_num}: {trouble}") from trouble


def find_header(cells: list[str]) -> Columns | None:
    """Read the first row as a header; None if it names no path column."""
    words = [cell.strip().lower() for cell in cells]
    path = _find(words, PATH_WORDS)
    if path is None:
        return None
    key, label = _find(words, ID_WORDS), _find(words, LABEL_WORDS)
    unsaid = 1 - path if len(words) == 2 and key is None and label is None else None
    return Columns(len(words), path, key, label, unsaid)


def _find(words: list[str], meant: tuple[str, ...]) -> int | None:
    """Find the column with the first of the meant words that is there."""
    return next((words.index(word) for word in meant if word in words), None)


def without_header(first: Row, title: str) -> Columns:
    """Tell the columns of a file without a header by its first row.

    Raises
    ------
    ManifestError
        There are more than two.
    """
    line, cells = first
    if len(cells) > 2:
        raise ManifestError(
            f"{title}: line {line}: {len(cells)} columns; "
            "name them in a header: path, and id or label"
        )
    return Columns(1, 0) if len(cells) == 1 else Columns(2, 1, unsaid=0)


def said_columns(text: str) -> Columns:
    """Read what a person says the columns are: ``label,path`` or ``id,-,path``.

    Raises
    ------
    SourceError
        A word is unknown or comes twice, or there is no ``path``.
    """
    words = [word.strip().lower() for word in text.split(",")]
    named = [word for word in words if word != "-"]
    if not set(named) <= {"id", "path", "label"} or "path" not in named:
        raise SourceError(
            f"--columns {text!r}: write the words path, id, label and - (not used) "
            "in the order of the columns, such as label,path"
        )
    if len(set(named)) < len(named):
        raise SourceError(f"--columns {text!r}: a word comes twice")
    places = {word: words.index(word) for word in named}
    return Columns(len(words), places["path"], places.get("id"), places.get("label"))


def trouble_of(cells: Sequence[str], columns: Columns) -> str | None:
    """Say what is wrong with a row."""
    if len(cells) != columns.count:
        return f"{len(cells)} columns where the first line has {columns.count}"
    if "\0" in "".join(cells):
        return "a NUL byte (the text must be UTF-8)"
    if not cells[columns.path]:
        return "the path is empty"
    if columns.id is not None and not cells[columns.id]:
        return "the id is empty"
    return None


def read_entry(cells: Sequence[str], columns: Columns) -> Entry:
    """Take from a row without trouble what it says."""
    path = as_bytes(cells[columns.path])
    key = path if columns.id is None else as_bytes(cells[columns.id])
    label = None if columns.label is None else cells[columns.label]
    return Entry(key, path, as_text(as_bytes(label)) if label else None)


def as_bytes(text: str) -> bytes:
    """Return the bytes that a cell was read from."""
    return text.encode("utf-8", "surrogateescape")


def as_text(name: bytes) -> str:
    """Give bytes as text that every terminal and database takes."""
    return name.decode("utf-8", "backslashreplace")
