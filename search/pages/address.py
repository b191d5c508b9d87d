"""What an address asks for: read from it, and written to the addresses that a page leads to."""

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self
from urllib.parse import urlencode

import numpy as np
import numpy.typing as npt

from search.errors import SearchError
from search.questions import MOST, Example, Question, Wanted

FloatArray = npt.NDArray[np.float32]
Values = Mapping[str, Sequence[str]]
"""The values of each field of an address or a form."""

K: Final = 60
"""Hits of one page."""
DISTINCT: Final = 0.95
"""From which cosine on a hit is hidden that is like a better one, where that is asked for."""
MOST_EXAMPLES: Final = 100
MOST_PLACES: Final = 100
MOST_LETTERS: Final = 1000
_MOST_NUMBER: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Asked:
    """A question to the search page.

    Attributes
    ----------
    image
        An image of the catalog that hits shall be like.
    text
        Words that they shall be like.
    vector
        That of a picture that was sent, and is kept nowhere else: float32 as base64.
    plus, minus
        Images that hits shall be like, and unlike.
    within
        Places that they shall lie in.
    min_score, distinct
        As `Wanted` has them.
    skip
        Hits that earlier pages have shown.
    """

    image: int | None = None
    text: str = ""
    vector: str = ""
    plus: tuple[int, ...] = ()
    minus: tuple[int, ...] = ()
    within: tuple[str, ...] = ()
    min_score: float | None = None
    distinct: float | None = None
    skip: int = 0

    @classmethod
    def read(cls, values: Values) -> Self:
        """Read an address or a form; fields that it does not know do not matter.

        Raises
        ------
        SearchError
            A field says nothing that makes sense.
        """
        dropped = _numbers(values, "drop")
        text = _last(values, "text")
        if len(text) > MOST_LETTERS:
            raise SearchError(f"the text has more than {MOST_LETTERS:,} letters; ask shorter")
        asked = cls(
            image=next(iter(_numbers(values, "image")), None),
            text=text,
            vector=_last(values, "vector"),
            plus=tuple(one for one in _numbers(values, "plus") if one not in dropped),
            minus=tuple(one for one in _numbers(values, "minus") if one not in dropped),
            within=tuple(dict.fromkeys(text for text in values.get("within", ()) if text)),
            min_score=_decimal(values, "min_score"),
            distinct=_decimal(values, "distinct"),
            skip=next(reversed(_numbers(values, "skip")), 0),
        )
        if len(asked.examples) > MOST_EXAMPLES or len(asked.within) > MOST_PLACES:
            raise SearchError(
                f"at most {MOST_EXAMPLES} examples and {MOST_PLACES} folders; remove some"
            )
        return asked

    @property
    def examples(self) -> tuple[int, ...]:
        """The images that are examples."""
        first = () if self.image is None else (self.image,)
        return tuple(dict.fromkeys((*first, *self.plus, *self.minus)))

    @property
    def liked(self) -> tuple[int, ...]:
        """The images that hits shall be like."""
        return tuple(one for one in self.examples if one not in self.minus)

    @property
    def asks(self) -> bool:
        """Whether there is anything that hits shall be like."""
        return bool(self.text or self.vector or self.liked)

    @property
    def kept(self) -> list[tuple[str, str]]:
        """The fields that say what hits shall be like and unlike; all but ``vector``."""
        single = [("image", self.image), ("text", self.text or None)]
        many = [("plus", self.plus), ("minus", self.minus)]
        return [
            *((name, str(value)) for name, value in single if value is not None),
            *((name, str(value)) for name, values in many for value in values),
        ]

    @property
    def filters(self) -> list[tuple[str, str]]:
        """The fields that say which hits are wanted, whatever they shall be like."""
        single = [("min_score", self.min_score), ("distinct", self.distinct)]
        return [
            *(("within", place) for place in self.within),
            *((name, repr(value)) for name, value in single if value is not None),
        ]

    @property
    def url(self) -> str:
        """The address that asks this; there is none for a ``vector``, which is left out."""
        fields = [*self.kept, *self.filters, *([("skip", str(self.skip))] if self.skip else [])]
        return f"/search?{urlencode(fields)}" if replace(self, vector="").asks else "/"

    def by(self, image: int) -> "Asked":
        """Return the search by one image, with the same filters."""
        return replace(self.anew(), image=image)

    def anew(self) -> "Asked":
        """Return what keeps the filters and no example."""
        return Asked(within=self.within, min_score=self.min_score, distinct=self.distinct)

    def like(self, image: int) -> "Asked":
        """Return the question with one more image that hits shall be like."""
        one = self.without(image)
        return replace(one, plus=(*one.plus, image))

    def unlike(self, image: int) -> "Asked":
        """Return the question with one more image that hits shall be unlike."""
        one = self.without(image)
        return replace(one, minus=(*one.minus, image))

    def without(self, image: int) -> "Asked":
        """Return the question, from its first page on, without an image among its examples."""
        return replace(
            self,
            image=None if self.image == image else self.image,
            plus=tuple(one for one in self.plus if one != image),
            minus=tuple(one for one in self.minus if one != image),
            skip=0,
        )

    def outside(self, place: str) -> "Asked":
        """Return the question, from its first page on, without one of its places."""
        return replace(self, within=tuple(one for one in self.within if one != place), skip=0)

    def wordless(self) -> "Asked":
        """Return the question, from its first page on, without its text."""
        return replace(self, text="", skip=0)

    def unsent(self) -> "Asked":
        """Return the question, from its first page on, without the picture that was sent."""
        return replace(self, vector="", skip=0)

    def page(self, skip: int) -> "Asked":
        """Return another page of the same hits."""
        return replace(self, skip=skip)

    @property
    def before(self) -> int | None:
        """What the page before this one skips; None on the first one."""
        return max(0, self.skip - K) if self.skip else None

    @property
    def after(self) -> int | None:
        """What the page behind this one skips; None where it would lie too deep."""
        return self.skip + K if self.skip + 2 * K <= MOST else None

    def question(self, picture: bytes | None = None) -> Question:
        """Return the question itself.

        Parameters
        ----------
        picture
            Bytes of a picture that was sent now.

        Raises
        ------
        SearchError
            There is nothing to be like, or the vector is none.
        """
        plus = [Example(image_id=image) for image in self.liked]
        if self.text:
            plus.insert(0, Example(words=self.text))
        if picture is not None:
            plus.insert(0, Example(data=picture))
        elif self.vector:
            plus.insert(0, Example(vector=vector_of(self.vector)))
        return Question(tuple(plus), tuple(Example(image_id=image) for image in self.minus))

    def wanted(self, under: tuple[bytes, ...], *, no_self: bool = True) -> Wanted:
        """Return which hits are wanted, of the files at or below absolute paths."""
        return Wanted(
            k=K,
            skip=self.skip,
            under=under,
            min_score=self.min_score,
            no_self=no_self,
            distinct=self.distinct,
        )


def text_of(vector: FloatArray) -> str:
    """Return a vector, shape ``(d,)``, as a form can hold it."""
    return base64.urlsafe_b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def vector_of(text: str) -> FloatArray:
    """Return the vector, shape ``(d,)``, float32, that `text_of` wrote; `SearchError`."""
    try:
        data = base64.b64decode(text, altchars=b"-_", validate=True)
        return np.frombuffer(data, "<f4").astype(np.float32)
    except (binascii.Error, ValueError):
        raise SearchError("the picture's vector is damaged; choose the picture again") from None


def _last(values: Values, name: str) -> str:
    """Return the last value of a field, without blanks around it."""
    return next(reversed(values.get(name, ())), "").strip()


def _numbers(values: Values, name: str) -> tuple[int, ...]:
    """Return the numbers of a field, each once."""
    found = [text.strip() for text in values.get(name, ()) if text.strip()]
    for text in found:
        if not (text.isascii() and text.isdecimal() and len(text) < 20):
            raise SearchError(f"{name}: a whole number is meant, not {text[:40]!r}")
        if int(text) > _MOST_NUMBER:
            raise SearchError(f"{name}: {text} is too large a number")
    return tuple(dict.fromkeys(int(text) for text in found))


def _decimal(values: Values, name: str) -> float | None:
    """Return the number of a field; None where it is empty."""
    text = _last(values, name)
    if not text:
        return None
    try:
        number = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise SearchError(f"{name}: a number is meant, not {text[:40]!r}")
    return number
