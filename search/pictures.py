"""Query pictures: those that a space knows are looked up, any other one goes through its network.

Threads may share what is here.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from extractor.reading import Failure, Unread, opened
from search.decoders import Decoders
from search.errors import NoMemory, QueryError
from search.gathering import Gathering
from search.query import Vectors
from search.records import Known, known_images
from storage.catalog import Catalog
from storage.spaces import SpaceInfo

FloatArray = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

MOST_BYTES: Final = 1 << 30
"""A larger query is left to the loader, which has a limit of its own."""


@dataclass(frozen=True)
class Query:
    """A query picture: known to the space, or its pixels."""

    name: str
    """What to call it in a message."""
    known: Known | None
    pixels: Pixels | None = None


def digest_of(path: bytes) -> bytes | None:
    """Return the SHA-256 of a file's bytes; needs no decoder.

    None for what can't be read: that is said by the loader.
    """
    try:
        with opened(path, MOST_BYTES) as file:
            return hashlib.sha256(file.read()).digest()
    except Unread:
        return None


class Pictures:
    """Turns pictures into vectors of a space.  Loads torch on the first one that needs it.

    Parameters
    ----------
    catalog
        Open, for reading at least.
    space
        The space.
    device
        Where a picture that is not known is run.
    decoders
        Decode what arrives as bytes; the caller closes them.
    """

    def __init__(self, catalog: Catalog, space: SpaceInfo, device: str, decoders: Decoders) -> None:
        self.catalog = catalog
        self.space = space
        self._decoders = decoders
        self.network = Vectors(space, device, catalog.home)
        self._forwards = Gathering(partial(_forward, self.network))

    def at(self, paths: Sequence[bytes]) -> list[Query]:
        """Look files up by content, and decode those that the space does not know.

        Raises
        ------
        QueryError
            One can't be read or decoded.
        """
        known = self._known([digest_of(path) for path in paths])
        unknown = [i for i, image in enumerate(known) if image is None]
        pixels = dict(zip(unknown, self._loaded([paths[i] for i in unknown]), strict=True))
        names = [os.fsdecode(path) for path in paths]
        return [Query(names[i], known[i], pixels.get(i)) for i in range(len(paths))]

    def of_bytes(self, data: bytes) -> Query:
        """Look the bytes of an image file up, and decode them if the space does not know them.

        Raises
        ------
        QueryError
            They are no picture.
        NoMemory
            They may be one another time.
        """
        [known] = self._known([hashlib.sha256(data).digest()])
        return Query("the picture", known, None if known else self._decoded(data))

    def fresh(self, queries: Sequence[Query]) -> FloatArray:
        """Return the vectors of those queries that have pixels, in their order.

        Returns
        -------
        array
            Shape ``(n, d)``, float32, unit length; n may be less than there are queries.

        Raises
        ------
        SpaceError
            The space's model is no longer what it was.
        """
        run = [(query.pixels, query.name) for query in queries if query.pixels is not None]
        if not run:
            return np.empty((0, self.space.dim), np.float32)
        return np.stack(self._forwards.ask(None, run))

    def _known(self, digests: Sequence[bytes | None]) -> list[Known | None]:
        """Return for each digest the image that has it, where that has a vector."""
        there = [digest for digest in digests if digest is not None]
        if not there:
            return [None] * len(digests)
        with self.catalog.read() as conn:
            known = known_images(conn, self.space.id, there)
        return [None if digest is None else known.get(digest) for digest in digests]

    def _loaded(self, paths: Sequence[bytes]) -> list[Pixels]:
        """Return the pixels of files, each of shape ``(3, H, W)``, uint8."""
        if not paths:
            return []
        from extractor.loader import Source, load
        from extractor.preprocess import Preprocess

        found = []
        # Each in a process of its own: one that crashes its decoder is named, and ends nothing.
        sources = [Source(key=i, path=path, suspect=True) for i, path in enumerate(paths)]
        preprocess = Preprocess.from_json(self.space.spec["preprocess"])
        for loaded in load(sources, wants=lambda _: True, preprocess=preprocess):
            if loaded.pixels is None:
                why = loaded.failure.message if loaded.failure else "it can't be read"
                raise QueryError(f"{os.fsdecode(paths[loaded.key])}: {why}")
            found.append(loaded.pixels)
        return found

    def _decoded(self, data: bytes) -> Pixels:
        """Return the pixels of an image file's bytes, shape ``(3, H, W)``, uint8."""
        from extractor.preprocess import Preprocess

        got = self._decoders.decode(data, Preprocess.from_json(self.space.spec["preprocess"]))
        if isinstance(got, Failure):
            kind = NoMemory if got.transient else QueryError
            raise kind(f"the picture: {got.message}")
        return got


# Not a method: a cycle would keep the network of a space that nobody asks any more.
def _forward(network: Vectors, _: None, run: Sequence[tuple[Pixels, str]]) -> list[FloatArray]:
    return list(network.of([pixels for pixels, _ in run], [name for _, name in run]))
