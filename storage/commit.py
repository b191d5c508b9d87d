"""Commit a chunk: files, images, rows, part, failures and claims, in one transaction.

The rows are allocated here, under the lock of the space, so commit order is row order.  A vector
whose image already has one is not entered: its row is dead from birth, and its number is used up.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from storage.before import Look, image_ids, lock_files, relevant_failures
from storage.catalog import Catalog
from storage.chunks import Chunk
from storage.leases import Lease, check_lease
from storage.outcomes import decide
from storage.settle import FailedItem, FileRead, Settle, is_busy, record
from storage.spaces import SpaceInfo
from storage.vectors import PartWritten

__all__ = ["CommitResult", "FailedItem", "FileRead", "PartWritten", "commit_chunk"]


@dataclass(frozen=True)
class CommitResult:
    """What a commit did.

    ``outcomes`` counts files by the words of ``storage.outcomes``, ``extracted`` the vectors that
    were entered and ``duplicates`` those that were not.  The part's rows begin at ``row_start``.
    """

    outcomes: Counter[str]
    row_start: int
    extracted: int
    duplicates: int
    failures_by_class: Counter[str]


def commit_chunk(  # noqa: PLR0913 -- four say where, three what
    catalog: Catalog,
    lease: Lease,
    space: SpaceInfo,
    chunk: Chunk,
    *,
    reads: Sequence[FileRead],
    failures: Sequence[FailedItem],
    part: PartWritten | None,
) -> CommitResult:
    """Make a chunk durable, all of it or nothing, and drop its claims.

    Files of the chunk that are in neither ``reads`` nor ``failures`` are pending again.  A file
    that was read is settled even when its image got no vector: a broken picture then costs nothing
    on later runs, and any other stays pending by the query.

    Parameters
    ----------
    reads
        Files that were read, those with a decode or forward failure included.
    failures
        What went wrong.  ``busy`` is counted and not recorded: it is never held against a file.
    part
        The vectors, already durable on disk, of digests in ``reads``; None for none.

    Raises
    ------
    ValueError
        The part has digests that no file of the chunk held, or another number of them than
        vectors; a decode or forward failure has no digest.
    LeaseLost
        The run was declared dead.  The part on disk is then an orphan.
    SpaceError
        The space was dropped meanwhile.
    """
    _check(reads, failures, part)
    read = [(item.file_id, item.digest) for item in reads]
    with catalog.write() as conn:
        check_lease(conn, lease)
        at = Settle(conn, catalog.now(conn), lease, space, chunk)
        row_start = at.lock_space()
        digests = sorted({read.digest for read in reads})
        known = image_ids(conn, digests)
        failed = {item.file_id: _outcome(item) for item in failures}
        files = lock_files(conn, {file_id for file_id, _ in read} | failed.keys())
        records = relevant_failures(conn, space, digests)
        broken = {item.digest: item.failure_class for item in failures if item.digest}
        before = Look(conn, space, chunk, lease).before(read, known, files, records)
        images = at.add_images(reads, known)
        entered = at.add_part(part, images, before, row_start) if part else set()
        outcomes = decide(before, read, failed=failed, extracted=entered, broken=broken)
        at.settle(reads, images)
        at.forget_moved(outcomes)
        at.resolve(reads, records, entered | set(before.served))
        record(conn, at.failure_rows(failures, files))
        at.acquit(reads)
        at.drop_claims()
    classes = Counter(item.failure_class for item in failures)
    return CommitResult(
        outcomes=Counter(outcomes.of_file.values()),
        row_start=row_start,
        extracted=len(entered),
        duplicates=part.n - len(entered) if part else 0,
        failures_by_class=classes + outcomes.known_failures,
    )


def _check(
    reads: Sequence[FileRead], failures: Sequence[FailedItem], part: PartWritten | None
) -> None:
    if any(item.digest is None for item in failures if item.stage != "read"):
        raise ValueError("a decode or forward failure is about a digest, and one has none")
    if part is None:
        return
    if part.n != len(part.digests):
        raise ValueError(f"the part has {part.n} vectors and {len(part.digests)} digests")
    strange = set(part.digests) - {read.digest for read in reads}
    if strange:
        raise ValueError(f"{len(strange)} digests of the part belong to no file of the chunk")


def _outcome(item: FailedItem) -> str:
    return "busy" if is_busy(item) else "failed"
