"""Walk a root and say which pictures lie there, in the order of full paths as bytes.

The order is what lets ``storage.changes`` compare a tree of any size with the catalog in constant
memory.  Names are bytes throughout, because a file name need not be UTF-8.
"""

import errno
import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple, Self

from storage.errors import RootError
from storage.excludes import DEFAULT_EXCLUDES, SEP, Excludes

__all__ = [
    "SEP",
    "SUFFIXES",
    "Excludes",
    "FileStat",
    "Signature",
    "Unreadable",
    "fs_clock_offset_ns",
    "has_suffix",
    "refuse_home",
    "walk",
]

_SUFFIXES = b"jpg jpeg png jpe jfif webp gif bmp tif tiff avif heic heif".split()  # by how common
SUFFIXES = frozenset(_SUFFIXES)
"""Suffixes of pictures, lower case and without the dot.  Upper case counts as well."""

_ENDINGS = tuple(b"." + suffix for suffix in _SUFFIXES)
_DOT = ord(".")
_FOLDER = (SEP, b"")  # how the name of a folder ends in a listing; the root's own is empty
_signed = attrgetter("st_size", "st_mtime_ns", "st_ctime_ns", "st_ino")

EXACT_MARGIN_NS = 2_500_000_000  # above the coarsest time stamps in use, FAT's 2 s
GUESSED_MARGIN_NS = 60_000_000_000


# A scan makes one for each file: a tuple costs a third of what a frozen dataclass does.
class Signature(NamedTuple):
    """What one ``stat`` says about a file's content: equal signatures, presumably equal bytes."""

    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """Take the signature from a ``stat``, ``lstat`` or ``fstat`` result."""
        return cls(*_signed(status))


class FileStat(NamedTuple):
    """A file that was seen.

    ``path`` is relative to the root; in a manifest it is the key of the line, and then ``source``
    is the absolute path to open and ``label`` the line's label, if it has one.
    """

    path: bytes
    sig: Signature
    source: bytes | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file or folder that could not be looked at.

    ``path`` is relative to the root, ``b""`` is the root itself.  A folder stands in the stream
    where what lies below it would have stood.
    """

    path: bytes
    errno: int
    is_dir: bool


def has_suffix(name: bytes) -> bool:
    """Say whether a file name ends like a picture's."""
    dot = name.rfind(b".")
    return dot > 0 and name[dot + 1 :].lower() in SUFFIXES


def walk(
    root: bytes,
    *,
    excludes: Sequence[str] = (),
    under: bytes = b"",
    skip: bytes | None = None,
) -> Iterator[FileStat | Unreadable]:
    """Yield the pictures below ``root``, ordered like ``sorted`` orders their paths.

    Only regular files with one of `SUFFIXES` count; symbolic links are not followed, and devices,
    sockets and pipes never opened.  No folder stays open, and memory holds the names of one folder
    at each depth.  Trouble is yielded as `Unreadable`, and the walk goes on.

    Parameters
    ----------
    root
        The folder, absolute.  It may itself be a symbolic link.
    excludes
        Globs, see `Excludes`.
    under
        A folder (or file) relative to ``root``: only that subtree is walked.  Paths stay relative
        to ``root``.
    skip
        Absolute path of a folder that is never entered: the store's own home.

    Raises
    ------
    RootError
        A pattern of ``excludes`` is empty, or what is to be walked is ``skip`` or lies in it.
    ValueError
        ``under`` is not a plain relative path.
    """
    rules = Excludes(excludes)
    under = under.rstrip(SEP)
    if under and not {b"", b".", b".."}.isdisjoint(under.split(SEP)):
        raise ValueError(f"not a plain relative path: {under!r}")
    if skip is not None:
        refuse_home(skip, os.path.join(root, under))
    return _walk(os.path.join(root, b""), under, rules, _below(skip, root))


def refuse_home(home: bytes, path: bytes) -> None:
    """Raise `RootError` if ``path`` is the store's own home or lies in it."""
    if os.path.join(os.path.realpath(path), b"").startswith(
        os.path.join(os.path.realpath(home), b"")
    ):
        shown = [name.decode("utf-8", "backslashreplace") for name in (path, home)]
        raise RootError(
            f"{shown[0]} is or lies in the store's own home {shown[1]}, which is never indexed: "
            "choose another folder, or another --home"
        )


def _below(skip: bytes | None, root: bytes) -> bytes | None:
    """Give ``skip`` relative to ``root`` with a trailing separator; None when it is not below."""
    if skip is None:
        return None
    inside = os.path.join(os.path.realpath(skip), b"")
    outside = os.path.join(os.path.realpath(root), b"")
    return inside[len(outside) :] if inside.startswith(outside) else None


def _walk(
    base: bytes, under: bytes, rules: Excludes, skip: bytes | None
) -> Iterator[FileStat | Unreadable]:
    if under:
        status = _reach(base, under, rules)
        if isinstance(status, int):
            # What stood there may have been a file or a folder: both keep what is known of them.
            if has_suffix(under):
                yield Unreadable(under, status, False)
            yield Unreadable(under, status, True)
        elif status is not None and stat.S_ISREG(status.st_mode):
            if has_suffix(under):
                yield FileStat(under, Signature.of(status))
        elif status is not None:
            yield from _subtree(base, under + SEP, rules, skip)
    else:
        yield from _subtree(base, b"", rules, skip)


def _reach(base: bytes, under: bytes, rules: Excludes) -> os.stat_result | int | None:
    """Go down to ``under``: its ``lstat``, an errno, or None where a full walk does not get."""
    names = under.split(SEP)
    for depth in range(1, len(names) + 1):
        path = SEP.join(names[:depth])
        try:
            status = os.lstat(base + path)
        except OSError as trouble:
            return trouble.errno or errno.EIO
        is_dir = stat.S_ISDIR(status.st_mode)
        if rules.match(path, is_dir):
            return None
        if not is_dir and not (depth == len(names) and stat.S_ISREG(status.st_mode)):
            return errno.ENOTDIR
    return status


def _subtree(
    base: bytes, top: bytes, rules: Excludes, skip: bytes | None
) -> Iterator[FileStat | Unreadable]:
    """Walk the folder ``base + top``; names that end in a separator are folders."""
    lstat, is_file, new = os.lstat, stat.S_ISREG, tuple.__new__
    stack = [(b"", iter([top]))]
    while stack:
        prefix, names = stack[-1]
        for name in names:
            path = prefix + name
            is_dir = name[-1:] in _FOLDER
            try:
                if is_dir:
                    stack.append((path, iter(_listing(base + path, path, rules, skip))))
                    break
                status = lstat(base + path)
            except OSError as trouble:
                yield Unreadable(path.rstrip(SEP), trouble.errno or errno.EIO, is_dir)
                continue
            if is_file(status.st_mode):  # it may have been replaced since the listing
                yield new(FileStat, (path, new(Signature, _signed(status)), None, None))
        else:
            stack.pop()


def _listing(folder: bytes, prefix: bytes, rules: Excludes, skip: bytes | None) -> list[bytes]:
    """List what is worth a look in a folder, sorted; folders end in a separator.

    With the separator at the end of its name a folder sorts where its children do, which is not
    beside its bare name: ``a-b`` and ``a.jpg`` come between ``a`` and ``a/x``.  An error while
    listing leaves nothing of the folder, so that no file seems gone that was merely not reached.
    """
    found = []
    has_globs = bool(rules)
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name[0] == _DOT or name in DEFAULT_EXCLUDES:  # is_hidden, for a third of its time
                continue
            if is_dir := entry.is_dir(follow_symlinks=False):
                name += SEP
                if prefix + name == skip:
                    continue
            elif not name.lower().endswith(_ENDINGS) or not entry.is_file(follow_symlinks=False):
                continue
            if has_globs and rules.match(prefix + entry.name, is_dir):
                continue
            found.append(name)
    found.sort()
    return found


def fs_clock_offset_ns(root: bytes) -> tuple[int, int]:
    """Compare the clock of the file system that holds ``root`` with this machine's.

    A nameless temporary file is written and its time read, which leaves no trace: not even the
    folder's own time changes.  Where that can't be done (read-only, most network file systems, not
    Linux), the clocks are presumed equal and the margin is wide.

    Returns
    -------
    tuple of int
        Nanoseconds to add to ``time.time_ns()``, and the margin in nanoseconds by which a file
        must be older than its reading for its signature to be trusted.
    """
    nameless = getattr(os, "O_TMPFILE", None)
    if nameless is None:
        return 0, GUESSED_MARGIN_NS
    try:
        handle = os.open(root, nameless | os.O_RDWR, 0o600)
        try:
            before_ns = time.time_ns()
            os.write(handle, b"\0")
            after_ns = time.time_ns()
            written_ns = os.fstat(handle).st_mtime_ns
        finally:
            os.close(handle)
    except OSError:
        return 0, GUESSED_MARGIN_NS
    return written_ns - (before_ns + after_ns) // 2, EXACT_MARGIN_NS
