"""What looks like this?  The index is asked, the catalog says where the images lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from search.answers import Answer, Hit
from search.decoders import Decoders
from search.pictures import Pictures, Query
from search.records import Holder, holders, is_known
from storage.catalog import Catalog
from storage.home import Home
from storage.lookup import Lookup, Neighbour
from storage.reading import again_if_missing
from storage.roots import find_root
from storage.spaces import get_space

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Question:
    """What is asked of the index; ``exclude`` is an image id or None for each query."""

    xq: FloatArray
    k: int
    under: bytes | None
    min_score: float | None
    exclude: Sequence[int | None] | None = None


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
        query = self._pictures.of_image(image_id)
        return self._nearest([query], _Wanted(k, None, min_score, no_self))[0]

    def search_vectors(
        self,
        xq: FloatArray,
        k: int = 10,
        *,
        under: bytes | None = None,
        min_score: float | None = None,
    ) -> list[list[Hit]]:
        """Return the hits of query vectors, shape ``(n, d)``, float32, unit length."""
        return self._search(_Question(xq, k, under, min_score))

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

    def _nearest(self, queries: Sequence[Query], wanted: "_Wanted") -> list[list[Hit]]:
        xq = again_if_missing(lambda: self._pictures.vectors(queries))
        own = [query.known.image_id if query.known else None for query in queries]
        exclude = own if wanted.no_self else None
        return self._search(_Question(xq, wanted.k, wanted.under, wanted.min_score, exclude))

    def _search(self, question: _Question) -> list[list[Hit]]:
        if question.under is not None:
            self._refuse_unknown(question.under)
        found = self._lookup.nearest(
            question.xq,
            question.k,
            under=question.under,
            min_score=question.min_score,
            exclude_image=question.exclude,
        )
        self.warnings += [line for line in found.warnings if line not in self.warnings]
        with self.catalog.read() as conn:
            files = holders(conn, (one.image_id for each in found.neighbours for one in each))
        # An image that lost its last file since it was found is no hit any more.
        return [
            [
                _hit(one, files[one.image_id], question.under)
                for one in each
                if one.image_id in files
            ]
            for each in found.neighbours
        ]

    def _refuse_unknown(self, under: bytes) -> None:
        """Raise ``RootError`` where no root has the path, and no manifest names a file there."""
        with self.catalog.read() as conn:
            named = is_known(conn, under)
        if not named:
            find_root(self.catalog, under)


def _hit(neighbour: Neighbour, files: Sequence[Holder], under: bytes | None) -> Hit:
    """Return the hit, shown by its first file; or by its first one where it was looked for."""
    first = next((file for file in files if under is not None and file.is_at(under)), files[0])
    named = next((file for file in (first, *files) if file.id or file.label), first)
    return Hit(
        score=neighbour.score,
        path=first.path,
        paths=tuple(dict.fromkeys(file.path for file in files)),
        image_id=neighbour.image_id,
        row=neighbour.row,
        id=named.id,
        label=named.label,
    )
