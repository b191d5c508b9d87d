"""What ``lookalike search`` is made of: what was typed, and how what was found is told."""

import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from flows.commands.base import absolute
from flows.commands.show import count, printable, table

if TYPE_CHECKING:
    from search.asked import Found, Term
    from storage.spaces import SpaceInfo

PICTURES = ("auto", "never", "kitty", "iterm", "sixel")


def terms_of(typed: Sequence[str], sign: str, space: "SpaceInfo") -> "list[Term]":
    """Return what was typed as paths, or as words where it can't be one and the space takes words.

    Raises
    ------
    QueryError
        It is neither.
    """
    from search.asked import Term

    terms = []
    for text in typed:
        words = "" if os.path.lexists(text) else _words(text, space)
        terms.append(Term(words or absolute([text])[0], sign))
    return terms


def _words(text: str, space: "SpaceInfo") -> str:
    """Return what was typed if it is taken as words; nothing if as the name of a file."""
    from search.errors import QueryError
    from search.words import why_not

    why = why_not(space)
    if not is_path(text):
        if why or not text:
            named = text or "''"
            why = f"for words: {why}" if why else "there are no words"
            raise QueryError(f"{named}: there is no such file, and {why}")
        return text
    if not why:
        raise QueryError(f"{text}: there is no such file; if these are words, use --text")
    return ""


def is_path(text: str) -> bool:
    """Return whether something typed is meant as a file: it is there, or it is named like one."""
    from storage.scan import has_suffix

    parted = os.sep in text or (os.altsep is not None and os.altsep in text)
    return parted or os.path.lexists(text) or has_suffix(os.fsencode(text))


def told(found: "Sequence[Found]", pictures: str) -> Iterator[str]:
    """Yield the blocks of text that tell what was found, with pictures where they can be shown.

    Parameters
    ----------
    found
        What each question found.
    pictures
        One of `PICTURES`.
    """
    drawn = _protocol(pictures)
    for i, each in enumerate(found):
        lines = [*([""] if i else []), _head(each)]
        if drawn is not None and each.hits:
            lines += _drawn(each, drawn)
        yield "\n".join([*lines, *([_table(each)] if each.hits else [])])


def odd_paths_line(found: "Sequence[Found]", path: str) -> str | None:
    """Return what to say of paths in a CSV file that are not UTF-8; None where there are none."""
    from search.table_file import odd_paths

    odd = odd_paths(found)
    if not odd:
        return None
    stand = "is not UTF-8 and stands as its bytes" if odd == 1 else "are not UTF-8, stand as bytes"
    return f"{count(odd, 'path')} in {printable(path)} {stand}"


def _protocol(pictures: str) -> str | None:
    if pictures == "never" or not sys.stdout.isatty():
        return None
    if pictures != "auto":
        return pictures
    from search.terminal import protocol_of

    return protocol_of(os.environ)


def _drawn(found: "Found", protocol: str) -> Iterator[str]:
    from search.strip import strips
    from search.terminal import drawn, screen_of

    for strip, columns in strips(found, screen_of(sys.stdout.fileno())):
        yield drawn(strip, protocol, columns)


def _head(found: "Found") -> str:
    query, *others = found.terms
    asked = [printable(query.text), *(f"{term.sign} {printable(term.text)}" for term in others)]
    head = f"{' '.join(asked)} in space {found.space}"
    return head if found.hits else f"{head}: no hits"


def _table(found: "Found") -> str:
    rows = []
    for rank, hit in found.ranked:
        more = len(hit.paths) - 1
        extra = [f"(and {more} more)"] if more else []
        extra += [
            f"{word}={printable(value)}"
            for word, value in (("id", hit.id), ("label", hit.label))
            if value
        ]
        rows.append((rank, f"{hit.score:.4f}", " ".join([printable(hit.path), *extra])))
    return table(("rank", "score", "path"), rows, right=(0, 1))
