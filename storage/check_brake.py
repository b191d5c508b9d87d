"""Whether what a repair would give up is lost, or lies on a disk that is not there now.

A disk that is not mounted below a home, or another one in its place, looks exactly like a store
whose vectors were all deleted.  So where more than half of a space's vectors are missing nothing of
it is given up before a person confirms the loss, as with the files of a root (``storage.guard``).
"""

from storage.catalog import Catalog
from storage.check_catalog import Finding
from storage.check_space import Found
from storage.reading import Snapshot, open_store
from storage.recognition import LOSS_FLOOR

CONFIRM = "lookalike check --repair --confirm-missing"


def mass_loss(catalog: Catalog, view: Snapshot, found: Found) -> list[Finding]:
    """Return what is to be said where most vectors of a space are missing, else nothing.

    Parameters
    ----------
    catalog, view
        The space and its parts.
    found
        What was found of it.

    Returns
    -------
    list
        One line for all that is missing, and what was found besides.
    """
    gone = [about.part for _, about in found if about and about.part and about.is_gone]
    n = sum(part.n for part in gone)
    if n <= LOSS_FLOOR or n * 2 <= view.n:
        return []
    path = open_store(catalog, view.space).path(gone[0].name)
    rest = [finding for finding, about in found if about and about.part and not about.is_gone]
    rest += [finding for finding, about in found if about is None]
    return [Finding("error", _line(view, n, path)), *rest]


def _line(view: Snapshot, n: int, first: str) -> str:
    return (
        f"space {view.space.name}: {n:,} of {view.n:,} vectors are missing, e.g. {first}; nothing "
        f"of it is given up. Mount the disk that holds them; if they are gone for good: {CONFIRM}"
    )
