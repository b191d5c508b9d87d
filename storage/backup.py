"""Copy a store to another folder while runs go on: as one moment's catalog and what it names.

The catalog is copied as one transaction sees it, then the files that it names, which are written
once and never changed; the catalog's copy is put in place last.  So the folder holds the earlier
backup until it holds this one.  Nothing is written to the store.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from sqlalchemy import delete, update

from storage.backup_files import Named, copy_file, named_in
from storage.backup_mark import NAME, Mark, is_backup, read_mark, write_mark
from storage.backup_rows import copy_rows
from storage.catalog import Catalog
from storage.database import plain_errors
from storage.durable import DurableFile, create_private, file_checksum, make_dir
from storage.errors import DiskFull, ExportError, PartError, StorageError, StoreMismatch
from storage.folder_lock import LOCK, lock_folder
from storage.fs import fs
from storage.home import Home
from storage.scratch import scratch_folder
from storage.sqlite_files import copy_sqlite, make_single
from storage.tables import Claim, Run
from storage.whitenings import whitening_path

_PIECE_BYTES = 8 << 20
_UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.tmp$")


@dataclass(frozen=True)
class BackupResult:
    """What a backup or a restoring did; ``files`` is all that the catalog names."""

    at: float
    """The moment that was copied, by the catalog's clock, in seconds since 1970."""
    spaces: int
    vectors: int
    files: int
    copied: int
    copied_bytes: int
    deleted: int
    """Files of the earlier backup that this one does not name."""


def backup(catalog: Catalog, folder: str) -> BackupResult:
    """Copy the store of an open catalog to a folder, or bring the backup that is there up to date.

    What is there with the right checksum is not copied again; every other byte is compared with
    the catalog's checksums on its way.  Postgres's catalog becomes a SQLite file.

    Raises
    ------
    ExportError
        The folder holds other things than a backup, or overlaps the home.
    StoreMismatch
        It is the backup of another store.
    LeaseHeld
        Another process makes a backup there.
    PartError
        A file of the store is missing or damaged; the earlier backup is untouched.
    DiskFull
        The folder's disk is full; the earlier backup is untouched.
    """
    folder = os.path.abspath(os.path.expanduser(folder))
    with folder_errors(folder):
        _refuse_other(catalog, folder)
        make_dir(folder)
        with locked(folder, f"the backup {folder}"):
            _refuse_other(catalog, folder)
            return _backup(catalog, Home(folder))


def _refuse_other(catalog: Catalog, folder: str) -> None:
    refuse_overlap(folder, catalog.home.path)
    mark = read_mark(folder)
    if mark is not None and mark.store_id != catalog.store_id:
        raise StoreMismatch(
            f"{folder} is a backup of store {mark.store_id}, this is store {catalog.store_id}; "
            "choose another folder"
        )
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise ExportError(f"{folder} is no folder; choose a new folder")
    if mark is None and os.path.isdir(folder) and _strange(folder):
        raise ExportError(f"{folder} is no backup and not empty; choose a new folder")


def _strange(folder: str) -> bool:
    """Return whether a folder holds more than the first moments of a backup leave there."""
    return any(
        name != LOCK and not (name.startswith(NAME) and _UNFINISHED.search(name))
        for name in os.listdir(folder)
    )


def refuse_overlap(folder: str, home: str) -> None:
    """Refuse a backup inside the home that it is of, and the other way around."""
    one, other = os.path.realpath(folder), os.path.realpath(home)
    if os.path.commonpath([one, other]) in (one, other):
        raise ExportError(f"{folder} and the home {home} overlap; choose another folder")


def _backup(catalog: Catalog, dest: Home) -> BackupResult:
    if not is_backup(dest.path):
        write_mark(dest.path, Mark(catalog.store_id, {}))
    missing: str | None = None
    while True:
        with _copied(catalog) as (copy, at):
            named = named_in(copy)
            if missing is not None and missing in {file.path for file in named.files}:
                raise PartError(
                    f"{os.path.join(catalog.home.path, missing)} is missing; `lookalike check` "
                    "says what to do"
                )
            try:
                copied, copied_bytes = copy_files(named, catalog.home.path, dest.path)
            except FileNotFoundError as gone:  # `forget` or `drop` came between: a new moment
                missing = os.path.relpath(str(gone.filename), catalog.home.path)
                continue
            copy.close()
            make_single(copy.home.sqlite)
            _put_in_place(copy, dest, at)
        deleted = _delete_others(named, dest)
        return BackupResult(
            at, named.spaces, named.vectors, len(named.files), copied, copied_bytes, deleted
        )


@contextmanager
def _copied(catalog: Catalog) -> Iterator[tuple[Catalog, float]]:
    """Yield a copy of the catalog as of one moment, in which no run is under way."""
    with scratch_home(catalog.store_id) as home:
        if catalog.dialect == "sqlite":
            create_private(home.sqlite)
            with plain_errors(catalog.home.sqlite):
                copy_sqlite(catalog.home.sqlite, home.sqlite)
        with Catalog.open(home, write=True) as copy:
            if catalog.dialect != "sqlite":
                with catalog.read() as source, copy.write() as target:
                    copy_rows(source, target)
            with copy.write() as conn:
                at = copy.now(conn)
                ended = {"state": "interrupted", "token": "", "ended_at": at, "stopping": False}
                conn.execute(update(Run).where(Run.state == "running").values(ended))
                conn.execute(delete(Claim))
            yield copy, at


@contextmanager
def scratch_home(store_id: str) -> Iterator[Home]:
    """Yield a home of this store in a temporary folder on this machine, for a catalog alone."""
    with scratch_folder() as folder:
        home = Home(folder)
        home.write_store_id(store_id)
        yield home


def copy_files(named: Named, source: str, target: str) -> tuple[int, int]:
    """Copy the named files from one home to another; return how many were copied, and their bytes.

    Raises as `copy_file`.
    """
    for folder in {*named.folders, *(os.path.dirname(file.path) for file in named.files)}:
        make_dir(os.path.join(target, folder))
    sizes = [copy_file(file, source, target) for file in named.files]
    copied = [size for size in sizes if size is not None]
    return len(copied), sum(copied)


def place_catalog(source: str, target: str) -> str:
    """Copy a single catalog file durably to its place; return its xxh3-128."""
    with open(source, "rb") as file, DurableFile(target) as copy:
        while piece := file.read(_PIECE_BYTES):
            copy.write(piece)
    return copy.checksum


def _put_in_place(copy: Catalog, dest: Home, at: float) -> None:
    if dest.read_store_id() is None:
        dest.write_store_id(copy.store_id)
    checksum = file_checksum(copy.home.sqlite)
    before = read_mark(dest.path)
    catalogs = dict(before.catalogs) if before else {}
    write_mark(dest.path, Mark(copy.store_id, {**catalogs, checksum: at}))
    if place_catalog(copy.home.sqlite, dest.sqlite) != checksum:
        raise StorageError(f"{dest.sqlite} was not written as it was read; run the backup again")
    write_mark(dest.path, Mark(copy.store_id, {checksum: at}))


def _delete_others(named: Named, dest: Home) -> int:
    """Delete what earlier backups, and attempts that failed, have left and this one does not name.

    Only in the folders that a backup makes: what else lies beside them is not its own.
    """
    delete_unfinished(dest.path)
    keep = {os.path.join(dest.path, file.path) for file in named.files}
    folders = {os.path.join(dest.path, folder) for folder in named.folders}
    deleted = 0
    for top in (dest.spaces_dir, os.path.dirname(whitening_path(dest, ""))):
        for folder, _, names in os.walk(top, topdown=False):
            for path in (os.path.join(folder, name) for name in names):
                if path not in keep:
                    fs().unlink(path)
                    deleted += not path.endswith(".tmp")
            if folder not in folders:
                with suppress(OSError):  # not empty
                    fs().rmdir(folder)
    return deleted


def delete_unfinished(*folders: str) -> None:
    """Delete the files in some folders that were never finished; nobody else may write there."""
    for folder in folders:
        for name in os.listdir(folder) if os.path.isdir(folder) else []:
            if _UNFINISHED.search(name):
                fs().unlink(os.path.join(folder, name))


@contextmanager
def locked(folder: str, what: str) -> Iterator[None]:
    """Keep other backups and restorings out of a folder that is there."""
    lock = lock_folder(folder, what)
    try:
        yield
    finally:
        try:
            with suppress(OSError):
                fs().unlink(os.path.join(folder, LOCK))
        finally:
            if lock >= 0:
                os.close(lock)


@contextmanager
def folder_errors(folder: str) -> Iterator[None]:
    """Turn what the file system refuses into one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no space left in {folder}; make room and run again") from error
        raise StorageError(f"{error.filename or folder}: {error.strerror}") from error
