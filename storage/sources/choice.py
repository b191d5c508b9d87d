"""Choose a few of many images, the same ones for the same seed.

Each id gets a number from its bytes and the seed, and the smallest numbers are chosen.  So nothing
else decides: the order of the images doesn't, and a smaller sample is part of a larger one, unless
labels keep their shares, which don't always grow with the whole.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import xxhash
from numpy.typing import NDArray

from storage.errors import SourceError
from storage.sources.items import Item, Unreadable


@dataclass(frozen=True, slots=True)
class Choice:
    """How many images are wanted, and how they are chosen.

    Parameters
    ----------
    n
        How many; either this or ``fraction``.
    fraction
        Which part of all, rounded to the nearest number and at least one; ``0.1`` is
        exactly a tenth.
    seed
        Any whole number from 0; another one chooses others.
    by_label
        Whether each label keeps its share.
    """

    n: int | None = None
    fraction: float | None = None
    seed: int = 0
    by_label: bool = False

    def size(self, total: int) -> int:
        """Return how many of ``total`` images are wanted.

        Raises
        ------
        SourceError
            More than there are.
        """
        if self.fraction is not None:
            return min(total, max(1, round(Fraction(str(self.fraction)) * total)))
        wanted = self.n or 0
        if wanted > total:
            raise SourceError(f"the source has {total:,} images, fewer than the {wanted:,} wanted")
        return wanted


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was chosen.

    Parameters
    ----------
    positions
        Places in the source, from 0, ascending.
    total
        How many images there are.
    labels
        How many of each label were chosen, and there are, in the order of their first images; empty
        where labels played no part.
    """

    positions: NDArray[np.intp]
    total: int
    labels: dict[str | None, tuple[int, int]]


def choose(items: Iterable[Item | Unreadable], choice: Choice) -> Chosen:
    """Read all items once and choose; memory holds twelve bytes of each.

    Raises
    ------
    SourceError
        More are wanted than there are, or labels that there are none of.
    """
    ranks, strata = array("Q"), array("I")
    numbers: dict[str | None, int] = {}
    for item in items:
        if isinstance(item, Unreadable):
            continue
        ranks.append(xxhash.xxh3_64_intdigest(item.id, choice.seed))
        if choice.by_label:
            strata.append(numbers.setdefault(item.label, len(numbers)))
    wanted = choice.size(len(ranks))
    if not choice.by_label:
        order = np.argsort(np.frombuffer(ranks, np.uint64), kind="stable")
        return Chosen(np.sort(order[:wanted]), len(ranks), {})
    if not set(numbers) - {None}:
        raise SourceError("--by-label: the source has no labels")
    of = np.frombuffer(strata, np.uint32)
    counts = np.bincount(of, minlength=len(numbers)).tolist()
    shares = largest_remainder(counts, wanted)
    order = np.lexsort((np.frombuffer(ranks, np.uint64), of))
    starts = np.cumsum([0, *counts])
    picked = [order[start : start + share] for start, share in zip(starts, shares, strict=False)]
    told = dict(zip(numbers, zip(shares, counts, strict=True), strict=True))
    return Chosen(np.sort(np.concatenate(picked)), len(ranks), told)


def largest_remainder(counts: Sequence[int], wanted: int) -> list[int]:
    """Share ``wanted`` out in proportion to ``counts``, by the method of Hamilton.

    Each gets its share rounded down; what is left goes to the largest remainders, one each, and of
    equal ones to the earlier.
    """
    total = sum(counts)
    shares = [wanted * count // total for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda i: -(wanted * counts[i] % total))
    for i in by_remainder[: wanted - sum(shares)]:
        shares[i] += 1
    return shares
