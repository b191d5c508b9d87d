"""Our own code, broken in one place each; every one of these must be caught.

A mutant is a context in which the code is broken, by putting something else in the place of one
function.
"""

import os
from contextlib import contextmanager

import pytest

from storage import (
    catalog,
    cleanup,
    commit,
    compact,
    database,
    durable,
    folder_lock,
    generation,
    index,
    leases,
    publish,
    vectors,
)
from storage import fs as files
from storage.durable import DurableFile
from storage.owner import is_alive
from storage.settle import Settle


@contextmanager
def planted(at, name, broken):
    """Put something in the place of what a module or class has under a name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(at, name, broken)
        yield


class _Without:
    """The file system but for one call, which does nothing where ``when`` says so."""

    def __init__(self, call, when):
        self._call, self._when = call, when

    def __getattr__(self, name):
        real = getattr(files.fs(), name)
        if name != self._call:
            return real
        return lambda path: None if self._when(path) else real(path)


def without(call, when=lambda path: True, at=durable):
    return planted(at, "fs", lambda: _Without(call, when))


def _is_leaf(path):
    return os.path.basename(path) in ("parts", "index")


def no_fsync():
    return without("fsync")


def no_sync_of_the_folder_of_a_file():
    return without("fsync_dir", _is_leaf)


def no_sync_of_the_folders_above():
    return without("fsync_dir", lambda path: not _is_leaf(path))


def no_sync_of_the_name_of_a_work_folder():
    return without("fsync_dir", at=folder_lock)


def renamed_before_the_sync():
    def finish(self, *, abandoned):
        fs = files.fs()
        if abandoned:
            self._abandon()
            return
        fs.replace(self._temporary, self.path)
        fs.fsync(self._fd)
        fs.close(self._fd)
        fs.fsync_dir(os.path.dirname(self.path))

    return planted(DurableFile, "_finish", finish)


def written_in_place():
    real = DurableFile.__enter__

    def enter(self):
        self._temporary = self.path
        if os.path.exists(self.path):
            files.fs().unlink(self.path)
        return real(self)

    return planted(DurableFile, "__enter__", enter)


@contextmanager
def committed_before_it_is_durable():
    """A file is finished after the transaction that vouches for it."""
    later, finish, write = [], DurableFile._finish, catalog.Catalog.write

    @contextmanager
    def commit_first(self):
        with write(self) as conn:
            yield conn
        while later:
            disk, file, abandoned = later.pop(0)
            if disk is files.fs():  # else its machine went off meanwhile
                finish(file, abandoned=abandoned)

    def put_off(self, *, abandoned):
        later.append((files.fs(), self, abandoned))

    with planted(DurableFile, "_finish", put_off), planted(catalog.Catalog, "write", commit_first):
        yield


def catalog_not_synced():
    """SQLite's ``synchronous=NORMAL``: it loses the last commits, though it stays consistent."""
    real = database._prepare_sqlite

    def prepare(connection, **options):
        real(connection, **options)
        connection.execute("PRAGMA synchronous = NORMAL")

    return planted(database, "_prepare_sqlite", prepare)


def old_parts_deleted_before_the_swap():
    real = compact._swap

    def swap(catalog, lease, space, group, kept, written):
        store = compact.open_store(catalog, space)
        for part in group.parts:
            store.remove(part.name)
        real(catalog, lease, space, group, kept, written)

    return planted(compact, "_swap", swap)


def rows_allocated_outside_the_lock():
    return planted(Settle, "lock_space", lambda self: self.space.next_row)


class _Fits(str):
    """A checksum that is equal to every other."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False


def no_checksum_of_a_part():
    return planted(vectors, "file_checksum", _Fits)


def no_checksum_of_an_index():
    return planted(index, "file_checksum", _Fits)


def no_checksum_of_a_rowmap():
    return planted(generation, "file_checksum", _Fits)


def _unchecked(conn, lease):
    return None


def no_lease_check_in_a_commit():
    return planted(commit, "check_lease", _unchecked)


def no_lease_check_in_a_publishing():
    return planted(publish, "check_lease", _unchecked)


def no_lease_check_in_a_compaction():
    return planted(compact, "check_lease", _unchecked)


def no_lease_check_in_the_clearing():
    return planted(cleanup, "check_lease", _unchecked)


def two_runs_compact_at_once():
    return planted(compact, "claim", lambda *words: None)


def half_a_write_taken_for_a_whole():
    return planted(durable, "write_all", lambda fd, data: files.fs().write(fd, data) and len(data))


def failed_sync_taken_for_a_success():
    real = durable.fs

    class Deaf(_Without):
        def __getattr__(self, name):
            if name != "fsync":
                return getattr(real(), name)

            def fsync(fd):
                try:
                    real().fsync(fd)
                except OSError:
                    return

            return fsync

    return planted(durable, "fs", lambda: Deaf("fsync", None))


def running_run_taken_for_ended():
    """What a run that is at work has written, and not committed yet, is taken for left over."""
    return planted(cleanup, "_of_ended_runs", lambda conn, paths: paths)


def foreign_catalog_taken():
    def ensure(home, engine, schema, *, write):
        return str(home.read_store_id())

    return planted(catalog, "ensure_store", ensure)


def run_of_before_the_boot_taken_for_alive():
    """A process of the same number is there, and nobody asks whether it is the same one."""
    return planted(leases, "is_gone", lambda owner, me, **known: not is_alive(owner))
