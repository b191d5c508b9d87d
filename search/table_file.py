"""Hits as CSV: a line a hit, for spreadsheets and scripts."""

import re
from collections.abc import Sequence

from search.asked import Found

COLUMNS = ("query", "rank", "score", "image_id", "path", "id", "label")

_BREAKS = re.compile(rb'[,"\r\n]')


def csv_of(found: Sequence[Found]) -> bytes:
    """Return the hits of all questions as CSV: UTF-8, a head, a line a hit that ends with LF.

    A path is that of the hit's first file.  One that is not UTF-8 stands as its bytes, so that it
    still names the file; `odd_paths` counts those.
    """
    lines = [COLUMNS, *(row for each in found for row in _rows(each))]
    return b"".join(b",".join(map(_cell, line)) + b"\n" for line in lines)


def odd_paths(found: Sequence[Found]) -> int:
    """Return how many different paths among queries and hits are not UTF-8."""
    paths = {each.query.text for each in found}
    paths |= {hit.to_json()["path"] for each in found for hit in each.hits}
    return sum(not _is_utf8(path) for path in paths)


def _rows(found: Found) -> list[tuple[object, ...]]:
    query = found.query.text
    return [
        (query, rank, f"{hit.score:.6f}", hit.image_id, hit.path, hit.id, hit.label)
        for rank, hit in found.ranked
    ]


def _cell(value: object) -> bytes:
    """Return a value's bytes, quoted where it would break its line."""
    if value is None:
        return b""
    data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
    return b'"%b"' % data.replace(b'"', b'""') if _BREAKS.search(data) else data


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
