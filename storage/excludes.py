"""Globs: what a walk leaves out, and which files are meant.

Pure: nothing is looked up on disk, and names are bytes.
"""

import fnmatch
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from storage.errors import RootError

SEP = os.sep.encode()

DEFAULT_EXCLUDES = frozenset(
    [b"@eaDir", b"node_modules", b"System Volume Information", b"$RECYCLE.BIN", b"$Recycle.Bin"],
)
"""Names that are never entered, beside all that begin with a dot (``.git``, ``.thumbnails``)."""


@dataclass(frozen=True, slots=True)
class _Glob:
    """One compiled pattern: a matcher for each path component, None for ``**``."""

    parts: tuple[Callable[[bytes], object] | None, ...]
    folders_only: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        pattern = os.fsencode(text)
        parts = [part for part in pattern.split(b"/") if part not in (b"", b".")]
        if not parts:
            raise RootError(f"the pattern {text!r} names nothing")
        if b"/" not in pattern.rstrip(b"/"):
            parts.insert(0, b"**")
        return cls(tuple(map(_component, parts)), pattern.endswith(b"/"))


def _component(part: bytes) -> Callable[[bytes], object] | None:
    """Compile one component; bytes go through latin-1, as ``fnmatch`` itself does it."""
    if part == b"**":
        return None
    return re.compile(fnmatch.translate(part.decode("latin-1")).encode("latin-1")).match


def _matches(parts: Sequence[Callable[[bytes], object] | None], names: Sequence[bytes]) -> bool:
    if not parts:
        return not names
    head, rest = parts[0], parts[1:]
    if head is None:
        if len(rest) == 1 and rest[0] is not None:  # nearly every glob: the name alone decides
            return bool(names) and rest[0](names[-1]) is not None
        return any(_matches(rest, names[skipped:]) for skipped in range(len(names) + 1))
    return bool(names) and head(names[0]) is not None and _matches(rest, names[1:])


class Excludes:
    """What a walk leaves out: the default names, hidden names, and a root's own globs.

    A glob without a slash is held against the name at any depth, one with a slash against the path
    relative to the root; a trailing slash restricts it to folders.  ``*``, ``?`` and ``[...]`` stay
    inside one path component and work on bytes, ``**`` stands for any number of components.  There
    is no negation.

    Raises
    ------
    RootError
        A pattern is empty.
    """

    __slots__ = ("_globs",)

    def __init__(self, globs: Sequence[str] = ()) -> None:
        self._globs = tuple(map(_Glob.parse, globs))

    def __bool__(self) -> bool:
        """Say whether there are globs beside the defaults."""
        return bool(self._globs)

    def match(self, path: bytes, is_dir: bool) -> bool:
        """Say whether this very file or folder is left out; its parents are not looked at."""
        names = path.split(SEP)
        return is_hidden(names[-1]) or any(
            (is_dir or not glob.folders_only) and _matches(glob.parts, names)
            for glob in self._globs
        )

    def hides(self, path: bytes) -> bool:
        """Say whether a walk never reaches the file ``path``: itself or a parent is left out."""
        names = path.split(SEP)
        parents = (SEP.join(names[:depth]) for depth in range(1, len(names)))
        return any(self.match(parent, True) for parent in parents) or self.match(path, False)


class Globs:
    """Which files are meant, in the language of `Excludes`; without a glob, all of them.

    A glob that matches a folder means whatever lies below it.  Hidden names are like any other.

    Raises
    ------
    RootError
        A pattern is empty.
    """

    __slots__ = ("_globs",)

    def __init__(self, globs: Sequence[str] = ()) -> None:
        self._globs = tuple(map(_Glob.parse, globs))

    def __bool__(self) -> bool:
        """Say whether there are globs."""
        return bool(self._globs)

    def match(self, path: bytes) -> bool:
        """Say whether a file is meant, by its path relative to the root or its manifest's key."""
        if not self._globs:
            return True
        names = [name for name in path.split(SEP) if name not in (b"", b".")]
        return any(
            (depth < len(names) or not glob.folders_only) and _matches(glob.parts, names[:depth])
            for glob in self._globs
            for depth in range(len(names), 0, -1)
        )


def is_hidden(name: bytes) -> bool:
    """Say whether a name is left out whatever the root's own globs say."""
    return name.startswith(b".") or name in DEFAULT_EXCLUDES
