"""What a store holds, counted for people: roots, spaces, last runs."""

import os
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, case, func, select

from storage.catalog import Catalog
from storage.failures import counts_by_class
from storage.owner import Owner, is_gone, this_process
from storage.pending import pending_counts
from storage.recall import RecallInfo, fallen, series_in
from storage.spaces import list_spaces
from storage.tables import File, Generation, Image, Part, Root, Run, Space, Vector

LAST_RUNS = 5


@dataclass(frozen=True, slots=True)
class RootOverview:
    """One root with its files by state; times are seconds since 1970."""

    path: str
    kind: str
    excludes: list[str]
    live: int
    missing: int
    excluded: int
    scanned_at: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the values for scripts."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SpaceOverview:
    """One space with what it holds; ``size_bytes`` is that of its live parts and index."""

    name: str
    fingerprint: str
    current: bool
    model: dict[str, Any]
    """Model, layer, weights and what else was asked for."""
    dim: int
    dtype: str
    vectors: int
    parts: int
    size_bytes: int
    index: str | None
    """FAISS factory of the published index; None while search is exact."""
    index_rows: int
    recalls: list[RecallInfo]
    """What was measured of its indexes when they were published, newest first."""

    def to_json(self) -> dict[str, Any]:
        """Return the values for scripts."""
        return asdict(self)


def roots_overview(catalog: Catalog) -> list[RootOverview]:
    """Return all roots in the order of their paths."""
    counted = [
        func.coalesce(func.sum(case((File.state == state, 1), else_=0)), 0).label(state)
        for state in ("live", "missing", "excluded")
    ]
    query = (
        select(Root.path, Root.kind, Root.excludes, Root.scanned_at, *counted)
        .outerjoin(File, File.root_id == Root.id)
        .group_by(Root.id)
        .order_by(Root.path)
    )
    with catalog.read() as conn:
        rows = conn.execute(query).all()
    return [
        RootOverview(
            path=os.fsdecode(row.path),
            kind=row.kind,
            excludes=list(row.excludes["globs"]),
            live=int(row.live),
            missing=int(row.missing),
            excluded=int(row.excluded),
            scanned_at=row.scanned_at,
        )
        for row in rows
    ]


def spaces_overview(catalog: Catalog) -> list[SpaceOverview]:
    """Return all spaces in the order in which they were made."""
    with catalog.read() as conn:
        return [_space(conn, space) for space in conn.execute(_SPACES).all()]


_SPACES = select(
    Space.id, Space.name, Space.fingerprint, Space.current, Space.request, Space.dim, Space.dtype
).order_by(Space.id)


def _space(conn: Connection, space: Any) -> SpaceOverview:
    vectors = conn.execute(select(func.count()).where(Vector.space_id == space.id)).scalar_one()
    parts, part_bytes = conn.execute(
        select(func.count(), func.coalesce(func.sum(Part.size_bytes), 0)).where(
            Part.space_id == space.id, Part.state == "live"
        )
    ).one()
    generation = conn.execute(
        select(Generation.factory, Generation.n, Generation.size_bytes)
        .where(Generation.space_id == space.id, Generation.state == "live")
        .order_by(Generation.id.desc())
        .limit(1)
    ).first()
    return SpaceOverview(
        name=space.name,
        fingerprint=space.fingerprint,
        current=space.current,
        model=dict(space.request),
        dim=space.dim,
        dtype=space.dtype,
        vectors=vectors,
        parts=parts,
        size_bytes=int(part_bytes) + (generation.size_bytes if generation else 0),
        index=generation.factory if generation else None,
        index_rows=generation.n if generation else 0,
        recalls=series_in(conn, space.id),
    )


def overview(catalog: Catalog) -> dict[str, Any]:
    """Return the whole store for ``lookalike status``: plain values, ready for JSON."""
    with catalog.read() as conn:
        images = conn.execute(select(func.count()).select_from(Image)).scalar_one()
        runs = [_run(catalog, conn, row) for row in conn.execute(_RUNS)]
    infos = {space.name: space for space in list_spaces(catalog)}
    spaces = []
    for space in spaces_overview(catalog):
        info = infos[space.name]
        pending = pending_counts(catalog, info, None).total
        failures = dict(counts_by_class(catalog, info))
        values = space.to_json()
        measured = values.pop("recalls")
        values |= {"recall": measured[0] if measured else None, "fallen": fallen(catalog, info)}
        spaces.append({**values, "pending": pending, "failures": failures})
    return {
        "store_id": catalog.store_id,
        "catalog": catalog.dialect,
        "images": images,
        "roots": [root.to_json() for root in roots_overview(catalog)],
        "spaces": spaces,
        "runs": runs,
    }


_RUN = (Run.id, Run.kind, Run.state, Run.started_at, Run.ended_at)
_OWNER = (Run.host, Run.boot, Run.pid, Run.process_start)
_RUNS = select(*_RUN, *_OWNER, Run.expires_at).order_by(Run.started_at.desc()).limit(LAST_RUNS)


def _run(catalog: Catalog, conn: Connection, row: Any) -> dict[str, Any]:
    """Return a run as it is: one whose owner is gone counts as crashed before a writer says so."""
    state = row.state
    if state == "running":
        owner = Owner(row.host, row.boot, row.pid, row.process_start)
        expired = row.expires_at < catalog.now(conn)
        one_host = catalog.dialect == "sqlite"
        if is_gone(owner, this_process(), expired=expired, one_host=one_host):
            state = "crashed"
    return {**{column.key: row._mapping[column.key] for column in _RUN}, "state": state}
