"""What a process is at, noted so that the next one knows with what it died.

A note lies in a folder of unfinished work while some pictures are worked on, and is gone when that
work has ended, well or not; so it stays only where the process died.  One of its pictures may be
the reason: they are suspect, as those of `storage.suspects` are in a store.
"""

import json
import os
import re
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any, Final

import xxhash

from storage.durable import write_durably
from storage.errors import StorageError
from storage.fs import fs
from storage.owner import Owner, is_gone, this_process

NOTE: Final = re.compile(r"begun-[0-9a-f]{32}\.json")


class Begun:
    """The notes in one folder; any thread may call.

    Parameters
    ----------
    folder
        Made with the first note where it is not there.

    Attributes
    ----------
    suspects
        `mark` of each picture that a process died with.  What is worked on by a process that is
        seen to live is none.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._left = dict(self._found())
        self.suspects = frozenset[str]().union(*self._left.values())

    def is_suspect(self, path: bytes) -> bool:
        """Return whether a process died with this picture."""
        return bool(self.suspects) and mark(path) in self.suspects

    @contextmanager
    def at_work(self, paths: Iterable[bytes]) -> Iterator[None]:
        """Note for as long as the body takes that these pictures are worked on.

        Raises
        ------
        DiskFull, StorageError
            The note can't be written.
        """
        marks = sorted(map(mark, paths))
        if not marks:
            yield
            return
        path = os.path.join(self.folder, f"begun-{uuid.uuid4().hex}.json")
        note = {"owner": asdict(this_process()), "paths": marks}
        self._write(path, json.dumps(note).encode())
        try:
            yield
        finally:
            _drop(path)

    def settle(self, paths: Iterable[bytes]) -> None:
        """Forget of these pictures that a process died with them: they have done no harm."""
        if not self._left:
            return
        harmless = set(map(mark, paths))
        with self._lock:
            for path, left in list(self._left.items()):
                left -= harmless
                if not left:
                    del self._left[path]
                    _drop(path)

    def forget(self) -> None:
        """Delete all notes that the dead have left."""
        with self._lock:
            for path in self._left:
                _drop(path)
            self._left = {}

    def _write(self, path: str, data: bytes) -> None:
        try:
            write_durably(path, data)
        except StorageError:
            if os.path.isdir(self.folder):
                raise
            with suppress(OSError):  # not made yet, or another process has just removed it
                os.makedirs(self.folder, exist_ok=True)
            write_durably(path, data)

    def _found(self) -> Iterator[tuple[str, set[str]]]:
        """Yield the notes that the dead have left."""
        me = this_process()
        with suppress(FileNotFoundError):
            for name in os.listdir(self.folder):
                path = os.path.join(self.folder, name)
                if not NOTE.fullmatch(name):
                    continue
                note = _read(path)
                if note is None:
                    _drop(path)  # none of ours, or damaged
                elif is_gone(Owner(**note["owner"]), me, expired=True, one_host=False):
                    yield path, set(note["paths"])


def mark(path: bytes) -> str:
    """Return what stands for a picture's path in a note."""
    return str(xxhash.xxh3_64(path).hexdigest())


def _read(path: str) -> dict[str, Any] | None:
    with suppress(OSError, ValueError, KeyError, TypeError), open(path, "rb") as file:
        note = json.loads(file.read())
        Owner(**note["owner"])
        return {"owner": note["owner"], "paths": [str(each) for each in note["paths"]]}
    return None


def _drop(path: str) -> None:
    with suppress(OSError):
        fs().unlink(path)
