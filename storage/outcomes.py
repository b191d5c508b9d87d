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
        Digests that can't have a vector, with the failure's class.
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
    ``known_failures`` counts the files whose new content was known to be broken, by class.
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
) -> Outcomes:
    """Decide the outcome of every file.

    A file whose content is known to be broken fails only when the content is new to it; a broken
    picture that was merely touched is touched, and costs no alarm on later runs.

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
    """
    outcomes = Outcomes(dict(failed))
    files = [(file_id, digest) for file_id, digest in reads if file_id in before.held]
    missing = {digest: list(ids) for digest, ids in before.missing.items()}
    fresh = set(extracted)
    live = {digest for file_id, digest in files if before.held[file_id] == digest}
    live.update(before.elsewhere)
    for file_id, digest in files:
        same = before.held[file_id] == digest
        moved = not same and bool(missing.get(digest))
        if moved:
            outcomes.moved_from.append(missing[digest].pop(0))
        if file_id in failed:
            pass
        elif digest in fresh:
            fresh.discard(digest)
            outcomes.of_file[file_id] = "extracted"
        elif same:
            outcomes.of_file[file_id] = _same(before, file_id, digest, digest in extracted)
        elif digest in before.broken:
            outcomes.of_file[file_id] = "failed"
            outcomes.known_failures[before.broken[digest]] += 1
        elif digest not in before.served and digest not in extracted:
            outcomes.of_file[file_id] = "pending"
        else:
            outcomes.of_file[file_id] = _new(moved, digest in live)
        live.add(digest)
    return outcomes


def _same(before: Before, file_id: int, digest: bytes, extracted: bool) -> str:
    """Return the outcome of a file that holds what it held."""
    if digest in before.broken:
        return "touched"
    if digest not in before.served and not extracted:
        return "pending"
    return "reused" if file_id in before.settled else "touched"


def _new(moved: bool, live: bool) -> str:
    """Return the outcome of a file that holds something else now, which has a vector."""
    if moved:
        return "moved"
    return "copied" if live else "reused"
