"""A small, real indexing job: it scans, claims, reads and commits; only the network is missing.

What a file holds decides what becomes of it: ``broken...`` can't be decoded, ``dark...`` has no
vector, ``heavy...`` needs more memory than there is, and any other content has one.
"""

import hashlib
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import select

from storage.catalog import Catalog
from storage.chunks import Chunk, claim_chunk
from storage.commit import CommitResult, FailedItem, FileRead, PartWritten, commit_chunk
from storage.files import ScanResult, scan_root
from storage.leases import Lease
from storage.pending import known_digest
from storage.roots import RootInfo, add_root
from storage.scan import Signature
from storage.spaces import SpaceInfo
from storage.tables import Base, File, Image, Vector

NS = 10**9
OLD_NS = 1_700_000_000 * NS

BAD = {
    b"broken": ("decode", "truncated", False),
    b"dark": ("forward", "nan", False),
    b"heavy": ("forward", "memory", True),
}


def put(folder: Path, files: Mapping[str, bytes], *, mtime_ns: int = OLD_NS) -> None:
    """Write files with an old date; names may have folders."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, ns=(mtime_ns, mtime_ns))


def part_of(digests: Iterable[bytes], name: str | None = None) -> PartWritten:
    """Return a part as if it had been written."""
    digests = tuple(digests)
    name = name or uuid.uuid4().hex
    return PartWritten(name, len(digests), digests, 100, "c" * 32, "d" * 32, {"device": "cpu"})


def digest_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def bad(data: bytes) -> tuple[str, str, bool] | None:
    return next((why for word, why in BAD.items() if data.startswith(word)), None)


@dataclass
class Job:
    """One run over one root.

    ``trouble`` maps paths to the class of a read failure and whether it passes; ``untrusted`` are
    paths that are too young when they are read.
    """

    catalog: Catalog
    lease: Lease
    space: SpaceInfo
    folder: Path
    trouble: dict[bytes, tuple[str, bool]] = field(default_factory=dict)
    untrusted: set[bytes] = field(default_factory=set)
    chunks: int = 0

    @property
    def root(self) -> RootInfo:
        return add_root(self.catalog, os.fsencode(self.folder))

    def scan(self, *, confirm_missing: bool = True) -> ScanResult:
        return scan_root(
            self.catalog,
            self.root,
            confirm_missing=confirm_missing,
            skip=None,
            lease=self.lease,
        )

    def run(self, *, limit: int = 100) -> Counter[str]:
        """Scan, and extract in one pass; return the outcomes."""
        self.scan()
        return self.extract(limit=limit)

    def extract(self, *, limit: int = 100) -> Counter[str]:
        outcomes: Counter[str] = Counter()
        after = 0
        while chunk := self.claim(limit=limit, after=after):
            outcomes += self.commit(chunk).outcomes
            after = chunk.work[-1].file_id
        return outcomes

    def claim(self, *, limit: int = 100, after: int = 0) -> Chunk | None:
        self.chunks += 1
        return claim_chunk(
            self.catalog,
            self.lease,
            self.space,
            number=self.chunks,
            limit=limit,
            after_file_id=after,
        )

    def commit(self, chunk: Chunk) -> CommitResult:
        """Read the chunk's files and commit what they give."""
        reads, failures, wanted = [], [], {}
        for work in chunk.work:
            if work.path in self.trouble:
                name, passing = self.trouble[work.path]
                failures.append(FailedItem("read", name, "no", passing, work.file_id, None, None))
                continue
            with open(work.path, "rb") as file:
                sig = Signature.of(os.fstat(file.fileno()))
                data = file.read()
            digest = digest_of(data)
            trusted = work.path not in self.untrusted
            reads.append(FileRead(work.file_id, digest, sig, trusted))
            if digest in wanted or known_digest(self.catalog, self.space, digest) != "unknown":
                continue
            why = wanted[digest] = bad(data)
            if why:
                stage, name, passing = why
                failures.append(FailedItem(stage, name, "no", passing, work.file_id, digest, sig))
        good = [digest for digest, why in wanted.items() if why is None]
        return commit_chunk(
            self.catalog,
            self.lease,
            self.space,
            chunk,
            reads=reads,
            failures=failures,
            part=part_of(good) if good else None,
        )


def rows_of(catalog: Catalog, space: SpaceInfo) -> dict[bytes, int]:
    """Return the row of each digest in a space."""
    query = select(Image.digest, Vector.row).join(Vector, Vector.image_id == Image.id)
    with catalog.read() as conn:
        return dict(conn.execute(query.where(Vector.space_id == space.id)).all())


def states(catalog: Catalog) -> dict[bytes, str]:
    """Return the state of every file by its relative path."""
    with catalog.read() as conn:
        return dict(conn.execute(select(File.path, File.state)).all())


def dump(catalog: Catalog) -> dict[str, list[tuple[object, ...]]]:
    """Return every row of the tables that a scan or a commit may change."""
    names = ["roots", "files", "images", "spaces", "parts", "vectors", "failures", "claims"]
    with catalog.read() as conn:
        return {
            name: sorted(map(tuple, conn.execute(select(Base.metadata.tables[name]))), key=repr)
            for name in names
        }
