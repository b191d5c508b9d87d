"""Find values that repeat among millions, at eight bytes each."""

import itertools
from array import array
from collections.abc import Iterable, Iterator

import numpy as np
import xxhash
from numpy.typing import NDArray

_MOST = 1000  # suspects that are held against each other in one go


class Hashes:
    """The hashes of values, in their order.

    Two values with one hash are only suspects: the values themselves are looked at then.
    """

    def __init__(self) -> None:
        self._hashes = array("Q")

    def add(self, value: bytes) -> None:
        """Append a value."""
        self._hashes.append(xxhash.xxh3_64_intdigest(value))

    def repeats(self, values: Iterable[bytes]) -> tuple[list[tuple[int, int]], int]:
        """Tell which values repeat an earlier one.

        Parameters
        ----------
        values
            The same values again, in the same order; read only where hashes repeat.

        Returns
        -------
        list
            The first ones, at most a thousand: positions of the value and of its first occurrence.
        int
            How many there are in all.
        """
        hashes = np.frombuffer(self._hashes, dtype=np.uint64)
        later = _later(hashes)
        if not later.size:
            return [], 0
        suspects = later[:_MOST]
        looked_at = np.isin(hashes[: suspects[-1] + 1], hashes[suspects])
        found = list(_equal(values, looked_at))
        return found, later.size - (suspects.size - len(found))


def _later(hashes: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Return the positions whose hash was there before, ascending."""
    ordered = np.sort(hashes)
    if not (ordered[1:] == ordered[:-1]).any():
        return np.empty(0, np.intp)  # the rule, and half as dear
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    return np.sort(order[1:][ordered[1:] == ordered[:-1]])


def _equal(values: Iterable[bytes], looked_at: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    first: dict[bytes, int] = {}
    for position, value in enumerate(itertools.islice(values, looked_at.size)):
        if looked_at[position] and first.setdefault(value, position) != position:
            yield position, first[value]
