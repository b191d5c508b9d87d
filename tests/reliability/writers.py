"""A small indexing run that can be killed, stopped or doubled anywhere, and the judge of it.

Only pictures and network are missing: it claims, writes parts, commits, compacts and publishes in a
real store.  What a file holds follows from its name and a vector from its digest, so that everybody
can tell what is right.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np
from sqlalchemy import func, select

from storage.catalog import Catalog
from storage.chunks import Chunk, claim_chunk
from storage.commit import FileRead, PartWritten, commit_chunk
from storage.compact import compact
from storage.errors import LeaseHeld
from storage.fs import Fs, Path, using
from storage.home import Home
from storage.leases import Lease, finish_run, reap, start_run
from storage.lookup import Lookup
from storage.publish import publish, publish_due
from storage.reading import Rows, open_store, snapshot
from storage.spaces import SpaceInfo, ensure_space, get_space
from storage.tables import Generation, Image, Part, Space, Vector
from tests.postgres import Server
from tests.storage.copies import SIG, digest, enter_copies, root_at

DIM = 16
FILES, IMAGES, CHUNK = 60, 50, 4
"""Files of a store, the distinct images that they hold, and files of a chunk."""

Say = Callable[[bytes], None]
SPEC = {"dim": DIM, "dtype": "float32", "decode_version": 1, "architecture": "tiny"}
REQUEST = {"model": "tiny", "layer": "pool", "weights": "DEFAULT"}


def content_of(path: bytes) -> bytes:
    """Return the digest of what the file of this path holds."""
    return digest(int(os.path.basename(path)[:6]) % IMAGES)


def vector_of(image: bytes) -> np.ndarray:
    """Return the vector of a digest, shape ``(DIM,)``, float32."""
    x = np.frombuffer(image, "<i2").astype(np.float32)
    return x / np.linalg.norm(x)


def the_space(catalog: Catalog) -> SpaceInfo:
    """Return the space of these vectors; the current one."""
    return ensure_space(catalog, name="tiny", spec=SPEC, request=REQUEST, key="tiny")


@dataclass
class Run:
    """One run of this process; ``say`` hears what it has committed."""

    catalog: Catalog
    say: Say = lambda _: None
    lease: Lease = field(init=False)
    space: SpaceInfo = field(init=False)
    number: int = 0

    def __post_init__(self) -> None:
        reap(self.catalog)
        self.lease = start_run(self.catalog, "index")
        self.space = the_space(self.catalog)

    def whole(self) -> None:
        """Do everything that there is to do."""
        self.say(b"ready")
        self.extract()
        self.tidy()
        finish_run(self.catalog, self.lease, "done")

    def extract(self, chunks: int = FILES) -> None:
        """Commit so many chunks, if there are."""
        after = 0
        for _ in range(chunks):
            chunk = self.claim(after)
            if chunk is None:
                return
            self.commit(chunk)
            after = chunk.work[-1].file_id

    def tidy(self) -> None:
        """Merge the parts and publish an index, unless another run is at that."""
        with suppress(LeaseHeld):
            compact(self.catalog, self.lease, self.space)
            self.say(b"compacted")
            if publish_due(self.catalog, self.space):
                publish(self.catalog, self.lease, self.space)
                self.say(b"published")

    def claim(self, after: int = 0) -> Chunk | None:
        """Return the next chunk."""
        self.number += 1
        return claim_chunk(
            self.catalog,
            self.lease,
            self.space,
            number=self.number,
            limit=CHUNK,
            after_file_id=after,
        )

    def commit(self, chunk: Chunk) -> None:
        """Extract a chunk, and say whose vectors are committed."""
        reads = [FileRead(w.file_id, content_of(w.path), SIG, trusted=True) for w in chunk.work]
        new = self.missing([read.digest for read in reads])
        part = self.append(new) if new else None
        commit_chunk(
            self.catalog, self.lease, self.space, chunk, reads=reads, failures=[], part=part
        )
        self.say(b"".join(part.digests) if part else b"nothing new")

    def missing(self, digests: list[bytes]) -> list[bytes]:
        """Return those digests that have no vector yet."""
        with self.catalog.read() as conn:
            entered = select(Image.digest).join(Vector, Vector.image_id == Image.id)
            there = set(conn.execute(entered.where(Vector.space_id == self.space.id)).scalars())
        return [each for each in dict.fromkeys(digests) if each not in there]

    def append(self, digests: list[bytes]) -> PartWritten:
        """Write a part with the vectors of digests."""
        vectors = np.stack([vector_of(each) for each in digests])
        return open_store(self.catalog, self.space).append(self.lease.run_id, vectors, digests)


def run_here(home: Home, connection: object = None) -> None:
    """Do a whole run in this process; what it says goes through the connection."""
    say = connection.send_bytes if connection is not None else lambda _: None
    with using(Telling(say)), Catalog.open(home, write=True) as catalog:
        Run(catalog, say).whole()


class Telling(Fs):
    """The file system as it is, and every call that another process could come between is told."""

    def __init__(self, say: Say) -> None:
        self.say = say

    def open_new(self, path: Path, mode: int = 0o600) -> int:
        self.say(b"open")
        return super().open_new(path, mode)

    def fsync(self, fd: int) -> None:
        self.say(b"fsync")
        super().fsync(fd)

    def replace(self, old: Path, new: Path) -> None:
        self.say(b"replace")
        super().replace(old, new)

    def fsync_dir(self, path: Path) -> None:
        self.say(b"fsync of a folder")
        super().fsync_dir(path)


class Stores:
    """A store whose files wait to be read, and copies of it, each with a catalog of its own.

    ``server`` is that of Postgres, None for SQLite.
    """

    def __init__(self, home: Home, server: Server | None, files: int = FILES) -> None:
        self.home = home
        self.server = server
        with Catalog.open(home, write=True) as catalog:
            enter_copies(catalog, root_at(catalog, f"{home.path}-pictures"), [None] * files)

    def copy(self, path: str, home: Home | None = None) -> Home:
        """Copy a store that nobody has open, by default that whose files wait."""
        home = home or self.home
        shutil.copytree(home.path, path)
        return self.with_catalog_of(path, home)

    def with_catalog_of(self, path: str, home: Home) -> Home:
        """Put a copy of a store's catalog in the place of that of the home at ``path``."""
        if self.server is None:
            return Home(path)
        name = self.server.create(urlsplit(home.catalog_url or "").path[1:])
        return Home(path, self.server.database(name))

    def drop(self, home: Home) -> None:
        """Delete a copy."""
        shutil.rmtree(home.path)
        if self.server is not None:
            self.server.drop(urlsplit(home.catalog_url or "").path[1:])


Vectors = Mapping[bytes, tuple[int, bytes]]


def vectors_in(catalog: Catalog) -> Vectors:
    """Return digest -> row and bytes of the vector, of all that is committed."""
    with catalog.read() as conn:
        entered = select(Image.digest, Vector.row).join(Vector, Vector.image_id == Image.id)
        rows = dict(conn.execute(entered.order_by(Vector.row)).all())
    if not rows:
        return {}
    space = get_space(catalog)
    x = Rows(open_store(catalog, space), snapshot(catalog, space).parts).gather([*rows.values()])
    return {each: (row, at.tobytes()) for (each, row), at in zip(rows.items(), x, strict=True)}


@dataclass
class Ledger:
    """What was committed, and must therefore stay as it is: row by row, bit by bit."""

    committed: Vectors = field(default_factory=dict)

    def hold(self, catalog: Catalog, said: list[bytes]) -> None:
        """Compare the catalog with what runs said, with what it held before and with the truth."""
        now = vectors_in(catalog)
        acknowledged = {
            message[at : at + 32]
            for message in said
            if len(message) % 32 == 0
            for at in range(0, len(message), 32)
        }
        assert acknowledged <= now.keys(), "lost"
        for image, (_, data) in now.items():
            assert data == vector_of(image).tobytes(), "mixed up"
        for image, held in self.committed.items():
            assert now.get(image) == held, "taken back"
        self.committed = now


def unnamed_files(catalog: Catalog) -> set[str]:
    """Return the files in the spaces' folders that no row of the catalog names."""
    with catalog.read() as conn:
        named = {*conn.execute(select(Part.name)).scalars()}
        named |= {*conn.execute(select(Generation.name)).scalars()}
    found = [name for _, _, names in os.walk(catalog.home.spaces_dir) for name in names]
    return {name for name in found if name.split(".")[0] not in named}


def counts(catalog: Catalog) -> tuple[int, int, int]:
    """Return how many vectors are entered, lie in live parts, and ever got a row."""
    with catalog.read() as conn:
        entered = conn.execute(select(func.count()).select_from(Vector)).scalar_one()
        live = select(func.coalesce(func.sum(Part.n), 0)).where(Part.state == "live")
        return (
            entered,
            int(conn.execute(live).scalar_one()),
            conn.execute(select(func.coalesce(func.max(Space.next_row), 0))).scalar_one(),
        )


def queries() -> np.ndarray:
    """Return vectors to search with: those of some images, and some beside them."""
    x = np.stack([vector_of(digest(n)) for n in range(6)])
    x[3:] += np.random.default_rng(5).normal(scale=0.1, size=x[3:].shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def answers(catalog: Catalog, k: int = 10) -> tuple[list[list[bytes]], list[str]]:
    """Return the digests that a search by the index finds for each query, and its warnings."""
    found = Lookup(catalog, get_space(catalog), exact_below=0).nearest(queries(), k)
    ids = {hit.image_id for hits in found.neighbours for hit in hits}
    with catalog.read() as conn:
        of_id = dict(conn.execute(select(Image.id, Image.digest).where(Image.id.in_(ids))).all())
    hits = [[of_id.get(hit.image_id, b"none") for hit in each] for each in found.neighbours]
    return hits, found.warnings


def truth(images: Iterable[bytes], k: int = 10) -> list[list[bytes]]:
    """Return the digests among ``images`` that are nearest to each query, by a full sort."""
    images = sorted(images)
    scores = queries() @ np.stack([vector_of(image) for image in images]).T
    return [[images[at] for at in np.argsort(-each)[:k]] for each in scores]
