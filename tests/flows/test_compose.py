"""compose.yaml without an engine: it is consistent, and its commands run, as processes here."""

import os
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from flows.server.process import free_port
from storage.home import Home
from tests.flows.prefect_site import (
    PREFECT,
    Site,
    accounts,
    assert_nothing_twice,
    environment,
    large_tree,
    until,
    worker,
)
from tests.flows.terminal import CHECKOUT
from tests.flows.test_deployments import assert_is_command
from tests.postgres import Server

DEPLOYMENTS = CHECKOUT / "deployments"
TEXT = (DEPLOYMENTS / "compose.yaml").read_text()
SERVICES: dict[str, Any] = yaml.safe_load(TEXT)["services"]
EXAMPLE = (DEPLOYMENTS / "example.env").read_text()
GIVEN = dict(line.split("=", 1) for line in EXAMPLE.splitlines() if re.match(r"^[A-Z]", line))
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")
IMAGES = 24
pytestmark = pytest.mark.xdist_group("compose")


def filled(value: str, given: Mapping[str, str]) -> str:
    """Replace ``${NAME:-default}`` and ``${NAME:?message}`` as compose does."""

    def one(found: re.Match[str]) -> str:
        name, kind, rest = found.groups()
        if given.get(name):
            return given[name]
        if kind == "?":
            raise KeyError(f"{name}: {rest}")
        return rest or ""

    return VARIABLE.sub(one, value)


class TestTheFile:
    """What can be seen without running anything."""

    def test_every_variable_is_in_the_example_and_none_has_a_secret_default(self) -> None:
        used = {found[0]: found for found in VARIABLE.findall(TEXT)}
        assert set(used) == set(GIVEN)
        for name in ("POSTGRES_PASSWORD", "LOOKALIKE_TOKEN", "PICTURES"):
            assert all(kind == "?" for one, kind, _ in VARIABLE.findall(TEXT) if one == name)
            assert GIVEN[name] == ""

    def test_what_is_published_is_for_this_machine_alone(self) -> None:
        published = [port for service in SERVICES.values() for port in service.get("ports", [])]
        assert sorted(published) == ["127.0.0.1:4200:4200", "127.0.0.1:8765:8765"]

    def test_pictures_are_read_only(self) -> None:
        for name in ("worker", "search"):
            [pictures] = [each for each in SERVICES[name]["volumes"] if "PICTURES" in each]
            assert pictures.endswith(":/pictures:ro")
        assert not any("volumes" in SERVICES[name] for name in ("prefect", "deploy"))

    def test_urls_are_of_the_form_that_each_side_takes(self) -> None:
        url = SERVICES["prefect"]["environment"]["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
        assert url.startswith("postgresql+asyncpg://")
        assert url.endswith("@postgres:5432/prefect")
        for name in ("worker", "search"):
            catalog = SERVICES[name]["environment"]["LOOKALIKE_CATALOG_URL"]
            assert catalog.startswith("postgresql://")
            assert catalog.endswith("@postgres:5432/lookalike")
        assert "CREATE DATABASE prefect;" in (DEPLOYMENTS / "postgres-init.sql").read_text()
        for name in ("deploy", "worker"):
            assert SERVICES[name]["environment"]["PREFECT_API_URL"] == "http://prefect:4200/api"

    def test_services_wait_for_what_they_need(self) -> None:
        needs = {name: service.get("depends_on", {}) for name, service in SERVICES.items()}
        assert needs["worker"] == {"deploy": {"condition": "service_completed_successfully"}}
        for name, needed in needs.items():
            for other, how in needed.items():
                if how["condition"] == "service_healthy":
                    assert "healthcheck" in SERVICES[other], (name, other)

    @pytest.mark.parametrize("name", ["prefect", "deploy", "worker", "search"])
    def test_commands_and_their_options_exist(self, name: str) -> None:
        for command in commands(SERVICES[name]["command"]):
            if command[0] == "lookalike":
                assert_is_command(command[1:])
            else:
                assert_is_prefects(command[1:])

    def test_the_image_has_what_the_commands_name(self) -> None:
        dockerfile = (DEPLOYMENTS / "Dockerfile").read_text()
        assert "COPY deployments/prefect.yaml /etc/lookalike/prefect.yaml" in dockerfile
        assert re.search(r"^USER lookalike$", dockerfile, re.MULTILINE)
        kept = (DEPLOYMENTS / "Dockerfile.dockerignore").read_text().split()
        copied = re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE)
        for path in " ".join(copied).split():
            assert (CHECKOUT / path).exists()
            assert f"!{path}" in kept


def commands(command: list[str]) -> Iterator[list[str]]:
    """Yield the commands of a service, those of a shell's script one by one."""
    if command[:2] != ["sh", "-ec"]:
        yield command
        return
    for line in command[2].splitlines():
        yield shlex.split(line)


def assert_is_prefects(args: list[str]) -> None:
    """Hold that Prefect has the command, and its help the options."""
    words = [arg for arg in args if not arg.startswith("-")]
    options = {arg for arg in args if arg.startswith("--")} - {"--no-prompt"}
    name = words[: 2 if words[0] in ("work-pool", "worker", "server") else 1]
    done = subprocess.run([PREFECT, *name, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    shown = set(re.findall(r"--[a-z][-a-z]*", done.stdout))
    assert options <= shown, (options - shown, done.stdout)


@dataclass(frozen=True)
class Machine:
    """Where the services are, when they run as processes of this machine."""

    folder: Path
    prefect: int
    search: int
    databases: Mapping[str, str]
    """URLs of the databases ``lookalike`` and ``prefect``."""
    has_trigrams: bool
    """Whether this Postgres has the extension that Prefect's server needs; compose's has."""
    pictures: str

    def environment(self, service: str) -> dict[str, str]:
        """Return a service's environment, with this machine's places in it."""
        given = {"POSTGRES_PASSWORD": "secret", "LOOKALIKE_TOKEN": "token", "TZ": "Europe/Berlin"}
        given |= {"LOOKALIKE_MODEL": "shufflenet_v2_x0_5", "LOOKALIKE_WEIGHTS": "random:0"}
        said = {
            name: self._here(filled(value, {**given, "PICTURES": self.pictures}))
            for name, value in SERVICES[service]["environment"].items()
        }
        if "volumes" in SERVICES[service]:  # where the image says /data/home
            said["LOOKALIKE_HOME"] = str(self.folder / "home")
        if not self.has_trigrams:
            said.pop("PREFECT_SERVER_DATABASE_CONNECTION_URL", None)
        return {**environment(self.folder / f"prefect-{service}"), **said}

    def command(self, service: str) -> list[list[str]]:
        """Return a service's commands, as they run here."""
        return [
            [self._program(command[0]), *map(self._here, command[1:])]
            for command in commands(SERVICES[service]["command"])
        ]

    def _program(self, name: str) -> str:
        return str(Path(sys.executable).with_name(name))

    def _here(self, value: str) -> str:
        found = re.fullmatch(r"(postgresql\S*://)lookalike:secret@postgres:5432/(\w+)", value)
        if found:
            return f"{found[1]}{self.databases[found[2]].partition('://')[2]}"
        places = {
            "http://prefect:4200": f"http://127.0.0.1:{self.prefect}",
            "http://127.0.0.1:4200": f"http://127.0.0.1:{self.prefect}",
            "/etc/lookalike/prefect.yaml": str(DEPLOYMENTS / "prefect.yaml"),
            "0.0.0.0": "127.0.0.1",
        }
        for place, here in places.items():
            value = value.replace(place, here)
        return {"4200": str(self.prefect), "8765": str(self.search)}.get(value, value)

    @contextmanager
    def running(self, service: str) -> Iterator[None]:
        [command] = self.command(service)
        log = self.folder / f"{service}.log"
        with worker(command, self.environment(service), log):
            yield

    def healthy(self, service: str) -> None:
        """Wait until the service's own health check passes."""
        test = [sys.executable, *map(self._here, SERVICES[service]["healthcheck"]["test"][2:])]
        test[-1] = test[-1].replace(":8765/", f":{self.search}/")
        until(lambda: subprocess.run(test, capture_output=True).returncode == 0)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, postgres_server: Server) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("compose")
    pictures = large_tree(folder / "pictures", IMAGES)
    names = {name: postgres_server.create() for name in ("lookalike", "prefect")}
    urls = {name: postgres_server.database(made) for name, made in names.items()}
    with psycopg.connect(postgres_server.url) as connection:
        query = "SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_trgm'"
        [found] = connection.execute(query).fetchone() or [0]
    yield Machine(folder, free_port(), free_port(), urls, bool(found), pictures)
    for made in names.values():
        postgres_server.drop(made)


@pytest.mark.prefect
@pytest.mark.postgres
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX processes")
def test_the_services_do_their_work(machine: Machine) -> None:
    with machine.running("prefect"):
        machine.healthy("prefect")
        for _ in range(2):  # the one-shot service runs again at every `up`
            for command in machine.command("deploy"):
                done = subprocess.run(
                    command,
                    env=machine.environment("deploy"),
                    cwd=machine.folder,
                    capture_output=True,
                    text=True,
                    timeout=120,
                )
                assert done.returncode == 0, (command, done.stdout, done.stderr)
        env = machine.environment("worker")
        index = [sys.executable, "-m", "flows.cli", "index", machine.pictures, "--no-prefect"]
        subprocess.run(index, cwd=CHECKOUT, env=env, check=True, capture_output=True, timeout=120)
        (machine.folder / "more").mkdir()
        large_tree(machine.folder / "more" / "pictures", IMAGES + 1)
        new = machine.folder / "more" / "pictures" / f"{IMAGES:04}.jpg"
        os.rename(new, Path(machine.pictures, new.name))

        with machine.running("worker"):
            site = Site(env["PREFECT_API_URL"], env)
            run = site.ended(site.trigger("index-images/nightly"))
            assert run.state.name == "Completed", run.state.message
            assert run.state.message.startswith("Done: 1 image extracted")
        home = Home(env["LOOKALIKE_HOME"], env["LOOKALIKE_CATALOG_URL"])
        assert_nothing_twice(accounts(home), IMAGES + 1)

    with machine.running("search"):
        machine.healthy("search")
        query = Path(machine.pictures, f"{IMAGES:04}.jpg").read_bytes()
        url = f"http://127.0.0.1:{machine.search}/api/search?k=50"  # many look the same
        assert b"0024.jpg" in _ask(url, query, "token")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            _ask(url, query, "another")


def _ask(url: str, picture: bytes, token: str) -> bytes:
    headers = {"Content-Type": "image/jpeg", "Authorization": f"Bearer {token}"}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, picture, headers), timeout=60) as answer:
            found: bytes = answer.read()
            return found
    except urllib.error.HTTPError as error:
        error.close()
        raise
