"""``backup.json``: what makes a folder a backup, of which store, and which catalog is its own.

A backup's catalog is put in place last, and with it the backup is complete.  Its checksum is
entered before, beside that of the catalog that is there, so that at every moment one of them fits.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

from storage.durable import write_durably
from storage.errors import CatalogError

NAME = "backup.json"
FORMAT = 1


@dataclass(frozen=True)
class Mark:
    """Which store was copied; ``catalogs`` gives checksum -> when it was copied, in seconds."""

    store_id: str
    catalogs: Mapping[str, float]


def mark_path(folder: str) -> str:
    """Return the path of a backup's mark."""
    return os.path.join(folder, NAME)


def is_backup(folder: str) -> bool:
    """Return whether a folder was ever begun as a backup."""
    return os.path.lexists(mark_path(folder))


def read_mark(folder: str) -> Mark | None:
    """Return the mark of a backup, or None where there is none.

    Raises
    ------
    CatalogError
        It is damaged, or of a format that this version does not know.
    """
    path = mark_path(folder)
    try:
        with open(path, "rb") as file:
            facts = json.loads(file.read())
        if facts["format"] != FORMAT:
            raise CatalogError(
                f"{path} has format {facts['format']}, this version of lookalike knows {FORMAT}; "
                "use a newer lookalike"
            )
        catalogs = {str(key): float(at) for key, at in facts["catalogs"].items()}
        return Mark(str(facts["store_id"]), catalogs)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise CatalogError(f"{path} can't be read ({err}); make a new backup elsewhere") from err


def write_mark(folder: str, mark: Mark) -> None:
    """Write a backup's mark durably."""
    facts = {"format": FORMAT, "store_id": mark.store_id, "catalogs": dict(mark.catalogs)}
    write_durably(mark_path(folder), json.dumps(facts, sort_keys=True).encode() + b"\n")
