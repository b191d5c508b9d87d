"""Publish an index of a space: built beside the old one, then swapped in by one transaction."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, func, insert, select, update

from storage.catalog import Catalog
from storage.dead import DEAD_SHARE, entered_rows
from storage.durable import make_dir
from storage.errors import SpaceError
from storage.kinds import AUTO, IndexSpec, choose, outgrown, spec_of
from storage.leases import Lease, check_lease
from storage.reading import GenerationInfo, Rows, open_store, snapshot_in
from storage.recall import RecallInfo, Sample, measure, record
from storage.runs import claim, release
from storage.spaces import SpaceInfo
from storage.tables import Generation, Vector

if TYPE_CHECKING:
    import faiss

    from storage.generation import Written

RowArray = npt.NDArray[np.int64]

TAIL_ROWS = 4096
TAIL_SHARE = 0.05


def publish_due(catalog: Catalog, space: SpaceInfo, *, retrain: bool = False) -> str | None:
    """Return why the space's index should be built anew, None where it need not or can't.

    ``first``: there are vectors and no index.  ``tail``: more than 4,096 rows, or 5 %, are newer
    than the index and searched one by one.  ``dead``: more than 10 % of the index's rows are no
    image's vector any more, as after a compaction.  Rows of images whose files are missing don't
    count: they stay in the index, because the files may come back, until compaction drops them.

    With ``retrain`` also ``outgrown``: nobody asked for the kind of the index, and `choose` has
    another one for the vectors there are, and for a tenth less and a tenth more of them.  (A space
    that has grown is due by its tail before that, and every publishing chooses and trains anew.)
    """
    with catalog.read() as conn:
        view = snapshot_in(conn, space)
        entered = select(func.count()).where(Vector.space_id == space.id)
        n = conn.execute(entered).scalar_one()
        if not n:
            return None
        newest = view.generation
        if newest is None:
            return "first"
        tail = view.next_row - newest.row_end
        if tail > min(TAIL_ROWS, TAIL_SHARE * newest.n):
            return "tail"
        kept = conn.execute(entered.where(Vector.row < newest.row_end)).scalar_one()
    if newest.n - kept > DEAD_SHARE * newest.n:
        return "dead"
    changes = retrain and not newest.requested and outgrown(newest.factory, n, space.dim)
    return "outgrown" if changes else None


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
        FAISS ``index_factory`` string, which later publishing of this space keeps to; ``auto``
        chooses by the number of rows and their size, now and later.  None keeps to what was asked
        for last, and chooses where nothing was, or where FAISS can't build it any more.
    check
        Called now and then while the index is built and measured; what it raises ends that, and
        the former index goes on serving.

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
    if factory is not None:
        spec_of(factory)  # what no one can build is refused before anything is claimed
    claim(catalog, lease, "space", space.id, space.id)
    try:
        return _publish(catalog, lease, space, factory, check)
    finally:
        release(catalog, lease, "space", space.id, space.id)


@dataclass(frozen=True)
class _Made:
    """An index that is built and measured, and not yet written."""

    index: "faiss.Index"
    spec: IndexSpec
    requested: bool
    sample: Sample
    recall: float


def _publish(
    catalog: Catalog,
    lease: Lease,
    space: SpaceInfo,
    factory: str | None,
    check: Callable[[], None] | None,
) -> GenerationInfo:
    from storage.generation import write_generation

    with catalog.read() as conn:
        view = snapshot_in(conn, space)
        # Committed rows only, in one view with the parts that hold them.
        rowmap = entered_rows(conn, space.id, below=view.next_row)
        asked = factory or _asked_before(conn, space.id) or AUTO
    if not len(rowmap):
        raise SpaceError(f"the space {space.name} has no vectors yet; index some images first")
    vectors = Rows(open_store(catalog, space), view.parts)
    try:
        made = _make(vectors, rowmap, asked, check)
    except SpaceError:
        if factory is not None:
            raise
        made = _make(vectors, rowmap, AUTO, check)  # it was asked for when there were more vectors
    folder = catalog.home.index_dir(space.fingerprint)
    make_dir(folder)
    name = f"{lease.run_id}-{uuid.uuid4().hex}"
    written = write_generation(folder, name, made.index, rowmap)
    with catalog.write() as conn:
        check_lease(conn, lease)
        now = catalog.now(conn)
        withdraw(conn, space.id, now)
        row = _row(made, written)
        row |= {"space_id": space.id, "name": name, "row_end": view.next_row, "n": len(rowmap)}
        conn.execute(insert(Generation).values(state="live", created_at=now, **row))
        record(conn, space.id, _measured(made, name, len(rowmap), now))
        published = snapshot_in(conn, space).generation
    if published is None:  # pragma: no cover - it was inserted a moment ago
        raise SpaceError(f"the space {space.name} was dropped meanwhile")
    return published


def _asked_before(conn: Connection, space_id: int) -> str | None:
    """Return the kind that was asked for last; a generation that was withdrawn counts too."""
    newest = conn.execute(
        select(Generation.factory, Generation.requested)
        .where(Generation.space_id == space_id)
        .order_by(Generation.id.desc())
        .limit(1)
    ).first()
    return newest.factory if newest is not None and newest.requested else None


def _make(vectors: Rows, rowmap: RowArray, asked: str, check: Callable[[], None] | None) -> _Made:
    from storage.build import build

    n = len(rowmap)
    spec = choose(n, vectors.d) if asked == AUTO else spec_of(asked)
    index = build(vectors, rowmap, spec, check=check)
    sample = Sample().of(n)
    recall = measure(vectors, rowmap, index, spec, sample=sample, check=check)
    return _Made(index, spec, asked != AUTO, sample, recall)


def _row(made: _Made, written: "Written") -> dict[str, object]:
    return {
        "factory": made.spec.factory,
        "requested": made.requested,
        "parameters": dict(made.spec.parameters),
        "size_bytes": written.size_bytes,
        "checksum": written.checksum,
        "rowmap_checksum": written.rowmap_checksum,
    }


def _measured(made: _Made, name: str, n: int, now: float) -> RecallInfo:
    return RecallInfo(
        generation=name,
        factory=made.spec.factory,
        n=n,
        k=made.sample.k,
        queries=made.sample.queries,
        recall=made.recall,
        measured_at=now,
    )
