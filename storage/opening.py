"""Opening a store: what must be true of catalog and home, and how both come to be.

A catalog belongs to exactly one home.  Both carry the store's id, and every opening compares them,
so that a catalog never meets another home's files.
"""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, insert, select, text

from storage.backup_mark import is_backup
from storage.database import BEGIN, catalog_url, make_engine, now_clause, where
from storage.durable import create_private
from storage.errors import CatalogError, StoreMismatch
from storage.fs import fs
from storage.home import FORMAT, NETWORK_FS, Home, fs_type
from storage.migrations import Schema, upgrade
from storage.restore_mark import refuse_restoring
from storage.sqlite_files import copy_sqlite
from storage.tables import Part, Store

MIGRATING = 7205759403792793
"""Postgres: number of the lock that whoever creates or migrates holds."""


@contextmanager
def home_errors(home: Home) -> Iterator[None]:
    """Turn what the file system refuses into one line."""
    try:
        yield
    except OSError as err:
        raise home.unusable(err) from err


def refuse_impossible(home: Home, *, write: bool) -> None:
    """Refuse what can be seen without opening anything."""
    if is_backup(home.path):
        _refuse_backup(home, write=write)
    refuse_restoring(home)
    if catalog_url(home) is not None:
        return
    refuse_network(home)
    if not os.path.exists(home.sqlite):
        if home.has_spaces():
            raise _gone(home)
        if not write:
            raise _nothing_yet(home)


def refuse_network(home: Home) -> None:
    """Refuse SQLite on a network file system."""
    kind = fs_type(home.path)
    if catalog_url(home) is None and kind in NETWORK_FS:
        raise CatalogError(
            f"{home.path} is on a network file system ({kind}), where SQLite loses"
            " data; choose a local --home, or a Postgres server by LOOKALIKE_CATALOG_URL"
        )


def _refuse_backup(home: Home, *, write: bool) -> None:
    """Keep a backup as it was made; it may be read, with the catalog of its own."""
    if write:
        raise CatalogError(
            f"{home.path} is a backup and is not written: `lookalike backup` of its store mends it,"
            f" `lookalike --home NEW restore {home.path}` makes a home of it"
        )
    if catalog_url(home) is not None:
        raise CatalogError(
            f"{home.path} is a backup, with a catalog of its own: leave --catalog-url and"
            " LOOKALIKE_CATALOG_URL out"
        )
    if not os.path.exists(home.sqlite):
        raise CatalogError(
            f"the backup {home.path} is not complete, as it was broken off: run `lookalike"
            " backup` into it again"
        )


def ensure_store(home: Home, engine: Engine, schema: Schema, *, write: bool) -> str:
    """Return the store's id once schema and home are known to be right."""
    with engine.begin() as conn:
        revision = revision_of(conn)
        _refuse_unknown(home, revision, schema)
        stored = _stored_id(conn) if revision == schema.head else None
    if stored is not None and stored == home.read_store_id():
        return stored
    if write:
        return _settle(home, schema)
    if revision is None:
        raise _gone(home) if home.has_spaces() else _nothing_yet(home)
    if stored is None:
        raise CatalogError(
            f"the catalog {where(home)} has the older schema {revision}, this version of lookalike"
            f" needs {schema.head}; any writing command, e.g. `lookalike index`, migrates it"
        )
    raise _mismatch(home, stored, home.read_store_id())


def _settle(home: Home, schema: Schema) -> str:
    """Create or migrate the catalog, and give store and home their id, in one transaction."""
    engine = make_engine(home, write=True, migrate=True)
    sqlite = engine.dialect.name == "sqlite"
    try:
        with engine.execution_options(**{BEGIN: "BEGIN IMMEDIATE"}).begin() as conn:
            if not sqlite:
                conn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATING})
            revision = revision_of(conn)
            _refuse_unknown(home, revision, schema)
            if revision is None and home.has_spaces():
                raise _gone(home) if sqlite else _mismatch(home, None, home.read_store_id())
            if revision != schema.head:
                if sqlite and revision is not None:
                    _copy(home.sqlite, f"{home.sqlite}.{revision}")
                upgrade(conn, schema)
                _check_references(conn)
            return _adopt(home, conn)
    finally:
        engine.dispose()


def _adopt(home: Home, conn: Connection) -> str:
    """Return the id that catalog and home share; where only one has it, give it to the other.

    The file comes first and the row with the transaction, so that a kill in between leaves a
    file without a catalog, which the next writer adopts.
    """
    stored, written = _stored_id(conn), home.read_store_id()
    if stored is None:
        store_id = written or str(uuid.uuid4())
        if written is None:
            home.write_store_id(store_id)
        now = conn.execute(now_clause(conn.dialect.name)).scalar_one()
        row = {"store_id": store_id, "format": FORMAT, "created_at": float(now)}
        conn.execute(insert(Store).values(row))
        return store_id
    if written is None and conn.dialect.name == "sqlite" and not _has_parts(conn):
        home.write_store_id(stored)  # the file lies in this very folder, and nothing can be lost
        return stored
    if written != stored:
        raise _mismatch(home, stored, written)
    return stored


def revision_of(conn: Connection) -> str | None:
    """Return the revision of the schema, or None for an empty database."""
    known = (
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"
        if conn.dialect.name == "sqlite"
        else "SELECT to_regclass('alembic_version')"
    )
    if conn.execute(text(known)).scalar() is None:
        return None
    revision: str | None = conn.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return revision


def _refuse_unknown(home: Home, revision: str | None, schema: Schema) -> None:
    if revision is not None and revision not in schema.revisions:
        raise CatalogError(
            f"the catalog {where(home)} has schema {revision}, this version of lookalike knows up"
            f" to {schema.head}: use a newer lookalike, or a database of its own"
        )


def _stored_id(conn: Connection) -> str | None:
    return conn.execute(select(Store.store_id)).scalar()


def _has_parts(conn: Connection) -> bool:
    return conn.execute(select(Part.id).limit(1)).scalar() is not None


def _check_references(conn: Connection) -> None:
    """Refuse a migration that left rows without what they refer to (keys are off meanwhile)."""
    if conn.dialect.name == "sqlite":
        broken = conn.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
        if broken:
            raise CatalogError(f"the migration failed, nothing was changed: {broken[0]}")


def _copy(source: str, target: str) -> None:
    """Copy a SQLite file as of its last commit, durably, though others may use it."""
    temporary = f"{target}.tmp"
    create_private(temporary)
    copy_sqlite(source, temporary)
    with open(temporary, "rb") as file:
        fs().fsync(file.fileno())
    fs().replace(temporary, target)
    fs().fsync_dir(os.path.dirname(target))


def _nothing_yet(home: Home) -> CatalogError:
    return CatalogError(f"nothing is indexed yet in {home.path}: run `lookalike index DIRECTORY`")


def _gone(home: Home) -> CatalogError:
    return CatalogError(
        f"the catalog {home.sqlite} is gone, but {home.spaces_dir} holds vectors: restore the"
        " catalog from a backup, set LOOKALIKE_CATALOG_URL if it is on a server, or index into"
        " a new --home"
    )


def _mismatch(home: Home, stored: str | None, written: str | None) -> StoreMismatch:
    if written is None and stored is not None:
        facts = json.dumps({"format": FORMAT, "store_id": stored}, sort_keys=True)
        return StoreMismatch(
            f"the home {home.path} has no store.json: mount its disk, or use the catalog and the"
            f" home that belong together, or bring the file back from a backup: of the catalog"
            f" {where(home)} it is the line {facts}"
        )
    return StoreMismatch(
        f"the catalog {where(home)} belongs to store {stored or '(none: it is empty)'}, the home"
        f" {home.path} to {written or '(none: it has no store.json)'}; use the catalog and the"
        " home that belong together"
    )
