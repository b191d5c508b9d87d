"""What a worker is told to do: small values that can be sent to a thread, process or host."""

from dataclasses import dataclass

from storage.chunks import Chunk
from storage.leases import Lease
from storage.roots import RootInfo


@dataclass(frozen=True)
class Place:
    """Where a worker finds the store, and in whose name it works."""

    home: str
    catalog_url: str | None
    lease: Lease


@dataclass(frozen=True)
class ScanOrder:
    """Scan one root."""

    place: Place
    root: RootInfo
    confirm_missing: bool


@dataclass(frozen=True)
class ChunkOrder:
    """Extract and commit one claimed chunk."""

    place: Place
    space: str
    chunk: Chunk
    device: str
    batch_size: int | None
    workers: int | None
    engine: str = "torch"
    left: int = 0
    """How many files this worker has still to come, those of the chunk among them, at most."""


@dataclass(frozen=True)
class PublishOrder:
    """Publish an index of a space; ``factory`` overrides the kind that would be chosen."""

    place: Place
    space: str
    factory: str | None
