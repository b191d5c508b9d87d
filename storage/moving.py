"""Move and remove roots."""

import os
from dataclasses import replace

from sqlalchemy import Connection, delete, select, update

from storage.catalog import Catalog
from storage.errors import LeaseHeld, RootError
from storage.leases import reap
from storage.recognition import known_sample
from storage.roots import RootInfo, display, find_root, kind_of, list_roots, resolve_root
from storage.tables import Claim, Failure, File, Root
from storage.turns import take_turns


def remove_root(catalog: Catalog, path: bytes) -> int:
    """Forget a root and its files; images and vectors that nothing holds then go by compaction.

    Returns
    -------
    int
        The number of files that were known.

    Raises
    ------
    RootError
        The path is no root.
    LeaseHeld
        A run is scanning it.
    """
    root = _exactly(catalog, path)
    reap(catalog)
    files = select(File.id).where(File.root_id == root.id)
    with catalog.write() as conn:
        _refuse_busy(conn, root)
        conn.execute(delete(Failure).where(Failure.stage == "read", Failure.file_id.in_(files)))
        conn.execute(delete(Claim).where(Claim.kind == "file", Claim.subject_id.in_(files)))
        removed = conn.execute(delete(File).where(File.root_id == root.id)).rowcount
        conn.execute(delete(Root).where(Root.id == root.id))
    return removed


def move_root(catalog: Catalog, old: bytes, new: bytes) -> RootInfo:
    """Say that a root now lies elsewhere; nothing is read or extracted again for it.

    Raises
    ------
    RootError
        ``old`` is no root, ``new`` overlaps another one, or fewer than half of up to 32 known
        files are there.
    LeaseHeld
        A run is scanning the root.
    """
    root = _exactly(catalog, old)
    reap(catalog)
    others = [other for other in list_roots(catalog) if other.id != root.id]
    moved = resolve_root(others, new, kind=root.kind, home=catalog.home.path)
    if moved.id or kind_of(moved.path) != root.kind:
        raise RootError(f"{display(new)} can't take the place of the {root.kind} {root.display}")
    with catalog.read() as conn:
        sample = known_sample(conn, root.id) if root.kind == "directory" else []
    found = sum(os.path.lexists(os.path.join(moved.path, file.path)) for file in sample)
    if found * 2 < len(sample):
        raise RootError(
            f"only {found} of {len(sample)} files of {root.display} that were looked for are in "
            f"{moved.display}; nothing was changed"
        )
    with catalog.write() as conn:
        take_turns(conn)
        _refuse_busy(conn, root)
        values = {"path": moved.path, "display": moved.display, "place": None}
        conn.execute(update(Root).where(Root.id == root.id).values(values))
    return replace(root, path=moved.path)


def _exactly(catalog: Catalog, path: bytes) -> RootInfo:
    root = find_root(catalog, path)
    if root.under:
        raise RootError(f"{root.display} is no root, but a part of {display(root.path)}")
    return root


def _refuse_busy(conn: Connection, root: RootInfo) -> None:
    query = select(Claim.run_id).where(Claim.kind == "root", Claim.subject_id == root.id)
    holder = conn.execute(query).scalar()
    if holder is not None:
        raise LeaseHeld(f"{root.display} is being scanned by run {holder}; try again later")
