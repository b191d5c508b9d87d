"""Connections to the catalog's database: how they begin, and what their errors mean.

SQLite is told when to begin: the driver's own idea of it starts a transaction too late to read one
snapshot, and as a reader even where the first statement writes.
"""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from json import JSONDecodeError
from typing import Any, cast
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event, make_url, text
from sqlalchemy.dialects.sqlite import Insert
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.sql.expression import TextClause

from storage.errors import CatalogError, DiskFull, StorageError
from storage.home import Home, free_bytes
from storage.tables import Base

BUSY_S = 30
BEGIN = "lookalike_begin"
"""Execution option: the statement that begins a transaction on SQLite."""

_WAIT = "wait for the other run to end and try again"
_FULL = "free some disk space and run the command again; what was committed is kept"
DAMAGED = "restore a backup beside its store.json, or index into a new home"
_READ_ONLY = "check the permissions of the home and its files"

# First match decides; longer codes come first.
_SQLITE: tuple[tuple[str, type[StorageError], str], ...] = (
    ("SQLITE_BUSY", CatalogError, f"was locked by another process for {BUSY_S} s; {_WAIT}"),
    ("SQLITE_LOCKED", CatalogError, f"was locked for {BUSY_S} s; {_WAIT}"),
    ("SQLITE_FULL", DiskFull, f"can't grow, the disk is full; {_FULL}"),
    ("SQLITE_NOTADB", CatalogError, f"is not a catalog; {DAMAGED}"),
    ("SQLITE_CORRUPT", CatalogError, f"is damaged; {DAMAGED}"),
    ("SQLITE_READONLY", CatalogError, f"can't be written; {_READ_ONLY}"),
    ("SQLITE_CANTOPEN", CatalogError, f"can't be opened; {_READ_ONLY}"),
    ("SQLITE_PERM", CatalogError, f"can't be opened; {_READ_ONLY}"),
    ("SQLITE_IOERR", CatalogError, "met an input/output error; check the disk, then try again"),
)
_WHEN_FULL = ("WRITE", "FSYNC", "DIR_FSYNC", "TRUNCATE", "SHM")
"""Kinds of SQLITE_IOERR that a full disk can be behind."""
_FULL_BYTES = 1 << 20
_OF_SCHEMA = (
    "malformed",
    "unsupported file format",
    "no such table",
    "no such column",
    "no such index",
    "no such collation",
    "no such function",
    "has no column named",
    "does not match any",
    "foreign key mismatch",
)
"""What SQLite says where the file's own schema is damaged: it suits every statement here."""
_POSTGRES: tuple[tuple[str, type[StorageError], str], ...] = (
    ("53100", DiskFull, f"can't grow, the server's disk is full; {_FULL}"),
    ("53300", CatalogError, "has no free connection; raise max_connections or run fewer workers"),
    ("55P03", CatalogError, f"was locked by another process for {BUSY_S} s; {_WAIT}"),
    ("40", CatalogError, "met a conflict with another run; run the command again"),
    ("25006", CatalogError, "can't be written: the server is read-only"),
    ("42501", CatalogError, "refuses: the database user lacks the right"),
    ("3D000", CatalogError, "does not exist: create the database first"),
    ("57P", CatalogError, "was shut down; start the server and run the command again"),
    ("08", CatalogError, "can't be reached; start the server and run the command again"),
)


def catalog_url(home: Home) -> URL | None:
    """Return the URL of a Postgres catalog, with the driver that is used; None for SQLite.

    Raises
    ------
    CatalogError
        The URL is no Postgres URL.
    """
    if home.catalog_url is None:
        return None
    try:
        url = make_url(home.catalog_url)
    except (ArgumentError, ValueError) as err:
        raise CatalogError("the catalog's URL can't be read: postgresql://user@host/name") from err
    if url.drivername not in ("postgres", "postgresql", "postgresql+psycopg"):
        raise CatalogError(
            f"the catalog's URL begins with {url.drivername}://, only postgresql:// is known;"
            " leave it out for SQLite in the home"
        )
    return url.set(drivername="postgresql+psycopg")


def where(home: Home) -> str:
    """Return the catalog's place for messages, without a password."""
    url = catalog_url(home)
    return home.sqlite if url is None else url.render_as_string(hide_password=True)


def make_engine(home: Home, *, write: bool, migrate: bool = False) -> Engine:
    """Return an engine for the catalog.  Nothing is opened yet.

    Parameters
    ----------
    home
        Where the catalog is.
    write
        Whether to write.  A SQLite file must be there, `storage.durable.create_private` makes it.
    migrate
        For a change of the schema: foreign keys are off, because SQLite changes a table by making
        it anew, and dropping the old one would delete what refers to it.
    """
    url = catalog_url(home)
    if url is None:
        return _sqlite_engine(home.sqlite, write=write, migrate=migrate)
    options = {} if "options" in url.query else {"options": f"-c lock_timeout={BUSY_S}s"}
    return create_engine(
        url, connect_args={"connect_timeout": 10, **options}, pool_pre_ping=True, max_overflow=-1
    )


def _sqlite_engine(path: str, *, write: bool, migrate: bool) -> Engine:
    # Readers open for writing too, where they may: they share the write-ahead log's memory.
    address = f"file:{quote(os.fsencode(path))}?mode=rw"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            address, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False
        )
        try:
            _prepare_sqlite(connection, write=write, migrate=migrate)
        except BaseException:
            connection.close()
            raise
        return connection

    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool, max_overflow=-1)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        driver.execute(connection.get_execution_options().get(BEGIN, "BEGIN"))

    return engine


def _prepare_sqlite(connection: sqlite3.Connection, *, write: bool, migrate: bool) -> None:
    connection.execute(f"PRAGMA foreign_keys = {'OFF' if migrate else 'ON'}")
    if not write:
        connection.execute("PRAGMA query_only = ON")
        return
    connection.execute("PRAGMA synchronous = FULL")
    deadline = time.monotonic() + BUSY_S
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        # SQLite does not wait by itself for the lock that this change needs.
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            busy = getattr(error, "sqlite_errorname", "").startswith(
                ("SQLITE_BUSY", "SQLITE_LOCKED")
            )
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def now_clause(dialect: str) -> TextClause:
    """Return the SQL for the database's clock, seconds since 1970."""
    if dialect == "postgresql":
        return text("SELECT extract(epoch FROM clock_timestamp())")
    return text("SELECT (julianday('now') - 2440587.5) * 86400.0")


def insert_into(conn: Connection, table: type[Base]) -> Insert:
    """Return an INSERT that knows ``on_conflict_do_nothing`` and ``on_conflict_do_update``.

    SQLAlchemy has one such class for each database; the two agree in all that is used here.
    """
    if conn.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql

        return cast(Insert, postgresql.insert(table))
    return Insert(cast(Any, table))


@contextmanager
def plain_errors(place: str) -> Iterator[None]:
    """Turn the database's troubles into errors of one line that say what to do.

    Mistakes in a statement and broken constraints are the program's own and pass unchanged.  A
    column's value that can't be decoded is the catalog's.
    """
    try:
        yield
    except (UnicodeDecodeError, JSONDecodeError) as err:
        raise CatalogError(f"the catalog {place} is damaged ({err}); {DAMAGED}") from err
    except (DBAPIError, sqlite3.Error) as err:
        explained = explain(err, place)
        if explained is None:
            raise
        raise explained from err


def explain(err: DBAPIError | sqlite3.Error, place: str) -> StorageError | None:
    """Return what the error means for a person, or None for a mistake of the program."""
    cause = err.orig if isinstance(err, DBAPIError) else err
    if isinstance(cause, sqlite3.Error):
        return _explain_sqlite(cause, place)
    known = _match(_POSTGRES, getattr(cause, "sqlstate", None) or "", place)
    if known is not None or not isinstance(err, OperationalError):
        return known
    reason = str(cause).strip().splitlines()[0]
    return CatalogError(
        f"the catalog {place} can't be reached: {reason}; start the server or mend the URL"
    )


def _explain_sqlite(err: sqlite3.Error, place: str) -> StorageError | None:
    code = getattr(err, "sqlite_errorname", "")
    if code.startswith(tuple(f"SQLITE_IOERR_{kind}" for kind in _WHEN_FULL)):
        with suppress(OSError):
            if free_bytes(os.path.dirname(place)) < _FULL_BYTES:
                code = "SQLITE_FULL"
    known = _match(_SQLITE, code, place)
    if known is not None:
        return known
    # Text that is not UTF-8 is told by the driver and not by SQLite, so it has no code.
    undecodable = not code and isinstance(err, sqlite3.OperationalError)
    if undecodable or any(said in str(err) for said in _OF_SCHEMA):
        reason = " ".join(str(err).split())
        return CatalogError(f"the catalog {place} is damaged ({reason}); {DAMAGED}")
    return None


def _match(
    table: tuple[tuple[str, type[StorageError], str], ...], code: str, place: str
) -> StorageError | None:
    for prefix, kind, advice in table:
        if code.startswith(prefix):
            return kind(f"the catalog {place} {advice}")
    return None
