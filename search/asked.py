"""Questions as they were typed, with what was found: for tables, sheets and files."""

import os
from dataclasses import dataclass
from typing import Any, Self

from search.answers import Answer, Hit
from search.questions import Example, Question

QUERY = "query"
PLUS = "+"
MINUS = "-"
MEANING = {QUERY: "query", PLUS: "more like this", MINUS: "less like this"}
"""What a sign means, for people."""


@dataclass(frozen=True, slots=True)
class Term:
    """One thing that hits shall be like or unlike: an absolute path, or words as text."""

    what: bytes | str
    sign: str = QUERY
    """`QUERY`, `PLUS` or `MINUS`."""

    @property
    def text(self) -> str:
        """The path or the words as text; bytes of a path that are no UTF-8 as surrogates."""
        return os.fsdecode(self.what)

    @property
    def is_path(self) -> bool:
        """Whether it is a path, and not words."""
        return isinstance(self.what, bytes)

    def example(self) -> Example:
        """Return what the search is asked."""
        if isinstance(self.what, bytes):
            return Example(path=self.what)
        return Example(words=self.what)


def question(terms: tuple[Term, ...]) -> Question:
    """Return what the search is asked for all terms."""
    return Question(
        plus=tuple(term.example() for term in terms if term.sign != MINUS),
        minus=tuple(term.example() for term in terms if term.sign == MINUS),
    )


@dataclass(frozen=True, slots=True)
class Found:
    """What one question found, the best first.

    Parameters
    ----------
    terms
        What was asked, the query first.
    space
        Name of the space that was searched.
    hits
        What was found.
    skip
        How many better hits were left out.
    """

    terms: tuple[Term, ...]
    space: str
    hits: tuple[Hit, ...]
    skip: int = 0

    @classmethod
    def of(cls, answer: Answer) -> Self:
        """Return the answer to a single picture."""
        return cls((Term(answer.query),), answer.space, answer.hits)

    @property
    def query(self) -> Term:
        """What was asked first."""
        return self.terms[0]

    @property
    def ranked(self) -> list[tuple[int, Hit]]:
        """The hits with their ranks, of which 1 is the best."""
        return list(enumerate(self.hits, self.skip + 1))

    def to_json(self) -> dict[str, Any]:
        """Return the values for scripts; what was not asked for is left out."""
        extra: dict[str, Any] = {
            "words": isinstance(self.query.what, str),
            "plus": [term.text for term in self.terms if term.sign == PLUS],
            "minus": [term.text for term in self.terms if term.sign == MINUS],
            "skip": self.skip,
        }
        return {
            "query": self.query.text,
            **{name: value for name, value in extra.items() if value},
            "space": self.space,
            "hits": [hit.to_json() for hit in self.hits],
        }
