"""Thumbnails on disk: a folder that stays below a bound; what was used least lately goes first.

A file is ``<2 letters>/<digest>-<kind>``, the letters those that the digest begins with: 8 bytes of
checksum, then what was kept.  It is a cache: a folder that can't be written only costs time, a file
that is damaged is made again, and what several processes write at once stays whole.
"""

import os
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from threading import Lock
from typing import Final

import xxhash
from platformdirs import user_cache_dir
from sqlalchemy import select

from storage.catalog import Catalog
from storage.slices import sliced
from storage.tables import Image

MOST_BYTES: Final = 1 << 30
"""What all files may take."""
_SPARE: Final = 10
"""A tenth of the bound is made free at once; and after as much was written, others are counted."""
_LEFT_S: Final = 3600.0
"""A half-written file of this age is nobody's any more."""
_CHECKSUM: Final = 8
_TEMPORARY: Final = ".tmp"


def thumbnails_folder(store_id: str) -> str:
    """Return where the thumbnails of a store lie: below the user's cache folder."""
    cache = user_cache_dir("lookalike", appauthor=False)
    return os.path.join(os.path.abspath(cache), "thumbnails", store_id)


class ThumbnailFiles:
    """Bytes by digest and kind, in a folder.  Threads and processes may share it.

    Parameters
    ----------
    folder
        Absolute; made for the owner alone when the first file is kept.
    most_bytes
        What the files may take together.
    """

    def __init__(self, folder: str, most_bytes: int = MOST_BYTES) -> None:
        self.folder = folder
        self.most_bytes = most_bytes
        self._turn = Lock()
        self._total: int | None = None
        """What the files take, as far as it is known; None before they were counted."""
        self._written = 0
        """What was written since then."""

    def get(self, digest: bytes, kind: str) -> bytes | None:
        """Return what was kept; None where nothing is, or it is damaged."""
        path = self._path(digest, kind)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError:
            return None
        if data[:_CHECKSUM] != _checksum(data[_CHECKSUM:]):
            _remove(path)
            return None
        with suppress(OSError):
            os.utime(path)  # used now
        return data[_CHECKSUM:]

    def put(self, digest: bytes, kind: str, data: bytes) -> None:
        """Keep some bytes, if there is room for them at all and the folder can be written."""
        size = len(data) + _CHECKSUM
        path = self._path(digest, kind)
        with self._turn:
            if size > self.most_bytes or not self._has_room(size):
                return
            with suppress(OSError):
                self._make_folders(path)
                _write(path, _checksum(data), data)
                self._written += size

    def drop(self, digests: Iterable[bytes]) -> None:
        """Remove all that is kept of some pictures, also what is half written."""
        with self._turn:
            for digest in digests:
                name = digest.hex()
                for path in self._paths_in(name[:2]):
                    if os.path.basename(path).startswith(name):
                        _remove(path)
            self._total = None

    def digests(self) -> Iterator[bytes]:
        """Yield the digests of the pictures of which something is kept, in any order."""
        for letters in self._parts():
            names = {os.path.basename(path)[:64] for path in self._paths_in(letters)}
            for name in names:
                with suppress(ValueError):
                    yield bytes.fromhex(name)

    def _path(self, digest: bytes, kind: str) -> str:
        name = digest.hex()
        return os.path.join(self.folder, name[:2], f"{name}-{kind}")

    def _make_folders(self, path: str) -> None:
        os.makedirs(os.path.dirname(self.folder), exist_ok=True)
        for folder in (self.folder, os.path.dirname(path)):
            with suppress(FileExistsError):
                os.mkdir(folder, 0o700)

    def _has_room(self, size: int) -> bool:
        """Return whether so many bytes more keep the bound; remove old files if need be."""
        total = (self._total or 0) + self._written
        if self._total is None or total + size > self.most_bytes or self._is_old():
            total = self._tidied(size)
        return total + size <= self.most_bytes

    def _is_old(self) -> bool:
        """Return whether other processes may have written much since the files were counted."""
        return self._written > self.most_bytes // _SPARE

    def _tidied(self, size: int) -> int:
        """Count the files, remove old ones where the bound asks for it, and return their bytes."""
        found = sorted(self._found())
        total = sum(file_size for _, file_size, _ in found)
        if total + size > self.most_bytes:
            enough = self.most_bytes - self.most_bytes // _SPARE - size
            for _, file_size, path in found:
                if total <= max(enough, 0):
                    break
                total -= file_size if _remove(path) else 0
        self._total, self._written = total, 0
        return total

    def _found(self) -> Iterator[tuple[int, int, str]]:
        """Yield when each file was used last (nanoseconds), its bytes and its path."""
        for letters in self._parts():
            for path in self._paths_in(letters):
                with suppress(OSError):
                    status = os.stat(path)
                    if path.endswith(_TEMPORARY) and time.time() - status.st_mtime > _LEFT_S:
                        os.unlink(path)
                    else:
                        yield status.st_mtime_ns, status.st_size, path

    def _parts(self) -> list[str]:
        try:
            return os.listdir(self.folder)
        except OSError:
            return []

    def _paths_in(self, letters: str) -> list[str]:
        folder = os.path.join(self.folder, letters)
        try:
            return [os.path.join(folder, name) for name in os.listdir(folder)]
        except OSError:
            return []


def drop_unknown(catalog: Catalog, files: ThumbnailFiles) -> None:
    """Remove what is kept of pictures that the catalog has no record of, as after ``forget``."""
    for some in sliced(files.digests()):
        with catalog.read() as conn:
            known = conn.execute(select(Image.digest).where(Image.digest.in_(some))).scalars().all()
        if gone := set(some) - set(known):
            files.drop(gone)


def _checksum(data: bytes) -> bytes:
    return xxhash.xxh3_64_digest(data)


def _write(path: str, *pieces: bytes) -> None:
    """Write a file that appears whole under its name; it need not outlive a power cut."""
    temporary = f"{path}.{uuid.uuid4().hex}{_TEMPORARY}"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, "wb") as file:
            file.writelines(pieces)
        os.replace(temporary, path)
    except OSError:
        _remove(temporary)
        raise


def _remove(path: str) -> bool:
    """Remove a file; return whether it is gone."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
