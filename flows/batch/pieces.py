"""Cut a source into the pieces that are left to do."""

import json
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest

import xxhash

from flows.job.claiming import ChunkSize
from storage.sources.items import Item, Unreadable
from storage.workfolder import Finished, WorkFolder

Stamp = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Piece:
    """Items of a source that stand together.

    Attributes
    ----------
    start
        Number of the first item in the source, from 0.
    items
        At least one.
    stamps
        Of each item the size and the time of the last change of its file, as they were before
        anything of it was read; None where there is none.
    """

    start: int
    items: tuple[Item | Unreadable, ...]
    stamps: tuple[Stamp | None, ...] = ()

    @property
    def key(self) -> str:
        """Hash of the items, 32 hexadecimal digits: another line, label or file gives another."""
        total = xxhash.xxh3_128()
        for item, stamp in zip_longest(self.items, self.stamps):
            if isinstance(item, Item):
                values = [_text(item.id), _text(item.path), item.label, item.row, stamp]
            else:
                values = [_text(item.path), item.errno]
            total.update(json.dumps(values).encode() + b"\n")
        return str(total.hexdigest())

    def until(self, n: int) -> "Piece":
        """Return the first ``n`` items as a piece."""
        return Piece(self.start, self.items[:n], self.stamps[:n])


def pieces_left(
    items: Iterable[Item | Unreadable],
    work: WorkFolder,
    size: ChunkSize,
    kept: Callable[[Finished], None],
) -> Iterator[Piece]:
    """Yield what is to be done, in the order of the source.

    Parameters
    ----------
    items
        All of the source.
    work
        What is finished; of it, whatever does not fit the source any more is deleted.
    size
        How many items a piece has; asked for each anew.
    kept
        Told each piece that is finished already.
    """
    left = iter(items)
    starts: Sequence[int] = sorted(work.finished)
    start = 0
    while True:
        found = work.finished.get(start)
        # No piece reaches into one that is finished behind it: they lie where they were cut.
        after = bisect_right(starts, start)
        most = starts[after] - start if after < len(starts) else size.limit
        n = found.n if found else min(size.limit, most)
        some = tuple(islice(left, n))
        piece = Piece(start, some, tuple(map(_stamp, some)))
        if not piece.items:
            work.cut(start)
            return
        taken = work.take(start, piece.key) if found else None
        if taken is None:
            yield piece
        else:
            kept(taken)
        start += len(piece.items)


def _stamp(item: Item | Unreadable) -> Stamp | None:
    if isinstance(item, Unreadable) or item.row is not None:
        return None
    try:
        status = os.stat(item.path)
    except (OSError, ValueError):  # whoever reads it will tell why
        return None
    return status.st_size, status.st_mtime_ns


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
