"""Read-only questions to the index: what looks like this picture."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.engine import Searcher

__all__ = ["Searcher"]


def __getattr__(name: str) -> Any:
    """Load ``Searcher`` when it is asked for: ``import search`` stays cheap."""
    if name == "Searcher":
        from search.engine import Searcher

        return Searcher
    raise AttributeError(f"module 'search' has no attribute {name!r}")
