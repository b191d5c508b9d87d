"""Publish an index of a space: made beside the old one, then swapped in by one transaction.

It is the old one extended where that serves (``storage.extend``), else built anew.
"""

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
from storage.extend import extended, extension
from storage.kinds import AUTO, IndexSpec, outgrown, spec_of, wanted
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
    """Return why an index of the space should be published, None where it need not or can't.

    ``first``: there are vectors and no index.  ``tail``: more than 4,096 rows, or 5 %, are newer
    than the index and searched one by one.  ``dead``: more than 10 % of the index's rows are no
    image's vector any more, as after a compaction.  Rows of images whose files are missing don't
    count: they stay in the index, because the files may come back, until compaction drops them.

    With ``retrain`` also ``outgrown``: nobody asked for the kind of the index, and `choose` has
    another one for the vectors there are, and for a tenth less and a tenth more of them.  (A space
    that has grown is due by its tail before that, and every publishing chooses anew.)
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
    changes = retrain and not newest.requested and outgrown(newest.factory, n)
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
    """Make, write and record an index that holds every row that is an image's vector.

    The published index is extended by the rows that it lacks, where ``extension`` finds that this
    serves and nobody asks for a kind now.  Else all vectors are read, and the index is trained with
    them and measured.

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
        chooses by the number of rows, now and later.  Either builds anew.  None
        keeps to what was asked for last, and chooses where nothing was, or where FAISS can't build
        it any more.
    check
        Called now and then while the index is made and measured; what it raises ends that, and
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
    """An index that is ready and not yet written; what was measured where it was trained."""

    index: "faiss.Index"
    rowmap: RowArray
    row_end: int
    spec: IndexSpec
    requested: bool
    measured: tuple[Sample, float] | None


def _publish(
    catalog: Catalog,
    lease: Lease,
    space: SpaceInfo,
    factory: str | None,
    check: Callable[[], None] | None,
) -> GenerationInfo:
    from storage.generation import write_generation

    made = _extended(catalog, space, check) if factory is None else None
    if made is None:
        made = _built(catalog, space, factory, check)
    folder = catalog.home.index_dir(space.fingerprint)
    make_dir(folder)
    name = f"{lease.run_id}-{uuid.uuid4().hex}"
    written = write_generation(folder, name, made.index, made.rowmap)
    with catalog.write() as conn:
        check_lease(conn, lease)
        now = catalog.now(conn)
        withdraw(conn, space.id, now)
        row = _row(made, written) | {"space_id": space.id, "name": name}
        conn.execute(insert(Generation).values(state="live", created_at=now, **row))
        if made.measured is not None:
            record(conn, space.id, _measured(made, *made.measured, name, now))
        published = snapshot_in(conn, space).generation
    if published is None:  # pragma: no cover - it was inserted a moment ago
        raise SpaceError(f"the space {space.name} was dropped meanwhile")
    return published


def _extended(catalog: Catalog, space: SpaceInfo, check: Callable[[], None] | None) -> _Made | None:
    """Return the published index with the rows that it lacks; None where it is built anew."""
    with catalog.read() as conn:
        # Committed rows only, in one view with the parts that hold them.
        view = snapshot_in(conn, space)
        how = extension(conn, view, _asked_before(conn, space.id) or AUTO)
    if how is None:
        return None
    filled = extended(catalog, Rows(open_store(catalog, space), view.parts), space, how, check)
    if filled is None:
        return None
    old = how.generation
    spec = IndexSpec(old.factory, old.parameters)
    return _Made(*filled, view.next_row, spec, old.requested, None)


def _built(
    catalog: Catalog, space: SpaceInfo, factory: str | None, check: Callable[[], None] | None
) -> _Made:
    """Return an index of all rows, trained and measured."""
    with catalog.read() as conn:
        view = snapshot_in(conn, space)
        rowmap = entered_rows(conn, space.id, below=view.next_row)
        asked = factory or _asked_before(conn, space.id) or AUTO
    if not len(rowmap):
        raise SpaceError(f"the space {space.name} has no vectors yet; index some images first")
    vectors = Rows(open_store(catalog, space), view.parts)
    try:
        return _make(vectors, rowmap, view.next_row, asked, check)
    except SpaceError:
        if factory is not None:
            raise
        # It was asked for when there were more vectors.
        return _make(vectors, rowmap, view.next_row, AUTO, check)


def _asked_before(conn: Connection, space_id: int) -> str | None:
    """Return the kind that was asked for last; a generation that was withdrawn counts too."""
    newest = conn.execute(
        select(Generation.factory, Generation.requested)
        .where(Generation.space_id == space_id)
        .order_by(Generation.id.desc())
        .limit(1)
    ).first()
    return newest.factory if newest is not None and newest.requested else None


def _make(
    vectors: Rows, rowmap: RowArray, row_end: int, asked: str, check: Callable[[], None] | None
) -> _Made:
    from storage.build import build

    n = len(rowmap)
    spec = wanted(asked, n)
    index = build(vectors, rowmap, spec, check=check)
    sample = Sample().of(n)
    recall = measure(vectors, rowmap, index, spec, sample=sample, check=check)
    return _Made(index, rowmap, row_end, spec, asked != AUTO, (sample, recall))


def _row(made: _Made, written: "Written") -> dict[str, object]:
    return {
        "row_end": made.row_end,
        "n": len(made.rowmap),
        "factory": made.spec.factory,
        "requested": made.requested,
        "parameters": dict(made.spec.parameters),
        "size_bytes": written.size_bytes,
        "checksum": written.checksum,
        "rowmap_checksum": written.rowmap_checksum,
    }


def _measured(made: _Made, sample: Sample, recall: float, name: str, now: float) -> RecallInfo:
    return RecallInfo(
        generation=name,
        factory=made.spec.factory,
        n=len(made.rowmap),
        k=sample.k,
        queries=sample.queries,
        recall=recall,
        measured_at=now,
    )
