"""What the search for duplicates tells: groups of files, the best one of each first."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from search.copies import Held

MOST_TOLD = 1000
"""Files that are told at once; a group of more comes in several pieces."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a group."""

    held: Held
    score: float
    """Cosine of its image with the kept one; 1 where it is the same image."""
    size: tuple[int, int] | None = None
    """Width and height as they are stored, where images were compared by them."""

    def to_json(self) -> dict[str, Any]:
        """Return the file for scripts."""
        width, height = self.size or (None, None)
        return {
            "path": os.fsdecode(self.held.path),
            "image_id": self.held.image_id,
            "digest": self.held.digest.hex(),
            "size_bytes": self.held.size_bytes,
            "width": width,
            "height": height,
            "modified": self.held.mtime_ns / 1e9,
            "first_seen": self.held.first_seen_at,
            "score": round(self.score, 6),
        }


@dataclass(frozen=True, slots=True)
class Group:
    """Files that hold one image, or images that look the same; or a piece of so many files."""

    number: int
    """From 1 on; the pieces of one group have the same."""
    keep: Member
    """The best one."""
    others: tuple[Member, ...]
    """By falling score, those of one image together, the oldest first."""
    before: int = 0
    """How many others the pieces before this one have."""
    goes_on: bool = False
    """Whether another piece follows."""

    @property
    def is_exact(self) -> bool:
        """Whether all files here hold the same bytes."""
        return all(each.held.image_id == self.keep.held.image_id for each in self.others)

    @property
    def size_bytes(self) -> int:
        """What the others take."""
        return sum(each.held.size_bytes for each in self.others)

    def to_json(self) -> dict[str, Any]:
        """Return the group for scripts."""
        return {
            "group": self.number,
            "kind": "exact" if self.is_exact else "near",
            "keep": self.keep.to_json(),
            "others": [each.to_json() for each in self.others],
        }


def pieces(number: int, keep: Member, others: Iterable[Member]) -> Iterator[Group]:
    """Yield a group in pieces that fit into memory; nothing where there are no others."""
    left, before = iter(others), 0
    some = tuple(islice(left, MOST_TOLD))
    while some:
        following = tuple(islice(left, MOST_TOLD))
        yield Group(number, keep, some, before, bool(following))
        before += len(some)
        some = following


def copies(held: Iterable[Held], score: float, size: tuple[int, int] | None) -> Iterator[Member]:
    """Yield the files of one image as members."""
    return (Member(each, score, size) for each in held)
