"""The work of a long run before its output is complete: a folder beside the output.

::

    OUT.partial/
        plan.json                          what the work is of; another request is refused
        lock                               held while a process works here, with its number
        assembling                         the output is being put in place, or was
        begun-*.json                       what a process works on, or died with: `storage.begun`
        <start>-<n>-<key>-<checksum>.npz   n items from the start-th on, once they are finished

A chunk is written once, durably, under a name that says what has to be in it: the hash of the
items that it is made of, and the xxh3-128 of its bytes.  So a chunk whose items have changed, or
that was damaged, is seen to be of no use, and nothing but its name is needed to know that it is
there.  When everything is there the caller assembles the output, puts it in place, and the folder
goes.
"""

import io
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt
import xxhash

from storage.begun import NOTE, Begun
from storage.durable import DurableFile, write_durably
from storage.errors import PartError, StorageError, WorkMismatch
from storage.folder_lock import LOCK, lock_folder
from storage.fs import fs, open_stream
from storage.work_plan import is_planned, write_plan

SUFFIX = ".partial"

Array = npt.NDArray[Any]

_CHUNK = re.compile(r"(\d{12})-(\d+)-([0-9a-f]{32})-([0-9a-f]{32})\.npz")
_OURS = re.compile(
    rf"plan\.json(\..*)?|lock|failures\.tsv|assembling(\..*)?|{NOTE.pattern}(\..*)?"
    rf"|{_CHUNK.pattern}(\..*)?"
)


@dataclass(frozen=True, slots=True)
class Finished:
    """A chunk that is there, by its name.

    Attributes
    ----------
    start
        Number of its first item in the source, from 0.
    n
        How many items it is made of.
    key
        Hash of those items, as the caller made it: 32 hexadecimal digits.
    checksum
        xxh3-128 of the file, hexadecimal.
    """

    start: int
    n: int
    key: str
    checksum: str

    @property
    def name(self) -> str:
        """Name of the file."""
        return f"{self.start:012d}-{self.n}-{self.key}-{self.checksum}.npz"


class WorkFolder:
    """The folder of one output's work; a context manager that keeps other processes out.

    Parameters
    ----------
    out
        Path of the output; the folder is made beside it.
    fingerprint
        Plain values that the work depends on, all of them: model, layers, source, shard.
    restart
        Throw away what is there, whatever it is of.

    Raises
    ------
    LeaseHeld
        On entry: another process is at work here.
    WorkMismatch
        On entry: the folder holds work of another request, or is none of ours.
    StorageError
        On entry: the folder can't be made or read.
    """

    def __init__(self, out: str, fingerprint: Mapping[str, Any], *, restart: bool = False) -> None:
        self.out = os.path.abspath(out)
        self.path = self.out + SUFFIX
        self.finished: dict[int, Finished] = {}
        """Chunks by the number of their first item; those that `take` refused are gone."""
        self.begun: Begun
        """What is worked on, and what a process died with."""
        self._fingerprint = fingerprint
        self._restart = restart
        self._lock = -1
        self._is_ours = False

    def __enter__(self) -> Self:
        try:
            self._lock = lock_folder(self.path, self.out)
            self._open()
            self.begun = Begun(self.path)
            self._is_ours = True
        except OSError as error:
            self._unlock()
            raise StorageError(f"{self.path} can't be used: {error.strerror}") from error
        except BaseException:
            self._unlock()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        known = self.finished or self.was_assembling or self.begun.suspects
        if self._is_ours and not known:
            self.remove()  # nothing to go on with
        self._unlock()

    @property
    def was_assembling(self) -> bool:
        """Whether an output that is there may be what was made of this work."""
        return os.path.exists(self._inside("assembling"))

    def assembling(self) -> None:
        """Note that from now on the output may be there."""
        write_durably(self._inside("assembling"), b"")

    def take(self, start: int, key: str) -> Finished | None:
        """Return the chunk that begins at an item, if it is of the items of this key and whole.

        What is there and of no use is deleted.
        """
        found = self.finished.get(start)
        if found is None:
            return None
        if found.key == key and self._checksum(found) == found.checksum:
            return found
        del self.finished[start]
        with suppress(FileNotFoundError):
            fs().unlink(self._inside(found.name))
        return None

    def write(self, start: int, n: int, key: str, arrays: Mapping[str, Array]) -> Finished:
        """Write a finished chunk durably.

        Parameters
        ----------
        start, n, key
            As in `Finished`.
        arrays
            Arrays by name, of numbers alone.

        Raises
        ------
        DiskFull
            The disk or the quota is full.
        StorageError
            Any other trouble of the file system.
        """
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **dict(arrays))
        data = buffer.getbuffer()
        chunk = Finished(start, n, key, xxhash.xxh3_128(data).hexdigest())
        with DurableFile(self._inside(chunk.name)) as file:
            file.write(data)
        self.finished[start] = chunk
        return chunk

    def cut(self, end: int) -> None:
        """Delete the chunks from an item on: the source has become shorter."""
        for start in [start for start in self.finished if start >= end]:
            fs().unlink(self._inside(self.finished.pop(start).name))

    @contextmanager
    def placed(self, name: str, path: str) -> Iterator[BinaryIO]:
        """Write a file that appears under ``path``, on this file system, complete or not at all."""
        inside = self._inside(name)
        with open_stream(inside) as file:
            yield file
            file.flush()
            fs().fsync(file.fileno())
        fs().replace(inside, path)
        fs().fsync_dir(os.path.dirname(path))

    def read(self, chunk: Finished) -> dict[str, Array]:
        """Return the arrays of a chunk.

        Raises
        ------
        PartError
            The file is gone or damaged.
        """
        path = self._inside(chunk.name)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise PartError(f"{path} can't be read: {error.strerror}; run again") from error
        if xxhash.xxh3_128(data).hexdigest() != chunk.checksum:
            raise PartError(f"{path} is damaged; run again, and its images are done again")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return dict(arrays)

    def in_order(self) -> Iterator[Finished]:
        """Return the chunks in the order of their items."""
        for start in sorted(self.finished):
            yield self.finished[start]

    def remove(self) -> None:
        """Delete the folder: the plan first, so that what is left is nobody's work."""
        self._empty()
        self.begun.forget()
        self._is_ours = False  # another process may make it anew from now on
        with suppress(FileNotFoundError):
            fs().unlink(self._inside(LOCK))
        with suppress(OSError):
            fs().rmdir(self.path)

    def _open(self) -> None:
        """Begin, or find what is there; a chunk that was being written is thrown away."""
        if foreign := [name for name in os.listdir(self.path) if not _OURS.fullmatch(name)]:
            raise WorkMismatch(
                f"{self.path} holds {foreign[0]}, which is none of lookalike's; move the folder, "
                "or choose another OUT"
            )
        if self._restart or not is_planned(self._inside("plan.json"), self._fingerprint):
            self._empty()
            write_plan(self._inside("plan.json"), self._fingerprint)
            return
        for name in os.listdir(self.path):
            if name.endswith(".tmp"):
                fs().unlink(self._inside(name))
            elif found := _CHUNK.fullmatch(name):
                start, n, key, checksum = found.groups()
                self.finished[int(start)] = Finished(int(start), int(n), key, checksum)

    def _empty(self) -> None:
        """Delete what earlier work has left, but not what it died with."""
        self.finished = {}
        with suppress(FileNotFoundError):
            for name in sorted(os.listdir(self.path), key=lambda name: name != "plan.json"):
                if name != LOCK and _OURS.fullmatch(name) and not NOTE.fullmatch(name):
                    fs().unlink(self._inside(name))

    def _checksum(self, chunk: Finished) -> str | None:
        total = xxhash.xxh3_128()
        try:
            with open(self._inside(chunk.name), "rb") as file:
                while piece := file.read(8 << 20):
                    total.update(piece)
        except OSError:
            return None
        return total.hexdigest()

    def _inside(self, name: str) -> str:
        return os.path.join(self.path, name)

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
