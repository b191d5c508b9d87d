"""Make a store of a backup: its files compared on their way, its catalog put in place last."""

import os

from sqlalchemy import text

from storage.backup import (
    BackupResult,
    copy_files,
    delete_unfinished,
    locked,
    place_catalog,
    refuse_overlap,
    scratch_home,
)
from storage.backup_files import Named, named_in
from storage.backup_mark import Mark, is_backup, read_mark
from storage.backup_rows import copy_rows
from storage.catalog import Catalog
from storage.database import DAMAGED, catalog_url, make_engine, plain_errors, where
from storage.durable import make_dir
from storage.errors import CatalogError, ExportError, PartError, StoreMismatch
from storage.home import Home
from storage.migrations import upgrade
from storage.opening import MIGRATING, home_errors, refuse_network, revision_of
from storage.restore_mark import Restoring, is_restoring, restoring
from storage.sqlite_files import make_single

_KINDS = ("", "-wal", "-journal")
"""Of a SQLite catalog's files; a log that is left is taken for that of the file put beside it."""


def restore(folder: str, home: Home) -> BackupResult:
    """Put a backup's catalog and files into a home that has no catalog.

    Files that are there already are kept where they are what the catalog says.  A home with a
    Postgres catalog takes a database without one.  An older schema is migrated.  A restoring that
    was broken off is repeated; until it has come to its end nothing else opens the home.

    Raises
    ------
    CatalogError
        There is no complete backup in the folder, or its catalog is damaged or unknown.
    ExportError
        The home has a catalog, is a backup itself, or overlaps the folder.
    StoreMismatch
        The home's files are those of another store.
    PartError
        A file of the backup is missing or damaged.
    DiskFull
        The home's disk is full.
    """
    folder = os.path.abspath(os.path.expanduser(folder))
    mark = read_mark(folder)
    if mark is None:
        raise CatalogError(f"{folder} is no backup: it has no backup.json")
    refuse_overlap(folder, home.path)
    refuse_network(home)
    with home_errors(home):
        _refuse_other(home, mark.store_id)
        if not is_restoring(home):
            _refuse_taken(home)
        make_dir(home.path)
        with locked(home.path, f"the home {home.path}"), restoring(home) as work:
            _refuse_other(home, mark.store_id)
            return _restore(Home(folder), mark, work)


def _refuse_other(home: Home, store_id: str) -> None:
    if is_backup(home.path):
        raise ExportError(f"{home.path} is a backup itself; choose a new --home")
    if home.read_store_id() not in (None, store_id):
        raise StoreMismatch(
            f"{home.path} holds files of another store than the backup; choose a new --home"
        )


def _refuse_taken(home: Home) -> None:
    if taken := _taken(home):
        raise ExportError(
            f"the catalog {taken} is there already: choose a new --home and database, or "
            "move it away"
        )


def _taken(home: Home) -> str | None:
    """Return what of a catalog is there, if anything."""
    if catalog_url(home) is not None:
        return where(home) if _has_catalog(home) else None
    paths = (home.sqlite + kind for kind in _KINDS)
    return next((path for path in paths if os.path.lexists(path)), None)


def _has_catalog(home: Home) -> bool:
    engine = make_engine(home, write=False)
    try:
        with plain_errors(where(home)), engine.begin() as conn:
            return revision_of(conn) is not None
    finally:
        engine.dispose()


def _restore(source: Home, mark: Mark, work: Restoring) -> BackupResult:
    home = work.home
    with scratch_home(mark.store_id) as scratch:
        checksum = _catalog_of(source, mark, scratch)
        is_there = work.catalog == checksum and _taken(home) is not None
        if not is_there:
            _refuse_taken(home)
        with Catalog.open(scratch, write=True) as copy:
            _refuse_damaged(copy, source)
            named = named_in(copy)
            work.is_begun = True
            copied, copied_bytes = _copy(named, source, home)
            if home.read_store_id() is None:
                home.write_store_id(copy.store_id)
            if not is_there:
                work.place(checksum)
                if catalog_url(home) is not None:
                    _fill(home, copy)
        if catalog_url(home) is None and not is_there:
            make_single(scratch.sqlite)
            place_catalog(scratch.sqlite, home.sqlite)
    return BackupResult(
        at=mark.catalogs[checksum],
        spaces=named.spaces,
        vectors=named.vectors,
        files=len(named.files),
        copied=copied,
        copied_bytes=copied_bytes,
        deleted=0,
    )


def _catalog_of(source: Home, mark: Mark, scratch: Home) -> str:
    """Copy the catalog of a complete backup; return its checksum."""
    try:
        checksum = place_catalog(source.sqlite, scratch.sqlite)
    except FileNotFoundError as error:
        raise CatalogError(
            f"the backup {source.path} is not complete, as it was broken off: run `lookalike "
            "backup` into it again"
        ) from error
    if checksum not in mark.catalogs:
        raise CatalogError(
            f"the backup's catalog {source.sqlite} does not have the checksum of its "
            "backup.json: it is damaged; take another backup"
        )
    return checksum


def _refuse_damaged(copy: Catalog, source: Home) -> None:
    with copy.read() as conn:
        said = conn.exec_driver_sql("PRAGMA integrity_check").scalars().all()
    if list(said) != ["ok"]:
        raise CatalogError(f"the backup's catalog {source.sqlite} is damaged; {DAMAGED}")


def _copy(named: Named, source: Home, home: Home) -> tuple[int, int]:
    delete_unfinished(*(os.path.join(home.path, folder) for folder in named.folders))
    try:
        return copy_files(named, source.path, home.path)
    except FileNotFoundError as error:
        raise PartError(f"the backup lacks {error.filename}; take another backup") from error


def _fill(home: Home, copy: Catalog) -> None:
    """Lay out an empty Postgres database and give it all rows, in one transaction."""
    engine = make_engine(home, write=True, migrate=True)
    try:
        with plain_errors(where(home)), engine.begin() as conn, copy.read() as source:
            conn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATING})
            if revision_of(conn) is not None:
                raise ExportError(f"another process has made the catalog {where(home)} meanwhile")
            upgrade(conn)
            copy_rows(source, conn)
    finally:
        engine.dispose()
