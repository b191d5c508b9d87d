"""Small pictures of the indexed images, made when they are asked for and kept on disk."""

import hashlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self

from sqlalchemy import Connection, Select, bindparam, exists, select

from extractor.decode import DECODE_VERSION, DEFAULT
from extractor.reading import Failure, Unread, opened
from extractor.thumbnail import THUMBNAIL_VERSION, Small, Thumbnail
from search.decoders import MOST, Decoders
from search.errors import NoMemory, QueryError, UnknownImage
from search.thumbnail_files import MOST_BYTES, ThumbnailFiles
from storage.catalog import Catalog
from storage.prepared import Prepared
from storage.tables import File, Image, Root

SIZES: Final = (160, 320, 640, 1280)
"""Longer sides that can be asked for, pixels."""
TRIES: Final = 8
"""Files of an image that are looked at, until one still holds it."""
BAD_S: Final = 3600.0
"""How long a picture that can't be decoded is not tried again: it may have cost a minute."""
MOST_BAD: Final = 10_000


class Thumbnails:
    """Makes thumbnails of the images that a catalog knows.  Threads may share it.

    Only files that the catalog knows as live are opened, below a root through no symbolic link, and
    only bytes that still have the image's digest are decoded, in processes beside this one.  What
    comes out holds pixels alone: no EXIF, no profile, no comment.

    Parameters
    ----------
    catalog
        Open, for reading at least, for as long as this is used.
    folder
        Where they are kept (`search.thumbnail_files.thumbnails_folder`).
    most_bytes
        What they may take there; the least recently used go first.
    """

    def __init__(self, catalog: Catalog, folder: str, most_bytes: int = MOST_BYTES) -> None:
        self.catalog = catalog
        self.files = ThumbnailFiles(folder, most_bytes)
        self._decoders = Decoders()
        self._making = _Making()
        self._reading = threading.Semaphore(MOST)
        """As many files are in memory at once."""
        self._bad: dict[bytes, tuple[float, str]] = {}
        """Pictures that can't be decoded, with the end of the time that they are left alone."""

    def of(self, image_id: int, size: int) -> bytes:
        """Return a JPEG of an image, upright and in its own proportions.

        Parameters
        ----------
        image_id
            Its number.
        size
            Longer side in pixels, one of `SIZES`; a smaller picture keeps its size.

        Raises
        ------
        UnknownImage
            The catalog knows no live image of this number.
        QueryError
            It can't be decoded, or none of its files holds it any more.
        NoMemory
            It may go well another time.
        ValueError
            There are no thumbnails of this size.
        """
        return self._thumbnail(image_id, size).jpeg

    def tag(self, image_id: int, size: int) -> str:
        """Return what names the bytes that `of` gives: another tag, other bytes; raises as `of`."""
        return f"{self._digest(image_id).hex()}-{_kind(size)}"

    def size_of(self, image_id: int) -> tuple[int, int] | None:
        """Return width and height of an upright image; None where it can't be decoded now.

        Raises
        ------
        UnknownImage
            The catalog knows no live image of this number.
        """
        digest = self._digest(image_id)
        for size in SIZES:
            if (data := self.files.get(digest, _kind(size))) is not None:
                made = Thumbnail.from_bytes(data)
                return made.width, made.height
        try:
            made = self._thumbnail(image_id, SIZES[1])
        except (QueryError, NoMemory):
            return None
        return made.width, made.height

    def drop(self, digests: Iterable[bytes]) -> None:
        """Remove all thumbnails of the images with these digests from the disk."""
        self.files.drop(digests)

    def close(self) -> None:
        """End the processes that decode; what is being made comes to nothing."""
        self._decoders.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _thumbnail(self, image_id: int, size: int) -> Thumbnail:
        digest, kind = self._digest(image_id), _kind(size)
        kept = self.files.get(digest, kind)
        if kept is None:
            with self._making.turn(digest) as made:  # who waited finds what the first one made
                kept = made.get(kind) or self.files.get(digest, kind)
                if kept is None:
                    kept = made[kind] = self._made(image_id, digest, size)
        return Thumbnail.from_bytes(kept)

    def _digest(self, image_id: int) -> bytes:
        with self.catalog.read() as conn:
            found = _DIGEST_OF.rows(conn, image_id=image_id)
        if not found:
            raise UnknownImage(f"no image {image_id} is known")
        return bytes(found[0][0])

    def _made(self, image_id: int, digest: bytes, size: int) -> bytes:
        """Return a thumbnail's bytes, which are kept then."""
        until, why = self._bad.get(digest, (0.0, ""))
        if time.monotonic() < until:
            raise QueryError(why)
        with self._reading:
            got = self._decoders.decode(self._read(image_id, digest), Small(size))
        if isinstance(got, Failure):
            raise self._failed(image_id, digest, got)
        made = got.tobytes()
        self.files.put(digest, _kind(size), made)
        try:
            self._digest(image_id)
        except UnknownImage:  # it was forgotten meanwhile, and what is kept with it
            self.files.drop([digest])
            raise
        return made

    def _failed(self, image_id: int, digest: bytes, failure: Failure) -> QueryError | NoMemory:
        why = f"image {image_id} can't be shown: {failure.message}"
        if failure.transient:
            return NoMemory(why)
        if len(self._bad) >= MOST_BAD:
            self._bad.clear()
        self._bad[digest] = (time.monotonic() + BAD_S, why)
        return QueryError(why)

    def _read(self, image_id: int, digest: bytes) -> bytes:
        """Return the bytes of an image, from the first of its files that holds them."""
        with self.catalog.read() as conn:
            places = _places(conn, image_id)
        why = "no file holds it any more"
        for path, inside in places:
            try:
                with opened(path, DEFAULT.size_bytes, inside) as file:
                    data = file.read()
            except Unread as error:
                why = error.failure.message
                continue
            if hashlib.sha256(data).digest() == digest:
                return data
            why = "its file has changed since it was indexed"
        raise QueryError(f"image {image_id} can't be shown now: {why}")


class _Making:
    """One thread at a time makes something of a picture; those that wait are given it."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._turns: dict[bytes, _Turn] = {}

    @contextmanager
    def turn(self, digest: bytes) -> Iterator[dict[str, bytes]]:
        """Wait for the threads that are at this picture; yield what they have made, by kind."""
        with self._changing:
            turn = self._turns.setdefault(digest, _Turn())
            turn.threads += 1
        try:
            with turn.lock:
                yield turn.made
        finally:
            with self._changing:
                turn.threads -= 1
                if not turn.threads:
                    del self._turns[digest]


class _Turn:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.threads = 0
        self.made: dict[str, bytes] = {}


def _kind(size: int) -> str:
    """Return what a thumbnail's bytes depend on beside the picture."""
    if size not in SIZES:
        raise ValueError(f"there are no thumbnails of {size} pixels, only of {SIZES}")
    return f"{size}-{DECODE_VERSION}.{THUMBNAIL_VERSION}"


def _digest_of(_: str) -> Select[Any]:
    live = exists().where(File.image_id == Image.id, File.state == "live")
    return select(Image.digest).where(Image.id == bindparam("image_id"), live)


_DIGEST_OF = Prepared(_digest_of)


def _places(conn: Connection, image_id: int) -> list[tuple[bytes, bytes | None]]:
    """Return where an image lies: each path with the root that no link may lead out of."""
    query = (
        select(Root.path, File.path, File.source)
        .join(Root, Root.id == File.root_id)
        .where(File.image_id == image_id, File.state == "live")
        .order_by(File.id)
        .limit(TRIES)
    )
    return [
        (os.path.join(root, path), root) if source is None else (source, None)
        for root, path, source in conn.execute(query)
    ]
