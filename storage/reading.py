"""One consistent view of a space."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Select, bindparam, func, select

from storage.catalog import Catalog
from storage.errors import IndexFileError, PartError, SpaceError
from storage.prepared import Prepared
from storage.rows import FloatArray, RowArray, Rows
from storage.spaces import SpaceInfo
from storage.tables import Generation, Part, Space
from storage.vectors import PartInfo, VectorStore

__all__ = [
    "FloatArray",
    "GenerationInfo",
    "RowArray",
    "Rows",
    "Snapshot",
    "Watched",
    "again_if_missing",
    "generation_paths",
    "open_store",
    "snapshot",
    "snapshot_in",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GenerationInfo:
    """A published index as the catalog knows it: ``n`` rows, all below ``row_end``.

    ``requested``: somebody asked for this ``factory``, and later indexes keep it.
    """

    id: int
    name: str
    row_end: int
    n: int
    factory: str
    requested: bool
    parameters: Mapping[str, Any]
    size_bytes: int
    checksum: str
    rowmap_checksum: str
    created_at: float


def generation_paths(folder: str, name: str) -> tuple[str, str]:
    """Return the paths of a published index and of its rowmap."""
    return os.path.join(folder, f"{name}.faiss"), os.path.join(folder, f"{name}.rowmap.npy")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A space as one transaction saw it: its index if any, its parts in the order of rows."""

    space: SpaceInfo
    generation: GenerationInfo | None
    parts: tuple[PartInfo, ...]
    next_row: int
    n: int
    """Vectors in the parts, dead ones included."""


def snapshot(catalog: Catalog, space: SpaceInfo) -> Snapshot:
    """Return one consistent view of a space; `snapshot_in` a transaction of its own."""
    with catalog.read() as conn:
        return snapshot_in(conn, space)


def snapshot_in(conn: Connection, space: SpaceInfo) -> Snapshot:
    """Return the view of a space that an open transaction has.

    Raises
    ------
    SpaceError
        The space was dropped.
    """
    next_row = conn.execute(select(Space.next_row).where(Space.id == space.id)).scalar()
    if next_row is None:
        raise SpaceError(f"the space {space.name} is gone; `lookalike spaces` lists what there is")
    parts = conn.execute(
        _columns(Part, PartInfo)
        .where(Part.space_id == space.id, Part.state == "live")
        .order_by(Part.row_start)
    )
    newest = conn.execute(
        _columns(Generation, GenerationInfo)
        .where(Generation.space_id == space.id, Generation.state == "live")
        .order_by(Generation.id.desc())
        .limit(1)
    ).first()
    infos = tuple(PartInfo(*row) for row in parts)
    return Snapshot(
        space=space,
        generation=GenerationInfo(*newest) if newest else None,
        parts=infos,
        next_row=next_row,
        n=sum(part.n for part in infos),
    )


class Watched:
    """A space's snapshot, which is read anew only where it has changed.  Threads may share it.

    What is asked each time is one row: parts and generations are never changed but for their
    states, and a number that was given to one is never given to another.
    """

    def __init__(self, space: SpaceInfo) -> None:
        self.space = space
        self._last: tuple[list[Any], Snapshot] | None = None

    def snapshot_in(self, conn: Connection) -> Snapshot:
        """Return what `snapshot_in` does, by the same transaction."""
        stamp = [tuple(row) for row in _STAMP.rows(conn, space_id=self.space.id)]
        last = self._last
        if stamp and last is not None and last[0] == stamp:
            return last[1]
        view = snapshot_in(conn, self.space)
        self._last = (stamp, view)
        return view


def _stamp(_: str) -> Select[Any]:
    space_id: Any = bindparam("space_id")
    parts = (Part.space_id == space_id, Part.state == "live")
    generations = (Generation.space_id == space_id, Generation.state == "live")
    numbers = (func.count(Part.id), func.max(Part.id), func.sum(Part.id))
    return select(
        Space.next_row,
        select(func.max(Generation.id)).where(*generations).scalar_subquery(),
        *(select(number).where(*parts).scalar_subquery() for number in numbers),
    ).where(Space.id == space_id)


_STAMP = Prepared(_stamp)


def _columns(table: Any, info: type) -> Select[Any]:
    return select(*(getattr(table, name) for name in info.__dataclass_fields__))  # type: ignore[attr-defined]


def again_if_missing(attempt: Callable[[], T]) -> T:
    """Return what ``attempt`` returns; once more where a file that it knew of was gone.

    Compaction keeps replaced files for a day, so a second attempt, with a snapshot of its own,
    meets a missing file only where the store is damaged.
    """
    try:
        return attempt()
    except (PartError, IndexFileError) as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
    return attempt()


def open_store(catalog: Catalog, space: SpaceInfo) -> VectorStore:
    """Return the parts of a space in the catalog's home."""
    return VectorStore(catalog.home.space_dir(space.fingerprint), space.dim, space.dtype)
