"""Stores of any size for the benchmarks of the search: filled once, and kept where one says so.

The vectors' files are written by the store itself and the index by its own publishing; the
catalog's rows are inserted in bulk, because files that nobody reads need not lie on the disk.  The
few pictures that are searched for do.  Half of the images lie in folders at random, the other half
in the order of their clusters, so that a filter by folder meets both.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import insert, select, update

from storage.catalog import Catalog
from storage.home import Home
from storage.leases import finish_run, start_run
from storage.publish import publish
from storage.reading import open_store
from storage.spaces import SpaceInfo, ensure_space
from storage.tables import File, Image, Part, Root, Space, Vector

FloatArray = npt.NDArray[np.float32]

PART_ROWS = 8192
"""What a run commits at once, at most."""
FOLDERS = {"2": 0.02, "8": 0.08, "15": 0.15, "25": 0.25}
"""Folders by what share of all images, in percent, lies there; once by chance, once by cluster."""
PICTURES = 64
"""Files that are there, for those images that are searched for by path."""
DONE = "filled"


@dataclass(frozen=True)
class Filled:
    """A filled store: where it is, and what lies in it."""

    home: Home
    root: str
    images: int
    dim: int

    def picture(self, n: int) -> str:
        """Return the path of a picture that is there, ``n`` below 64."""
        return os.path.join(self.root, _name(n * (self.images // PICTURES), self.images))

    def folder(self, kind: str, percent: str) -> bytes:
        """Return the folder that holds so many of the images; ``kind`` is chance or cluster."""
        return os.fsencode(os.path.join(self.root, kind, percent))


def filled(folder: str, images: int, dim: int) -> Filled:
    """Return the store of this size in a folder; it is filled unless it is there already."""
    where = os.path.join(os.path.abspath(folder), f"{images}x{dim}")
    store = Filled(Home(os.path.join(where, "home")), os.path.join(where, "root"), images, dim)
    done = Path(where, DONE)
    if not done.exists():
        os.makedirs(where, exist_ok=False)
        _fill(store)
        done.touch()
    return store


def queries(store: Filled, n: int) -> FloatArray:
    """Return vectors near those of the store, shape ``(n, dim)``, float32, unit length."""
    return _around(np.random.default_rng(7), np.arange(n) * 31 % _clusters(store.images), store)


def _clusters(images: int) -> int:
    return max(20, images // 1000)


def _around(rng: np.random.Generator, cluster: npt.NDArray[np.int64], store: Filled) -> FloatArray:
    centres = np.random.default_rng(1).standard_normal(
        (_clusters(store.images), store.dim), dtype=np.float32
    )
    x = rng.standard_normal((len(cluster), store.dim), dtype=np.float32)
    x *= np.float32(0.5)
    x += centres[cluster]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


def _cluster_of(n: npt.NDArray[np.int64], images: int) -> npt.NDArray[np.int64]:
    """Return the clusters of some images: by chance for the even ones, in order for the odd."""
    clusters = _clusters(images)
    chance = (n * 2654435761 % (1 << 32)) * clusters >> 32
    return np.where(n % 2 == 0, chance, n * clusters // images)


def _name(n: int, images: int) -> str:
    """Return the path of an image below the root."""
    kind, at = ("chance", n * 40503 % images) if n % 2 == 0 else ("cluster", n)
    edge = 0.0
    for percent, share in FOLDERS.items():
        edge += 2 * share * images
        if at < edge:
            return f"{kind}/{percent}/{n:08}.jpg"
    return f"{kind}/{n:08}.jpg"


def _fill(store: Filled) -> None:
    rng = np.random.default_rng(0)
    with Catalog.open(store.home, write=True) as catalog:
        lease = start_run(catalog, "benchmark")
        space = ensure_space(
            catalog,
            name="synthetic",
            spec={"dim": store.dim, "dtype": "float32", "decode_version": 1, "architecture": ""},
            request={"model": "none", "layer": None, "weights": "none"},
            key="synthetic",
        )
        root = _root(catalog, store.root)
        for start in range(0, store.images, PART_ROWS):
            n = np.arange(start, min(start + PART_ROWS, store.images))
            x = _around(rng, _cluster_of(n, store.images), store)
            _commit(catalog, space, _Piece(lease.run_id, root, start, x, store))
        publish(catalog, lease, space)
        finish_run(catalog, lease, "done")
    for n in range(PICTURES):
        path = Path(store.picture(n))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_bytes_of(n * (store.images // PICTURES)))


def _root(catalog: Catalog, path: str) -> int:
    values = {"path": os.fsencode(path), "display": path, "kind": "directory"}
    row = insert(Root).values(excludes={"globs": []}, added_at=0.0, **values).returning(Root.id)
    with catalog.write() as conn:
        return int(conn.execute(row).scalar_one())


@dataclass(frozen=True)
class _Piece:
    run_id: str
    root: int
    start: int
    x: FloatArray
    store: Filled


def _commit(catalog: Catalog, space: SpaceInfo, piece: _Piece) -> None:
    numbers = range(piece.start, piece.start + len(piece.x))
    digests = [hashlib.sha256(_bytes_of(n)).digest() for n in numbers]
    part = open_store(catalog, space).append(piece.run_id, piece.x, digests)
    with catalog.write() as conn:
        start = conn.execute(select(Space.next_row).where(Space.id == space.id)).scalar_one()
        end = start + part.n
        conn.execute(update(Space).where(Space.id == space.id).values(next_row=end))
        checksums = {"checksum": part.checksum, "ids_checksum": part.ids_checksum}
        about = {"row_start": start, "row_end": end, "n": part.n, "size_bytes": part.size_bytes}
        about |= {"space_id": space.id, "name": part.name, "state": "live"} | checksums
        conn.execute(insert(Part).values(run_id=piece.run_id, facts={}, created_at=0.0, **about))
        conn.execute(insert(Image), list(_images(digests, start)))
        conn.execute(insert(File), list(_files(piece, start)))
        rows = [
            {"space_id": space.id, "image_id": row + 1, "row": row} for row in range(start, end)
        ]
        conn.execute(insert(Vector), rows)


def _images(digests: list[bytes], start: int) -> Iterator[dict[str, Any]]:
    for row, digest in enumerate(digests, start):
        yield {"id": row + 1, "digest": digest, "size_bytes": 1, "first_seen_at": 0.0}


def _files(piece: _Piece, start: int) -> Iterator[dict[str, Any]]:
    stat = dict.fromkeys(("seen_size_bytes", "seen_mtime_ns", "seen_ctime_ns", "seen_inode"), 1)
    for row in range(start, start + len(piece.x)):
        name = _name(row, piece.store.images)
        yield {
            "root_id": piece.root,
            "path": name.encode(),
            "display": name,
            "state": "live",
            "first_seen_at": 0.0,
            "image_id": row + 1,
            "trusted": True,
            **stat,
        }


def _bytes_of(n: int) -> bytes:
    return f"picture {n}".encode()
