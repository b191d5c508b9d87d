"""What became of each file of a chunk, once its bytes are known.  Pure: nothing is read or written.

=============  ===================================================================================
``extracted``  a vector was made for its image now; one file for each vector
``touched``    its bytes are what they were
``moved``      its image is known, and one missing file that held it is forgotten for this one
``copied``     its image is known from another live file
``reused``     its image has a vector already, from elsewhere or for this space
``failed``     it could not be read, or its image can't be made into a vector
``busy``       it changed while it was read; the next run tries again
``pending``    it is read, and its image waits for a vector: interrupted, or made by another chunk
=============  ===================================================================================
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Before:
    """What the catalog knew of a chunk's files and digests before its commit.

    Attributes
    ----------
    held
        The digest that each file held, None for none.  Files that are gone are not in it.
    settled
        Files that were claimed for a vector only, with their bytes known.
    missing
        For a digest, the missing files that held it, oldest first.
    elsewhere
        Digests that live files outside the chunk hold.
    served
        Digests with a vector in the space.
    broken
        Digests that were known to have no vector for good, with the failure's class.
    """

    held: Mapping[int, bytes | None]
    settled: Collection[int]
    missing: Mapping[bytes, list[int]]
    elsewhere: Collection[bytes]
    served: Collection[bytes]
    broken: Mapping[bytes, str]


@dataclass
class Outcomes:
    """The decision.

    ``of_file`` gives each file's outcome, ``moved_from`` the missing files that are forgotten, and
    ``known_failures`` counts the files that failed for a content that was found broken before, or
    by way of another file, by class.
    """

    of_file: dict[int, str] = field(default_factory=dict)
    moved_from: list[int] = field(default_factory=list)
    known_failures: Counter[str] = field(default_factory=Counter)


def decide(
    before: Before,
    reads: Iterable[tuple[int, bytes]],
    *,
    failed: Mapping[int, str],
    extracted: Collection[bytes],
    broken: Mapping[bytes, str],
) -> Outcomes:
    """Decide the outcome of every file that was read or failed.

    A file whose content was known to be broken fails only when the content is new to it; a broken
    picture that was merely touched is touched, and costs no alarm on later runs.  Where it was
    tried again and failed, every file that holds it fails.  A file that is gone from the catalog by
    now has the outcome that it would have had as a new one, but that it is no live file.

    Parameters
    ----------
    before
        What was known.
    reads
        File and digest, in the order of the chunk.
    failed
        ``busy`` or ``failed`` for the files that failed now.
    extracted
        Digests that get their vector now.
    broken
        Digests that were found broken now, with the failure's class.
    """
    outcomes = Outcomes(dict(failed))
    # Those that are gone come last: where a live file holds the same, the vector is that one's.
    files = sorted(reads, key=lambda read: read[0] not in before.held)
    missing = {digest: list(ids) for digest, ids in before.missing.items()}
    fresh, served = set(extracted), {*before.served, *extracted}
    classes = {**before.broken, **broken}
    live = {digest for file_id, digest in files if before.held.get(file_id) == digest}
    live.update(before.elsewhere)
    for file_id, digest in files:
        gone, same = file_id not in before.held, before.held.get(file_id) == digest
        moved = not gone and not same and bool(missing.get(digest))
        if moved:
            outcomes.moved_from.append(missing[digest].pop(0))
        if file_id in failed:
            pass
        elif digest in fresh:
            fresh.discard(digest)
            outcomes.of_file[file_id] = "extracted"
        elif digest in served:
            is_known = "moved" if moved else "copied" if digest in live else "reused"
            kept = "reused" if file_id in before.settled else "touched"
            outcomes.of_file[file_id] = kept if same else is_known
        else:
            outcomes.of_file[file_id] = _without_vector(before, digest, broken, same=same)
            if outcomes.of_file[file_id] == "failed":
                outcomes.known_failures[classes[digest]] += 1
        if not gone:
            live.add(digest)
    return outcomes


def _without_vector(before: Before, digest: bytes, broken: Collection[bytes], *, same: bool) -> str:
    """Return the outcome of a file whose image has no vector."""
    if digest in broken:
        return "failed"
    if digest in before.broken:
        return "touched" if same else "failed"
    return "pending"
