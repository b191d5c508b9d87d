"""Whether what a root shows now can be trusted.

A disk that is not mounted looks exactly like a folder whose pictures were all deleted.  So a root
that is missing, unreadable, empty where files are known, or that has lost more than half and more
than 20 of them is refused as a whole, and the person confirms the loss.
"""

import os
import stat

from sqlalchemy import func, select

from storage.catalog import Catalog
from storage.errors import RootUnavailable
from storage.roots import RootInfo, within
from storage.tables import File

LOSS_FLOOR = 20
"""So many files may always go: a small folder is tidied in one evening."""


def count_live(catalog: Catalog, root: RootInfo) -> int:
    """Return how many live files are known in the root, or below its ``under``."""
    query = select(func.count()).where(File.root_id == root.id, File.state == "live")
    if root.under:
        query = query.where(within(File.path, root.under))
    with catalog.read() as conn:
        return conn.execute(query).scalar_one()


def preflight(catalog: Catalog, root: RootInfo, *, confirm_missing: bool = False) -> None:
    """Refuse a root that can't be trusted now.

    Raises
    ------
    RootUnavailable
        It is missing or unreadable, or it is empty where files are known and that is not
        confirmed.
    """
    try:
        empty = _is_empty(root)
    except OSError as error:
        raise RootUnavailable(_unreadable(root, error)) from error
    if empty and not confirm_missing and root.id and (known := count_live(catalog, root)):
        raise RootUnavailable(lost_message(root.display, known, known))


def guard_losses(known_live: int, lost: int, confirm: bool, *, name: str = "the root") -> None:
    """Refuse to believe that more than half of a root, and more than 20 files, are gone.

    Raises
    ------
    RootUnavailable
        So many are missing and ``confirm`` is false.
    """
    if not confirm and lost > LOSS_FLOOR and lost * 2 > known_live:
        raise RootUnavailable(lost_message(name, lost, known_live))


def lost_message(name: str, lost: int, known_live: int) -> str:
    """Return the one line that says what is gone and how to confirm it."""
    return (
        f"{lost:,} of {known_live:,} known files of {name} are gone; nothing of it was changed. "
        "If they were really deleted or moved: lookalike index --confirm-missing"
    )


def _unreadable(root: RootInfo, error: OSError) -> str:
    said = f"{root.display} can't be read ({error.strerror}); nothing of it was changed"
    if root.under:  # mistyped, as likely as not: no reason to remove its root
        return said
    return (
        f"{said}. Mount or mend it; if it is gone for good: lookalike roots remove {root.display}"
    )


def _is_empty(root: RootInfo) -> bool:
    if root.kind == "manifest":
        with open(root.path, "rb") as lines:
            return stat.S_ISREG(os.fstat(lines.fileno()).st_mode) and not lines.read(1)
    if root.under and stat.S_ISREG(os.stat(root.target).st_mode):
        return False  # one picture
    with os.scandir(root.target) as entries:
        return next(entries, None) is None
