"""Compare what the catalog knows with what a scan saw.  Pure: no file and no database is touched.

Both sides come sorted by path as bytes and are merged, so memory stays constant however many files
there are.
"""

import errno
import heapq
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from operator import attrgetter
from typing import NamedTuple, TypeVar

from storage.scan import SEP, FileStat, Signature, Unreadable

T = TypeVar("T")

GONE = frozenset([errno.ENOENT, errno.ENOTDIR])
"""Errors that say that a file is not there; any other one says nothing about the file."""


class Reason(StrEnum):
    """Why a file is worth mentioning.  Of several reasons the first in this order is given."""

    NEW = "new"
    """Not known yet."""
    BACK = "back"
    """Was missing or excluded and is there again."""
    SIZE = "size"
    MTIME = "mtime"
    CTIME = "ctime"
    """Only the inode's change time differs: renamed, permissions, or restored with its old time."""
    INODE = "inode"
    """Another file stands in its place, with the same size and times."""
    RACY = "racy"
    """Looks the same, but was so young when it was read that a later edit could look the same."""
    LINE = "line"
    """The file is as it was, but the manifest's line gives it another source or label."""
    EXCLUDED = "excluded"
    """Left out by the excludes now, so nobody looked whether it is still there."""
    MISSING = "missing"


class Known(NamedTuple):
    """A file as the catalog knows it.

    ``state`` is ``live``, ``missing`` or ``excluded``; ``hashed`` says whether the bytes were read
    under the signature ``seen``, ``trusted`` whether they were old enough then.  ``line`` holds
    the recorded source and label of a manifest's file; None leaves both out of the comparison.
    """

    file_id: int
    path: bytes
    seen: Signature
    state: str
    trusted: bool
    hashed: bool
    line: tuple[bytes | None, str | None] | None = None


class Change(NamedTuple):
    """What a scan says about one file.

    ``known`` is None for `Reason.NEW`; ``seen`` is None for `Reason.MISSING` and
    `Reason.EXCLUDED`.
    """

    path: bytes
    reason: Reason
    known: Known | None
    seen: FileStat | None


class Unlisted:
    """The folders that could not be listed, met in the order of a walk.

    Paths below one folder stand together in that order, so the last folder met is all that has to
    be remembered.
    """

    __slots__ = ("_prefix",)

    def __init__(self) -> None:
        self._prefix: bytes | None = None

    def meet(self, folder: Unreadable) -> None:
        """Note a folder that could not be listed; what lies below it comes next."""
        self._prefix = position(folder)

    def hides(self, path: bytes) -> bool:
        """Say whether ``path``, which must not come before the last folder met, lies below it."""
        return self._prefix is not None and path.startswith(self._prefix)


def position(item: FileStat | Unreadable) -> bytes:
    """Give the place of an item in a walk; a folder stands where its children would."""
    if isinstance(item, FileStat) or not item.is_dir or not item.path:
        return item.path
    return item.path + SEP


def with_unlisted(
    items: Iterable[FileStat | Unreadable], folders: Iterable[bytes]
) -> Iterator[FileStat | Unreadable]:
    """Yield a walk in which nothing can be said of some folders, whatever was seen in them.

    They stand as `Unreadable` with ENODEV where what lies below them stood.
    """
    marks = sorted((Unreadable(path, errno.ENODEV, True) for path in folders), key=position)
    unlisted = Unlisted()
    for item in heapq.merge(marks, items, key=position):
        if unlisted.hides(position(item)):
            continue
        if isinstance(item, Unreadable) and item.is_dir and item.path:
            unlisted.meet(item)
        yield item


def nothing(path: bytes) -> bool:
    """Exclude nothing."""
    return False


def diff(
    known: Iterable[Known],
    seen: Iterable[FileStat | Unreadable],
    excluded: Callable[[bytes], bool] = nothing,
    under: bytes = b"",
) -> Iterator[Change]:
    """Yield what changed, ordered by path.  A file that did not change yields nothing.

    Where the scan could not look (below an unreadable folder, or an unreadable file that was not
    simply gone) what is known stays as it is.  A missing file that stays missing yields nothing.

    Parameters
    ----------
    known
        Files of one root, strictly ascending by path.
    seen
        A walk or a manifest, strictly ascending by `position`.
    excluded
        Whether the excludes hide a path, so that its absence says nothing; see ``Excludes.hides``.
    under
        The subtree that was scanned; files outside it stay as they are.

    Raises
    ------
    ValueError
        One of the two is not sorted.
    """
    unlisted = Unlisted()
    for row, item in _outer_join(known, seen):
        if isinstance(item, FileStat):
            reason = _difference(row, item)
            if reason is not None:
                yield Change(item.path, reason, row, item)
        elif row is not None and _is_absent(item):
            reason = _absence(row, excluded)
            if reason and _within(row.path, under) and not unlisted.hides(row.path):
                yield Change(row.path, reason, row, None)
        elif item is not None and item.is_dir:
            unlisted.meet(item)


_END: tuple[bytes, None] = b"", None


def _outer_join(
    known: Iterable[Known], seen: Iterable[FileStat | Unreadable]
) -> Iterator[tuple[Known | None, FileStat | Unreadable | None]]:
    rows = _placed(known, attrgetter("path"))
    path, row = next(rows, _END)
    for place, item in _placed(seen, position):
        while row is not None and path < place:
            yield row, None
            path, row = next(rows, _END)
        if row is not None and path == place:
            yield row, item
            path, row = next(rows, _END)
        else:
            yield None, item
    while row is not None:
        yield row, None
        path, row = next(rows, _END)


def _placed(items: Iterable[T], place: Callable[[T], bytes]) -> Iterator[tuple[bytes, T]]:
    """Pass the items on with their places; raise ValueError where one does not ascend."""
    last: bytes | None = None
    for item in items:
        here = place(item)
        if last is not None and here <= last:
            raise ValueError(f"not sorted by path: {here!r} comes after {last!r}")
        last = here
        yield here, item


def _difference(row: Known | None, item: FileStat) -> Reason | None:
    if row is None:
        return Reason.NEW
    if row.state != "live":
        return Reason.BACK
    if row.seen != item.sig:
        return _first_difference(row.seen, item.sig)
    if row.hashed and not row.trusted:
        return Reason.RACY
    if row.line is not None and row.line != (item.source, item.label):
        return Reason.LINE
    return None


def _first_difference(old: Signature, new: Signature) -> Reason:
    """Name the field that differs, the one that says most about the content first."""
    if old.size_bytes != new.size_bytes:
        return Reason.SIZE
    if old.mtime_ns != new.mtime_ns:
        return Reason.MTIME
    return Reason.CTIME if old.ctime_ns != new.ctime_ns else Reason.INODE


def _is_absent(item: Unreadable | None) -> bool:
    return item is None or (not item.is_dir and item.errno in GONE)


def _absence(row: Known, excluded: Callable[[bytes], bool]) -> Reason | None:
    if row.state == "missing":
        return None
    if excluded(row.path):
        return Reason.EXCLUDED if row.state == "live" else None
    return Reason.MISSING


def _within(path: bytes, under: bytes) -> bool:
    return not under or path == under or path.startswith(under + SEP)
