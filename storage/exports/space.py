"""What a space holds, written in the formats of other tools: no picture is read, nothing is run."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import ColumnElement, Connection, Select, and_, exists, func, or_, select

from storage.catalog import Catalog
from storage.errors import ExportError
from storage.exports.formats import Writer, open_writer
from storage.exports.output import Output
from storage.exports.records import Records
from storage.reading import Snapshot, open_store, snapshot
from storage.roots import RootInfo, display, find_root, list_roots, within
from storage.scan import SEP
from storage.slices import pages
from storage.spaces import SpaceInfo
from storage.tables import File, Vector
from storage.verified import VerifiedRows

BATCH_BYTES = 8 << 20
"""Vectors that are written at once."""


@dataclass(frozen=True)
class Wish:
    """What to export, and how.

    Parameters
    ----------
    format
        As `open_writer` takes it.
    root
        Absolute path: only the files of this root, or below this folder of one; None: all.
    absolute
        Ids are absolute paths.  Else they are relative to their root, or a manifest's ids.
    overwrite
        Replace what is there.
    """

    format: str | None = None
    root: bytes | None = None
    absolute: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Exported:
    """What was exported."""

    output: Output
    images: int
    """Files with a vector, one record each."""
    without: int
    """Live files that have no vector in the space yet, and are not in the output."""
    size_bytes: int
    duration_s: float


def export_space(
    catalog: Catalog,
    space: SpaceInfo,
    out: str,
    wish: Wish,
    progress: Callable[[int, int], None] | None = None,
) -> Exported:
    """Write one record for each live file that has a vector in a space.

    They come root by root, each in the order of its paths.  Without a label of its own a file has
    the first folder of its relative path, as in a directory of class folders.

    Parameters
    ----------
    catalog, space
        Open for reading at least, and the space.
    out
        As `open_writer` takes it.
    wish
        What to export, and how.
    progress
        Told how many were written, and of how many.

    Raises
    ------
    ExportError
        The output can't be written as asked, nothing is to be written, or two files of different
        roots would have one id.
    RootError
        No root is where the wish says.
    PartError
        A part is missing or damaged; nothing of the output is left.
    """
    started = time.monotonic()
    writer = open_writer(out, wish.format, {space.name: space.dim}, overwrite=wish.overwrite)
    roots = list_roots(catalog) if wish.root is None else [find_root(catalog, wish.root)]
    view = snapshot(catalog, space)
    with catalog.read() as conn:
        total, without = _counts(conn, view, roots)
        if len(roots) > 1 and not wish.absolute:
            _refuse_equal_ids(conn, view, roots)
    if not total:
        raise ExportError(_nothing(space, roots, without))
    vectors = VerifiedRows(open_store(catalog, space), view)
    with writer:
        for root in roots:
            for records in _records(catalog, view, root, vectors, absolute=wish.absolute):
                writer.write(records)
                if progress is not None:
                    progress(writer.n, total)
    took = time.monotonic() - started
    return Exported(writer.output, writer.n, without, _size(writer), took)


def _records(
    catalog: Catalog, view: Snapshot, root: RootInfo, vectors: VerifiedRows, *, absolute: bool
) -> Iterator[Records]:
    """Yield the files of a root in the order of their paths."""
    batch = max(1, BATCH_BYTES // (4 * view.space.dim))
    query = _held(select(File.path, File.source, File.label, Vector.row), view, [root])
    for page in pages(catalog, query, File.path):
        for start in range(0, len(page), batch):
            some = page[start : start + batch]
            paths = [source or os.path.join(root.path, path) for path, source, _, _ in some]
            yield Records(
                ids=paths if absolute else [path for path, _, _, _ in some],
                paths=paths,
                labels=[_label(root, path, label) for path, _, label, _ in some],
                vectors={view.space.name: vectors.gather(np.array([row for _, _, _, row in some]))},
            )


def _label(root: RootInfo, path: bytes, label: str | None) -> str | None:
    if label is not None or root.kind == "manifest":
        return label
    folder, separator, _ = path.partition(SEP)
    return display(folder) if separator else None


def _in(roots: Sequence[RootInfo]) -> ColumnElement[bool]:
    """Return the condition that a live file is in one of the roots."""
    meant = [
        and_(File.root_id == root.id, within(File.path, root.under))
        if root.under
        else File.root_id == root.id
        for root in roots
    ]
    return and_(File.state == "live", or_(*meant))


def _held(
    query: Select[tuple[bytes, bytes | None, str | None, int]],
    view: Snapshot,
    roots: Sequence[RootInfo],
) -> Select[tuple[bytes, bytes | None, str | None, int]]:
    """Return the query of live files with a vector that the snapshot has."""
    return query.join(Vector, Vector.image_id == File.image_id).where(
        _in(roots), Vector.space_id == view.space.id, Vector.row < view.next_row
    )


def _counts(conn: Connection, view: Snapshot, roots: Sequence[RootInfo]) -> tuple[int, int]:
    """Return the number of live files that have a vector, and of those that have none."""
    if not roots:
        return 0, 0
    has_vector = exists().where(
        Vector.space_id == view.space.id,
        Vector.image_id == File.image_id,
        Vector.row < view.next_row,
    )
    count = select(func.count()).select_from(File).where(_in(roots))
    live = conn.execute(count).scalar_one()
    held = conn.execute(count.where(has_vector)).scalar_one()
    return held, live - held


def _refuse_equal_ids(conn: Connection, view: Snapshot, roots: Sequence[RootInfo]) -> None:
    has_vector = exists().where(Vector.space_id == view.space.id, Vector.image_id == File.image_id)
    twice = (
        select(File.path)
        .where(_in(roots), has_vector)
        .group_by(File.path)
        .having(func.count() > 1)
        .limit(1)
    )
    path = conn.execute(twice).scalar()
    if path is None:
        return
    where = select(File.root_id).where(_in(roots), File.path == path)
    ids = set(conn.execute(where).scalars())
    names = [root.display for root in roots if root.id in ids]
    raise ExportError(
        f"{display(path)} is in {' and in '.join(names[:2])}, and would be one id twice: "
        "use --absolute, or --root for one root after the other"
    )


def _nothing(space: SpaceInfo, roots: Sequence[RootInfo], without: int) -> str:
    where = f" below {roots[0].display}" if len(roots) == 1 else ""
    if without:
        return (
            f"none of the {without:,} files{where} has a vector in space {space.name} yet: run "
            f"`lookalike index --space {space.name}`"
        )
    return f"there are no files{where}: run `lookalike index DIRECTORY`"


def _size(writer: Writer) -> int:
    total = 0
    for path in writer.output.paths:
        if os.path.isdir(path):
            total += sum(
                os.path.getsize(os.path.join(at, name))
                for at, _, names in os.walk(path)
                for name in names
            )
        else:
            total += os.path.getsize(path)
    return total
