"""The writing steps of a commit."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from storage.before import Held, Record, image_ids
from storage.chunks import Chunk, claims_of
from storage.database import insert_into
from storage.errors import SpaceError
from storage.leases import Lease
from storage.outcomes import Before, Outcomes
from storage.scan import Signature
from storage.slices import sliced
from storage.spaces import SpaceInfo
from storage.suspects import acquit
from storage.tables import Claim, Failure, File, Image, Part, Space, Vector
from storage.vectors import PartWritten

KEY = ("stage", "file_id", "digest", "space_id", "decode_version")
"""What a failure is about; a second one about the same is another attempt."""


@dataclass(frozen=True)
class FileRead:
    """A file whose bytes were read and hashed.

    ``sig`` is that of the open file, equal before and after the read; ``trusted`` says whether it
    was old enough then.
    """

    file_id: int
    digest: bytes
    sig: Signature
    trusted: bool


@dataclass(frozen=True)
class FailedItem:
    """A file or content that gave no vector.

    ``stage`` is ``read``, ``decode`` or ``forward``; the latter two need a digest.
    """

    stage: str
    failure_class: str
    message: str
    transient: bool
    file_id: int
    digest: bytes | None
    sig: Signature | None


def is_busy(item: FailedItem) -> bool:
    """Tell whether the file merely changed while it was read."""
    return item.stage == "read" and item.failure_class == "busy"


@dataclass(frozen=True)
class Settle:
    """The transaction of one commit: its steps, in the order in which they are taken."""

    conn: Connection
    now: float
    lease: Lease
    space: SpaceInfo
    chunk: Chunk

    def lock_space(self) -> int:
        """Return the next row of the space, which no other commit takes before this one ends."""
        query = select(Space.next_row).where(Space.id == self.space.id).with_for_update()
        row = self.conn.execute(query).scalar()
        if row is None:
            raise SpaceError(f"the space {self.space.name} was dropped meanwhile")
        return row

    def add_images(self, reads: Sequence[FileRead], known: dict[bytes, int]) -> dict[bytes, int]:
        """Enter the new images and return the ids of all that were read."""
        sizes = {read.digest: read.sig.size_bytes for read in reads if read.digest not in known}
        if not sizes:
            return known
        rows = [
            {"digest": digest, "size_bytes": sizes[digest], "first_seen_at": self.now}
            for digest in sorted(sizes)
        ]
        # A commit in another space may be entering the same content now.
        self.conn.execute(insert_into(self.conn, Image).on_conflict_do_nothing(), rows)
        return known | image_ids(self.conn, sorted(sizes))

    def add_part(
        self, part: PartWritten, images: dict[bytes, int], before: Before, row_start: int
    ) -> set[bytes]:
        """Enter the part and its vectors; return the digests whose vector is entered."""
        row_end = row_start + part.n
        rows: dict[bytes, int] = {}
        for row, digest in enumerate(part.digests, row_start):
            if digest not in before.served:
                rows.setdefault(digest, row)
        self.conn.execute(
            insert(Part).values(
                space_id=self.space.id,
                name=part.name,
                state="live",
                row_start=row_start,
                row_end=row_end,
                n=part.n,
                size_bytes=part.size_bytes,
                checksum=part.checksum,
                ids_checksum=part.ids_checksum,
                run_id=self.lease.run_id,
                facts=dict(part.facts),
                created_at=self.now,
            )
        )
        if rows:
            vectors = [
                {"space_id": self.space.id, "image_id": images[digest], "row": row}
                for digest, row in rows.items()
            ]
            self.conn.execute(insert(Vector), vectors)
        self.conn.execute(update(Space).where(Space.id == self.space.id).values(next_row=row_end))
        return set(rows)

    def settle(self, reads: Sequence[FileRead], images: dict[bytes, int]) -> None:
        """Record what each file holds, under the signature with which it was read."""
        rows = [_settled_row(read, images[read.digest]) for read in reads]
        if rows:
            rows.sort(key=lambda row: row["file"])
            self.conn.execute(update(File).where(File.id == bindparam("file")), rows)

    def forget_moved(self, outcomes: Outcomes) -> None:
        """Delete the missing files whose content turned up under another path."""
        for some in sliced(outcomes.moved_from):
            self._drop_read_failures(some)
            self.conn.execute(delete(File).where(File.id.in_(some)))

    def resolve(
        self,
        reads: Sequence[FileRead],
        records: Sequence[Record],
        served: set[bytes],
    ) -> None:
        """Delete the failures that are none any more."""
        for some in sliced(read.file_id for read in reads):
            self._drop_read_failures(some)
        for some in sliced(item.id for item in records if item.digest in served):
            self.conn.execute(delete(Failure).where(Failure.id.in_(some)))

    def failure_rows(
        self, failures: Sequence[FailedItem], files: Mapping[int, Held]
    ) -> list[dict[str, Any]]:
        """Return the rows of the failures that are recorded."""
        return [
            {
                "failure_class": item.failure_class,
                "message": item.message,
                "transient": item.transient,
                "first_at": self.now,
                "last_at": self.now,
                "run_id": self.lease.run_id,
                **self._subject(item, files),
            }
            for item in failures
            if not is_busy(item) and (item.stage != "read" or item.file_id in files)
        ]

    def _subject(self, item: FailedItem, files: Mapping[int, Held]) -> dict[str, Any]:
        """Return what a failure is about.  One that is about a digest names no file."""
        seen = files[item.file_id].seen if item.stage == "read" else None
        return {
            "stage": item.stage,
            "file_id": item.file_id if seen else 0,
            "digest": b"" if seen else item.digest,
            "space_id": self.space.id if item.stage == "forward" else 0,
            "decode_version": self.space.decode_version if item.stage == "decode" else 0,
            "size_bytes": seen and seen.size_bytes,
            "mtime_ns": seen and seen.mtime_ns,
            "ctime_ns": seen and seen.ctime_ns,
            "inode": seen and seen.inode,
        }

    def acquit(self, reads: Sequence[FileRead]) -> None:
        """Suspect the files no longer that were read: what they hold is settled."""
        suspect = {work.file_id for work in self.chunk.work if work.suspect}
        acquit(self.conn, suspect & {read.file_id for read in reads})

    def drop_claims(self) -> None:
        """Give up the chunk."""
        self.conn.execute(delete(Claim).where(*claims_of(self.lease, self.chunk)))

    def _drop_read_failures(self, file_ids: list[int]) -> None:
        self.conn.execute(
            delete(Failure).where(Failure.stage == "read", Failure.file_id.in_(file_ids))
        )


def record(conn: Connection, rows: Iterable[dict[str, Any]]) -> None:
    """Write failures; where one about the same is recorded, it counts one attempt more.

    Parameters
    ----------
    rows
        Columns of ``failures`` but for ``id`` and ``attempts``.
    """
    by_key = {tuple(row[name] for name in KEY): row for row in rows}
    if not by_key:
        return
    insert = insert_into(conn, Failure)
    latest = {
        name: insert.excluded[name]
        for name in (
            "failure_class",
            "message",
            "transient",
            "size_bytes",
            "mtime_ns",
            "ctime_ns",
            "inode",
            "last_at",
            "run_id",
        )
    }
    insert = insert.on_conflict_do_update(
        index_elements=KEY, set_={**latest, "attempts": Failure.attempts + 1}
    )
    conn.execute(insert, [by_key[key] for key in sorted(by_key)])


def _settled_row(read: FileRead, image_id: int) -> dict[str, Any]:
    sig = read.sig
    return {
        "file": read.file_id,
        "image_id": image_id,
        "trusted": read.trusted,
        "seen_size_bytes": sig.size_bytes,
        "seen_mtime_ns": sig.mtime_ns,
        "seen_ctime_ns": sig.ctime_ns,
        "seen_inode": sig.inode,
        "digest_size_bytes": sig.size_bytes,
        "digest_mtime_ns": sig.mtime_ns,
        "digest_ctime_ns": sig.ctime_ns,
        "digest_inode": sig.inode,
    }
