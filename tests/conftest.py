"""Fixtures for all rooms: homes, catalogs on both databases, and the real data."""

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from sqlalchemy import create_engine

from storage.catalog import Catalog
from storage.database import make_engine
from storage.home import Home
from storage.migrations import upgrade
from tests.postgres import NoServer, Server, running_server

settings.register_profile("ci", derandomize=True, deadline=None)
settings.load_profile("ci")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # the suite was started in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # processes of tests inherit it

SLOW = (
    "test_real_photos",
    "test_oracles",
    "test_extract",
    "test_extract_plain",
    "test_prefect",
    "test_dask",
    "test_kill",
    "test_writers",
    "test_flips",
    "test_restore",
    "test_nightly",
    "test_deployments",
    "test_compose",
    "test_upgrade",
    "test_many_runs",
    "test_faults",
    "test_maintain",
    "test_export",
    "test_readme",
    "test_timm",
    "test_clip",
    "test_words",
    "test_openapi",
    "test_load",
    "test_searching",
    "test_accessibility",
    "test_photos",
    "test_duplicates",
    "test_whiten",
    "test_regions",
    "test_poison_elsewhere",
)
"""Files that begin first, so that no process is left alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow files first; whoever runs one file sees no difference."""
    items.sort(key=lambda item: item.path.stem not in SLOW)


OpenCatalog = Callable[..., Catalog]


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep thumbnails of what tests index out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Return a home that does not exist yet, with its catalog in SQLite."""
    return Home(str(tmp_path / "home"))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """Yield a Postgres server.  Without one the test is skipped, but fails where ``CI`` is set."""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(running_server())
        except NoServer as err:
            if os.environ.get("CI", "").lower() in ("1", "true"):
                pytest.fail(f"no Postgres: {err}")
            pytest.skip(f"no Postgres: {err}")
        yield server


@pytest.fixture
def postgres_url(postgres_server: Server) -> Iterator[str]:
    """Yield the URL of an empty database of the test's own."""
    name = postgres_server.create()
    yield postgres_server.database(name)
    postgres_server.drop(name)


@pytest.fixture(scope="session")
def postgres_template(postgres_server: Server) -> Iterator[str]:
    """Yield the name of a database with the schema and without rows."""
    name = postgres_server.create()
    engine = make_engine(Home("unused", postgres_server.database(name)), write=True)
    with engine.begin() as conn:
        upgrade(conn)
    engine.dispose()
    yield name
    postgres_server.drop(name)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of a SQLite file with the schema and without rows."""
    path = str(tmp_path_factory.mktemp("template") / "catalog.sqlite")
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as conn:
        upgrade(conn)
    engine.dispose()
    return path


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest) -> str:
    """Return which database the test runs on: ``sqlite`` and then ``postgres``."""
    return str(request.param)


@pytest.fixture
def catalog_home(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> Iterator[Home]:
    """Yield a home for either database; the schema is there already, to save time."""
    path = tmp_path / "home"
    if database == "sqlite":
        home = Home(str(path))
        path.mkdir(mode=0o700)
        shutil.copy(request.getfixturevalue("sqlite_template"), home.sqlite)
        yield home
        return
    server: Server = request.getfixturevalue("postgres_server")
    name = server.create(request.getfixturevalue("postgres_template"))
    yield Home(str(path), server.database(name))
    server.drop(name)


@pytest.fixture
def open_catalog(catalog_home: Home) -> Iterator[OpenCatalog]:
    """Yield ``open_catalog(write=True, home=...)``, which closes at the test's end."""
    with contextlib.ExitStack() as stack:

        def open_catalog(*, write: bool = True, home: Home = catalog_home) -> Catalog:
            return stack.enter_context(Catalog.open(home, write=write))

        yield open_catalog


@pytest.fixture
def catalog(open_catalog: OpenCatalog) -> Catalog:
    """Return a new catalog, open for writing: a SQLite one, and then a Postgres one."""
    return open_catalog()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder of real photos and weights."""
    default = Path(__file__).parents[2] / "shared" / "data"
    path = Path(os.environ.get("LOOKALIKE_DATA") or default)
    if not path.is_dir():
        pytest.skip(f"no real data: {path} is missing, set LOOKALIKE_DATA")
    return path
