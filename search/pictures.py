"""Query pictures: those that a space knows are looked up, any other one goes through its network.

Threads may share what is here.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from extractor.reading import Failure, Unread, opened
from search.decoders import Decoders
from search.errors import NoMemory, QueryError, UnknownImage
from search.query import Vectors
from search.records import Known, known_image, known_number
from storage.catalog import Catalog
from storage.reading import Rows, open_store, snapshot
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

    def at(self, paths: Sequence[bytes]) -> list[Query]:
        """Look files up by content, and decode those that the space does not know.

        Raises
        ------
        QueryError
            One can't be read or decoded.
        """
        known = [self._known_file(path) for path in paths]
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
        known = self._known_bytes(data)
        return Query("the picture", known, None if known else self._decoded(data))

    def of_image(self, image_id: int) -> Query:
        """Look an image up by its number.

        Raises
        ------
        UnknownImage
            It has no vector in the space.
        """
        with self.catalog.read() as conn:
            known = known_number(conn, self.space.id, image_id)
        if known is None:
            raise UnknownImage(f"no image {image_id} has a vector in the space {self.space.name!r}")
        return Query(f"image {image_id}", known)

    def vectors(self, queries: Sequence[Query]) -> FloatArray:
        """Return the queries' vectors, shape ``(n, d)``, float32, unit length.

        Raises
        ------
        SpaceError
            The space was dropped, or its model is no longer what it was.
        PartError
            A part is missing or not what the catalog says.
        """
        xq = np.empty((len(queries), self.space.dim), np.float32)
        rows = [(i, query.known.row) for i, query in enumerate(queries) if query.known]
        if rows:
            at, wanted = zip(*rows, strict=True)
            parts = snapshot(self.catalog, self.space).parts
            x = Rows(open_store(self.catalog, self.space), parts).gather(wanted)
            xq[list(at)] = x / np.linalg.norm(x, axis=1, keepdims=True)  # float16 is a bit off
        fresh = [(i, query) for i, query in enumerate(queries) if query.pixels is not None]
        if fresh:
            pixels = [query.pixels for _, query in fresh if query.pixels is not None]
            xq[[i for i, _ in fresh]] = self.network.of(pixels, [query.name for _, query in fresh])
        return xq

    def _known_file(self, path: bytes) -> Known | None:
        """Return the image that a file holds, where it has a vector.

        Needs no decoder.  What can't be read is unknown here, and said by the loader.
        """
        try:
            with opened(path, MOST_BYTES) as file:
                return self._known_bytes(file.read())
        except Unread:
            return None

    def _known_bytes(self, data: bytes) -> Known | None:
        with self.catalog.read() as conn:
            return known_image(conn, self.space.id, hashlib.sha256(data).digest())

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
