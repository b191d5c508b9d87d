"""From examples to vectors: pictures and words go through the space's network.

Threads may share what is here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from search.errors import VectorError
from search.gathering import Gathering
from search.pictures import Pictures, Query
from search.questions import Example, Question
from search.words import Words
from storage.vectors import UNIT_TOLERANCE

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Meant:
    """What an example is: an image that has a vector in the space, or a vector of its own.

    Attributes
    ----------
    image_id
        The image; None where ``vector`` is given, and that has shape ``(d,)``, float32, unit
        length.
    """

    image_id: int | None
    vector: FloatArray | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A question whose examples are images and vectors."""

    plus: tuple[Meant, ...]
    minus: tuple[Meant, ...]

    @property
    def images(self) -> frozenset[int]:
        """The images that are examples."""
        both = (*self.plus, *self.minus)
        return frozenset(meant.image_id for meant in both if meant.image_id is not None)


class Examples:
    """Finds out what examples are, those of all questions at once.

    Parameters
    ----------
    pictures
        Turn pictures into vectors.
    device
        Where words go through the network.
    """

    def __init__(self, pictures: Pictures, device: str) -> None:
        self._pictures = pictures
        self._space = pictures.space
        self._texts = Gathering(partial(_of_words, Words(self._space, device)))

    def asked(self, questions: Sequence[Question]) -> list[Asked]:
        """Return the questions by images and vectors.

        Raises
        ------
        QueryError
            A picture can't be read or decoded.
        VectorError
            A vector does not fit the space.
        SearchError
            There are words, and the space's network knows none.
        """
        meant = iter(self._meant([one for q in questions for one in (*q.plus, *q.minus)]))
        return [
            Asked(tuple(next(meant) for _ in q.plus), tuple(next(meant) for _ in q.minus))
            for q in questions
        ]

    def _meant(self, examples: Sequence[Example]) -> list[Meant]:
        queries = self._queries(examples)
        asked = [queries[at] for at in sorted(queries)]
        fresh = iter(self._pictures.fresh(asked) if asked else ())
        said = [example.words for example in examples if example.words is not None]
        heard = iter(self._texts.ask(None, said) if said else ())
        found = []
        for at, example in enumerate(examples):
            if at in queries:
                known = queries[at].known
                found.append(Meant(known.image_id) if known else Meant(None, next(fresh)))
            elif example.words is not None:
                found.append(Meant(None, next(heard)))
            elif example.vector is not None:
                found.append(Meant(None, self._checked(example.vector)))
            else:
                found.append(Meant(example.image_id))
        return found

    def _queries(self, examples: Sequence[Example]) -> dict[int, Query]:
        """Return the pictures among the examples, by their places."""
        queries = {
            at: self._pictures.of_bytes(one.data)
            for at, one in enumerate(examples)
            if one.data is not None
        }
        paths = {at: one.path for at, one in enumerate(examples) if one.path is not None}
        if paths:
            queries |= zip(paths, self._pictures.at(list(paths.values())), strict=True)
        return queries

    def _checked(self, vector: FloatArray) -> FloatArray:
        x = np.asarray(vector, dtype=np.float32)
        dim, name = self._space.dim, self._space.name
        if x.shape != (dim,):
            size = f"{len(x)} numbers" if x.ndim == 1 else f"the shape {x.shape}"
            raise VectorError(f"the vector has {size}, the space {name!r} has {dim}")
        norm = float(np.linalg.norm(x.astype(np.float64)))
        if not abs(norm - 1) < UNIT_TOLERANCE:
            raise VectorError(f"the vector has norm {norm:.6g}, it must be 1")
        return x


# Not a method: a cycle would keep the network of a space that nobody asks any more.
def _of_words(words: Words, _: None, texts: Sequence[str]) -> list[FloatArray]:
    return list(words.of(texts))
