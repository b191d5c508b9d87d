"""Roots: the directories and manifests that are indexed, and how their paths relate.

Whether what a root shows now can be trusted is the business of ``storage.guard``; they are moved
and removed in ``storage.moving``.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import ColumnElement, Connection, and_, insert, or_, select, update
from sqlalchemy.orm import InstrumentedAttribute

from storage.catalog import Catalog
from storage.errors import RootError
from storage.excludes import Excludes
from storage.manifest import read_manifest
from storage.scan import SEP, has_suffix, refuse_home
from storage.tables import Root
from storage.turns import take_turns

AFTER_SEP = bytes([SEP[0] + 1])


@dataclass(frozen=True)
class RootInfo:
    """A root, or with ``under`` a sub-path of one.  ``id`` is 0 while it is not registered."""

    id: int
    path: bytes
    kind: str
    excludes: tuple[str, ...]
    under: bytes = b""
    """Relative to ``path``; only what lies below it is meant."""

    @property
    def target(self) -> bytes:
        """Return the absolute path that is meant: the root, or the sub-path of it."""
        return os.path.join(self.path, self.under) if self.under else self.path

    @property
    def display(self) -> str:
        """Return ``target`` as text for people; bytes that are not UTF-8 are escaped."""
        return display(self.target)


def display(path: bytes) -> str:
    r"""Return a path as text that any database takes: ``\xe9`` for a byte that is not UTF-8."""
    return path.decode("utf-8", "backslashreplace")


def within(
    column: InstrumentedAttribute[bytes] | InstrumentedAttribute[bytes | None], prefix: bytes
) -> ColumnElement[bool]:
    """Return the condition that a path is ``prefix`` or lies below it.

    The first two terms are one range of the index; ``a-b`` and ``a.jpg``, which sort between ``a``
    and ``a/x``, are in that range and fall to the third.
    """
    return and_(
        column >= prefix,
        column < prefix + AFTER_SEP,
        or_(column == prefix, column >= prefix + SEP),
    )


def inside(path: bytes, folder: bytes) -> bool:
    """Tell whether an absolute path lies below a folder."""
    return path.startswith(folder.rstrip(SEP) + SEP) and path != folder


def list_roots(catalog: Catalog) -> list[RootInfo]:
    """Return all registered roots in the order of their paths."""
    with catalog.read() as conn:
        return roots_in(conn)


def resolve_root(
    known: Iterable[RootInfo],
    path: bytes,
    *,
    kind: str | None = None,
    excludes: Sequence[str] = (),
    home: str | None = None,
) -> RootInfo:
    """Return what a path means beside the known roots, without registering anything.

    Parameters
    ----------
    path
        A directory, a manifest, or a picture in a known root; made absolute, and symbolic links
        are followed now, once.
    kind
        ``directory`` or ``manifest``; None looks.
    excludes
        Globs.  They replace those of a known root; none given keeps them.
    home
        The store's own home: no pictures are looked for in it.

    Returns
    -------
    RootInfo
        A known root, a sub-path of one, or with ``id`` 0 a root that could be added.

    Raises
    ------
    RootError
        The path is neither directory nor file, or a picture in no root, it holds a known root, it
        is the home or lies in it, a glob names nothing, or globs are given for a sub-path.
    """
    path = os.path.realpath(path)
    kind = kind or kind_of(path)
    Excludes(excludes)  # raises what a scan would
    if home is not None and kind != "manifest":
        refuse_home(os.fsencode(home), path)
    for root in known:
        if root.path == path:
            return replace(root, excludes=tuple(excludes) or root.excludes)
        if kind == "manifest" or root.kind == "manifest":
            continue
        if inside(path, root.path):
            return _part(root, path, excludes)
        if inside(root.path, path):
            raise RootError(
                f"{display(path)} holds the root {root.display}: index that one, "
                f"or remove it first (lookalike roots remove {root.display})"
            )
    if kind == "picture":
        raise RootError(f"{display(path)} is one picture outside every root: index its folder")
    return RootInfo(0, path, kind, tuple(excludes))


def add_root(
    catalog: Catalog, path: bytes, *, kind: str | None = None, excludes: Sequence[str] = ()
) -> RootInfo:
    """Register a root and return it; a known root, or a sub-path of one, is returned as such.

    Parameters and errors are those of ``resolve_root``; a new manifest's are those of
    ``read_manifest``, because one that can't be read would stand in the way of every later run.
    """
    home = catalog.home.path
    root = resolve_root(list_roots(catalog), path, kind=kind, excludes=excludes, home=home)
    if root.kind == "manifest" and not root.id:
        read_manifest(root.path)
    with catalog.write() as conn:
        take_turns(conn)
        # Once more under the lock: another command may have added an overlapping root meanwhile.
        root = resolve_root(roots_in(conn), path, kind=root.kind, excludes=excludes)
        globs = {"globs": list(root.excludes)}
        if root.id:
            conn.execute(update(Root).where(Root.id == root.id).values(excludes=globs))
            return root
        added = conn.execute(
            insert(Root)
            .values(
                path=root.path,
                display=root.display,
                kind=root.kind,
                excludes=globs,
                added_at=catalog.now(conn),
            )
            .returning(Root.id)
        ).scalar_one()
    return replace(root, id=added)


def find_root(catalog: Catalog, path: bytes) -> RootInfo:
    """Return the root that a path is or lies in (then with ``under``).

    It need not exist now.  What exists is meant where it really lies, as a scan follows no links.

    Raises
    ------
    RootError
        No root is there.
    """
    known = list_roots(catalog)
    written, resolved = os.path.abspath(path), os.path.realpath(path)
    for root in known:  # whatever lies there now
        if root.path == written:
            return root
    for candidate in (resolved,) if os.path.exists(path) else (resolved, written):
        for root in known:  # a manifest may lie in a directory that is another root
            if root.path == candidate:
                return root
        for root in known:
            if root.kind == "directory" and inside(candidate, root.path):
                return replace(root, under=os.path.relpath(candidate, root.path))
    raise RootError(f"{display(path)} is not in any root; `lookalike roots` lists them")


def roots_in(conn: Connection) -> list[RootInfo]:
    """Return all roots as an open transaction sees them, in the order of their paths."""
    rows = conn.execute(select(Root.id, Root.path, Root.kind, Root.excludes).order_by(Root.path))
    return [RootInfo(row.id, row.path, row.kind, tuple(row.excludes["globs"])) for row in rows]


def _part(root: RootInfo, path: bytes, excludes: Sequence[str]) -> RootInfo:
    if excludes:
        raise RootError(
            f"{display(path)} is a part of the root {root.display}: "
            "excludes belong to a root, give them with it"
        )
    return replace(root, under=os.path.relpath(path, root.path))


def kind_of(path: bytes) -> str:
    """Return what lies at a path: ``directory``, ``picture`` by its name, else ``manifest``.

    Raises
    ------
    RootError
        Neither a directory nor a regular file is there.
    """
    if os.path.isdir(path):
        return "directory"
    if os.path.isfile(path):
        return "picture" if has_suffix(os.path.basename(path)) else "manifest"
    raise RootError(f"{display(path)} is neither a directory nor a manifest file")
