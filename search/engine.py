"""What looks like this?  The index is asked, the catalog says where the images lie."""

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from search.answers import Answer, Hit
from search.asking import Answers, Outcome
from search.decoders import Decoders
from search.examples import Asked, Examples
from search.gathering import Gathering
from search.pictures import Pictures
from search.questions import Example, Exemplary, Question, Reply, Wanted
from storage.catalog import Catalog
from storage.home import Home
from storage.spaces import get_space

FloatArray = npt.NDArray[np.float32]
Place = str | bytes | os.PathLike[str]
"""Path of a folder, a picture or a manifest."""

_LANES: Final = 2
"""Calls of the index at once: while one has the cores, Python makes the hits of the other."""


class Searcher:
    """Answers questions about one space; reads only.

    Threads may share it, and should: questions that come at the same time and want the same sort of
    hits are answered together.

    Parameters
    ----------
    home
        Where the store is: the folder, or more where the catalog is on a server.
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
    """

    def __init__(
        self,
        home: Home | str | os.PathLike[str],
        space: str | None = None,
        *,
        device: str = "auto",
        decoders: Decoders | None = None,
    ) -> None:
        home = home if isinstance(home, Home) else Home(os.fspath(home))
        self.catalog = Catalog.open(home, write=False)
        try:
            self.space = get_space(self.catalog, space)
        except BaseException:
            self.catalog.close()
            raise
        self._decoders = Decoders()
        self._pictures = Pictures(self.catalog, self.space, device, decoders or self._decoders)
        self._examples = Examples(self._pictures, device)
        self._answers = Answers(self.catalog, self.space)
        self._gathering: Gathering[Wanted, Asked, Outcome] = Gathering(
            self._answers.of, lanes=_LANES
        )

    @property
    def warnings(self) -> list[str]:
        """What a person should know about the searches so far, e.g. that the index is broken."""
        return self._answers.warnings

    def reply(self, question: Question, wanted: Wanted | None = None) -> Reply:
        """Return the hits of a question.  Parameters and errors are those of `replies`."""
        return self.replies([question], wanted)[0]

    def replies(self, questions: Sequence[Question], wanted: Wanted | None = None) -> list[Reply]:
        """Return the hits of each question, all of them by one state of the store.

        A picture that the space knows by its content is looked up, whatever its name, and any
        other one goes through the space's network; its bytes are kept nowhere.

        Parameters
        ----------
        questions
            What is asked.
        wanted
            Which hits; None: the 10 best.

        Raises
        ------
        QueryError
            A picture can't be read or decoded.
        NoMemory
            It may be one another time.
        VectorError
            A vector does not fit the space.
        UnknownImage
            An image has no vector in the space.
        SearchError
            The examples cancel each other out, or the space knows no words.
        RootError
            No root knows a place of ``wanted.under``.
        """
        if not questions:
            return []
        asked = self._examples.asked(questions)
        replies = []
        for outcome in self._gathering.ask(wanted or Wanted(), asked):
            if not isinstance(outcome, Reply):
                raise outcome
            replies.append(outcome)
        return replies

    def search(
        self,
        example: Exemplary,
        k: int = 10,
        *,
        plus: Exemplary | Sequence[Exemplary] = (),
        minus: Exemplary | Sequence[Exemplary] = (),
        under: Place | Sequence[Place] = (),
        **others: Any,
    ) -> list[Hit]:
        """Return what looks most like an example.

        Parameters
        ----------
        example
            Path of a picture, number of an image, or a vector.
        k
            Hits, at most.
        plus, minus
            Others that the hits shall be like, and unlike: one, or several.
        under
            Only images at or below this path, or of this manifest; one, or several.
        **others
            Further fields of `Wanted`: ``no_self=True``.

        Raises
        ------
        SearchError, RootError
            As `replies` does.
        """
        question = Question((Example.of(example), *Example.each(plus)), Example.each(minus))
        places = (under,) if isinstance(under, (str, bytes, os.PathLike)) else under
        paths = tuple(os.path.abspath(os.fsencode(place)) for place in places)
        return list(self.reply(question, Wanted(k, under=paths, **others)).hits)

    def search_paths(
        self,
        paths: Sequence[bytes],
        k: int = 10,
        *,
        under: bytes | None = None,
        min_score: float | None = None,
        no_self: bool = False,
    ) -> list[Answer]:
        """Return what looks most like each picture, by absolute path; errors are of `replies`."""
        wanted = Wanted(k, 0, _places(under), min_score, no_self)
        replies = self.replies([_like(path=path) for path in paths], wanted)
        return [Answer(p, reply.space, reply.hits) for p, reply in zip(paths, replies, strict=True)]

    def search_picture(
        self, data: bytes, k: int = 10, *, min_score: float | None = None, no_self: bool = False
    ) -> list[Hit]:
        """Return what looks most like the picture whose file holds these bytes; see `replies`."""
        wanted = Wanted(k, min_score=min_score, no_self=no_self)
        return list(self.reply(_like(data=data), wanted).hits)

    def search_image(
        self, image_id: int, k: int = 10, *, min_score: float | None = None, no_self: bool = False
    ) -> list[Hit]:
        """Return what looks most like an image of the catalog; see `replies`."""
        wanted = Wanted(k, min_score=min_score, no_self=no_self)
        return list(self.reply(_like(image_id=image_id), wanted).hits)

    def search_vectors(
        self,
        xq: FloatArray,
        k: int = 10,
        *,
        under: bytes | None = None,
        min_score: float | None = None,
    ) -> list[list[Hit]]:
        """Return the hits of query vectors, shape ``(n, d)``, float32, unit length."""
        wanted = Wanted(k, 0, _places(under), min_score)
        return [list(reply.hits) for reply in self.replies([_like(vector=q) for q in xq], wanted)]

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


def _like(**example: Any) -> Question:
    return Question((Example(**example),))


def _places(under: bytes | None) -> tuple[bytes, ...]:
    return () if under is None else (under,)
