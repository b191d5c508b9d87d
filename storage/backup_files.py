"""The files that a catalog names, and their copies, compared with its checksums on the way."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import xxhash

from storage.catalog import Catalog
from storage.durable import DurableFile
from storage.errors import PartError
from storage.reading import generation_paths, open_store, snapshot
from storage.spaces import list_spaces
from storage.whitenings import whitening_of, whitening_path

_PIECE_BYTES = 8 << 20


@dataclass(frozen=True)
class NamedFile:
    """A file of the home that the catalog names."""

    path: str
    """Relative to the home."""
    checksum: str
    """Hexadecimal: xxh3-128, or SHA-256 where it is twice as long."""


@dataclass(frozen=True)
class Named:
    """What a catalog names; the counts are for people."""

    files: tuple[NamedFile, ...]
    folders: tuple[str, ...]
    """Of its spaces, relative to the home; each may be empty."""
    spaces: int
    vectors: int


def named_in(catalog: Catalog) -> Named:
    """Return the files that a catalog's live parts, indexes and spaces name."""
    home = catalog.home
    files: list[tuple[str, str]] = []
    folders: list[str] = []
    spaces = list_spaces(catalog)
    vectors = 0
    for space in spaces:
        folders += [home.parts_dir(space.fingerprint), home.index_dir(space.fingerprint)]
        view, store = snapshot(catalog, space), open_store(catalog, space)
        vectors += view.n
        for part in view.parts:  # sidecars first: where the vectors are, they are
            files.append((store.path(part.name, ".ids"), part.ids_checksum))
            if part.rows_checksum is not None:
                files.append((store.path(part.name, ".rows"), part.rows_checksum))
            files.append((store.path(part.name), part.checksum))
        if view.generation is not None:
            index, rowmap = generation_paths(folders[-1], view.generation.name)
            files.append((rowmap, view.generation.rowmap_checksum))
            files.append((index, view.generation.checksum))
        whitening = whitening_of(space.request)
        if whitening is not None:
            files.append((whitening_path(home, whitening), whitening))
    relative = {os.path.relpath(path, home.path): checksum for path, checksum in files}
    return Named(
        files=tuple(NamedFile(path, checksum) for path, checksum in relative.items()),
        folders=tuple(os.path.relpath(folder, home.path) for folder in folders),
        spaces=len(spaces),
        vectors=vectors,
    )


def copy_file(named: NamedFile, source: str, target: str) -> int | None:
    """Copy a named file from one home to another; return its bytes, None where it is there.

    Raises
    ------
    FileNotFoundError
        The source has no such file.
    PartError
        The source's can't be read, or is not what the catalog says; nothing is put in place.
    DiskFull, StorageError
        The target can't be written.
    """
    path = os.path.join(target, named.path)
    if _is_whole(named, path):
        return None
    original = os.path.join(source, named.path)
    checksum = _hash(named)
    with open(original, "rb") as file, DurableFile(path) as copy:
        for piece in _pieces(file, original):
            checksum.update(piece)
            copy.write(piece)
        if checksum.hexdigest() != named.checksum:
            raise PartError(
                f"{original} does not have the checksum that the catalog holds; `lookalike check "
                "--deep --repair` in its home, and `lookalike index` after it, make it anew"
            )
    return copy.size_bytes


def _is_whole(named: NamedFile, path: str) -> bool:
    checksum = _hash(named)
    try:
        with open(path, "rb") as file:
            for piece in _pieces(file, path):
                checksum.update(piece)
    except (OSError, PartError):
        return False
    return str(checksum.hexdigest()) == named.checksum


def _pieces(file: Any, path: str) -> Iterator[bytes]:
    try:
        while piece := file.read(_PIECE_BYTES):
            yield piece
    except OSError as error:
        raise PartError(f"{path} can't be read: {error.strerror}") from error


def _hash(named: NamedFile) -> Any:
    return hashlib.sha256() if len(named.checksum) == 64 else xxhash.xxh3_128()
