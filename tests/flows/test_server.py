"""Finding an API without Prefect, and the servers that are started and ended here."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flows.engine.environment import TAMED, configured_api, tame_environment
from flows.server import child as server_child
from flows.server import memory as server_memory
from flows.server import process as server_process
from flows.server.local import SMALL, api, down, find_api, prefect_wanted, temporary_server, up
from flows.server.memory import end_by_number, remembered
from flows.server.process import (
    ServerError,
    Start,
    answers,
    end,
    free_port,
    launch,
    locked,
    wait_until_up,
)
from flows.server.starting import start_server
from flows.settings import Settings
from storage.owner import this_process

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals and locks")
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('on', flush=True); time.sleep(60)"
)


@pytest.fixture(autouse=True)
def nothing_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder to stand in, and no word to Prefect."""
    for name in list(os.environ):
        if name.startswith("PREFECT_") or name in ("DO_NOT_TRACK", "NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect-home"))
    stand = tmp_path / "stand"
    stand.mkdir()
    monkeypatch.chdir(stand)


@pytest.fixture
def home(tmp_path: Path) -> str:
    (tmp_path / "home" / "prefect").mkdir(parents=True)
    return str(tmp_path / "home")


@contextmanager
def answering(status: int = 200) -> Iterator[str]:
    """Yield the API's URL of a small server that answers every request with ``status``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/api/health" else 418)
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/api"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def silent_url() -> str:
    return f"http://127.0.0.1:{free_port()}/api"


def write_memory(home: str, url: str, **owner: object) -> Path:
    path = Path(home, "prefect", "server.json")
    facts = {"url": url, "owner": {**asdict(this_process()), **owner}}
    path.write_text(json.dumps(facts))
    return path


ENV, PROFILE, TOML = "http://env/api", "http://profile/api", "http://toml/api"
PROFILES = f'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "{PROFILE}"\n[profiles.bare]\n'
PLACES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "nothing": ({}, {}),
    "environment": ({"PREFECT_API_URL": ENV}, {}),
    "active profile": ({}, {"../prefect-home/profiles.toml": PROFILES}),
    "environment before profile": (
        {"PREFECT_API_URL": ENV},
        {"../prefect-home/profiles.toml": PROFILES},
    ),
    "another profile chosen": (
        {"PREFECT_PROFILE": "bare"},
        {"../prefect-home/profiles.toml": PROFILES},
    ),
    "profiles elsewhere": ({"PREFECT_PROFILES_PATH": "p.toml"}, {"p.toml": PROFILES}),
    "prefect.toml": ({}, {"prefect.toml": f'[api]\nurl = "{TOML}"\n'}),
    "prefect.toml before profile": (
        {},
        {
            "prefect.toml": f'[api]\nurl = "{TOML}"\n',
            "../prefect-home/profiles.toml": PROFILES,
        },
    ),
    "pyproject": ({}, {"pyproject.toml": f'[tool.prefect.api]\nurl = "{TOML}"\n'}),
    "pyproject of others": ({}, {"pyproject.toml": "[project]\nname = 'theirs'\n"}),
    "dotenv": ({}, {".env": f"PREFECT_API_URL={ENV}\n"}),
}


@pytest.mark.parametrize("place", PLACES)
def test_the_api_is_found_where_prefect_finds_it(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import prefect.settings

    environment, files = PLACES[place]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name, text in files.items():
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    assert configured_api() == prefect.settings.Settings().api.url


def test_a_damaged_file_says_nothing() -> None:
    Path("prefect.toml").write_text("[api\n")
    Path("pyproject.toml").write_text('[tool]\nprefect = "no table"\n')
    Path("../prefect-home/profiles.toml").mkdir(parents=True)
    assert configured_api() is None


def test_prefect_is_tamed_but_for_what_the_user_has_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TAMED:
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    profiles = Path("../prefect-home/profiles.toml")
    profiles.parent.mkdir()
    profiles.write_text('active = "a"\n[profiles.a]\nPREFECT_LOGGING_LEVEL = "DEBUG"\n')

    tame_environment()

    assert os.environ["DO_NOT_TRACK"] == "0"
    assert "PREFECT_LOGGING_LEVEL" not in os.environ
    assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_finding_out_loads_no_prefect(home: str) -> None:
    code = (
        "import sys; from flows.server.local import prefect_wanted;"
        f"prefect_wanted({home!r}, 'auto'); print('prefect' in sys.modules, 'torch' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(("mode", "wanted"), [("always", True), ("never", False), ("auto", False)])
def test_without_an_api_only_always_goes_through_prefect(
    home: str, mode: str, wanted: bool
) -> None:
    assert prefect_wanted(home, mode) is wanted


@pytest.mark.parametrize(("mode", "wanted"), [("always", True), ("never", False), ("auto", True)])
def test_with_an_api_only_never_stays_outside(
    home: str, mode: str, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering() as url:
        monkeypatch.setenv("PREFECT_API_URL", url)
        assert prefect_wanted(home, mode) is wanted


def test_an_api_that_asks_for_a_password_answers(home: str) -> None:
    with answering(401) as url:
        assert answers(url)
    assert not answers(silent_url())
    assert not answers("no address")


def test_an_api_that_is_down_does_not_keep_images_from_being_indexed(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, said = silent_url(), []
    monkeypatch.setenv("PREFECT_API_URL", url)

    assert not prefect_wanted(home, "auto", said.append)
    assert said == [f"Prefect's API at {url} does not answer: this run goes on without it"]
    with pytest.raises(ServerError, match="does not answer; start it") as caught, api(home):
        pass
    assert caught.value.exit_code == 2


def test_a_configured_api_comes_before_a_remembered_one(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering() as configured, answering() as mine:
        write_memory(home, mine)
        assert find_api(home) == mine
        monkeypatch.setenv("PREFECT_API_URL", configured)
        assert find_api(home) == configured


def test_prefect_is_pointed_at_the_api_inside_alone(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "intranet")
    with answering() as url:
        write_memory(home, url)
        with api(home) as used:
            assert used == url == os.environ["PREFECT_API_URL"]
            assert os.environ["NO_PROXY"] == "intranet,127.0.0.1"
            assert os.environ["no_proxy"] == "127.0.0.1"
    assert "PREFECT_API_URL" not in os.environ
    assert os.environ["NO_PROXY"] == "intranet"
    assert "no_proxy" not in os.environ


def test_a_remembered_server_that_hangs_is_passed_over_and_kept(home: str) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        path = write_memory(home, f"http://127.0.0.1:{mute.getsockname()[1]}/api")
        started = time.monotonic()
        assert find_api(home) is None
    assert time.monotonic() - started < 5
    assert path.exists()


@posix
def test_a_dead_server_is_forgotten_with_a_word(home: str) -> None:
    child = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True
    )
    said: list[str] = []
    with answering() as url:  # something else listens there now
        path = write_memory(home, url, pid=int(child.stdout))
        assert find_api(home, said.append) is None
    assert not path.exists()
    assert said == [
        f"Prefect's server at {url.removesuffix('/api')} is gone; `lookalike up` starts it anew"
    ]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a process start")
def test_a_process_number_that_was_given_anew_is_not_the_server(home: str) -> None:
    path = write_memory(home, silent_url(), process_start="1")
    assert remembered(home) is None
    assert not path.exists()


def test_a_server_of_another_machine_is_left_alone(home: str) -> None:
    path = write_memory(home, silent_url(), host="elsewhere", boot="another boot")
    said: list[str] = []
    assert remembered(home, said.append) is None
    assert path.exists()
    assert said == []


@pytest.mark.parametrize("text", ["{", "[]", '{"url": "u"}', '{"url": "u", "owner": {"a": 1}}'])
def test_a_damaged_memory_is_forgotten(home: str, text: str) -> None:
    path = Path(home, "prefect", "server.json")
    path.write_text(text)
    assert remembered(home) is None
    assert not path.exists()


def test_the_next_free_port_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        other = free_port()
        assert free_port((port, other)) == other
        with pytest.raises(ServerError, match="no port is free"):
            free_port((port,))


@posix
def test_a_folder_has_one_server(home: str) -> None:
    with locked(home), pytest.raises(BlockingIOError), locked(home):
        pass
    with locked(home):
        pass


@posix
def test_up_keeps_out_of_a_folder_that_another_server_uses(home: str) -> None:
    with locked(os.path.join(home, "prefect")), pytest.raises(ServerError, match="works in"):
        up(Settings(home=home))


def test_down_without_a_server_says_so(home: str) -> None:
    assert down(Settings(home=home)).startswith("no server to stop")


@pytest.fixture
def stubborn() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not end when it is asked to."""
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


@posix
def test_a_server_that_does_not_end_is_killed(
    stubborn: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_process, "STOP_S", 0.2)
    end(stubborn)
    assert stubborn.returncode == -signal.SIGKILL


@posix
def test_a_server_of_another_process_that_does_not_end_is_killed(
    stubborn: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_memory, "STOP_S", 0.2)
    end_by_number(stubborn.pid, lambda: stubborn.poll() is None)
    assert stubborn.wait() == -signal.SIGKILL
    end_by_number(stubborn.pid, lambda: True)  # gone already: nothing to do


@posix
def test_a_process_that_seems_to_live_for_ever_is_told(
    stubborn: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_memory, "STOP_S", 0.1)
    with pytest.raises(ServerError, match="does not end"):
        end_by_number(stubborn.pid, lambda: True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_a_process_of_another_user_is_not_ours_to_stop(stubborn: subprocess.Popen[bytes]) -> None:
    code = (
        "import os, sys; sys.path.insert(0, os.getcwd());"
        "from flows.server.memory import ServerError, end_by_number\n"
        "os.setuid(65534)\n"
        f"try: end_by_number({stubborn.pid}, lambda: True)\n"
        "except ServerError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert "can't be stopped: Operation not permitted" in done.stdout


def test_a_server_that_can_not_start_says_why(home: str) -> None:
    Path(home, "prefect", "prefect.toml").write_text("[not toml\n")
    with pytest.raises(ServerError, match=r"ended at its start: .*declaration.*server\.log"):
        up(Settings(home=home))
    assert remembered(home) is None


def test_a_server_that_does_not_answer_is_told(
    home: str, stubborn: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_process, "START_S", 0.3)
    with pytest.raises(ServerError, match=r"does not answer after 0 s.*server\.log"):
        wait_until_up(Start(home, free_port()), stubborn)


def test_the_server_of_another_home_is_not_taken_for_its_own(
    home: str, stubborn: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    (tmp_path / "api" / "admin").mkdir(parents=True)
    (tmp_path / "api" / "health").write_text("true")
    facts = tmp_path / "api" / "admin" / "settings"
    with files_served(tmp_path) as port:
        facts.write_text(json.dumps({"home": "/somewhere/else"}))
        with pytest.raises(ServerError, match=f"taken port {port}; start this one again"):
            wait_until_up(Start(home, port), stubborn)
        for no_settings in ("[]", "<html>"):
            facts.write_text(no_settings)
            with pytest.raises(ServerError, match=f"taken port {port}"):
                wait_until_up(Start(home, port), stubborn)
        facts.unlink()
        with pytest.raises(ServerError, match=f"taken port {port}"):
            wait_until_up(Start(home, port), stubborn)
        facts.write_text(json.dumps({"home": f"{home}/."}))
        wait_until_up(Start(home, port), stubborn)


@contextmanager
def taking(port: int, as_soon_as: Path) -> Iterator[None]:
    """Take a port in silence as soon as a file is there."""

    def take() -> None:
        while not as_soon_as.exists() and not over.is_set():
            time.sleep(0.01)
        mute.bind(("127.0.0.1", port))
        mute.listen()

    over = threading.Event()
    thread = threading.Thread(target=take)
    with socket.socket() as mute:
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def free_ports(n: int) -> list[int]:
    """Return ``n`` different ports that are free."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(n)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@posix
def test_a_server_whose_ports_are_taken_while_it_starts_says_so(home: str) -> None:
    [port] = free_ports(1)
    folder = os.path.join(home, "prefect")
    with (
        taking(port, Path(folder, "server.log")),
        pytest.raises(ServerError, match="no port is free"),
    ):
        start_server(Start(folder), [port], None, home=home)
    assert remembered(home) is None


@contextmanager
def files_served(folder: Path) -> Iterator[int]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@posix
def test_a_stop_while_the_server_starts_leaves_none(home: str) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(KeyboardInterrupt), temporary_server(home, stop=stop):
        pass
    with locked(os.path.join(home, "prefect")):  # which a server that lives would hold
        pass


@posix
def test_a_second_temporary_server_works_in_a_folder_of_its_own(home: str) -> None:
    stop, said = threading.Event(), []
    stop.set()
    with (
        locked(os.path.join(home, "prefect")),
        pytest.raises(KeyboardInterrupt),
        temporary_server(home, said.append, stop),
    ):
        pass
    assert said[0].startswith("starting a temporary Prefect server")
    assert not Path(home, "prefect", "server.log").exists()


def test_a_server_is_not_told_of_the_users_prefect(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "secret")
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "postgresql://theirs")
    monkeypatch.setenv("PREFECT_SERVER_LOGGING_LEVEL", "ERROR")
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "INFO")
    given = server_process._environment(Start(home, 4321))
    assert given["PREFECT_HOME"] == home
    assert given["PREFECT_SERVER_API_PORT"] == "4321"
    assert given["PREFECT_SERVER_LOGGING_LEVEL"] == "ERROR"
    assert given["PREFECT_LOGGING_LEVEL"] == "INFO"
    assert given["PATH"] == os.environ["PATH"]
    assert not {"PREFECT_API_KEY", "PREFECT_SERVER_DATABASE_CONNECTION_URL"} & set(given)


@posix
def test_a_tied_server_ends_when_its_parents_pipe_closes(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = launch(Start(home, free_port()))
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(30) == -signal.SIGTERM


@posix
def test_a_tied_server_that_can_not_end_gently_ends_all_the_same() -> None:
    code = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "from flows import server_child; server_child.GRACE_S = 0.1; server_child.follow_parent()"
    )
    root = Path(server_child.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, input=b"", timeout=30)
    assert done.returncode == 1


def _lets_in(url: str, site: str) -> bool:
    """Return whether a browser may ask for a page of a site, in JSON."""
    headers = {"Origin": site, "Access-Control-Request-Method": "POST"}
    headers["Access-Control-Request-Headers"] = "content-type"
    asked = urllib.request.Request(url, method="OPTIONS", headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(asked, timeout=30) as answer:
            return answer.headers["Access-Control-Allow-Origin"] in (site, "*")
    except urllib.error.HTTPError as refusal:
        refusal.close()
        return False


@pytest.mark.prefect
@posix
def test_up_and_down(home: str) -> None:
    settings = Settings(home=home)
    line = up(settings)
    try:
        server = remembered(home)
        assert server is not None
        assert line.startswith(f"Prefect's server runs: {server.page}")
        assert answers(server.url)
        assert find_api(home) == server.url
        assert up(settings) == f"Prefect's server runs already: {server.page}"
        assert os.getsid(server.owner.pid) != os.getsid(0)
        assert _page(server.page).lower().startswith("<!doctype html>")
        assert json.loads(_page(f"{server.page}/ui-settings"))["api_url"] == server.url
        assert _lets_in(f"{server.url}/flows/filter", server.page)
        assert not _lets_in(f"{server.url}/flows/filter", "https://elsewhere.example")
    finally:
        said = down(settings)
    assert said == f"Prefect's server at {server.page} is stopped"
    assert not answers(server.url)
    assert remembered(home) is None
    assert not replace(server).is_alive()


@pytest.mark.prefect
@posix
def test_a_server_whose_port_is_taken_while_it_starts_takes_the_next(home: str) -> None:
    ports, folder = free_ports(2), os.path.join(home, "prefect")
    with taking(ports[0], Path(folder, "server.log")):
        started = start_server(Start(folder, flags=SMALL), ports, None, home=home)
    try:
        assert started.url == f"http://127.0.0.1:{ports[1]}/api"
        assert answers(started.url)
        server = remembered(home)
        assert server is not None
        assert (server.url, server.owner.pid) == (started.url, started.process.pid)
    finally:
        end(started.process)


@pytest.mark.prefect
@posix
def test_two_homes_that_start_a_server_at_once_have_one_each(tmp_path: Path) -> None:
    homes = [str(tmp_path / name) for name in ("one", "two")]
    root = Path(__file__).parents[2]
    starts = [
        subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "--home", home, "up"],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for home in homes
    ]
    try:
        said = [start.communicate(timeout=300)[0] for start in starts]
        assert [start.returncode for start in starts] == [0, 0], said
        servers = [remembered(home) for home in homes]
        for home, server, line in zip(homes, servers, said, strict=True):
            assert server is not None
            assert f"Prefect's server runs: {server.page} " in line
            used = json.loads(_page(f"{server.url}/admin/settings"))["home"]
            assert used == os.path.join(home, "prefect")
    finally:
        for home in homes:
            down(Settings(home=home))


def _page(url: str) -> str:
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as page:
        return page.read().decode()
