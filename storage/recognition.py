"""Whether a root is the one that the catalog knows, and not another disk in its place.

The folder itself is the proof where its volume has an identity.  Elsewhere a sample of the known
files decides: as many of them must be as they were, by size and date or by their bytes, as it takes
to outweigh what speaks against the root.
"""

import hashlib
import math
import os
import stat
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, select

from storage.catalog import Catalog
from storage.changes import GONE
from storage.errors import RootUnavailable
from storage.places import Place
from storage.roots import RootInfo, within
from storage.tables import File, Image, Root

SAMPLE = 32
"""Known files that are looked for."""
LOSS_FLOOR = 20
"""So many files may always go: a small folder is tidied in one evening."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """What speaks against a root.

    ``share`` of the sample must be recognised; ``few`` files may be strange whatever the share.
    """

    share: float
    few: int
    why: str


@dataclass(frozen=True, slots=True)
class Sampled:
    """A live file as it was when it was last seen; ``digest`` is None while that was not read."""

    path: bytes
    size_bytes: int
    mtime_ns: int
    digest: bytes | None


def count_live(catalog: Catalog, root: RootInfo) -> int:
    """Return how many live files are known in the root, or below its ``under``."""
    with catalog.read() as conn:
        return conn.execute(select(func.count()).where(*_live(root))).scalar_one()


def any_live(catalog: Catalog, root: RootInfo) -> bool:
    """Say whether a live file is known in the root, or below its ``under``; found at once."""
    with catalog.read() as conn:
        return conn.execute(select(File.id).where(*_live(root)).limit(1)).first() is not None


def _live(root: RootInfo) -> list[ColumnElement[bool]]:
    below = [within(File.path, root.under)] if root.under else []
    return [File.root_id == root.id, File.state == "live", *below]


def recorded_place(catalog: Catalog, root: RootInfo) -> Place | None:
    """Return where a root lay at its last complete scan; None where nothing is recorded."""
    with catalog.read() as conn:
        place = conn.execute(select(Root.place).where(Root.id == root.id)).scalar()
    return None if place is None else Place.from_json(place)


def find_doubt(before: Place | None, now: Place) -> Doubt | None:
    """Return what speaks against a root that lay at one place and lies at another; pure."""
    if before is None:
        return Doubt(0.5, LOSS_FLOOR, "it is not known where it lay before")
    if now.same_folder(before):
        return None
    if now.unmounted_since(before):
        shown = os.fsencode(before.mount).decode("utf-8", "backslashreplace")
        return Doubt(0.9, 0, f"{shown} was a mount point, and nothing is mounted there now")
    few = LOSS_FLOOR if now.alike(before) else 0
    return Doubt(0.5, few, "another disk or folder may be in its place")


def refuse_stranger(catalog: Catalog, root: RootInfo, now: Place) -> None:
    """Refuse a root that lies at ``now`` and is not the one that was scanned before.

    Raises
    ------
    RootUnavailable
        Too few of a sample of its known files are as they were.
    """
    doubt = find_doubt(recorded_place(catalog, root), now)
    if doubt is None:
        return
    known_live = count_live(catalog, replace(root, under=b""))
    with catalog.read() as conn:
        sample = known_sample(conn, root.id)
    found, looked = _recognised(root.path, sample, doubt.share)
    strange = known_live * (looked - found)  # of all, as of the sample; times the sample
    if found >= doubt.share * looked or strange <= doubt.few * looked:
        return
    raise RootUnavailable(
        f"{root.display} is not what it was: {doubt.why}, and only {found} of {looked} known files "
        "that were looked for are as they were; nothing of it was changed. Mount the right disk; "
        "if it is the right one: lookalike index --confirm-missing"
    )


def known_sample(conn: Connection, root_id: int) -> list[Sampled]:
    """Return up to 32 live files, spread over all that are known, ordered by path."""
    live = and_(File.root_id == root_id, File.state == "live")
    first, last = conn.execute(select(func.min(File.id), func.max(File.id)).where(live)).one()
    if first is None:
        return []
    starts = {first + (last - first) * i // (SAMPLE - 1) for i in range(SAMPLE)}
    columns = (
        File.path,
        File.seen_size_bytes,
        File.seen_mtime_ns,
        File.digest_size_bytes,
        File.digest_mtime_ns,
        Image.digest,
    )
    query = select(*columns).outerjoin(Image, Image.id == File.image_id).where(live)
    found = {}
    for start in sorted(starts):
        row = conn.execute(query.where(File.id >= start).order_by(File.id).limit(1)).one()
        found[row.path] = _sampled(row)
    return [found[path] for path in sorted(found)]


def _sampled(row: Any) -> Sampled:
    path, size_bytes, mtime_ns, *digested, digest = row
    current = digested == [size_bytes, mtime_ns]
    return Sampled(path, size_bytes, mtime_ns, digest if current else None)


def _recognised(root: bytes, sample: list[Sampled], share: float) -> tuple[int, int]:
    """Return how many files are as they were, and of how many that could be said.

    Files are read only while their bytes could still decide.
    """
    found, looked, unsure = 0, 0, []
    for file in sample:
        verdict = _as_it_was(root, file)
        looked += verdict != "unknown"
        found += verdict == "same"
        if verdict == "other date":
            unsure.append(file)
    needed = math.ceil(share * looked)
    for i, file in enumerate(unsure):
        if found >= needed or found + len(unsure) - i < needed:
            break
        found += _holds(os.path.join(root, file.path), file.digest)
    return found, looked


def _as_it_was(root: bytes, file: Sampled) -> str:
    try:
        status = os.lstat(os.path.join(root, file.path))
    except OSError as trouble:
        return "other" if trouble.errno in GONE else "unknown"
    if not stat.S_ISREG(status.st_mode) or status.st_size != file.size_bytes:
        return "other"
    if status.st_mtime_ns == file.mtime_ns:
        return "same"
    return "other date" if file.digest is not None else "other"


def _holds(path: bytes, digest: bytes | None) -> bool:
    """Say whether a file's bytes are those of a digest."""
    try:
        with open(path, "rb", opener=_no_link) as file:
            return hashlib.file_digest(file, "sha256").digest() == digest
    except OSError:
        return False


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
