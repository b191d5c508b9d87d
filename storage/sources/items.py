"""What every source of images gives: items in a stable order, as a stream.

A source reads nothing of a picture file itself, so that a list may name files that are gone:
whoever opens them records it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from storage.scan import Unreadable
from storage.sources.shard import Shard

__all__ = ["BadPixels", "Item", "Source", "Unreadable"]


class BadPixels(Exception):
    """A row of an array is no picture.  Data, not trouble: one failure, and the run goes on.

    Parameters
    ----------
    failure_class
        ``range``: a value is outside of what was stated.
    message
        One line for a person.
    """

    def __init__(self, failure_class: str, message: str) -> None:
        super().__init__(f"{failure_class}: {message}")
        self.failure_class = failure_class
        self.message = message


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source.

    Parameters
    ----------
    id
        What the image is called; no other of the source has it.
    path
        The absolute path of its file; ``b""`` for a row of an array.
    label
        Its class, where the source tells one.
    row
        Its number in an array, from 0; ``None`` for a file.
    """

    id: bytes
    path: bytes
    label: str | None
    row: int | None = None


class Source(ABC):
    """Images to work on, in the same order each time; a context manager that closes itself.

    Attributes
    ----------
    description
        One line for a person: what it is and how it was read.
    inside
        The directory whose pictures it gives: below it no symbolic link is followed.
    """

    description: str
    inside: bytes | None = None

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """JSON that is the same as long as the source is: what a resumed run compares."""

    @abstractmethod
    def items(self, shard: Shard | None = None) -> Iterator[Item | Unreadable]:
        """Yield all images, or those of one shard, in constant memory.

        What can't be looked at is an `Unreadable`, which belongs to a shard by its path.  The order
        never depends on the shard, and several streams may be read at once.
        """

    def count_hint(self) -> int | None:
        """Return how many images there are, in all shards; ``None`` where only a walk tells."""
        return None

    def pixels(self, row: int) -> NDArray[np.uint8]:
        """Read one row of an array as a picture; any thread may.

        Returns
        -------
        array
            Shape ``(H, W, 3)``, uint8, the caller's own.

        Raises
        ------
        BadPixels
            A value is outside of the range that was stated.
        """
        raise LookupError(f"row {row}: {self.description} has files, not pixels")

    @abstractmethod
    def close(self) -> None:
        """Give back what the source holds open; a second time is no trouble."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
