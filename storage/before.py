"""What the catalog knows of a chunk's files and contents just before its commit."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, exists, or_, select
from sqlalchemy.orm import InstrumentedAttribute

from storage.chunks import Chunk, claims_of
from storage.leases import Lease
from storage.outcomes import Before
from storage.pending import quarantined
from storage.scan import Signature
from storage.slices import sliced
from storage.spaces import SpaceInfo
from storage.tables import Claim, Failure, File, Image, Vector


@dataclass(frozen=True, slots=True)
class Held:
    """What a file held: a digest or None, and its signature when it was last seen."""

    digest: bytes | None
    seen: Signature


@dataclass(frozen=True, slots=True)
class Record:
    """A recorded failure of a digest; ``stands`` when it won't be tried again."""

    id: int
    digest: bytes
    failure_class: str
    stands: bool


def image_ids(conn: Connection, digests: Iterable[bytes]) -> dict[bytes, int]:
    """Return the images of those digests that are known."""
    ids: dict[bytes, int] = {}
    for some in sliced(digests):
        query = select(Image.digest, Image.id).where(Image.digest.in_(some))
        ids.update((digest, image_id) for digest, image_id in conn.execute(query))
    return ids


def lock_files(conn: Connection, file_ids: Iterable[int]) -> dict[int, Held]:
    """Return what each file holds; a file that is gone is left out.

    Rows are locked in the order of their ids, as every writer of files does it, so that no two
    wait for each other.
    """
    files: dict[int, Held] = {}
    for some in sliced(sorted(file_ids)):
        query = (
            select(
                File.id,
                Image.digest,
                File.seen_size_bytes,
                File.seen_mtime_ns,
                File.seen_ctime_ns,
                File.seen_inode,
            )
            .outerjoin(Image, Image.id == File.image_id)
            .where(File.id.in_(some))
            .order_by(File.id)
            .with_for_update(of=File)
        )
        for file_id, digest, *seen in conn.execute(query):
            files[file_id] = Held(digest, Signature(*seen))
    return files


def relevant_failures(conn: Connection, space: SpaceInfo, digests: Iterable[bytes]) -> list[Record]:
    """Return the failures that kept these digests out of the space."""
    stands = quarantined(space.decode_version, space.id)
    relevant = or_(Failure.decode_version == space.decode_version, Failure.space_id == space.id)
    found: list[Record] = []
    for some in sliced(digests):
        query = select(Failure.id, Failure.digest, Failure.failure_class, stands).where(
            Failure.stage != "read", Failure.digest.in_(some), relevant
        )
        found.extend(Record(*row) for row in conn.execute(query))
    return found


@dataclass(frozen=True)
class Look:
    """One look at everything that the outcomes of a chunk depend on."""

    conn: Connection
    space: SpaceInfo
    chunk: Chunk
    lease: Lease

    def before(
        self,
        reads: Iterable[tuple[int, bytes]],
        known: Mapping[bytes, int],
        files: Mapping[int, Held],
        records: Iterable[Record],
    ) -> Before:
        """Collect it.

        Parameters
        ----------
        reads
            File and digest.
        known
            Images of those digests that had one before.
        files, records
            From ``lock_files`` and ``relevant_failures``.
        """
        held = {file_id: file.digest for file_id, file in files.items()}
        digest_of = {image_id: digest for digest, image_id in known.items()}
        new = {digest for file_id, digest in reads if held.get(file_id) != digest}
        taken = [image_id for digest, image_id in known.items() if digest in new]
        return Before(
            held=held,
            settled={work.file_id for work in self.chunk.work if work.digest is not None},
            missing=self._missing(taken, digest_of),
            elsewhere={digest_of[image_id] for image_id in self._live_elsewhere(taken)},
            served={digest_of[image_id] for image_id in self._served(list(digest_of))},
            broken={item.digest: item.failure_class for item in records if item.stands},
        )

    def _missing(
        self, image_ids: Sequence[int], digest_of: Mapping[int, bytes]
    ) -> dict[bytes, list[int]]:
        """Return the missing files of images; what a scan is changing now is left to it."""
        missing: dict[bytes, list[int]] = {}
        for some in sliced(image_ids):
            query = (
                select(File.id, File.image_id)
                .where(File.image_id.in_(some), File.state == "missing")
                .order_by(File.id)
                .with_for_update(skip_locked=True)
            )
            for file_id, image_id in self.conn.execute(query):
                assert image_id is not None  # noqa: S101 -- it is one of these
                missing.setdefault(digest_of[image_id], []).append(file_id)
        return missing

    def _live_elsewhere(self, image_ids: Sequence[int]) -> set[int]:
        """Return those images that a live file outside the chunk holds."""
        mine = exists().where(
            *claims_of(self.lease, self.chunk), Claim.kind == "file", Claim.subject_id == File.id
        )
        query = select(File.image_id).distinct().where(File.state == "live", ~mine)
        return self._of_images(query, File.image_id, image_ids)

    def _served(self, image_ids: Sequence[int]) -> set[int]:
        """Return those images that have a vector in the space."""
        query = select(Vector.image_id).where(Vector.space_id == self.space.id)
        return self._of_images(query, Vector.image_id, image_ids)

    def _of_images(
        self, query: Select[Any], column: InstrumentedAttribute[Any], image_ids: Sequence[int]
    ) -> set[int]:
        found: set[int] = set()
        for some in sliced(image_ids):
            found.update(self.conn.execute(query.where(column.in_(some))).scalars())
        return found
