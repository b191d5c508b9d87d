"""Groups around their best member: nothing far from it comes in by way of others."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Scores = Callable[[int, IntArray], npt.NDArray[np.float32]]
"""Row, and rows of shape ``(n,)`` -> their cosines with it, shape ``(n,)``."""


@dataclass(frozen=True, slots=True)
class Star:
    """One group: the row of its best member, and of the others by falling score."""

    best: int
    others: tuple[int, ...]
    scores: tuple[float, ...]


def stars(
    order: Sequence[int], a: IntArray, b: IntArray, scores: Scores, least: float
) -> Iterator[Star]:
    """Make groups of pairs.

    The first of the ``order`` takes its neighbours, their neighbours and so on, as far as each has
    the least score with the first itself; then the first of those that are left.

    Parameters
    ----------
    order
        Rows, the best first; pairs with another row count for nothing.
    a, b
        The pairs: rows, shape ``(n,)`` each.
    scores
        Asked for what a row has with others.
    least
        Least score.
    """
    neighbours = _Neighbours(a, b)
    free = set(order)
    for best in order:
        if best not in free:
            continue
        free.remove(best)
        found = _around(best, neighbours, free, scores, least)
        if found:
            free.difference_update(found)
            ranked = sorted(found, key=lambda row: (-found[row], row))
            yield Star(best, tuple(ranked), tuple(found[row] for row in ranked))


def _around(
    best: int, neighbours: "_Neighbours", free: set[int], scores: Scores, least: float
) -> dict[int, float]:
    """Return the free rows that come to a row by way of pairs, with their scores."""
    found: dict[int, float] = {}
    seen: set[int] = set()
    edge = [best]
    while edge:
        near = {row for each in edge for row in neighbours.of(each) if row in free} - seen
        seen |= near
        rows = sorted(near)
        told = scores(best, np.array(rows, np.int64)).tolist() if rows else []
        edge = [row for row, score in zip(rows, told, strict=True) if score >= least]
        found.update((row, score) for row, score in zip(rows, told, strict=True) if score >= least)
    return found


class _Neighbours:
    """The pairs by row, as three arrays."""

    def __init__(self, a: IntArray, b: IntArray) -> None:
        ends, others = np.concatenate([a, b]), np.concatenate([b, a])
        order = np.lexsort((others, ends))
        self._others = others[order]
        self._rows, self._starts = np.unique(ends[order], return_index=True)
        self._stops = np.append(self._starts[1:], len(others))

    def of(self, row: int) -> list[int]:
        at = int(np.searchsorted(self._rows, row))
        if at == len(self._rows) or self._rows[at] != row:
            return []
        found: list[int] = self._others[self._starts[at] : self._stops[at]].tolist()
        return found
