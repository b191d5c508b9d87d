"""SQLite's files as files: a copy as of the last commit, and one that is a single file."""

import sqlite3

from storage.database import plain_errors

_OF_THE_TARGET = ("SQLITE_FULL", *(f"SQLITE_IOERR_{what}" for what in ("WRITE", "FSYNC", "TRUNC")))


def copy_sqlite(source: str, target: str) -> None:
    """Copy a SQLite file as of its last commit, though others write it; the target is not synced.

    Raises
    ------
    DiskFull, CatalogError
        The source can't be read, or the target not written; the message names which.
    """
    reader, writer = sqlite3.connect(source), sqlite3.connect(target)
    try:
        reader.backup(writer)
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorname", "")
        with plain_errors(target if code.startswith(_OF_THE_TARGET) else source):
            raise
    finally:
        reader.close()
        writer.close()


def make_single(path: str) -> None:
    """Bring the write-ahead log of a file that nobody else has open into it, and end the log.

    The file can then be copied as a file, and read where nothing can be written.

    Raises
    ------
    DiskFull, CatalogError
        The file can't be read or written.
    """
    with plain_errors(path):
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = DELETE").fetchall()
        finally:
            connection.close()
