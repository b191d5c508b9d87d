"""Compare catalog, parts and indexes with each other, and mend what can be mended.

What is derived is rebuilt, what is lost becomes pending again: a part that is gone or damaged loses
its rows, and the next run extracts those images anew.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from sqlalchemy import delete, select, update

from storage.catalog import Catalog
from storage.check_catalog import Finding, file_findings, row_findings
from storage.cleanup import KEEP_S, delete_old_files, orphans
from storage.dead import entered_rows
from storage.errors import IndexFileError, PartError
from storage.generation import load_generation
from storage.leases import Lease, check_lease
from storage.npy import map_npy
from storage.publish import publish, withdraw
from storage.reading import GenerationInfo, generation_paths, open_store, snapshot
from storage.runs import claim, release
from storage.slices import sliced
from storage.spaces import SpaceInfo, list_spaces
from storage.tables import Image, Part, Vector
from storage.vectors import PartInfo, VectorStore, off_unit
from storage.whitenings import whitening_findings

__all__ = ["Finding", "check"]


def check(
    catalog: Catalog, *, repair: bool = False, deep: bool = False, lease: Lease | None = None
) -> list[Finding]:
    """Return what is wrong with the store, repaired where that was asked for.

    Parameters
    ----------
    catalog
        Open; for writing if ``repair``.
    repair
        Mend what can be mended.  Needs ``lease``.
    deep
        Read every byte of catalog, parts and indexes: checksums, finite numbers, unit length,
        and whose vectors the parts hold.
    lease
        The run that repairs.

    Raises
    ------
    LeaseHeld
        A repair meets another run that publishes or compacts the same space.
    """
    findings = file_findings(catalog, deep=deep)
    if findings:
        return findings  # what else a damaged catalog says is no ground for a repair
    findings += row_findings(catalog)
    findings += whitening_findings(catalog, deep=deep)
    for space in list_spaces(catalog):
        if repair and lease is not None:
            findings += _mend(catalog, lease, space, deep=deep)
        else:
            findings += [finding for finding, _ in _inspect(catalog, space, deep=deep)]
    if repair and lease is not None:
        delete_old_files(catalog, lease)
    return findings


@dataclass(frozen=True)
class _Bad:
    """What a finding is about, for the repair."""

    part: PartInfo | None = None
    rows: tuple[int, ...] = ()
    generation: GenerationInfo | None = None


def _inspect(
    catalog: Catalog, space: SpaceInfo, *, deep: bool
) -> Iterator[tuple[Finding, _Bad | None]]:
    view = snapshot(catalog, space)
    store = open_store(catalog, space)
    held: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
    end = 0
    for part in view.parts:
        for problem in _part_problems(store, part) or (
            _deep_problems(catalog, space, store, part) if deep else []
        ):
            yield Finding("error", f"space {space.name}: {problem}"), _Bad(part=part)
            break
        else:
            held.append(store.rows(part))
        if part.row_start < end or part.row_end > view.next_row:
            yield Finding("error", f"space {space.name}: rows of part {part.name} overlap"), None
        end = part.row_end
    rows = np.concatenate(held) if held else np.empty(0, int)
    yield from _row_findings(catalog, space, rows, below=view.next_row)
    if view.generation is not None:
        folder = catalog.home.index_dir(space.fingerprint)
        for problem in _index_problems(folder, view.generation, space.dim, deep=deep):
            bad = _Bad(generation=view.generation)
            yield Finding("error", f"space {space.name}: {problem}"), bad
    left = orphans(catalog, space)
    if left:
        what = f"space {space.name}: {len(left)} files of ended runs that nothing refers to"
        days = KEEP_S / 86400
        yield (
            Finding("info", f"{what}; a writing run deletes them when they are {days:g} day old"),
            None,
        )


def _row_findings(
    catalog: Catalog,
    space: SpaceInfo,
    held: "np.ndarray[tuple[int], np.dtype[np.int64]]",
    *,
    below: int,
) -> Iterator[tuple[Finding, _Bad | None]]:
    with catalog.read() as conn:
        entered = entered_rows(conn, space.id, below=below)  # a run may have committed since
    lost = np.setdiff1d(entered, held, assume_unique=True)
    if len(lost):
        what = f"space {space.name}: {len(lost):,} rows of the catalog lie in no readable part"
        yield Finding("error", what), _Bad(rows=tuple(int(row) for row in lost))


def _part_problems(store: VectorStore, part: PartInfo) -> list[str]:
    try:
        store.open(part)
        store.digests(part)
        store.rows(part)
    except PartError as error:
        return [str(error)]
    return []


def _deep_problems(
    catalog: Catalog, space: SpaceInfo, store: VectorStore, part: PartInfo
) -> list[str]:
    problems = store.verify(part)
    if problems:
        return problems
    _, far = off_unit(store.open(part))
    if len(far):
        problems.append(f"{len(far)} vectors of part {part.name} have not unit length")
    held = dict(zip(store.rows(part).tolist(), store.digests(part), strict=True))
    within = (Vector.row >= part.row_start, Vector.row < part.row_end)
    entered = select(Vector.row, Image.digest).join(Image).where(Vector.space_id == space.id)
    with catalog.read() as conn:
        pairs = conn.execute(entered.where(*within)).all()
    wrong = sum(row in held and held[row].tobytes() != digest for row, digest in pairs)
    if wrong:
        problems.append(f"{wrong} vectors of part {part.name} are not those of their images")
    return problems


def _index_problems(folder: str, generation: GenerationInfo, dim: int, *, deep: bool) -> list[str]:
    index_path, rowmap_path = generation_paths(folder, generation.name)
    try:
        if deep:
            load_generation(folder, generation, dim)
            return []
        map_npy(rowmap_path, "<i8", (generation.n,))
        size = os.path.getsize(index_path)
    except (PartError, IndexFileError) as error:
        return [str(error)]
    except OSError as error:
        return [f"{index_path} can't be read: {error.strerror}"]
    if size != generation.size_bytes:
        return [f"{index_path} has {size} bytes instead of {generation.size_bytes}"]
    return []


def _mend(catalog: Catalog, lease: Lease, space: SpaceInfo, *, deep: bool) -> list[Finding]:
    claim(catalog, lease, "space", space.id, space.id)
    try:
        found = list(_inspect(catalog, space, deep=deep))
        bad = [about for _, about in found if about is not None]
        if bad:
            _give_up(catalog, lease, space, bad)
    finally:
        release(catalog, lease, "space", space.id, space.id)
    if bad and snapshot(catalog, space).n:
        publish(catalog, lease, space)
    return [
        replace(finding, repaired=True) if about is not None else finding
        for finding, about in found
    ]


def _give_up(catalog: Catalog, lease: Lease, space: SpaceInfo, bad: list[_Bad]) -> None:
    """Drop damaged parts, rows that no part holds and the index; their images are pending again."""
    parts = [about.part.id for about in bad if about.part is not None]
    with catalog.write() as conn:
        check_lease(conn, lease)
        gone = {"state": "replaced", "replaced_at": catalog.now(conn)}
        for ids in sliced(parts):
            conn.execute(update(Part).where(Part.id.in_(ids)).values(gone))
        for rows in sliced([row for about in bad for row in about.rows]):
            conn.execute(delete(Vector).where(Vector.space_id == space.id, Vector.row.in_(rows)))
        withdraw(conn, space.id, catalog.now(conn))
