"""Delete the files of a store that nobody reads any more: replaced ones, and orphans."""

import os
import re
import time
from contextlib import suppress

from sqlalchemy import Connection, delete, select

from storage.catalog import Catalog
from storage.durable import delete_durably
from storage.errors import SpaceError, StorageError
from storage.fs import fs
from storage.home import Home
from storage.leases import Lease, check_lease
from storage.reading import generation_paths, open_store, snapshot
from storage.slices import sliced
from storage.spaces import SpaceInfo, list_spaces
from storage.tables import Generation, Part, Run, Space
from storage.whitenings import delete_unused

KEEP_S = 24 * 3600.0
"""How long a replaced file stays for its readers, and an orphan for whoever may still commit it."""
_OWN_FILE = re.compile(r"(?P<run>\d{8}T\d{6}-[0-9a-f]+)-[0-9a-f]{32}\.")


def delete_old_files(catalog: Catalog, lease: Lease, *, keep_s: float = KEEP_S) -> int:
    """Delete replaced files, and orphans of runs that have ended, older than ``keep_s``.

    The files go before their row: a row without files is found again, files without a row only
    by looking into the folder.  Returns the number of parts, generations and orphans deleted.

    Nothing is deleted where a space has lost all of its files: the disk that they are on may not be
    mounted, and what lies there now may be another store's.
    """
    if _is_away(catalog):
        return 0
    deleted = 0
    for space in list_spaces(catalog):
        deleted += _delete_replaced(catalog, lease, space, keep_s)
        deleted += _delete_orphans(orphans(catalog, space), keep_s)
    deleted += _delete_orphans(_unfinished(catalog.home), keep_s)
    deleted += _delete_dropped(catalog, keep_s)
    return deleted + delete_unused(catalog, keep_s=keep_s)


def _is_away(catalog: Catalog) -> bool:
    """Say whether a space has vectors and none of their files are there."""
    for space in list_spaces(catalog):
        with suppress(SpaceError):  # dropped meanwhile
            parts, store = snapshot(catalog, space).parts, open_store(catalog, space)
            if parts and not any(os.path.exists(store.path(part.name)) for part in parts):
                return True
    return False


def _delete_replaced(catalog: Catalog, lease: Lease, space: SpaceInfo, keep_s: float) -> int:
    store = open_store(catalog, space)
    with catalog.read() as conn:
        before = catalog.now(conn) - keep_s
        parts = _replaced(conn, Part, space.id, before)
        generations = _replaced(conn, Generation, space.id, before)
    for name in parts.values():
        store.remove(name)
    folder = catalog.home.index_dir(space.fingerprint)
    for name in generations.values():
        delete_durably(*generation_paths(folder, name))
    if parts or generations:
        with catalog.write() as conn:
            check_lease(conn, lease)
            for table, rows in ((Part, parts), (Generation, generations)):
                for ids in sliced(rows):
                    conn.execute(delete(table).where(table.id.in_(ids)))
    return len(parts) + len(generations)


def _replaced(
    conn: Connection, table: type[Part] | type[Generation], space_id: int, before: float
) -> dict[int, str]:
    """Return id -> name of what was replaced before a time."""
    query = select(table.id, table.name).where(
        table.space_id == space_id, table.state == "replaced", table.replaced_at <= before
    )
    return {row.id: row.name for row in conn.execute(query)}


def orphans(catalog: Catalog, space: SpaceInfo) -> list[str]:
    """Return the paths of files in the space's folders that no row of the catalog names.

    Files of runs that still run are not among them: they may be about to commit.  The folders are
    looked at before the catalog: of every file that is seen, the run was recorded before then.
    """
    home = catalog.home
    seen = _files_in(home.parts_dir(space.fingerprint), home.index_dir(space.fingerprint))
    with catalog.read() as conn:
        known = set(conn.execute(select(Part.name).where(Part.space_id == space.id)).scalars())
        known |= set(
            conn.execute(select(Generation.name).where(Generation.space_id == space.id)).scalars()
        )
        unnamed = [path for path in seen if os.path.basename(path).split(".")[0] not in known]
        return _of_ended_runs(conn, unnamed)


def _unfinished(home: Home) -> list[str]:
    """Return the files in the home itself that were never finished."""
    return [path for path in _files_in(home.path) if path.endswith(".tmp")]


def _delete_dropped(catalog: Catalog, keep_s: float) -> int:
    """Delete what is left of spaces that were dropped: a kill came, or a run wrote a last part.

    The folders are looked at before the catalog here too: a space is recorded before its first file
    is written.
    """
    home = catalog.home
    seen = [os.path.join(home.spaces_dir, name) for name in _names(home.spaces_dir)]
    with catalog.read() as conn:
        known = {home.space_dir(name) for name in conn.execute(select(Space.fingerprint)).scalars()}
    deleted = 0
    for folder in seen:
        if folder in known:
            continue
        inside = [os.path.join(folder, name) for name in _names(folder)]
        folders = [*(path for path in inside if os.path.isdir(path)), folder]
        with catalog.read() as conn:
            left = _of_ended_runs(conn, _files_in(*folders))
        deleted += _delete_orphans(left, keep_s)
        for each in folders:
            with suppress(OSError):  # not empty: too young yet
                fs().rmdir(each)
    return deleted


def _of_ended_runs(conn: Connection, paths: list[str]) -> list[str]:
    running = set(conn.execute(select(Run.id).where(Run.state == "running")).scalars())
    runs = [_OWN_FILE.match(os.path.basename(path)) for path in paths]
    return [
        path for path, run in zip(paths, runs, strict=True) if not run or run["run"] not in running
    ]


def _files_in(*folders: str) -> list[str]:
    paths = [os.path.join(folder, name) for folder in folders for name in _names(folder)]
    return [path for path in paths if not os.path.isdir(path)]


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StorageError(f"{folder} can't be read: {error.strerror}") from error


def _delete_orphans(paths: list[str], keep_s: float) -> int:
    deleted = 0
    for path in paths:
        with suppress(FileNotFoundError):
            if os.lstat(path).st_mtime <= time.time() - keep_s:
                delete_durably(path)
                deleted += 1
    return deleted
