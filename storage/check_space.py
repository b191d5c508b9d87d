"""Look at one space: its parts, its rows, its index, and a sample of its pictures."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from sqlalchemy import select

from storage.catalog import Catalog
from storage.check_again import Again, compare_again
from storage.check_catalog import Finding
from storage.check_index import deep_index_problems, index_problems
from storage.cleanup import KEEP_S, orphans
from storage.dead import entered_rows
from storage.errors import PartError, PartUnreadable
from storage.reading import GenerationInfo, Snapshot, open_store, snapshot
from storage.roots import display
from storage.spaces import SpaceInfo
from storage.tables import Image, Vector
from storage.vectors import PartInfo, VectorStore, off_unit

RowArray = npt.NDArray[np.int64]
_ATTEMPTS = 3


@dataclass
class Looked:
    """What a check has looked at; it fills this in."""

    spaces: int = 0
    vectors: int = 0
    parts: int = 0
    indexes: int = 0
    again: int = 0
    """Pictures that were extracted again and compared."""


@dataclass(frozen=True)
class Depth:
    """How closely to look.

    Attributes
    ----------
    deep
        Read every byte of catalog, parts and indexes: checksums, finite numbers, unit length,
        whose vectors the parts hold, and whether the indexes hold and find them.
    again
        Extracts a sample of the pictures again, to compare; None leaves that out.
    seed
        Of the sample; None draws another one each time.
    looked
        Filled in with what was looked at.
    """

    deep: bool = False
    again: Again | None = None
    seed: int | None = None
    looked: Looked = field(default_factory=Looked)


@dataclass(frozen=True)
class Bad:
    """What a finding is about, for the repair."""

    part: PartInfo | None = None
    rows: tuple[int, ...] = ()
    generation: GenerationInfo | None = None
    is_gone: bool = False
    """The part's vectors are not there at all, as all are where a disk is not mounted."""


Found = list[tuple[Finding, Bad | None]]


def inspected(catalog: Catalog, space: SpaceInfo, depth: Depth) -> tuple[Snapshot, Found]:
    """Look at a space, once more where something was wrong and another run changed it meanwhile.

    ``forget`` deletes files at once, so that a check beside it may miss them.
    """
    for _ in range(_ATTEMPTS):
        view = snapshot(catalog, space)
        found = list(_inspect(catalog, view, depth))
        now = snapshot(catalog, space)
        same = (now.parts, now.generation) == (view.parts, view.generation)
        if same or all(finding.severity != "error" for finding, _ in found):
            break
    looked = depth.looked
    looked.spaces += 1
    looked.vectors += view.n
    looked.parts += len(view.parts)
    looked.indexes += view.generation is not None
    return view, found


def _inspect(
    catalog: Catalog, view: Snapshot, depth: Depth
) -> Iterator[tuple[Finding, Bad | None]]:
    space = view.space
    held: list[RowArray] = []
    unseen: list[RowArray] = []
    yield from _part_findings(catalog, view, held, unseen, deep=depth.deep)
    rows = np.concatenate([np.empty(0, np.int64), *held])
    with catalog.read() as conn:
        entered = entered_rows(conn, space.id, below=view.next_row)  # one may have committed since
    yield from _row_findings(space, np.concatenate([rows, *unseen]), entered)
    yield from _index_findings(catalog, view, entered, rows, deep=depth.deep)
    if depth.again is not None and len(held) == len(view.parts):
        yield from _again_findings(catalog, view, depth, depth.again)
    left = orphans(catalog, space)
    if left:
        what = f"space {space.name}: {len(left)} files of ended runs that nothing refers to"
        days = KEEP_S / 86400
        yield (
            Finding("info", f"{what}; a writing run deletes them when they are {days:g} day old"),
            None,
        )


def _part_findings(
    catalog: Catalog,
    view: Snapshot,
    held: list[RowArray],
    unseen: list[RowArray],
    *,
    deep: bool,
) -> Iterator[tuple[Finding, Bad | None]]:
    """Yield what is wrong with the parts; fill in the rows of sound ones and unreadable ones.

    What can't be read now may be whole, so that nothing of it is given up.
    """
    space, store = view.space, open_store(catalog, view.space)
    end = 0
    for part in view.parts:
        try:
            problems = _problems(catalog, space, store, part, deep=deep)
        except PartUnreadable as error:
            what = f"space {space.name}: {error}; nothing of it is repaired: make it readable first"
            yield Finding("error", what), None
            unseen.append(np.arange(part.row_start, part.row_end))
        else:
            if problems:
                is_gone = not os.path.exists(store.path(part.name))
                what = f"space {space.name}: {problems[0]}"
                yield Finding("error", what), Bad(part=part, is_gone=is_gone)
            else:
                held.append(store.rows(part))
        if part.row_start < end or part.row_end > view.next_row:
            yield Finding("error", f"space {space.name}: rows of part {part.name} overlap"), None
        end = part.row_end


def _row_findings(
    space: SpaceInfo, held: RowArray, entered: RowArray
) -> Iterator[tuple[Finding, Bad | None]]:
    lost = np.setdiff1d(entered, held, assume_unique=True)
    if len(lost):
        what = f"space {space.name}: {len(lost):,} rows of the catalog lie in no readable part"
        yield Finding("error", what), Bad(rows=tuple(int(row) for row in lost))


def _index_findings(
    catalog: Catalog, view: Snapshot, entered: RowArray, held: RowArray, *, deep: bool
) -> Iterator[tuple[Finding, Bad | None]]:
    generation = view.generation
    if generation is None:
        return
    folder = catalog.home.index_dir(view.space.fingerprint)
    problems = index_problems(folder, generation)
    if deep and not problems:
        problems = list(deep_index_problems(catalog, view, entered, held))
    for problem in problems:
        yield Finding("error", f"space {view.space.name}: {problem}"), Bad(generation=generation)


def _again_findings(
    catalog: Catalog, view: Snapshot, depth: Depth, again: Again
) -> Iterator[tuple[Finding, Bad | None]]:
    """Yield what came of extracting a sample again.

    Where most pictures give another vector, it is how they are made that is not what it was, here
    and now; then nothing of what is stored is given up.
    """
    name = view.space.name
    compared = compare_again(catalog, view, again, seed=depth.seed)
    depth.looked.again += compared.n
    if compared.why:
        yield Finding("info", f"space {name}: no picture was extracted again: {compared.why}"), None
    if not compared.other:
        return
    _, path, distance = compared.other[0]
    what = (
        f"space {name}: {len(compared.other)} of {compared.n} pictures that were extracted again "
        f"gave another vector than the stored one, e.g. {display(path)} "
        f"(1 - cosine: {distance:.2g})"
    )
    if 2 * len(compared.other) >= compared.n:
        more = "decoder or network work otherwise here than where the vectors were made"
        yield Finding("error", f"{what}; {more}: compare versions and devices"), None
        return
    rows = {row for row, _, _ in compared.other}
    for part in view.parts:
        if any(part.row_start <= row < part.row_end for row in rows):
            held = open_store(catalog, view.space).rows(part).tolist()
            yield Finding("error", f"{what}; part {part.name}"), Bad(part, tuple(held))


def _problems(
    catalog: Catalog, space: SpaceInfo, store: VectorStore, part: PartInfo, *, deep: bool
) -> list[str]:
    """Return what is wrong with a part; `PartUnreadable` where nobody can say."""
    try:
        store.open(part)
        store.digests(part)
        store.rows(part)
    except PartUnreadable:
        raise
    except PartError as error:
        return [str(error)]
    return _deep_problems(catalog, space, store, part) if deep else []


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
