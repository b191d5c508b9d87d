"""What a search gives back: plain values, ready for JSON."""

import os
from dataclasses import dataclass
from typing import Any, NamedTuple


class Hit(NamedTuple):
    """One image that looks like the query, with every live path that holds it."""

    score: float
    """Cosine of the angle between the two vectors, 1 for the same image."""
    path: bytes
    """Absolute path of one of its files: the first by path."""
    paths: tuple[bytes, ...]
    """Absolute paths of all of its live files, sorted."""
    image_id: int
    row: int
    id: str | None = None
    """Key of the line, where a manifest gives ids."""
    label: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the hit for scripts; ``id`` and ``label`` only where a manifest gave them."""
        values = {
            "score": round(self.score, 6),
            "path": os.fsdecode(self.path),
            "paths": [os.fsdecode(path) for path in self.paths],
            "image_id": self.image_id,
            "row": self.row,
        }
        extra = {"id": self.id, "label": self.label}
        return {**values, **{name: value for name, value in extra.items() if value is not None}}


@dataclass(frozen=True, slots=True)
class Answer:
    """The hits of one query, the best first."""

    query: bytes
    """Absolute path of the query image."""
    space: str
    hits: tuple[Hit, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the answer for scripts."""
        return {
            "query": os.fsdecode(self.query),
            "space": self.space,
            "hits": [hit.to_json() for hit in self.hits],
        }
