"""Fill a space from the vectors of another one: nothing is read but parts, nothing extracted.

A chunk is a part and one transaction, as where pictures are read: the part is durable first, then
the lock of the space, the lease, the rows.  What a space lacks is a query, so a run that was killed
is gone on with by the next, and what a run of ``index`` has entered meanwhile is left as it is.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection, Select, exists, func, select
from sqlalchemy.orm import aliased

from storage.before import image_ids, relevant_failures
from storage.catalog import Catalog
from storage.chunks import Chunk
from storage.leases import Lease, check_lease
from storage.outcomes import Before
from storage.reading import FloatArray, open_store, snapshot
from storage.settle import Settle
from storage.slices import pages, sliced
from storage.spaces import SpaceInfo
from storage.tables import Image, Vector
from storage.vectors import PartWritten
from storage.verified import VerifiedRows

CHUNK_ROWS = 8192
CHUNK_BYTES = 64 << 20
"""Of a chunk's vectors in float64, on the larger side of the two."""


@dataclass(frozen=True)
class Derived:
    """What a chunk gave: rows looked at, and vectors that were entered."""

    rows: int
    entered: int


def count_lacking(catalog: Catalog, base: SpaceInfo, space: SpaceInfo) -> int:
    """Count the images that have a vector in ``base`` and none in ``space``."""
    lacking = _lacking(base, space).subquery()
    with catalog.read() as conn:
        return conn.execute(select(func.count()).select_from(lacking)).scalar_one()


def derive(
    catalog: Catalog,
    lease: Lease,
    base: SpaceInfo,
    space: SpaceInfo,
    transform: Callable[[FloatArray], FloatArray],
) -> Iterator[Derived]:
    """Give ``space`` a vector for each image that has one in ``base`` alone; yield each chunk.

    Nobody should compact or forget in ``space`` meanwhile, or drop ``base``: the caller claims.

    Parameters
    ----------
    transform
        Makes of vectors of ``base``, shape ``(n, d)``, those of ``space``, shape ``(n, D)``, both
        float32; a row of NaN where there is none, and that image keeps waiting for one.

    Raises
    ------
    PartError
        A part of ``base`` is missing or damaged.
    LeaseLost, SpaceError, DiskFull, StorageError
        As ``storage.commit.commit_chunk`` and ``VectorStore.append``.
    """
    view = snapshot(catalog, base)
    vectors = VerifiedRows(open_store(catalog, base), view)
    store = open_store(catalog, space)
    most = max(1, min(CHUNK_ROWS, CHUNK_BYTES // (8 * max(base.dim, space.dim))))
    query = _lacking(base, space).where(Vector.row < view.next_row)
    for page in pages(catalog, query, Vector.row, size=most):
        x = transform(vectors.gather(np.array([row for row, _ in page], np.int64)))
        good = np.flatnonzero(np.isfinite(x).all(axis=1))
        digests = [page[at][1] for at in good.tolist()]
        entered = 0
        if digests:
            facts = {"derived_from": base.fingerprint}
            part = store.append(lease.run_id, x[good], digests, facts=facts)
            entered = _commit(catalog, lease, space, part)
        yield Derived(len(page), entered)


def _lacking(base: SpaceInfo, space: SpaceInfo) -> Select[Any]:
    """Return the query of row and digest of the images that only ``base`` has vectors of."""
    there = aliased(Vector)
    twin = exists().where(there.space_id == space.id, there.image_id == Vector.image_id)
    query = select(Vector.row, Image.digest).join(Image, Image.id == Vector.image_id)
    return query.where(Vector.space_id == base.id, ~twin)


def _commit(catalog: Catalog, lease: Lease, space: SpaceInfo, part: PartWritten) -> int:
    """Enter a part in one transaction; return how many of its vectors are some image's."""
    with catalog.write() as conn:
        check_lease(conn, lease)
        at = Settle(conn, catalog.now(conn), lease, space, Chunk(0, space.id, ()))
        row_start = at.lock_space()
        images = image_ids(conn, part.digests)
        entered = at.add_part(part, images, _before(conn, space, part, images), row_start)
        at.resolve((), relevant_failures(conn, space, part.digests), entered)
    return len(entered)


def _before(
    conn: Connection, space: SpaceInfo, part: PartWritten, images: Mapping[bytes, int]
) -> Before:
    """Return which digests have a vector by now, or are no image's any more."""
    served = set(part.digests) - images.keys()
    for some in sliced(part.digests):
        query = select(Image.digest).join(Vector, Vector.image_id == Image.id)
        query = query.where(Vector.space_id == space.id, Image.digest.in_(some))
        served |= set(conn.execute(query).scalars())
    return Before(held={}, settled=(), missing={}, elsewhere=(), served=served, broken={})
