"""What looks like this?  The index is asked, the catalog says where the images lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from search.answers import Answer, Hit
from search.decoders import Decoders
from search.errors import UnknownImage
from search.pictures import Pictures, Query
from search.records import Holder, Known, Living, is_known, known_number
from storage.candidates import Wish
from storage.catalog import Catalog
from storage.home import Home
from storage.lookup import Lookup
from storage.ranking import Neighbour
from storage.reading import again_if_missing
from storage.roots import find_root
from storage.spaces import get_space

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Wanted:
    """Which hits the caller wants, and how many."""

    k: int
    under: bytes | None
    min_score: float | None
    no_self: bool


class Searcher:
    """Answers questions about one space; reads only.  Threads may share it.

    Parameters
    ----------
    home
        Where the store is.
    space
        Name of the space; None is the current one.
    device
        Where a picture that is not indexed is run.
    decoders
        Decode what arrives as bytes, for several searchers; without them it has its own.

    Raises
    ------
    CatalogError
        Nothing is indexed there, or the catalog can't be opened.
    SpaceError
        There is no such space.

    Attributes
    ----------
    warnings
        What a person should know about the searches so far, e.g. that the index is broken.
    """

    def __init__(
        self,
        home: Home,
        space: str | None = None,
        *,
        device: str = "auto",
        decoders: Decoders | None = None,
    ) -> None:
        self.catalog = Catalog.open(home, write=False)
        try:
            self.space = get_space(self.catalog, space)
        except BaseException:
            self.catalog.close()
            raise
        self.warnings: list[str] = []
        self._lookup = Lookup(self.catalog, self.space)
        self._decoders = Decoders()
        self._pictures = Pictures(self.catalog, self.space, device, decoders or self._decoders)

    def search_paths(
        self,
        paths: Sequence[bytes],
        k: int = 10,
        *,
        under: bytes | None = None,
        min_score: float | None = None,
        no_self: bool = False,
    ) -> list[Answer]:
        """Return what looks most like each picture.

        The bytes are hashed; a picture whose content has a vector already is looked up, whatever
        its name, and any other one is run through the space's network.

        Parameters
        ----------
        paths
            Absolute paths of the query images.
        k
            Hits for each, at most.
        under
            Only images with a live file at or below this absolute path, or in this manifest.
        min_score
            Only hits with at least this cosine.
        no_self
            Leave the query's own image out.

        Raises
        ------
        QueryError
            A query image can't be read or decoded.
        RootError
            No root knows ``under``.
        """
        queries = self._pictures.at(paths)
        hits = self._nearest(queries, _Wanted(k, under, min_score, no_self))
        return [
            Answer(path, self.space.name, tuple(each))
            for path, each in zip(paths, hits, strict=True)
        ]

    def search_picture(
        self, data: bytes, k: int = 10, *, min_score: float | None = None, no_self: bool = False
    ) -> list[Hit]:
        """Return what looks most like the picture whose file holds these bytes.

        They are decoded as those of an indexed file are, and kept nowhere.

        Raises
        ------
        QueryError
            They are no picture.
        NoMemory
            They may be one another time.
        """
        query = self._pictures.of_bytes(data)
        return self._nearest([query], _Wanted(k, None, min_score, no_self))[0]

    def search_image(
        self, image_id: int, k: int = 10, *, min_score: float | None = None, no_self: bool = False
    ) -> list[Hit]:
        """Return what looks most like an image of the catalog.

        Raises
        ------
        UnknownImage
            It has no vector in the space.
        """
        wanted = _Wanted(k, None, min_score, no_self)

        def attempt() -> list[list[Hit]]:
            with self.catalog.read() as conn:
                known = known_number(conn, self.space.id, image_id)
                if known is None:
                    raise UnknownImage(
                        f"no image {image_id} has a vector in the space {self.space.name!r}"
                    )
                return self._hits(conn, self._wish(conn, [known], wanted))

        return again_if_missing(attempt)[0]

    def search_vectors(
        self,
        xq: FloatArray,
        k: int = 10,
        *,
        under: bytes | None = None,
        min_score: float | None = None,
    ) -> list[list[Hit]]:
        """Return the hits of query vectors, shape ``(n, d)``, float32, unit length."""
        wish = Wish(np.ascontiguousarray(xq, dtype=np.float32), k, under, min_score)

        def attempt() -> list[list[Hit]]:
            with self.catalog.read() as conn:
                return self._hits(conn, wish)

        return again_if_missing(attempt)

    @property
    def has_model(self) -> bool:
        """Whether the space's network is open, as it is once a picture needed it."""
        return self._pictures.network.is_open

    def prepare(self, *, model: bool = False) -> None:
        """Open index and parts, and the space's network, so that the first question is quick.

        Raises
        ------
        StorageError, ExtractorError
            What a question would meet.
        """
        xq = np.zeros((1, self.space.dim), np.float32)
        xq[0, 0] = 1
        self.search_vectors(xq, 1)
        if model:
            self._pictures.network.open()

    def close(self) -> None:
        """Close the catalog."""
        self._decoders.close()
        self.catalog.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _nearest(self, queries: Sequence[Query], wanted: _Wanted) -> list[list[Hit]]:
        fresh = self._pictures.fresh(queries)
        known = [query.known for query in queries]

        def attempt() -> list[list[Hit]]:
            with self.catalog.read() as conn:
                return self._hits(conn, self._wish(conn, known, wanted, fresh))

        return again_if_missing(attempt)

    def _wish(
        self,
        conn: Connection,
        known: Sequence[Known | None],
        wanted: _Wanted,
        fresh: FloatArray | None = None,
    ) -> Wish:
        """Return what to ask; the vectors of what is not ``known`` are the ``fresh`` ones."""
        xq = np.empty((len(known), self.space.dim), np.float32)
        at = [i for i, image in enumerate(known) if image is not None]
        if at:
            x = self._lookup.vectors_in(conn, [image.row for image in known if image is not None])
            xq[at] = x / np.linalg.norm(x, axis=1, keepdims=True)  # float16 is a bit off
        if fresh is not None:
            xq[[i for i, image in enumerate(known) if image is None]] = fresh
        own = [image.image_id if image is not None else None for image in known]
        exclude = own if wanted.no_self else None
        return Wish(xq, wanted.k, wanted.under, wanted.min_score, exclude)

    def _hits(self, conn: Connection, wish: Wish) -> list[list[Hit]]:
        """Return the hits of each query; all of them as one transaction sees the catalog."""
        if wish.under is not None and not is_known(conn, wish.under):
            find_root(self.catalog, wish.under)
        living = Living(conn, self.space.id)
        found = self._lookup.nearest_in(conn, wish, living)
        self.warnings += [line for line in found.warnings if line not in self.warnings]
        return [
            [_hit(one, living.files[one.image_id], wish.under) for one in each]
            for each in found.neighbours
        ]


def _hit(neighbour: Neighbour, files: Sequence[Holder], under: bytes | None) -> Hit:
    """Return the hit, shown by its first file; or by its first one where it was looked for."""
    first = named = files[0]
    if len(files) > 1:
        first = next((file for file in files if under is not None and file.is_at(under)), first)
        named = next((file for file in (first, *files) if file.id or file.label), first)
    return Hit(
        score=neighbour.score,
        path=first.path,
        paths=tuple(dict.fromkeys([file.path for file in files])),
        image_id=neighbour.image_id,
        row=neighbour.row,
        id=named.id,
        label=named.label,
    )
