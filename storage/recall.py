"""How well a published index finds what exact search finds: measured, kept, and judged.

It is measured when an index is trained, which reads every vector anyway.  Of one that is extended
only the search for the new vectors is measured, and it is trained anew where that finds less
(``storage.extend``): so the newest of a space's measurements is that of the training of its live
index, of itself or of what it extends.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, insert, select

from storage.candidates import fetch_width
from storage.catalog import Catalog
from storage.exact import is_in, search_exact
from storage.kinds import IndexSpec, choose
from storage.reading import GenerationInfo, Rows
from storage.spaces import SpaceInfo
from storage.tables import Generation, Recall

if TYPE_CHECKING:
    import faiss

FloatArray = npt.NDArray[np.float32]
RowArray = npt.NDArray[np.int64]
Check = Callable[[], None]

K = 10
QUERIES = 100
TIE = 1e-6
"""A cosine that is lower by no more than this is as near: duplicates, and rounding, are no miss."""
LEAST_RECALL = 0.9
LEAST_FALL = 0.01
NOISE_Z = 2.0
"""Standard errors that chance may explain: it does so less than once in 40 times."""
_AT_ONCE = 32
"""Queries between two looks at whether to go on."""
_PAIRS = 2048
"""Vectors in memory at once while candidates are rescored."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Which of the space's own vectors are searched, and how many neighbours of each."""

    queries: int = QUERIES
    k: int = K
    seed: int = 0

    def of(self, n: int) -> "Sample":
        """Return what is left of it where there are only n vectors."""
        return Sample(min(self.queries, n), min(self.k, n), self.seed)


@dataclass(frozen=True, slots=True)
class Added:
    """What an index was extended by: rows, shape ``(m,)``, int64, ascending, ``m > 0``.

    ``held`` returns which of some rows, of any shape, are still some image's vector, ascending.
    """

    rows: RowArray
    held: Callable[[RowArray], RowArray]


@dataclass(frozen=True, slots=True)
class RecallInfo:
    """One measurement as the catalog keeps it; ``generation`` is a name, which may be gone."""

    generation: str
    factory: str
    n: int
    k: int
    queries: int
    recall: float
    measured_at: float


def measure(  # noqa: PLR0913 -- four say of what, three how
    vectors: Rows,
    rowmap: RowArray,
    index: "faiss.Index",
    spec: IndexSpec,
    *,
    sample: Sample,
    check: Check | None = None,
    added: "Added | None" = None,
) -> float:
    """Return the share of the true neighbours that an index finds, as search uses it.

    The sample's vectors are searched, themselves among the neighbours like any other row: by the
    index, as many candidates wide as a search for k is, and by comparison with every vector, in
    one pass.  Both are ordered by their true cosines; a neighbour is found where the index's is
    not below the last of the exact k.

    Parameters
    ----------
    vectors
        The space's vectors.
    rowmap
        Rows in the order of the index's positions, shape ``(n,)``, int64, ascending, ``n > 0``.
    index
        Filled, in memory or mapped.
    spec
        Its search parameters.
    sample
        At most n queries and neighbours; equal seeds draw equal samples.
    check
        Called between blocks; what it raises ends the measurement.
    added
        Where the index was extended: the sample is of the new vectors, and they are compared with
        the new ones and with what the index offers of the others.  That costs in proportion to the
        new, and finds what was trained too early for them.

    Returns
    -------
    float
        0 to 1.

    Raises
    ------
    PartError
        A part is missing or not what the catalog says.
    """
    check = check or _go_on
    rows = rowmap if added is None else added.rows
    picks = np.random.default_rng(sample.seed).choice(len(rows), sample.queries, replace=False)
    xq = vectors.gather(rows[np.sort(picks)])
    fetch = fetch_width(sample.k, len(rowmap))
    nearest = search_exact(_checked(vectors.blocks(rows=rows), check), xq, fetch)[1]
    offered = _indexed(index, spec, xq, rowmap, fetch, check)
    if added is not None:
        offered = np.where(
            is_in(offered.ravel(), added.held(offered)).reshape(offered.shape), offered, -1
        )
        nearest = np.concatenate([nearest, offered], axis=1)
    exact = _cosines(vectors, xq, nearest, check)
    found = _cosines(vectors, xq, offered, check)
    k = sample.k
    return float(np.mean(found[:, :k] >= exact[:, k - 1 : k] - TIE))


def _go_on() -> None:
    pass


def _checked(
    blocks: Iterator[tuple[RowArray, FloatArray]], check: Check
) -> Iterator[tuple[RowArray, FloatArray]]:
    for block in blocks:
        check()
        yield block


def _indexed(
    index: "faiss.Index",
    spec: IndexSpec,
    xq: FloatArray,
    rowmap: RowArray,
    fetch: int,
    check: Check,
) -> RowArray:
    """Return the rows that the index offers, shape ``(nq, c)``, -1 where it found no more."""
    from storage.index import search_index

    offered = []
    for start in range(0, len(xq), _AT_ONCE):
        check()
        some = xq[start : start + _AT_ONCE]
        positions = search_index(index, spec.parameters, some, fetch)[1]
        offered.append(np.where(positions >= 0, rowmap[positions], -1))
    return np.concatenate(offered)


def _cosines(
    vectors: Rows, xq: FloatArray, rows: RowArray, check: Check
) -> npt.NDArray[np.float64]:
    """Return the true cosines of each query's rows, largest first, -inf for row -1."""
    rows = np.sort(rows, axis=1)
    rows[:, 1:][rows[:, 1:] == rows[:, :-1]] = -1  # one that was offered twice is found once
    flat = rows.ravel()
    order = np.argsort(flat, kind="stable")  # through the parts from first to last
    order = order[flat[order] >= 0]
    cosines = np.full(len(flat), -np.inf)
    for start in range(0, len(order), _PAIRS):
        check()
        at = order[start : start + _PAIRS]
        x = vectors.gather(flat[at]).astype(np.float64)
        q = xq[at // rows.shape[1]].astype(np.float64)
        # The stored float16 is not of unit length.
        squares = np.einsum("nd,nd->n", x, x) * np.einsum("nd,nd->n", q, q)
        cosines[at] = np.einsum("nd,nd->n", x, q) / np.sqrt(squares)
    return -np.sort(-cosines.reshape(rows.shape), axis=1)


def record(conn: Connection, space_id: int, info: RecallInfo) -> None:
    """Enter a measurement, in the transaction that enters its generation."""
    conn.execute(insert(Recall).values(space_id=space_id, **asdict(info)))


def of_training(measured: Sequence[RecallInfo], generation: GenerationInfo) -> RecallInfo | None:
    """Return what was measured when a generation was trained, from a series, newest first.

    That is its own measurement, or for one that was extended the newest; None where there is none
    that can be.
    """
    for info in measured:
        if info.generation == generation.name:
            return info
    newest = measured[0] if measured else None
    if newest is None or newest.factory != generation.factory or newest.n > generation.n:
        return None
    return newest


def series(catalog: Catalog, space: SpaceInfo, limit: int = 50) -> list[RecallInfo]:
    """Return a space's measurements, newest first, at most ``limit`` of them."""
    with catalog.read() as conn:
        return series_in(conn, space.id, limit)


def series_in(conn: Connection, space_id: int, limit: int = 50) -> list[RecallInfo]:
    """Return what `series` does, as an open transaction sees it."""
    columns = [getattr(Recall, name) for name in RecallInfo.__dataclass_fields__]
    query = select(*columns).where(Recall.space_id == space_id)
    newest_first = query.order_by(Recall.id.desc()).limit(limit)
    return [RecallInfo(*row) for row in conn.execute(newest_first)]


def latest(catalog: Catalog, space: SpaceInfo) -> tuple[RecallInfo | None, RecallInfo | None]:
    """Return a space's newest measurement and the one before; None for each that is not there."""
    with catalog.read() as conn:
        return _latest(conn, space.id)


def _latest(conn: Connection, space_id: int) -> tuple[RecallInfo | None, RecallInfo | None]:
    two = series_in(conn, space_id, 2)
    return (two[0] if two else None), (two[1] if len(two) > 1 else None)


def fallen(catalog: Catalog, space: SpaceInfo) -> str | None:
    """Return what to tell people where the space's index finds too little, else None.

    It does where it found less than nine tenths when it was trained, or less than the one before
    did by more than chance explains (`noise`).  What was measured of an index that is withdrawn
    tells nothing.
    """
    live = select(Generation.id).where(Generation.space_id == space.id, Generation.state == "live")
    with catalog.read() as conn:
        newest, before = _latest(conn, space.id)
        if newest is None or conn.execute(live).first() is None:
            return None
    said = f"the index of space {space.name} ({newest.factory}) finds {_percent(newest.recall)}"
    said += f" of the {newest.k} nearest"
    if before is not None and before.recall - newest.recall > noise(before, newest):
        said += f", the one before ({before.factory}) found {_percent(before.recall)}"
    elif newest.recall >= LEAST_RECALL:
        return None
    return f"{said}; {_advice(space, newest)}"


def noise(before: RecallInfo, newest: RecallInfo) -> float:
    """Return the difference of two recalls that may be chance, at least a hundredth.

    Two standard errors of the difference of two proportions under the hypothesis that they are
    equal, by the normal approximation with the pooled share p (NIST/SEMATECH e-Handbook of
    Statistical Methods, 7.3.3).  What is drawn independently are queries, not neighbours: who
    lies in a list that is not probed misses several at once.  The variance of one query's share
    is at most p (1 - p) whatever its distribution (Bhatia and Davis, American Mathematical
    Monthly 107, 2000), so a query counts as one trial; that errs on the quiet side.
    """
    both = before.queries + newest.queries
    p = (before.queries * before.recall + newest.queries * newest.recall) / both
    variance = p * (1 - p) * (1 / before.queries + 1 / newest.queries)
    return max(LEAST_FALL, NOISE_Z * math.sqrt(variance))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _advice(space: SpaceInfo, info: RecallInfo) -> str:
    chosen = choose(info.n).factory
    command = f"lookalike index --space {space.name} --index-spec"
    if chosen != info.factory:
        return f"`{command} auto` publishes {chosen} instead"
    return f"`{command} FACTORY` publishes another kind; Flat finds all and is the largest"
