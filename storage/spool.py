"""Hold changes back until they may be applied, in bounded memory.

A scan knows only at its end whether its root can be trusted, and a root that can't be trusted must
not change at all.  What waits for that verdict lies here: in memory while it is small, then in an
unnamed temporary file of JSON lines.
"""

import json
import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from storage.changes import Change, Known, Reason
from storage.scan import FileStat, Signature

MEMORY_BYTES = 32 << 20


class Spool:
    """A list of changes that is written once and then read, in order."""

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self._file = tempfile.SpooledTemporaryFile(memory_bytes)  # noqa: SIM115 -- closed by __exit__
        self._n = 0

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        """Return how many changes are held."""
        return self._n

    def add(self, change: Change) -> None:
        """Append one change."""
        line = json.dumps(
            [_text(change.path), change.reason.value, *_known(change), *_seen(change)]
        )
        self._file.write(line.encode("ascii") + b"\n")
        self._n += 1

    def __iter__(self) -> Iterator[Change]:
        """Yield the changes in the order in which they were added."""
        self._file.seek(0)
        for line in self._file:
            path, reason, known, seen = json.loads(line)
            path = _bytes(path)
            yield Change(
                path,
                Reason(reason),
                None if known is None else _row(path, known),
                None if seen is None else _stat(path, seen),
            )


def _known(change: Change) -> list[Any]:
    known = change.known
    if known is None:
        return [None]
    line = known.line and [known.line[0] and _text(known.line[0]), known.line[1]]
    return [[known.file_id, known.seen, known.state, known.trusted, known.hashed, line]]


def _seen(change: Change) -> list[Any]:
    seen = change.seen
    if seen is None:
        return [None]
    return [[seen.sig, seen.source and _text(seen.source), seen.label]]


def _row(path: bytes, known: list[Any]) -> Known:
    file_id, sig, state, trusted, hashed, line = known
    source, label = line or (None, None)
    return Known(
        file_id,
        path,
        Signature(*sig),
        state,
        trusted,
        hashed,
        line and (source and _bytes(source), label),
    )


def _stat(path: bytes, seen: list[Any]) -> FileStat:
    sig, source, label = seen
    return FileStat(path, Signature(*sig), source and _bytes(source), label)


def _text(value: bytes) -> str:
    return value.decode("latin-1")


def _bytes(value: str) -> bytes:
    return value.encode("latin-1")
