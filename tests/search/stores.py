"""Real stores with vectors that a test knows: each image's is drawn from its digest."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from extractor.preprocess import Preprocess
from storage.catalog import Catalog
from storage.chunks import claim_chunk
from storage.commit import FileRead, commit_chunk
from storage.files import scan_root
from storage.leases import Lease, finish_run, start_run
from storage.publish import publish
from storage.roots import add_root
from storage.scan import Signature
from storage.spaces import SpaceInfo, ensure_space
from storage.vectors import VectorStore

DIM = 16
PREPROCESS = Preprocess(
    resize=32, crop=32, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)
)


def draw(path: Path, seed: int, *, size: tuple[int, int] = (40, 30), **options: object) -> Path:
    """Write a picture of random colours; equal seeds give equal bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def digest_of(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def vector_of(digest: bytes) -> npt.NDArray[np.float32]:
    """Return the vector that the store has for a digest: shape ``(DIM,)``, unit length."""
    x = np.random.default_rng(list(digest)).normal(size=DIM)
    return (x / np.linalg.norm(x)).astype(np.float32)


@dataclass
class Store:
    """A catalog that is open for writing, and what was put into it."""

    catalog: Catalog
    lease: Lease = field(init=False)

    def __post_init__(self) -> None:
        self.lease = start_run(self.catalog, "test")

    def space(self, name: str = "known", dtype: str = "float32") -> SpaceInfo:
        """Return a space of its own for each name."""
        spec = {
            "architecture": name,
            "preprocess": PREPROCESS.to_json(),
            "decode_version": 1,
            "dim": DIM,
            "dtype": dtype,
        }
        request = {"model": "resnet18", "layer": None, "weights": "random:0"}
        return ensure_space(
            self.catalog, name=name, spec=spec, request=request, key=f"{name} {dtype}"
        )

    def index(
        self,
        root: Path,
        space: SpaceInfo,
        *,
        chunk: int = 100,
        vectors: Mapping[bytes, npt.NDArray[np.float32]] | None = None,
    ) -> None:
        """Scan a root and give each distinct image of it its vector, or that of ``vectors``."""
        info = add_root(self.catalog, os.fsencode(root))
        scan_root(self.catalog, info, confirm_missing=True, skip=None, lease=self.lease)
        files = VectorStore(self.catalog.home.space_dir(space.fingerprint), space.dim, space.dtype)
        number = after = 0
        while work := claim_chunk(
            self.catalog, self.lease, space, number=number, limit=chunk, after_file_id=after
        ):
            reads = [_read(one.file_id, one.path) for one in work.work]
            digests = list(dict.fromkeys(read.digest for read in reads))
            x = np.stack([vectors[d] if vectors else vector_of(d) for d in digests])
            part = files.append(self.lease.run_id, x, digests)
            commit_chunk(self.catalog, self.lease, space, work, reads=reads, failures=(), part=part)
            number, after = number + 1, work.work[-1].file_id

    def publish(self, space: SpaceInfo) -> None:
        """Publish an index."""
        publish(self.catalog, self.lease, space)

    def close(self) -> None:
        """End the run."""
        finish_run(self.catalog, self.lease, "done", {})


def _read(file_id: int, path: bytes) -> FileRead:
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read()).digest()
        sig = Signature.of(os.fstat(file.fileno()))
    return FileRead(file_id=file_id, digest=digest, sig=sig, trusted=True)
