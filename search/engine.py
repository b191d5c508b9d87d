"""What looks like this?  The index is asked, the catalog says where the images lie."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from extractor.reading import Unread, opened
from search.answers import Answer, Hit
from search.errors import QueryError
from search.query import Vectors
from search.records import Holder, Known, holders, is_known, known_image
from storage.catalog import Catalog
from storage.home import Home
from storage.lookup import Lookup, Neighbour
from storage.reading import Rows, again_if_missing, open_store, snapshot
from storage.roots import find_root
from storage.spaces import get_space

FloatArray = npt.NDArray[np.float32]

MOST_BYTES = 1 << 30
"""A larger query is left to the loader, which has a limit of its own."""


@dataclass(frozen=True)
class _Query:
    """A query image: known to the space, or its pixels."""

    path: bytes
    known: Known | None
    pixels: npt.NDArray[np.uint8] | None


@dataclass(frozen=True)
class _Question:
    """What is asked of the index; ``exclude`` is an image id or None for each query."""

    xq: FloatArray
    k: int
    under: bytes | None
    min_score: float | None
    exclude: Sequence[int | None] | None = None


class Searcher:
    """Answers questions about one space; reads only.

    Parameters
    ----------
    home
        Where the store is.
    space
        Name of the space; None is the current one.
    device
        Where a picture that is not indexed is run.

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

    def __init__(self, home: Home, space: str | None = None, *, device: str = "auto") -> None:
        self.catalog = Catalog.open(home, write=False)
        try:
            self.space = get_space(self.catalog, space)
        except BaseException:
            self.catalog.close()
            raise
        self.warnings: list[str] = []
        self._lookup = Lookup(self.catalog, self.space)
        self._vectors = Vectors(self.space, device)

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
        queries = self._load(paths)
        own = tuple(query.known.image_id if query.known else None for query in queries)
        xq = again_if_missing(lambda: self._stack(queries))
        hits = self._search(_Question(xq, k, under, min_score, own if no_self else None))
        return [
            Answer(path, self.space.name, tuple(each))
            for path, each in zip(paths, hits, strict=True)
        ]

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

    def close(self) -> None:
        """Close the catalog."""
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

    def _load(self, paths: Sequence[bytes]) -> list[_Query]:
        """Look the queries up by content, and decode those that the space does not know."""
        known = [self._known(path) for path in paths]
        unknown = [i for i, image in enumerate(known) if image is None]
        pixels = dict(zip(unknown, self._decoded([paths[i] for i in unknown]), strict=True))
        return [_Query(path, known[i], pixels.get(i)) for i, path in enumerate(paths)]

    def _known(self, path: bytes) -> Known | None:
        """Return the image that a file holds, where it has a vector.

        Needs no decoder.  What can't be read is unknown here, and said by the loader.
        """
        try:
            with opened(path, MOST_BYTES) as file:
                digest = hashlib.sha256(file.read()).digest()
        except Unread:
            return None
        with self.catalog.read() as conn:
            return known_image(conn, self.space.id, digest)

    def _decoded(self, paths: Sequence[bytes]) -> list[npt.NDArray[np.uint8]]:
        """Return the pictures' pixels, each of shape ``(3, H, W)``, uint8."""
        if not paths:
            return []
        from extractor.loader import Source, load
        from extractor.preprocess import Preprocess

        found = []
        sources = [Source(key=i, path=path) for i, path in enumerate(paths)]
        preprocess = Preprocess.from_json(self.space.spec["preprocess"])
        for loaded in load(sources, wants=lambda _: True, preprocess=preprocess):
            if loaded.pixels is None:
                why = loaded.failure.message if loaded.failure else "it can't be read"
                raise QueryError(f"{os.fsdecode(paths[loaded.key])}: {why}")
            found.append(loaded.pixels)
        return found

    def _stack(self, queries: Sequence[_Query]) -> FloatArray:
        """Return the queries' vectors, shape ``(n, d)``, float32."""
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
            names = [os.fsdecode(query.path) for _, query in fresh]
            xq[[i for i, _ in fresh]] = self._vectors.of(pixels, names)
        return xq

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
