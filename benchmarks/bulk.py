"""Spaces of any size whose catalog rows are made in the database, for files that nobody reads.

The vectors' files are the store's own; an image, a file and an entry for each row are inserted by
one statement a table.
"""

import os
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, insert, text, update

from storage.catalog import Catalog
from storage.reading import open_store
from storage.spaces import SpaceInfo, ensure_space
from storage.tables import Part, Root, Space

FloatArray = npt.NDArray[np.float32]

BLOCK = 8192
"""Vectors in a part: as many as a run commits at once, at most."""
CENTRES = 100
SPREAD = 0.5

_NUMBERS = "WITH RECURSIVE t(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM t WHERE i + 1 < :n) "
_ROWS = (
    "INSERT INTO images (id, digest, size_bytes, first_seen_at) "
    "SELECT i + 1, randomblob(32), 1, 0 FROM t",
    "INSERT INTO files (root_id, path, display, state, first_seen_at, image_id, trusted, "
    "seen_size_bytes, seen_mtime_ns, seen_ctime_ns, seen_inode, "
    "digest_size_bytes, digest_mtime_ns, digest_ctime_ns, digest_inode) "
    "SELECT :root, CAST(printf('%08d.jpg', i) AS BLOB), printf('%08d.jpg', i), 'live', 0, i + 1, "
    "1, 1, 1, 1, 1, 1, 1, 1, 1 FROM t",
    "INSERT INTO vectors (space_id, image_id, row) SELECT :space, i + 1, i FROM t",
)


def clustered(n: int, d: int, seed: int = 0) -> Iterator[FloatArray]:
    """Yield n unit vectors around 100 centres in blocks, shape ``(m, d)``, float32.

    The noise has half the length of the centre, in all dimensions alike: inside a cluster all are
    about as far from each other, which is harder for an index than what networks make of photos.
    Every seed draws other vectors around the same centres.
    """
    centres = np.random.default_rng(1).standard_normal((CENTRES, d), dtype=np.float32)
    rng = np.random.default_rng([2, seed])
    for start in range(0, n, BLOCK):
        m = min(BLOCK, n - start)
        x = rng.standard_normal((m, d), dtype=np.float32)
        x *= np.float32(SPREAD)
        x += centres[rng.integers(CENTRES, size=m)]
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        yield x


def fill(catalog: Catalog, dim: int, blocks: Iterable[FloatArray]) -> SpaceInfo:
    """Make a space of vectors, each of an image with a live file; the catalog is on SQLite."""
    space = ensure_space(
        catalog,
        name="synthetic",
        spec={"dim": dim, "dtype": "float32", "decode_version": 1, "architecture": "none"},
        request={"model": "none", "layer": None, "weights": "none"},
        key="synthetic",
    )
    store = open_store(catalog, space)
    parts, end = [], 0
    for x in blocks:
        digests = np.random.default_rng(end).bytes(32 * len(x))
        part = store.append("bulk", x, [digests[at : at + 32] for at in range(0, len(digests), 32)])
        about = {"name": part.name, "n": part.n, "size_bytes": part.size_bytes}
        about |= {"checksum": part.checksum, "ids_checksum": part.ids_checksum}
        parts.append({"row_start": end, "row_end": end + part.n, **about})
        end += part.n
    with catalog.write() as conn:
        root = _root(conn, catalog)
        same = {"space_id": space.id, "state": "live", "run_id": "bulk", "created_at": 0.0}
        conn.execute(insert(Part), [{**same, "facts": {}, **part} for part in parts])
        conn.execute(update(Space).where(Space.id == space.id).values(next_row=end))
        for statement in _ROWS:
            head, _, rest = statement.partition("SELECT")
            asked = text(f"{head}{_NUMBERS}SELECT{rest}")
            values = {"n": end, "root": root, "space": space.id}
            conn.execute(asked, {key: values[key] for key in asked.compile().params})
    return space


def _root(conn: Connection, catalog: Catalog) -> int:
    path = os.path.join(catalog.home.path, "..", "nobody-reads")
    values = {"path": os.fsencode(path), "display": path, "kind": "directory"}
    row = insert(Root).values(excludes={"globs": []}, added_at=0.0, **values).returning(Root.id)
    return int(conn.execute(row).scalar_one())
