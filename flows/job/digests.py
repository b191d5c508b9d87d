"""Which contents a process has in work, so that no two of its chunks make the same vector."""

import threading
from collections.abc import Callable
from typing import Self


class Digests:
    """The contents that the chunks of one process have in work, by space."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: set[tuple[int, bytes]] = set()

    def take(self, space_id: int, digest: bytes) -> bool:
        """Take a content into work; return False where another chunk has it."""
        with self._lock:
            free = (space_id, digest) not in self._held
            self._held.add((space_id, digest))
            return free

    def release(self, space_id: int, digests: set[bytes]) -> None:
        """Let contents go that are committed, or that came to nothing."""
        with self._lock:
            self._held.difference_update((space_id, digest) for digest in digests)


class Wanted:
    """Says of each content of a chunk whether its vector is wanted; a context manager.

    What it said yes to stays in work until the context ends, which has to be after the commit.
    Any thread may ask.

    Attributes
    ----------
    elsewhere
        The contents that another chunk of this process has in work.
    """

    def __init__(self, held: Digests, space_id: int, unknown: Callable[[bytes], bool]) -> None:
        self.elsewhere: set[bytes] = set()
        self._held, self._space_id, self._unknown = held, space_id, unknown
        self._taken: set[bytes] = set()
        self._asked = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.release(self._space_id, self._taken)

    def __call__(self, digest: bytes) -> bool:
        """Return whether the catalog does not know the content and no other chunk is at it."""
        self._asked += 1
        # Taken before it is looked up: who had it until now has committed by then.
        if not self._held.take(self._space_id, digest):
            self.elsewhere.add(digest)
            return False
        self._taken.add(digest)  # before the catalog is asked, which may not answer
        if self._unknown(digest):
            return True
        self._taken.discard(digest)
        self._held.release(self._space_id, {digest})
        return False

    @property
    def share(self) -> float:
        """Which part of the contents asked for so far is wanted; all where none was."""
        return len(self._taken) / max(self._asked, 1) if self._asked else 1.0
