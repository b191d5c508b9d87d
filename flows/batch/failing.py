"""What became of images that gave nothing, and the list of them beside the output."""

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from storage.exports.errors import ExportError, plain_errors, shown
from storage.fs import fs
from storage.sources.directory import label_of
from storage.sources.items import Item, Unreadable
from storage.workfolder import WorkFolder

if TYPE_CHECKING:
    from extractor.reading import Failure

SUFFIX = ".failures.tsv"
HEADER = b"id\tpath\tstage\tclass\tmessage\tlabel\n"
"""A header that names id, path and label: the list can be read as a source, to try them again.

The label has a column even where no image has one: without it ``class`` would be read as labels.
"""

_CLASSES = {
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.ENOENT: "vanished",
    errno.ENOTDIR: "vanished",
}


class Failed(NamedTuple):
    """An image that gave nothing, and why; ``id`` and ``path`` with their odd bytes escaped."""

    id: str
    path: str
    stage: str
    failure_class: str
    message: str
    label: str | None = None

    @classmethod
    def of(cls, item: Item, failure: "Failure") -> "Failed":
        """Return why an item gave nothing."""
        why = (failure.stage, failure.failure_class, failure.message)
        return cls(os.fsdecode(item.id), os.fsdecode(item.path), *why, item.label)

    @classmethod
    def unseen(cls, item: Unreadable, inside: bytes | None) -> "Failed":
        """Return that a file or folder ``inside`` a directory could not be looked at."""
        path = os.path.join(inside or b"", item.path)
        kind = _CLASSES.get(item.errno, "io")
        why = ("read", kind, os.strerror(item.errno))
        return cls(os.fsdecode(item.path), os.fsdecode(path), *why, label_of(item.path))

    def line(self) -> bytes:
        r"""Return the line of the list: names as they are, what would break it as ``\x0a``."""
        message = " ".join(self.message.split())
        cells = (self.id, self.path, self.stage, self.failure_class, message, self.label or "")
        return b"\t".join(_cell(cell) for cell in cells) + b"\n"


def _cell(text: str) -> bytes:
    for char in "\t\n\r":
        text = text.replace(char, f"\\x{ord(char):02x}")
    return os.fsencode(text)


def failures_path(out: str) -> str:
    """Return where the list of an output's failures stands."""
    return out.rstrip(os.sep) + SUFFIX


def refuse_own_failures(source: str, path: str) -> None:
    """Refuse the list of an output's failures as its source: it would hold them alone, then."""
    if os.path.exists(path) and os.path.exists(source) and os.path.samefile(source, path):
        raise ExportError(
            f"{shown(path)} lists what failed of this very output: name another output for it"
        )


def put_failures(work: WorkFolder, failures: Iterable[Failed]) -> int:
    """Put the list beside the output, or remove an old one where nothing failed.

    Returns
    -------
    int
        How many there are.
    """
    n = 0
    path = failures_path(work.out)
    with plain_errors(path), work.placed("failures.tsv", path) as file:
        file.write(HEADER)
        for failed in failures:
            file.write(failed.line())
            n += 1
    if not n:
        with suppress(FileNotFoundError):
            fs().unlink(path)
    return n


def from_json(values: Iterable[Any]) -> list[Failed]:
    """Return failures as they were kept."""
    return [Failed(*value) for value in values]
