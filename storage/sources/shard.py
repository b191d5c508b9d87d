"""Split any source into parts by the hash of an image's id.

The parts are disjoint and together complete, and an image stays in its part whatever else comes or
goes, because nothing but its own id decides.
"""

import hashlib
import re
from dataclasses import dataclass

from storage.errors import SourceError


@dataclass(frozen=True, slots=True)
class Shard:
    """Part ``index`` of ``count``, counted from 1.

    Raises
    ------
    SourceError
        There is no such part.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise SourceError(
                f"there is no part {self.index} of {self.count}: parts are counted from 1, "
                f"so 1/{max(self.count, 1)} is the first"
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def holds(self, name: bytes) -> bool:
        """Say whether the image with this id belongs to the part: SHA-256 modulo ``count``."""
        number = int.from_bytes(hashlib.sha256(name).digest()[:8], "big")
        return number % self.count == self.index - 1


def parse_shard(text: str) -> Shard:
    """Read ``2/4``, the second of four parts.

    Raises
    ------
    SourceError
        It is not of that form, or there is no such part.
    """
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if found is None:
        raise SourceError(f"{text!r} names no part: write I/N, such as 2/4 for the second of four")
    return Shard(int(found[1]), int(found[2]))
