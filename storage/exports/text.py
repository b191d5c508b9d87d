"""Text: a line an image, numbers as the shortest text that reads back to the same float32.

Ids and labels stand as their bytes.  One that would break its line is quoted as spreadsheets do it,
so that a reader of CSV, with a tab or a comma, gets all of them back.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO

import numpy as np
import orjson

from storage.exports.output import Output
from storage.exports.records import FloatArray, Records
from storage.exports.stage import Stage

_BREAKS_TSV = re.compile(rb'[\t\r\n]|\A"')
_BREAKS_CSV = re.compile(rb'[,"\r\n]')

Line = Callable[[bytes, str | None, bytes], bytes]
"""Make a line of an id, a label and a JSON array."""


class TextBody:
    """Files of lines, one a layer."""

    def __init__(self, stage: Stage, output: Output, dims: Mapping[str, int]) -> None:
        self._line = _LINES[output.format]
        self._files: dict[str, BinaryIO] = {}
        for layer, name in zip(dims, output.names, strict=True):
            self._files[layer] = stage.create(name)
            if output.format == "table":
                self._files[layer].write(_header(dims[layer]))

    def write(self, records: Records) -> None:
        """Write a line an image."""
        for layer, file in self._files.items():
            numbers = _numbers(records.vectors[layer])
            for line in map(self._line, records.ids, records.labels, numbers):
                file.write(line)

    def finish(self) -> None:
        """Do nothing more: the lines are all there is."""


def _numbers(x: FloatArray) -> Iterator[bytes]:
    """Yield each vector as a JSON array."""
    for row in np.ascontiguousarray(x):
        yield orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)


def _tsv(id: bytes, label: str | None, numbers: bytes) -> bytes:
    return b"%b\t%b\n" % (_cell(id, _BREAKS_TSV), numbers)


def _csv(id: bytes, label: str | None, numbers: bytes) -> bytes:
    return b"%b,%b\n" % (_cell(id, _BREAKS_CSV), numbers[1:-1])


def _table(id: bytes, label: str | None, numbers: bytes) -> bytes:
    text = (label or "").encode("utf-8", "surrogateescape")
    return b"%b,%b\n" % (_cell(text, _BREAKS_CSV), numbers[1:-1])


def _cell(value: bytes, breaks: re.Pattern[bytes]) -> bytes:
    """Quote a value that would break its line."""
    if breaks.search(value):
        return b'"%b"' % value.replace(b'"', b'""')
    return value


def _header(dim: int) -> bytes:
    return ",".join(["Class", *(f"n{i}" for i in range(dim))]).encode("ascii") + b"\n"


_LINES: dict[str, Line] = {"tsv": _tsv, "csv": _csv, "table": _table}
