"""Which kind of index a space gets; needs no FAISS."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from storage.errors import SpaceError

FLAT_BELOW = 50_000
IVF_SQ_BELOW = 2_000_000
NPROBE = 128
PROBED = 16
"""Of so many lists one is probed, and never fewer than 128."""
EF_SEARCH = 128
K_FACTOR = 4
AUTO = "auto"
"""What to ask for so that the kind follows from the number again."""
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


def choose(n: int) -> IndexSpec:
    """Return the kind for n vectors: a small file, as search rescores.

    Lists and no graph: of 100,000 clustered vectors HNSW32,SQ8 found .962 of the nearest at
    ``efSearch`` 128, because no search comes to some of the clusters, IVF1024,SQ8 all.
    """
    if n < FLAT_BELOW:
        return IndexSpec("SQ8")
    # 4 sqrt(n) lists, as the power of two that is nearest.
    nlist = 1 << round(math.log2(4 * math.sqrt(n)))
    effort = {"nprobe": max(NPROBE, nlist // PROBED)}
    if n < IVF_SQ_BELOW:
        return IndexSpec(f"IVF{nlist},SQ8", effort)
    return IndexSpec(f"IVF{nlist}_HNSW32,RaBitQ", effort)


def wanted(asked: str, n: int) -> IndexSpec:
    """Return the kind for n vectors where this was asked for; ``auto`` is what `choose` returns."""
    return choose(n) if asked == AUTO else spec_of(asked)


def outgrown(factory: str, n: int) -> bool:
    """Say whether n vectors are well past the bounds of this kind."""
    near = (round(n * share) for share in (1 - SLACK, 1, 1 + SLACK))
    return all(choose(number).factory != factory for number in near)


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
