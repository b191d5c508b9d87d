"""Read files again that nothing has touched, and hold their bytes against the catalog's digests.

A scan believes a file's size, times and inode.  What changes bytes and none of these (a disk that
forgets, a write through a memory map) is seen here alone.  Each round reads one slice of the
files, so that as many rounds as there are slices read all of them.
"""

import os
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from sqlalchemy import ColumnElement, func, select, update

from storage.catalog import Catalog
from storage.leases import Lease, changed, check_lease
from storage.pending import HASHED, SEEN, settled
from storage.scan import Signature
from storage.slices import sliced
from storage.tables import File, Image, Root, Run

SLICES = 30
PAGE = 1_000
"""Rows of one page read, and outcomes between two looks at what has to be written."""
MOST_LISTED = 100
"""So many files are listed by name; the others are counted."""


@dataclass(frozen=True, slots=True)
class Settled:
    """A file whose bytes are known, and what is known: their digest, and the signature then."""

    file_id: int
    path: bytes
    """Absolute."""
    digest: bytes
    sig: Signature


class Outcome(Enum):
    """What became of a file that was read again."""

    SAME = "same"
    CHANGED = "changed"
    """It has another signature now, or is being written: the next scan sees that by itself."""
    ROTTEN = "rotten"
    """Other bytes under the same signature."""
    VANISHED = "vanished"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Again:
    """What came of reading a file again; ``digest`` is None where it could not be read."""

    known: Settled
    outcome: Outcome
    digest: bytes | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Rotten:
    """A file whose bytes differ though nothing else of it does."""

    path: bytes
    was: bytes
    now: bytes
    """Digests."""


@dataclass
class Rehashed:
    """What came of a slice."""

    number: int
    outcomes: Counter[str] = field(default_factory=Counter)
    """How many files of each ``Outcome``."""
    rotten: list[Rotten] = field(default_factory=list)
    """The first 100."""
    unreadable: list[tuple[bytes, str]] = field(default_factory=list)
    """Path and trouble of the first 100, those that vanished left out."""
    finished: bool = False
    """Whether the whole slice was read."""


Reader = Callable[[Iterable[Settled]], Iterator[Again]]
"""Reads files, and says of each one what became of it, in their order; may end early."""


def judge(known: Settled, digest: bytes, sig: Signature) -> Again:
    """Compare what a file holds and how it looks, read in one piece, with what was known."""
    if digest == known.digest:
        return Again(known, Outcome.SAME, digest)
    same = sig == known.sig
    return Again(known, Outcome.ROTTEN if same else Outcome.CHANGED, digest)


def next_slice(catalog: Catalog) -> int:
    """Return the slice after the one that a maintenance has finished last; 0 at first.

    A run that was killed, or stopped on the way, has finished none.
    """
    ended = (Run.kind == "maintenance", Run.report.is_not(None))
    query = select(Run.report).where(*ended).order_by(Run.started_at.desc(), Run.id.desc())
    with catalog.read() as conn:
        for report in conn.execute(query).scalars():
            done = (report or {}).get("rehash") or {}
            if done.get("finished"):
                return (int(done["slice"]) + 1) % SLICES
    return 0


def count_slice(catalog: Catalog, number: int, roots: Sequence[int]) -> int:
    """Return how many files of some roots a slice has."""
    query = select(func.count()).select_from(File).where(*_in_slice(number, roots))
    with catalog.read() as conn:
        return conn.execute(query).scalar_one()


def settled_files(catalog: Catalog, number: int, roots: Sequence[int]) -> Iterator[Settled]:
    """Yield the files of a slice, in pages with no transaction open in between.

    Parameters
    ----------
    number
        Of the slice, 0 to 29.
    roots
        Their ids.
    """
    query = (
        select(File.id, Root.path, File.path, File.source, Image.digest, *SEEN)
        .join(Root, Root.id == File.root_id)
        .join(Image, Image.id == File.image_id)
        .where(*_in_slice(number, roots))
        .order_by(File.id)
        .limit(PAGE)
    )
    page = query
    while True:
        with catalog.read() as conn:
            rows = conn.execute(page).all()
        for file_id, root, path, source, digest, *sig in rows:
            yield Settled(file_id, source or os.path.join(root, path), digest, Signature(*sig))
        if len(rows) < PAGE:
            return
        page = query.where(File.id > rows[-1][0])


def rehash(
    catalog: Catalog, lease: Lease, number: int, roots: Sequence[int], read: Reader
) -> Rehashed:
    """Read a slice of the files again; what rotted becomes pending, for the next run to read.

    Parameters
    ----------
    catalog, lease
        The run.
    number
        Of the slice, 0 to 29.
    roots
        Ids of the roots that can be trusted now.
    read
        Reads the files.

    Raises
    ------
    LeaseLost
        The run was declared dead.
    """
    result = Rehashed(number)
    files = _Counted(settled_files(catalog, number, roots))
    for page in sliced(read(files), PAGE):
        rotten = [again for again in page if again.outcome is Outcome.ROTTEN]
        overtaken = _distrust(catalog, lease, rotten) if rotten else set()
        for again in page:
            _note(result, again, overtaken)
    result.finished = files.ended and files.n == result.outcomes.total()
    return result


class _Counted:
    """Passes files on, and knows how many there were and whether that was all."""

    def __init__(self, files: Iterator[Settled]) -> None:
        self._files = files
        self.n = 0
        self.ended = False

    def __iter__(self) -> Iterator[Settled]:
        for known in self._files:
            self.n += 1
            yield known
        self.ended = True


def _note(result: Rehashed, again: Again, overtaken: Container[int]) -> None:
    known = again.known
    outcome = Outcome.CHANGED if known.file_id in overtaken else again.outcome
    result.outcomes[outcome.value] += 1
    if outcome is Outcome.ROTTEN and len(result.rotten) < MOST_LISTED:
        result.rotten.append(Rotten(known.path, known.digest, again.digest or b""))
    if outcome is Outcome.UNREADABLE and len(result.unreadable) < MOST_LISTED:
        result.unreadable.append((known.path, again.message))


def _distrust(catalog: Catalog, lease: Lease, files: Iterable[Again]) -> set[int]:
    """Make files pending; return the ids of those whose row says something else by now.

    A run that has read one of them meanwhile knows better.
    """
    overtaken = set()
    with catalog.write() as conn:
        check_lease(conn, lease)
        for again in files:  # in the order of their ids, as every writer of files locks them
            known = again.known
            image = select(Image.id).where(Image.digest == known.digest).scalar_subquery()
            sig = (known.sig.size_bytes, known.sig.mtime_ns, known.sig.ctime_ns, known.sig.inode)
            as_compared = (
                File.id == known.file_id,
                File.image_id == image,
                *(column == value for column, value in zip(SEEN, sig, strict=True)),
                *(column == value for column, value in zip(HASHED, sig, strict=True)),
            )
            distrusted = update(File).where(*as_compared).values(trusted=False)
            if not changed(conn, distrusted):
                overtaken.add(known.file_id)
    return overtaken


def _in_slice(number: int, roots: Sequence[int]) -> tuple[ColumnElement[bool], ...]:
    # The sum keeps SQLite from taking the index of roots, and sorting all of them for a page.
    of_roots = (File.root_id + 0).in_(roots)
    return File.id % SLICES == number, File.state == "live", of_roots, settled()
