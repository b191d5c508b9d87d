import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    JSON,
    Boolean,
    Connection,
    Float,
    LargeBinary,
    MetaData,
    String,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.types import TypeEngine

from storage.catalog import Catalog
from storage.database import make_engine
from storage.durable import create_private
from storage.errors import CatalogError
from storage.home import Home
from storage.migrations import HEAD, REVISIONS, SCHEMA, Schema, upgrade
from storage.tables import Base

NEXT = f"{int(HEAD) + 1:04}"
LATER = '''"""Remake the spaces' table."""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{down_revision}"


def upgrade() -> None:
    anew = "always" if op.get_bind().dialect.name == "sqlite" else "never"
    with op.batch_alter_table("spaces", recreate=anew) as batch:
        batch.add_column(sa.Column("note", sa.String(), server_default="new"))
    {then}
'''


@pytest.fixture
def fresh_home(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> Home:
    """Return a home for either database with an empty database."""
    url = request.getfixturevalue("postgres_url") if database == "postgres" else None
    home = Home(str(tmp_path / "fresh"), url)
    os.mkdir(home.path)
    return home


@pytest.fixture
def later(tmp_path: Path) -> Schema:
    """Return this schema with one more revision, as a later version will have it."""
    return _later(tmp_path, "pass")


def _later(tmp_path: Path, then: str) -> Schema:
    location = tmp_path / "100% later"
    shutil.copytree(SCHEMA.location, location, ignore=shutil.ignore_patterns("__pycache__"))
    script = LATER.format(then=then, revision=NEXT, down_revision=HEAD)
    (location / "versions" / f"{NEXT}_remake_the_spaces.py").write_text(script)
    return Schema((*REVISIONS, NEXT), str(location))


def _value(kind: TypeEngine[Any]) -> Any:
    """Return some value of the type; 1 for every number, so that references hold."""
    if isinstance(kind, Boolean):
        return True
    if isinstance(kind, LargeBinary):
        return b"\xff"
    if isinstance(kind, JSON):
        return {"a": 1}
    if isinstance(kind, String):
        return "1"
    return 1.5 if isinstance(kind, Float) else 1


def _fill(conn: Connection) -> dict[str, int]:
    """Put a row into every table as the database itself describes it; return the counts."""
    found = MetaData()
    found.reflect(conn)
    tables = [table for table in found.sorted_tables if table.name != "alembic_version"]
    for table in tables:
        conn.execute(insert(table).values({c.name: _value(c.type) for c in table.c}))
    return {table.name: 1 for table in tables}


def _counts(conn: Connection) -> dict[str, int]:
    return {
        table.name: conn.execute(select(func.count()).select_from(table)).scalar_one()
        for table in Base.metadata.sorted_tables
    }


def _drift(conn: Connection) -> list[Any]:
    options = {"compare_type": True, "compare_server_default": True}
    return list(compare_metadata(MigrationContext.configure(conn, opts=options), Base.metadata))


def test_the_revisions_are_those_of_the_scripts() -> None:
    config = Config()
    config.set_main_option("script_location", SCHEMA.location)
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_heads() == [HEAD]
    history = [script.revision for script in scripts.walk_revisions()]
    assert tuple(reversed(history)) == REVISIONS


def test_names_are_sentences() -> None:
    names = [name for name in os.listdir(f"{SCHEMA.location}/versions") if name[0].isdigit()]
    assert len(names) == len(REVISIONS)
    assert all(name.count("_") >= 3 for name in names)


@pytest.mark.parametrize("revision", REVISIONS)
def test_rows_of_every_earlier_schema_survive(revision: str, fresh_home: Home) -> None:
    if fresh_home.catalog_url is None:
        create_private(fresh_home.sqlite)
    engine = make_engine(fresh_home, write=True, migrate=True)
    with engine.begin() as conn:
        upgrade(conn, to=revision)
        before = _fill(conn)
        upgrade(conn)
        assert _drift(conn) == []
        after = _counts(conn)
        assert {name: after[name] for name in before if name in after} == before
    engine.dispose()


def test_the_tables_are_exactly_those_that_the_migrations_make(catalog: Catalog) -> None:
    with catalog.read() as conn:
        assert _drift(conn) == []


def test_sqlite_never_gives_a_number_twice_and_keeps_vectors_by_their_key(home: Home) -> None:
    with Catalog.open(home, write=True) as catalog, catalog.read() as conn:
        rows = conn.execute(text("SELECT name, sql FROM sqlite_master"))
        made: dict[str, str] = {row.name: row.sql for row in rows}
    for table in Base.metadata.tables.values():
        assert ("AUTOINCREMENT" in made[table.name]) is (
            "id" in table.c and table.name not in ("failures", "runs")
        )
        assert ("WITHOUT ROWID" in made[table.name]) is (table.name == "vectors")


def test_a_writer_migrates_and_what_refers_to_a_changed_table_stays(
    catalog: Catalog, later: Schema, database: str
) -> None:
    with catalog.write() as conn:
        conn.execute(text("DELETE FROM store"))
        before = _fill(conn)
        stored = {"store_id": catalog.store_id}
        conn.execute(text("UPDATE store SET store_id = :store_id"), stored)
    catalog.close()
    with Catalog.open(catalog.home, write=True, schema=later) as migrated:
        with migrated.read() as conn:
            assert _counts(conn) == before
            assert conn.execute(text("SELECT note FROM spaces")).all() == [("new",)]
        assert migrated.store_id == catalog.store_id
    if database == "sqlite":
        assert os.stat(f"{catalog.home.sqlite}.{HEAD}").st_mode & 0o777 == 0o600
        copy = sqlite3.connect(f"{catalog.home.sqlite}.{HEAD}")
        assert copy.execute("SELECT version_num FROM alembic_version").fetchall() == [(HEAD,)]
        assert copy.execute("SELECT count(*) FROM vectors").fetchall() == [(1,)]
        copy.close()


def test_a_reader_migrates_nothing_and_says_who_does(catalog: Catalog, later: Schema) -> None:
    catalog.close()
    with pytest.raises(CatalogError, match=rf"older schema {HEAD}, .* needs {NEXT}; any writing"):
        Catalog.open(catalog.home, write=False, schema=later)
    Catalog.open(catalog.home, write=False).close()


@pytest.mark.parametrize("write", [False, True])
def test_a_newer_schema_is_refused_naming_both(
    write: bool, catalog: Catalog, later: Schema
) -> None:
    catalog.close()
    Catalog.open(catalog.home, write=True, schema=later).close()
    with pytest.raises(
        CatalogError, match=f"has schema {NEXT}, .* knows up to {HEAD}: use a newer"
    ):
        Catalog.open(catalog.home, write=write)


def test_a_migration_that_fails_changes_nothing(catalog: Catalog, tmp_path: Path) -> None:
    catalog.close()
    broken = _later(tmp_path, 'raise RuntimeError("half way")')
    with pytest.raises(RuntimeError, match="half way"):
        Catalog.open(catalog.home, write=True, schema=broken)
    with Catalog.open(catalog.home, write=True) as again, again.read() as conn:
        assert _drift(conn) == []
        assert again.store_id == catalog.store_id


def test_without_a_copy_nothing_is_migrated(home: Home, later: Schema) -> None:
    Catalog.open(home, write=True).close()
    os.mkdir(f"{home.sqlite}.{HEAD}.tmp")
    with pytest.raises(CatalogError, match="can't be opened; check the permissions"):
        Catalog.open(home, write=True, schema=later)
    Catalog.open(home, write=True).close()


def test_a_migration_that_breaks_references_changes_nothing(home: Home, tmp_path: Path) -> None:
    with Catalog.open(home, write=True) as catalog, catalog.write() as conn:
        conn.execute(text("DELETE FROM store"))
        before = _fill(conn)
        conn.execute(text("UPDATE store SET store_id = :id"), {"id": catalog.store_id})
    broken = _later(tmp_path, 'op.execute("DELETE FROM images")')
    with pytest.raises(CatalogError, match="migration failed, nothing was changed"):
        Catalog.open(home, write=True, schema=broken)
    with Catalog.open(home, write=True) as again, again.read() as conn:
        assert _counts(conn) == before
