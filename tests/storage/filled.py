"""Spaces with vectors in them, written straight into the catalog, and clustered vectors."""

import contextlib
import hashlib
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import insert, select, update

from storage.catalog import Catalog
from storage.home import Home
from storage.reading import open_store
from storage.slices import sliced
from storage.spaces import SpaceInfo, ensure_space
from storage.tables import File, Image, Part, Root, Space, Vector


def clustered(n: int, d: int, *, clusters: int = 40, spread: float = 0.4, seed: int = 0):
    """Return unit vectors around some centres, shape ``(n, d)``, float32."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters, d))
    x = centres[rng.integers(clusters, size=n)] + spread * rng.standard_normal((n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@contextlib.contextmanager
def limited_files(size_bytes: int):
    """Let no file of this process grow over a size; skips where the system can't do that."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@contextlib.contextmanager
def local_catalog(template: str, folder: Path):
    """Yield a SQLite catalog with the schema of ``template``, for what no database decides."""
    home = Home(str(folder / "home"))
    os.mkdir(home.path, 0o700)
    shutil.copy(template, home.sqlite)
    with Catalog.open(home, write=True) as catalog:
        yield catalog


class Filled:
    """A space of dimension d; `add` makes parts of one file an image, under one root."""

    def __init__(self, catalog: Catalog, d: int, dtype: str = "float32", folder: str = "") -> None:
        self.catalog = catalog
        self.base = 1000 if not folder else 1_000_000  # image ids are not rows
        self.space: SpaceInfo = ensure_space(
            catalog,
            name=None,
            spec={"dim": d, "dtype": dtype, "decode_version": 1, "architecture": "tiny"},
            request={"model": "tiny", "layer": "pool", "weights": "DEFAULT"},
            key=f"tiny:{d}:{dtype}",
        )
        self.store = open_store(catalog, self.space)
        self.x = np.empty((0, d), np.float32)
        with catalog.write() as conn:
            self.root = conn.execute(
                insert(Root)
                .values(
                    path=os.fsencode(catalog.home.path) + b"-root" + folder.encode(),
                    display="root",
                    kind="directory",
                    excludes={"globs": []},
                    added_at=0.0,
                )
                .returning(Root.id)
            ).scalar_one()

    def add(
        self,
        x: np.ndarray,
        *,
        folder: str = "",
        duplicates: tuple[int, ...] = (),
        offsets: np.ndarray | None = None,
    ) -> np.ndarray:
        """Commit one part of vectors; return their rows.  ``duplicates`` are dead from birth."""
        first = len(self.x) if offsets is None else self.next_row()
        digests = [
            hashlib.sha256(f"{self.base}+{first}+{at}".encode()).digest() for at in range(len(x))
        ]
        part = self.store.append("run", x, digests, offsets=offsets)
        with self.catalog.write() as conn:
            start = conn.execute(select(Space.next_row).filter_by(id=self.space.id)).scalar_one()
            span = len(x) if offsets is None else int(offsets[-1]) + 1
            rows = start + (np.arange(len(x)) if offsets is None else offsets)
            conn.execute(update(Space).values(next_row=start + span))
            conn.execute(
                insert(Part).values(
                    space_id=self.space.id,
                    name=part.name,
                    state="live",
                    row_start=start,
                    row_end=start + span,
                    n=part.n,
                    size_bytes=part.size_bytes,
                    checksum=part.checksum,
                    ids_checksum=part.ids_checksum,
                    rows_checksum=part.rows_checksum,
                    run_id="run",
                    facts={},
                    created_at=0.0,
                )
            )
            kept = [at for at in range(len(x)) if at not in duplicates]
            self._images(conn, [(int(rows[at]), digests[at]) for at in kept], folder)
        self.x = np.concatenate([self.x, x])
        return rows

    def next_row(self) -> int:
        with self.catalog.read() as conn:
            return conn.execute(select(Space.next_row).filter_by(id=self.space.id)).scalar_one()

    def _images(self, conn, rows, folder) -> None:
        base = self.base
        stat = dict.fromkeys(("seen_size_bytes", "seen_mtime_ns", "seen_ctime_ns", "seen_inode"), 1)
        images = [
            {"id": base + row, "digest": digest, "size_bytes": 1, "first_seen_at": 0.0}
            for row, digest in rows
        ]
        conn.execute(insert(Image), images)
        files = [
            {
                "root_id": self.root,
                "path": f"{folder}{row:07}.jpg".encode(),
                "display": str(row),
                "state": "live",
                "first_seen_at": 0.0,
                "image_id": base + row,
                "trusted": True,
                **stat,
            }
            for row, _ in rows
        ]
        conn.execute(insert(File), files)
        vectors = [
            {"space_id": self.space.id, "image_id": base + row, "row": row} for row, _ in rows
        ]
        conn.execute(insert(Vector), vectors)

    def set_state(self, rows, state: str) -> None:
        """Give the files of some rows another state."""
        with self.catalog.write() as conn:
            for some in sliced(self.base + int(row) for row in rows):
                conn.execute(update(File).where(File.image_id.in_(some)).values(state=state))


def root_of(filled: Filled) -> bytes:
    """Return the path of the space's root."""
    return os.fsencode(filled.catalog.home.path) + b"-root"


def nearest(x: np.ndarray, xq: np.ndarray, k: int, allowed=None) -> np.ndarray:
    """Return the k nearest of all by a full sort, shape ``(nq, k)``; equal ones by row."""
    scores = xq.astype(np.float64) @ x.T.astype(np.float64)
    if allowed is not None:
        scores[:, np.setdiff1d(np.arange(len(x)), allowed)] = -np.inf
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of the truth that was found, query by query."""
    pairs = zip(found, truth, strict=True)
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in pairs]))
