"""The files of whitenings in a home: written once, named by the SHA-256 of their bytes.

A space that is whitened names its file in its ``request``, by digest alone, so that a home can be
moved.  Several spaces may share a file; it goes with the last of them.
"""

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from sqlalchemy import select

from storage.catalog import Catalog
from storage.check_catalog import Finding
from storage.durable import delete_durably, make_dir, write_durably
from storage.home import Home
from storage.tables import Space
from storage.turns import take_turns

_PIECE_BYTES = 8 << 20


def whitening_of(request: Mapping[str, Any]) -> str | None:
    """Return the digest of the whitening that a space's request names, if any."""
    digest = request.get("whitening")
    return str(digest) if digest else None


def whitening_path(home: Home, digest: str) -> str:
    """Return where the whitening of this digest lies."""
    return os.path.join(_folder(home), f"{digest}.npz")


def resolved(home: Home, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return a space's request with the path of its whitening in the place of the digest."""
    digest = whitening_of(request)
    return {**request, "whitening": whitening_path(home, digest)} if digest else dict(request)


def keep_whitening(home: Home, data: bytes) -> str:
    """Write a whitening's file durably, as if anew where it is there; return its digest."""
    digest = hashlib.sha256(data).hexdigest()
    make_dir(_folder(home))
    write_durably(whitening_path(home, digest), data)
    return digest


def delete_unused(catalog: Catalog, *, keep_s: float = 0.0, only: str | None = None) -> int:
    """Delete the files that no space names and that are older than ``keep_s``; return how many.

    ``only`` is the digest of the one that is meant; None is all.

    The folder is looked at before the catalog, and no space is made meanwhile.  A run that has
    written a file and makes its space afterwards looks for the file again (`keep_whitening`).
    """
    folder, deleted = _folder(catalog.home), 0
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    names = [name for name in names if only is None or name == f"{only}.npz"]
    if not names:
        return 0
    with catalog.write() as conn:
        take_turns(conn)
        requests = conn.execute(select(Space.request)).scalars()
        used = {f"{whitening_of(request)}.npz" for request in requests}
        for name in names:
            deleted += name not in used and _unlink(os.path.join(folder, name), keep_s)
    return deleted


def whitening_findings(catalog: Catalog) -> Iterator[Finding]:
    """Yield what is wrong with the whitenings of the spaces; every byte is read, there are few."""
    with catalog.read() as conn:
        spaces = conn.execute(select(Space.name, Space.request).order_by(Space.id)).all()
    for name, request in spaces:
        digest = whitening_of(request)
        wrong = digest and _wrong(whitening_path(catalog.home, digest), digest)
        if wrong:
            yield Finding(
                "error",
                f"space {name}: {wrong}; its vectors are searched as before, and no new picture "
                "becomes one: bring the file back from a backup, or drop the space and make it "
                "again with `lookalike whiten`",
            )


def _wrong(path: str, digest: str) -> str | None:
    try:
        if _sha256(path) != digest:
            return f"{path} does not have the SHA-256 that it is named by"
    except OSError as error:
        return f"{path} can't be read: {error.strerror}"
    return None


def _sha256(path: str) -> str:
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE_BYTES):
            total.update(piece)
    return total.hexdigest()


def _folder(home: Home) -> str:
    return os.path.join(home.path, "whitening")


def _unlink(path: str, keep_s: float) -> bool:
    with suppress(FileNotFoundError):
        if os.lstat(path).st_mtime <= time.time() - keep_s:
            delete_durably(path)
            return True
    return False
