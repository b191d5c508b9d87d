"""Which kind of index a space gets; needs no FAISS."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from storage.errors import SpaceError

FLAT_BELOW = 50_000
HNSW_BELOW = 300_000
HNSW_MOST_VALUES = 300_000 * 1024
"""Build time of a graph grows with n times d; above this IVF is built in a fraction of it."""
IVF_SQ_BELOW = 2_000_000
NPROBE = 128
EF_SEARCH = 128
K_FACTOR = 4
AUTO = "auto"
"""What to ask for so that the kind follows from number and size again."""
SLACK = 0.1
"""A space that hovers around a boundary by less than this share keeps its kind."""


@dataclass(frozen=True)
class IndexSpec:
    """A kind of index: its ``index_factory`` string and the parameters of its search.

    Parameters are ``nprobe`` (IVF), ``efSearch`` (HNSW) and ``k_factor`` (Refine); what an index
    has no use for, it ignores.
    """

    factory: str
    parameters: Mapping[str, int] = field(default_factory=dict)


def choose(n: int, d: int) -> IndexSpec:
    """Return the kind for n vectors of dimension d: a small file, as search rescores."""
    if n < FLAT_BELOW:
        return IndexSpec("SQ8")
    if n < HNSW_BELOW and n * d < HNSW_MOST_VALUES:
        return IndexSpec("HNSW32,SQ8", {"efSearch": EF_SEARCH})
    # 4 sqrt(n) lists, as the power of two that is nearest.
    nlist = 1 << round(math.log2(4 * math.sqrt(n)))
    if n < IVF_SQ_BELOW:
        return IndexSpec(f"IVF{nlist},SQ8", {"nprobe": NPROBE})
    return IndexSpec(f"IVF{nlist}_HNSW32,RaBitQ", {"nprobe": NPROBE})


def wanted(asked: str, n: int, d: int) -> IndexSpec:
    """Return the kind for n vectors where this was asked for; ``auto`` is what `choose` returns."""
    return choose(n, d) if asked == AUTO else spec_of(asked)


def outgrown(factory: str, n: int, d: int) -> bool:
    """Say whether n vectors of dimension d are well past the bounds of this kind."""
    near = (round(n * share) for share in (1 - SLACK, 1, 1 + SLACK))
    return all(choose(number, d).factory != factory for number in near)


def spec_of(factory: str) -> IndexSpec:
    """Return the kind that a user's ``index_factory`` string asks for.

    Raises
    ------
    SpaceError
        The string has an ``IDMap``.
    """
    if "idmap" in factory.lower():
        raise SpaceError(
            f"the index spec {factory!r} has an IDMap; leave it out, rows have a map of their own"
        )
    parameters = {"nprobe": NPROBE, "efSearch": EF_SEARCH, "k_factor": K_FACTOR}
    return IndexSpec(factory, parameters)
