"""Read a manifest: a file that names the pictures of a root, line by line.

Its lines are those of `storage.sources.table`.  An id is the file's key.  Without ids the key is
the path as written.  Relative paths start from the manifest's folder.
"""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple, TextIO

from storage.errors import RootUnavailable
from storage.scan import SEP, FileStat, Signature, Unreadable
from storage.sources.table import (
    Columns,
    Row,
    Wrong,
    as_text,
    find_form,
    find_header,
    read_entry,
    read_rows,
    trouble_of,
    without_header,
)


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
    title = f"manifest {as_text(manifest)}"
    try:
        if not stat.S_ISREG(os.stat(manifest).st_mode):
            raise RootUnavailable(f"{title} is not a regular file")
        with open(manifest, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines:
            rows = _rows(manifest, lines, title)
    except OSError as trouble:
        raise RootUnavailable(f"{title}: {trouble.strerror}") from trouble
    if not rows:
        return []
    header = find_header(rows[0][1])
    body = rows[1:] if header else rows
    columns = header or without_header(rows[0], title)
    _check_cells(title, body, columns)
    columns = _settle(body, columns)
    entries = [_entry(row, columns) for row in body]
    entries.sort(key=attrgetter("key"))  # stable: equal keys keep the order of their lines
    _check_keys(title, entries)
    return entries


def _rows(manifest: bytes, lines: TextIO, title: str) -> list[Row]:
    form = find_form(manifest, lines)
    lines.seek(0)
    return list(read_rows(lines, form, title))


def _check_cells(title: str, rows: Sequence[Row], columns: Columns) -> None:
    wrong = Wrong(title)
    for line, cells in rows:
        if trouble := trouble_of(cells, columns):
            wrong.add(f"line {line}: {trouble}")
    wrong.refuse()


def _settle(rows: Sequence[Row], columns: Columns) -> Columns:
    """Decide by its values whether an unsaid column holds ids or labels."""
    if columns.unsaid is None:
        return columns
    values = {cells[columns.unsaid] for _, cells in rows}
    return columns.settled(are_ids=len(values) == len(rows) and "" not in values)


def _entry(row: Row, columns: Columns) -> _Entry:
    line, cells = row
    key, path, label = read_entry(cells, columns)
    return _Entry(key, line, path, label)


def _check_keys(title: str, entries: Sequence[_Entry]) -> None:
    """Refuse keys that repeat; equal keys stand together, the earliest line first."""
    found = []
    first = entries[0] if entries else None
    for entry in entries[1:]:
        if first is not None and entry.key == first.key:
            found.append((entry.line, first.line))
        else:
            first = entry
    wrong = Wrong(title)
    for line, earlier in sorted(found):
        wrong.add(f"line {line} repeats line {earlier}")
    wrong.refuse()
