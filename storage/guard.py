"""Whether what a root shows now can be trusted.

A disk that is not mounted looks exactly like a folder whose pictures were all deleted, and another
disk in its place like one whose pictures were all edited.  So a root that is missing, unreadable,
empty where files are known, that is another one than it was (``storage.recognition``), or that has
lost more than half and more than 20 files is refused as a whole, and the person confirms the loss.
"""

import os
import stat
from dataclasses import replace

from storage.catalog import Catalog
from storage.errors import RootUnavailable
from storage.places import Place, lost_mounts
from storage.recognition import LOSS_FLOOR, any_live, count_live, recorded_place, refuse_stranger
from storage.roots import RootInfo, display, inside


def preflight(catalog: Catalog, root: RootInfo, *, confirm_missing: bool = False) -> Place | None:
    """Refuse a root that can't be trusted now, and return where it lies; None for a manifest.

    Raises
    ------
    RootUnavailable
        It is missing or unreadable; or it is empty where files are known, or another one than it
        was, and that is not confirmed.
    """
    refuse_unreachable(catalog, root, confirm_missing=confirm_missing)
    if root.kind == "manifest":
        return None
    try:
        place = Place.of(root.path)
    except OSError as error:
        raise RootUnavailable(_unreadable(root, error)) from error
    if root.id and not confirm_missing:
        refuse_stranger(catalog, root, place)
    return place


def refuse_unreachable(catalog: Catalog, root: RootInfo, *, confirm_missing: bool = False) -> None:
    """Refuse a root that is missing or unreadable, or empty without a word though it had files.

    Raises
    ------
    RootUnavailable
        It is.
    """
    try:
        empty = _is_empty(root)
    except OSError as error:
        raise RootUnavailable(_unreadable(root, error)) from error
    if empty and not confirm_missing and root.id and (known := count_live(catalog, root)):
        raise RootUnavailable(lost_message(root.display, known, known))


def unmounted_inside(catalog: Catalog, root: RootInfo, place: Place) -> list[bytes]:
    """Return the folders of a root, relative to it, that were mount points and are none now.

    Only those below which files are known, and that the root's ``under`` has to do with.

    Raises
    ------
    RootUnavailable
        The ``under`` itself lies below one.
    """
    found = []
    for path in lost_mounts(recorded_place(catalog, root), place, root.excludes):
        shown = display(os.path.join(root.path, path))
        if root.under and (root.under == path or inside(root.under, path)):
            raise RootUnavailable(
                f"{shown} was a mount point, and nothing is mounted there now; nothing of it was "
                "changed. Mount it; if it is gone for good: lookalike index --confirm-missing"
            )
        concerned = not root.under or inside(path, root.under)
        if concerned and any_live(catalog, replace(root, under=path)):
            found.append(path)
    return found


def went_away(root: RootInfo, place: Place) -> bool:
    """Say whether a directory is not where it was, or a mount inside it has gone."""
    try:
        now = Place.of(root.path)
    except OSError:
        return True
    return not now.alike(place) or bool(lost_mounts(place, now, root.excludes))


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
