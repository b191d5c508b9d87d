"""Answers to questions that want the same: all of them as one transaction sees the catalog."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from search.answers import Hit
from search.errors import SearchError, UnknownImage
from search.examples import Asked, Meant
from search.nearby import unit
from search.paging import Page, fill
from search.questions import Reply, Wanted, direction
from search.records import Holder, Living, is_known, rows_of, spellings
from storage.candidates import Wish
from storage.catalog import Catalog
from storage.lookup import Lookup
from storage.ranking import Neighbour
from storage.reading import again_if_missing
from storage.roots import find_root
from storage.spaces import SpaceInfo

FloatArray = npt.NDArray[np.float32]
Outcome = Reply | SearchError
"""An answer, or what is wrong with that question alone."""


class Answers:
    """Answers questions about one space.  Threads may share it.

    Parameters
    ----------
    catalog
        Open, for reading at least.
    space
        The space.

    Attributes
    ----------
    warnings
        What a person should know about the answers so far.
    """

    def __init__(self, catalog: Catalog, space: SpaceInfo) -> None:
        self.catalog = catalog
        self.space = space
        self.lookup = Lookup(catalog, space)
        self.warnings: list[str] = []

    def of(self, wanted: Wanted, asked: Sequence[Asked]) -> list[Outcome]:
        """Return an outcome for each question.

        Raises
        ------
        RootError
            No root knows a place that hits must lie at.
        StorageError
            The store is damaged, or the space was dropped.
        """

        def attempt() -> list[Outcome]:
            with self.catalog.read() as conn:
                return _Round(self, conn, wanted).outcomes(asked)

        return again_if_missing(attempt)

    def warn(self, lines: Sequence[str]) -> None:
        """Keep what a person should know, each line once."""
        self.warnings += [line for line in lines if line not in self.warnings]


class _Round:
    """Some questions in one transaction."""

    def __init__(self, answers: Answers, conn: Connection, wanted: Wanted) -> None:
        self._answers = answers
        self._lookup = answers.lookup
        self._space = answers.space
        self._conn = conn
        self._wanted = wanted
        self._living = Living(conn, answers.space.id)

    def outcomes(self, asked: Sequence[Asked]) -> list[Outcome]:
        for place in self._wanted.under:
            if not is_known(self._conn, place):
                find_root(self._answers.catalog, place)
        found = self._directions(asked)
        sound = [(one, q) for one, q in zip(asked, found, strict=True) if isinstance(q, np.ndarray)]
        replies = iter(self._replies([one for one, _ in sound], [q for _, q in sound]))
        return [next(replies) if isinstance(q, np.ndarray) else q for q in found]

    def _directions(self, asked: Sequence[Asked]) -> list[FloatArray | SearchError]:
        """Return what to search for, or why that can't be said, for each question."""
        images = sorted({image for one in asked for image in one.images})
        rows = rows_of(self._conn, self._space.id, images)
        x = dict(zip(rows, self._vectors(list(rows.values())), strict=True)) if rows else {}
        found: list[FloatArray | SearchError] = []
        for one in asked:
            try:
                found.append(direction(self._stacked(one.plus, x), self._stacked(one.minus, x)))
            except SearchError as error:
                found.append(error)
        return found

    def _stacked(self, meant: Sequence[Meant], x: dict[int, FloatArray]) -> FloatArray:
        """Return the vectors of examples, shape ``(n, d)``, by those of the images."""
        vectors = np.empty((len(meant), self._space.dim), np.float32)
        for at, one in enumerate(meant):
            vector = one.vector if one.image_id is None else x.get(one.image_id)
            if vector is None:
                raise UnknownImage(
                    f"no image {one.image_id} has a vector in the space {self._space.name!r}"
                )
            vectors[at] = vector
        return vectors

    def _vectors(self, rows: Sequence[int]) -> FloatArray:
        return unit(np.asarray(rows, np.int64), self._lookup.vectors_in(self._conn, rows))

    def _replies(self, asked: Sequence[Asked], vectors: Sequence[FloatArray]) -> list[Reply]:
        if not asked:
            return []
        xq = np.stack(vectors)
        pages = [Page(self._wanted, self._vectors) for _ in asked]
        images = [one.images for one in asked] if self._wanted.no_self else None

        def nearest(which: Sequence[int], k: int) -> list[list[Neighbour]]:
            exclude = None if images is None else [images[at] for at in which]
            wanted = self._wanted
            wish = Wish(xq[list(which)], k, wanted.under, wanted.min_score, exclude)
            found = self._lookup.nearest_in(self._conn, wish, self._living)
            self._answers.warn(found.warnings)
            return found.neighbours

        fill(nearest, pages, self._wanted)
        places = spellings(self._wanted.under)
        return [
            Reply(self._space.name, self._hits(page, places), q, page.is_full)
            for page, q in zip(pages, vectors, strict=True)
        ]

    def _hits(self, page: Page, places: Sequence[bytes]) -> tuple[Hit, ...]:
        files = self._living.files
        return tuple(_hit(one, files[one.image_id], places) for one in page.hits)


def _hit(neighbour: Neighbour, files: Sequence[Holder], places: Sequence[bytes]) -> Hit:
    """Return the hit, shown by its first file; or by its first one where it was looked for."""
    first = named = files[0]
    paths: tuple[bytes, ...] = (first.path,)
    if len(files) > 1:
        paths = tuple(dict.fromkeys([file.path for file in files]))
        if places:
            first = next((file for file in files if file.is_at(places)), first)
        named = next((file for file in (first, *files) if file.id or file.label), first)
    return Hit(
        score=neighbour.score,
        path=first.path,
        paths=paths,
        image_id=neighbour.image_id,
        row=neighbour.row,
        id=named.id,
        label=named.label,
    )
