"""``restoring.json``: a home that a backup is being put into, or was when the process died.

It is durable before anything else is there, and goes when the catalog is in place.  As long as it
is there only a restoring may open the home: half of a backup looks like a new home.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from storage.durable import delete_durably, write_durably
from storage.errors import CatalogError, StorageError
from storage.home import Home

NAME = "restoring.json"


@dataclass
class Restoring:
    """A restoring into a home.

    Attributes
    ----------
    home
        What is restored.
    catalog
        Checksum of the backup's catalog that an earlier restoring was about to put in place, the
        last of its steps; None where none came so far.
    is_begun
        Whether anything of the backup may be in the home.
    """

    home: Home
    catalog: str | None = None
    is_begun: bool = False

    def place(self, checksum: str) -> None:
        """Note durably that from now on this catalog may be in place."""
        self.catalog = checksum
        _write(self)


def is_restoring(home: Home) -> bool:
    """Return whether a restoring into a home was begun and has not come to its end."""
    return os.path.lexists(_path(home))


def refuse_restoring(home: Home) -> None:
    """Refuse a home that may hold half of a backup.

    Raises
    ------
    CatalogError
        It may.
    """
    if is_restoring(home):
        raise CatalogError(
            f"{home.path} is being restored, or that was broken off: run `lookalike --home "
            f"{home.path} restore BACKUP` again, or choose a new --home"
        )


@contextmanager
def restoring(home: Home) -> Iterator[Restoring]:
    """Keep everything else out of a home until the body has ended well.

    The home's lock is held.  Where the body fails before anything was begun, it is as it was.
    """
    before = is_restoring(home)
    work = Restoring(home, _read(home), is_begun=before)
    if not before:
        _write(work)
    try:
        yield work
    except BaseException:
        if not work.is_begun:
            with suppress(StorageError):
                delete_durably(_path(home))
        raise
    delete_durably(_path(home))


def _read(home: Home) -> str | None:
    with suppress(OSError, ValueError, KeyError, TypeError), open(_path(home), "rb") as file:
        return str(json.loads(file.read())["catalog"] or "") or None
    return None


def _write(work: Restoring) -> None:
    write_durably(_path(work.home), json.dumps({"catalog": work.catalog}).encode() + b"\n")


def _path(home: Home) -> str:
    return os.path.join(home.path, NAME)
