"""Extract a sample of a space's pictures again, and compare with the vectors that are stored.

How a picture becomes a vector is not known here: whoever knows hands in a function.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, select

from storage.catalog import Catalog
from storage.dead import entered_rows
from storage.reading import Rows, Snapshot, open_store
from storage.spaces import SpaceInfo
from storage.tables import File, Image, Part, Root, Vector

FloatArray = npt.NDArray[np.float32]

SAMPLE = 16
"""Pictures of a space that are extracted again."""
MOST = {"float32": 1e-5, "float16": 1e-3}
"""By the coarser precision of the two: how far a cosine may be from 1.  float32 engines agree
within 1e-6 on other devices and in other batches, rounding to half precision moves a component by
up to one part in 2,048."""


@dataclass(frozen=True)
class Made:
    """What became of pictures that were extracted again."""

    vectors: Mapping[bytes, FloatArray]
    """Digest of the bytes that were read -> vector, shape ``(d,)``, unit length."""
    precision: str = "float32"
    why: str = ""
    """Why none could be made, else empty."""


Again = Callable[[SpaceInfo, Sequence[bytes]], Made]
"""Extracts the pictures at some paths as a space's own were."""


@dataclass(frozen=True)
class Compared:
    """What the sample showed."""

    n: int
    """Pictures that still hold the bytes of their vector, and were compared."""
    other: tuple[tuple[int, bytes, float], ...] = ()
    """Row, path and distance (1 less the cosine) of those that gave another vector."""
    why: str = ""


@dataclass(frozen=True)
class _Picture:
    row: int
    digest: bytes
    path: bytes
    precision: str


def compare_again(catalog: Catalog, view: Snapshot, again: Again, *, seed: int | None) -> Compared:
    """Extract a sample of the live pictures of a space again.

    Raises
    ------
    PartError
        A part is missing or not what the catalog says.
    """
    with catalog.read() as conn:
        pictures = _sample(conn, view, seed)
    if not pictures:
        return Compared(0)
    made = again(view.space, [picture.path for picture in pictures])
    if made.why:
        return Compared(0, why=made.why)
    same_bytes = [picture for picture in pictures if picture.digest in made.vectors]
    if not same_bytes:
        return Compared(0)
    rows = [picture.row for picture in same_bytes]
    stored = Rows(open_store(catalog, view.space), view.parts).gather(rows).astype(np.float64)
    other = []
    for picture, x in zip(same_bytes, stored, strict=True):
        y = made.vectors[picture.digest].astype(np.float64)
        distance = 1.0 - float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
        coarse = {picture.precision, made.precision, view.space.dtype} - {"float32"}
        if not distance <= MOST["float16" if coarse else "float32"]:  # a NaN must not pass
            other.append((picture.row, picture.path, distance))
    return Compared(len(same_bytes), tuple(other))


def _sample(conn: Connection, view: Snapshot, seed: int | None) -> list[_Picture]:
    """Draw live pictures of the view's parts; of an image with several files, one."""
    live = entered_rows(conn, view.space.id, live=True, below=view.next_row)
    rng = np.random.default_rng(seed)
    drawn = rng.choice(live, min(SAMPLE, len(live)), replace=False) if len(live) else live
    query = (
        select(Vector.row, Image.digest, Root.path, File.path, File.source)
        .join(Image, Image.id == Vector.image_id)
        .join(File, File.image_id == Image.id)
        .join(Root, Root.id == File.root_id)
        .where(Vector.space_id == view.space.id, File.state == "live")
        .where(Vector.row.in_(drawn.tolist()))
        .order_by(Vector.row, File.id.desc())
    )
    found = {row: rest for row, *rest in conn.execute(query)}
    parts = select(Part.id, Part.facts).where(Part.space_id == view.space.id)
    facts = {part_id: made for part_id, made in conn.execute(parts)}  # noqa: C416 - rows, not pairs
    pictures = []
    for row, (digest, root, path, source) in found.items():
        part = next((p for p in view.parts if p.row_start <= row < p.row_end), None)
        if part is not None and part.id in facts:
            precision = str(facts[part.id].get("precision", "unknown"))
            pictures.append(_Picture(row, digest, source or os.path.join(root, path), precision))
    return pictures
