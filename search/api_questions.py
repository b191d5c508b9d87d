"""What clients ask, and what it means to the search."""

import math
from typing import Annotated, Any, ClassVar, Final

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from search.engine import Searcher
from search.errors import VectorError
from search.places import Place, path_of
from search.questions import Example, Question, Reply, Wanted
from storage.vectors import UNIT_TOLERANCE

MOST_HITS: Final = 1000
MOST_SKIPPED: Final = 9000
MOST_EXAMPLES: Final = 100
MOST_PLACES: Final = 100
MOST_LETTERS: Final = 1000


def _whole(value: object) -> object:
    """Return 3 for 3.0, which JSON does not tell apart."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE: Final = BeforeValidator(_whole)
"""Stands behind what bounds a number, so that the document has the bounds."""
Id = Annotated[int, Field(ge=0, lt=1 << 63), WHOLE]
PlaceText = Annotated[
    str, Field(pattern=r"^(r[1-9][0-9]{0,17}|f[1-9][0-9]{0,17}-[1-9][0-9]{0,3})$")
]
Examples = Annotated[list[Id], Field(max_length=MOST_EXAMPLES)]


class Options(BaseModel):
    """Which hits are wanted: in the JSON, or in the query string."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    k: Annotated[int, Field(ge=1, le=MOST_HITS, description="Most hits."), WHOLE] = 10
    skip: Annotated[
        int,
        Field(ge=0, le=MOST_SKIPPED, description="How many of the best hits to leave out."),
        WHOLE,
    ] = 0
    min_score: Annotated[
        float | None, Field(description="Only hits with at least this cosine.")
    ] = None
    no_self: Annotated[
        bool, Field(description="Leave out the images that the question is made of.")
    ] = False
    distinct: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="Leave out a hit whose cosine with a better one is at least this.",
        ),
    ] = None
    within: Annotated[
        list[PlaceText],
        Field(
            max_length=MOST_PLACES,
            description="Only images with a file in one of these folders, named as"
            " /api/folders does.",
        ),
    ] = []
    plus: Annotated[
        Examples, Field(description="Images that the hits shall be like as well, by number.")
    ] = []
    minus: Annotated[
        Examples, Field(description="Images that the hits shall not be like, by number.")
    ] = []
    want_vector: Annotated[
        bool, Field(description="Whether the answer shall hold the vector that was searched for.")
    ] = False

    by: ClassVar[str] = ""
    """The field that says what is searched for."""

    def example(self, searcher: Searcher) -> Example | None:
        """Return what is searched for beside ``plus``; `VectorError` where it does not fit."""
        return None


class ByImage(Options):
    """A question about an image of the catalog."""

    image_id: Annotated[Id, Field(description="Number of an image, as hits have it.")]

    by = "image_id"

    def example(self, searcher: Searcher) -> Example:
        """Return the image."""
        return Example(image_id=self.image_id)


class ByVector(Options):
    """A question about a vector."""

    vector: Annotated[
        list[float],
        Field(
            min_length=1, description="As many numbers as the space has dimensions, of length 1."
        ),
    ]

    by = "vector"

    def example(self, searcher: Searcher) -> Example:
        """Return the vector, if it fits the space."""
        space = searcher.space
        if len(self.vector) != space.dim:
            raise VectorError(
                f"the vector has {len(self.vector)} numbers,"
                f" the space {space.name!r} has {space.dim}"
            )
        norm = math.hypot(*self.vector)
        if not abs(norm - 1) < UNIT_TOLERANCE:
            raise VectorError(f"the vector has norm {norm:.6g}, it must be 1")
        return Example(vector=np.array(self.vector, np.float32))


class ByText(Options):
    """A question in words; for a space whose network knows them."""

    text: Annotated[
        str, Field(min_length=1, max_length=MOST_LETTERS, description="What is to be seen.")
    ]

    by = "text"

    def example(self, searcher: Searcher) -> Example:
        """Return the words."""
        return Example(words=self.text)


class ByExamples(Options):
    """A question about several images together."""

    plus: Annotated[
        list[Id],
        Field(
            min_length=1,
            max_length=MOST_EXAMPLES,
            description="Images that the hits shall be like, by number.",
        ),
    ]

    by = "plus"


QUESTIONS: Final = (ByImage, ByVector, ByText, ByExamples)


def answered(options: Options, searcher: Searcher, picture: bytes | None = None) -> dict[str, Any]:
    """Return the answer to a question, as JSON has it.

    Parameters
    ----------
    options
        The question; beside a ``picture`` the rest of it.
    searcher
        Who is asked.
    picture
        Bytes of an image file that is searched for.
    """
    first = options.example(searcher) if picture is None else Example(data=picture)
    plus = tuple(Example(image_id=number) for number in options.plus)
    minus = tuple(Example(image_id=number) for number in options.minus)
    question = Question(((first,) if first else ()) + plus, minus)
    return _as_json(searcher.reply(question, _wanted(options, searcher)), options)


def _wanted(options: Options, searcher: Searcher) -> Wanted:
    places = [Place.parse(text) for text in options.within]
    under: tuple[bytes, ...] = ()
    if places:
        with searcher.catalog.read() as conn:
            under = tuple(path_of(conn, place) for place in places)
    return Wanted(
        k=options.k,
        skip=options.skip,
        under=under,
        min_score=options.min_score,
        no_self=options.no_self,
        distinct=options.distinct,
    )


def _as_json(reply: Reply, options: Options) -> dict[str, Any]:
    value: dict[str, Any] = {
        "space": reply.space,
        "hits": [hit.to_json() for hit in reply.hits],
        "more": reply.more,
    }
    if options.want_vector:
        value["vector"] = [float(number) for number in reply.vector]
    return value
