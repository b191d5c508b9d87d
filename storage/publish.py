"""Publish an index of a space: built beside the old one, then swapped in by one transaction."""

import uuid
from collections.abc import Callable

from sqlalchemy import Connection, func, insert, select, update

from storage.catalog import Catalog
from storage.dead import DEAD_SHARE, entered_rows
from storage.errors import SpaceError
from storage.home import make_dir
from storage.kinds import IndexSpec, choose, spec_of
from storage.reading import GenerationInfo, Rows, open_store, snapshot_in
from storage.runs import Lease, check_lease, claim, release
from storage.spaces import SpaceInfo
from storage.tables import Generation, Vector

TAIL_ROWS = 4096
TAIL_SHARE = 0.05


def publish_due(catalog: Catalog, space: SpaceInfo) -> str | None:
    """Return why the space's index should be built anew, None where it need not or can't.

    ``first``: there are vectors and no index.  ``tail``: more than 4,096 rows, or 5 %, are newer
    than the index and searched one by one.  ``dead``: more than 10 % of the index's rows are no
    image's vector any more, as after a compaction.  Rows of images whose files are missing don't
    count: they stay in the index, because the files may come back, until compaction drops them.
    """
    with catalog.read() as conn:
        view = snapshot_in(conn, space)
        entered = select(func.count()).where(Vector.space_id == space.id)
        if not conn.execute(entered).scalar_one():
            return None
        newest = view.generation
        if newest is None:
            return "first"
        tail = view.next_row - newest.row_end
        if tail > min(TAIL_ROWS, TAIL_SHARE * newest.n):
            return "tail"
        kept = conn.execute(entered.where(Vector.row < newest.row_end)).scalar_one()
    return "dead" if newest.n - kept > DEAD_SHARE * newest.n else None


def withdraw(conn: Connection, space_id: int, now: float) -> None:
    """Take back a space's index, if it has one; its files stay for a day, for their readers."""
    live = (Generation.space_id == space_id, Generation.state == "live")
    conn.execute(update(Generation).where(*live).values(state="replaced", replaced_at=now))


def publish(
    catalog: Catalog,
    lease: Lease,
    space: SpaceInfo,
    factory: str | None = None,
    check: Callable[[], None] | None = None,
) -> GenerationInfo:
    """Build, write and record an index of every row that is an image's vector.

    Parameters
    ----------
    catalog
        Open for writing.
    lease
        The run's; the run should keep it renewed meanwhile.
    space
        The space.
    factory
        FAISS ``index_factory`` string; None chooses by the number of rows and their size.
    check
        Called now and then while the index is built; what it raises ends that, and the former
        index goes on serving.

    Returns
    -------
    GenerationInfo
        The new generation.  Files of the former one stay for a day, for readers that hold them.

    Raises
    ------
    LeaseHeld
        Another run publishes, compacts or repairs this space.
    LeaseLost
        The run was declared dead; the files written are orphans.
    SpaceError
        The space has no vectors, or FAISS can't build what ``factory`` says.
    PartError
        A part is missing or not what the catalog says.
    DiskFull
        No space left; the former index goes on serving.
    """
    spec = spec_of(factory) if factory is not None else None
    claim(catalog, lease, "space", space.id, space.id)
    try:
        return _publish(catalog, lease, space, spec, check)
    finally:
        release(catalog, lease, "space", space.id, space.id)


def _publish(
    catalog: Catalog,
    lease: Lease,
    space: SpaceInfo,
    spec: IndexSpec | None,
    check: Callable[[], None] | None,
) -> GenerationInfo:
    from storage.build import build
    from storage.generation import write_generation

    with catalog.read() as conn:
        view = snapshot_in(conn, space)
        # Committed rows only, in one view with the parts that hold them.
        rowmap = entered_rows(conn, space.id, below=view.next_row)
    if not len(rowmap):
        raise SpaceError(f"the space {space.name} has no vectors yet; index some images first")
    spec = spec or choose(len(rowmap), space.dim)
    index = build(Rows(open_store(catalog, space), view.parts), rowmap, spec, check=check)
    folder = catalog.home.index_dir(space.fingerprint)
    make_dir(folder)
    name = f"{lease.run_id}-{uuid.uuid4().hex}"
    written = write_generation(folder, name, index, rowmap)
    with catalog.write() as conn:
        check_lease(conn, lease)
        now = catalog.now(conn)
        withdraw(conn, space.id, now)
        conn.execute(
            insert(Generation).values(
                space_id=space.id,
                name=name,
                state="live",
                row_end=view.next_row,
                n=len(rowmap),
                factory=spec.factory,
                parameters=dict(spec.parameters),
                size_bytes=written.size_bytes,
                checksum=written.checksum,
                rowmap_checksum=written.rowmap_checksum,
                created_at=now,
            )
        )
        published = snapshot_in(conn, space).generation
    if published is None:  # pragma: no cover - it was inserted a moment ago
        raise SpaceError(f"the space {space.name} was dropped meanwhile")
    return published
