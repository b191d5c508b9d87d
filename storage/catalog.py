"""The catalog: read and written in transactions."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Self

from sqlalchemy import Connection, Engine

from storage.database import (
    BEGIN,
    catalog_url,
    insert_into,
    make_engine,
    now_clause,
    plain_errors,
    where,
)
from storage.durable import create_private, make_dir
from storage.errors import CatalogError
from storage.home import Home
from storage.migrations import HEAD, SCHEMA, Schema
from storage.opening import ensure_store, home_errors, refuse_impossible

__all__ = ["HEAD", "Catalog", "insert_into"]

_KEPT = 4
"""Connections that are kept ready for reading."""


class Catalog:
    """An open catalog.  Threads may share it.

    Attributes
    ----------
    home
        The home that it belongs to.
    engine
        SQLAlchemy's engine.
    dialect
        ``sqlite`` or ``postgresql``.
    store_id
        The store's id, equal to that of ``store.json``.
    writable
        Whether it was opened for writing.
    """

    def __init__(self, home: Home, engine: Engine, store_id: str, *, writable: bool) -> None:
        self.home = home
        self.engine = engine
        self.dialect = engine.dialect.name
        self.store_id = store_id
        self.writable = writable
        self._where = where(home)
        self._kept: list[Connection] = []
        self._keeping = threading.Lock()
        self._closed = False
        if self.dialect == "sqlite":
            self._reading, self._writing = _sqlite_modes(engine)
        else:
            self._reading, self._writing = _postgres_modes(engine)

    @classmethod
    def open(cls, home: Home, *, write: bool, schema: Schema = SCHEMA) -> Self:
        """Open the home's catalog.

        Parameters
        ----------
        home
            Where the store is.
        write
            Whether to write.  A writer creates what is missing and migrates an older schema, on
            SQLite after a copy of the file; a reader changes nothing.
        schema
            The schema's history.

        Raises
        ------
        CatalogError
            Nothing was indexed yet, the catalog is gone or damaged, its schema is unknown, its
            server does not answer, or SQLite would lie on a network file system.
        StoreMismatch
            Catalog and home belong to different stores.
        """
        with home_errors(home):
            refuse_impossible(home, write=write)
            if write:
                make_dir(home.path)
                if catalog_url(home) is None:
                    create_private(home.sqlite)
            engine = make_engine(home, write=write)
            try:
                with plain_errors(where(home)):
                    store_id = ensure_store(home, engine, schema, write=write)
            except BaseException:
                engine.dispose()
                raise
        return cls(home, engine, store_id, writable=write)

    def read(self) -> AbstractContextManager[Connection]:
        """Return a context with one transaction that sees one state of the catalog."""
        if self.dialect == "sqlite":
            return self._kept_transaction()
        return self._transaction(self._reading)

    def write(self) -> AbstractContextManager[Connection]:
        """Return a context with one transaction that commits at its end, or rolls back.

        Raises
        ------
        CatalogError
            The catalog is open for reading only, or was locked for 30 seconds.
        DiskFull
            The catalog can't grow.
        """
        if not self.writable:
            raise CatalogError(f"the catalog {self._where} is open for reading only")
        return self._transaction(self._writing)

    @contextmanager
    def _transaction(self, engine: Engine) -> Iterator[Connection]:
        with plain_errors(self._where), engine.begin() as conn:
            yield conn

    @contextmanager
    def _kept_transaction(self) -> Iterator[Connection]:
        """Read with a connection that was in use before, if there is one.

        Getting one from the pool and giving it back takes a tenth of a question's time.  The pool
        alone knows whether a server is still there, so this is for SQLite.
        """
        with plain_errors(self._where):
            with self._keeping:
                conn = self._kept.pop() if self._kept else None
            conn = conn or self._reading.connect()
            try:
                with conn.begin():
                    yield conn
            except BaseException:
                conn.close()
                raise
            with self._keeping:
                if not self._closed and len(self._kept) < _KEPT:
                    self._kept.append(conn)
                    return
            conn.close()

    def now(self, conn: Connection) -> float:
        """Return the database's clock, seconds since 1970."""
        return float(conn.execute(now_clause(self.dialect)).scalar_one())

    def close(self) -> None:
        """Close all connections."""
        with self._keeping:
            self._closed = True
            kept, self._kept = self._kept, []
        for conn in kept:
            conn.close()
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _sqlite_modes(engine: Engine) -> tuple[Engine, Engine]:
    return engine, engine.execution_options(**{BEGIN: "BEGIN IMMEDIATE"})


def _postgres_modes(engine: Engine) -> tuple[Engine, Engine]:
    reading = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    return reading, engine
