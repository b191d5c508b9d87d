"""Read a manifest: a file that names the pictures of a root, line by line.

Three forms, told apart by suffix and first line:

* ``.csv``: columns separated by commas, quoted as spreadsheets do it;
* ``.tsv``, or any other file whose first line has a tab: columns separated by tabs, no quoting;
* anything else: one path a line.

A first line with a column called ``path`` (or another of `PATH_WORDS`) is a header; it may name an
id column (`ID_WORDS`), a label column (`LABEL_WORDS`), both, and others, which are ignored; of
several such words the first in the list counts.  Without
a header, or where it does not say what the other of two columns is, the path is the last of two
columns, and the first holds ids if no value of it repeats, else labels.

An id is the file's key.  Without ids the key is the path as written.  Relative paths start from the
manifest's folder.  UTF-8 with or without byte order mark, LF or CRLF; blank lines are skipped, and
bytes of a path that are not UTF-8 are kept.  There are no comments: a file name may begin with #.
"""

import csv
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple, NoReturn, TextIO

from storage.errors import ManifestError, RootUnavailable
from storage.scan import SEP, FileStat, Signature, Unreadable

PATH_WORDS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image_path")
ID_WORDS = ("id", "key", "image_id", "file_id", "uid", "uuid")
LABEL_WORDS = ("label", "labels", "class", "category", "target")

SHOWN = 10  # lines named in an error message

Row = tuple[int, list[str]]
"""Number of the line that a row ends on, and its cells."""


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which column is what; ``unsaid`` holds ids or labels, as its values will tell."""

    count: int
    path: int
    id: int | None = None
    label: int | None = None
    unsaid: int | None = None


class _Entry(NamedTuple):
    key: bytes
    line: int
    path: bytes
    label: str | None


def read_manifest(path: bytes) -> Iterator[FileStat | Unreadable]:
    """Read a manifest and look at its files, ordered by key as bytes.

    The lines are read, checked and sorted in memory at once, at 0.7 GB a million lines, which is
    good for some ten million; the files are looked at while the result is consumed.  Symbolic links
    are followed, and the suffix plays no part.  A file that is not there is an `Unreadable` with
    ENOENT, a folder one with EISDIR, a device, socket or pipe one with EINVAL.

    Parameters
    ----------
    path
        The manifest.

    Raises
    ------
    RootUnavailable
        The manifest is missing, unreadable or no regular file.
    ManifestError
        Lines are wrong or keys repeat; the message gives the numbers of the first ten.
    """
    folder = os.path.dirname(os.path.abspath(path))
    return _look(folder, _entries(path))


def _look(folder: bytes, entries: Sequence[_Entry]) -> Iterator[FileStat | Unreadable]:
    for entry in entries:
        source = os.path.join(folder, entry.path)
        try:
            status = os.stat(source)
            source = _plain(source, status)
        except OSError as trouble:
            yield Unreadable(entry.key, trouble.errno or errno.EIO, False)
            continue
        if stat.S_ISREG(status.st_mode):
            yield FileStat(entry.key, Signature.of(status), source, entry.label)
        else:
            what = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
            yield Unreadable(entry.key, what, False)


def _plain(source: bytes, status: os.stat_result) -> bytes:
    """Write a path without ``.``, ``..`` and doubled slashes, where that means the same file."""
    plain = os.path.normpath(source)
    if plain != source and os.pardir.encode() in source.split(SEP):
        try:
            same = os.path.samestat(os.stat(plain), status)
        except OSError:
            same = False
        return plain if same else source  # a folder before a ``..`` is a symbolic link
    return plain


def _entries(manifest: bytes) -> list[_Entry]:
    """Read all lines, ordered by key, every key once."""
    try:
        if not stat.S_ISREG(os.stat(manifest).st_mode):
            raise RootUnavailable(f"manifest {_text(manifest)} is not a regular file")
        with open(manifest, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines:
            rows = list(_rows(manifest, lines))
    except OSError as trouble:
        raise RootUnavailable(f"manifest {_text(manifest)}: {trouble.strerror}") from trouble
    if not rows:
        return []
    header = _header(rows[0][1])
    body = rows[1:] if header else rows
    columns = header or _columns_without_header(manifest, rows[0])
    _check_cells(manifest, body, columns)
    columns = _settle(body, columns)
    entries = [_entry(row, columns) for row in body]
    entries.sort(key=attrgetter("key"))  # stable: equal keys keep the order of their lines
    _check_keys(manifest, entries)
    return entries


def _rows(manifest: bytes, lines: TextIO) -> Iterator[Row]:
    """Split the lines into cells; a blank line is no row."""
    suffix = os.path.splitext(manifest)[1].lower()
    if suffix == b".csv":
        yield from _csv_rows(manifest, lines)
        return
    is_table = True if suffix == b".tsv" else None
    for number, raw in enumerate(lines, 1):
        line = raw.removesuffix("\n").removesuffix("\r")
        if not line:
            continue
        if is_table is None:
            is_table = "\t" in line
        yield number, line.split("\t") if is_table else [line]


def _csv_rows(manifest: bytes, lines: TextIO) -> Iterator[Row]:
    reader = csv.reader(lines, strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as trouble:
        _refuse(manifest, [f"line {reader.line_num}: {trouble}"])


def _header(cells: list[str]) -> _Columns | None:
    """Read the first row as a header; None if it names no path column."""
    words = [cell.strip().lower() for cell in cells]
    path = _find(words, PATH_WORDS)
    if path is None:
        return None
    key, label = _find(words, ID_WORDS), _find(words, LABEL_WORDS)
    unsaid = 1 - path if len(words) == 2 and key is None and label is None else None
    return _Columns(len(words), path, key, label, unsaid)


def _find(words: list[str], meant: tuple[str, ...]) -> int | None:
    """Find the column with the first of the meant words that is there."""
    return next((words.index(word) for word in meant if word in words), None)


def _columns_without_header(manifest: bytes, first: Row) -> _Columns:
    line, cells = first
    if len(cells) > 2:
        wrong = f"{len(cells)} columns; name them in a header: path, and id or label"
        _refuse(manifest, [f"line {line}: {wrong}"])
    return _Columns(1, 0) if len(cells) == 1 else _Columns(2, 1, unsaid=0)


def _check_cells(manifest: bytes, rows: Sequence[Row], columns: _Columns) -> None:
    wrong = [
        f"line {line}: {trouble}" for line, cells in rows if (trouble := _wrong(cells, columns))
    ]
    if wrong:
        _refuse(manifest, wrong)


def _wrong(cells: list[str], columns: _Columns) -> str | None:
    """Say what is wrong with a row."""
    if len(cells) != columns.count:
        return f"{len(cells)} columns where the first line has {columns.count}"
    if any("\0" in cell for cell in cells):
        return "a NUL byte (the text must be UTF-8)"
    if not cells[columns.path]:
        return "the path is empty"
    if columns.id is not None and not cells[columns.id]:
        return "the id is empty"
    return None


def _settle(rows: Sequence[Row], columns: _Columns) -> _Columns:
    """Decide by its values whether an unsaid column holds ids or labels."""
    if columns.unsaid is None:
        return columns
    values = {cells[columns.unsaid] for _, cells in rows}
    if len(values) == len(rows) and "" not in values:
        return _Columns(columns.count, columns.path, id=columns.unsaid)
    return _Columns(columns.count, columns.path, label=columns.unsaid)


def _entry(row: Row, columns: _Columns) -> _Entry:
    line, cells = row
    path = _bytes(cells[columns.path])
    label = None if columns.label is None else cells[columns.label]
    return _Entry(
        path if columns.id is None else _bytes(cells[columns.id]),
        line,
        path,
        _text(_bytes(label)) if label else None,
    )


def _check_keys(manifest: bytes, entries: Sequence[_Entry]) -> None:
    """Refuse keys that repeat; equal keys stand together, the earliest line first."""
    wrong = []
    first = entries[0] if entries else None
    for entry in entries[1:]:
        if first is not None and entry.key == first.key:
            wrong.append((entry.line, f"line {entry.line} repeats line {first.line}"))
        else:
            first = entry
    if wrong:
        _refuse(manifest, [text for _, text in sorted(wrong)])


def _refuse(manifest: bytes, wrong: Sequence[str]) -> NoReturn:
    more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    raise ManifestError(f"manifest {_text(manifest)}: {'; '.join(wrong[:SHOWN])}{more}")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(name: bytes) -> str:
    """Give bytes as text that every terminal and database takes."""
    return name.decode("utf-8", "backslashreplace")
