"""Questions over real HTTP, to a server in this process and to ``lookalike serve``."""

import contextlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search.door import Address, is_loopback
from search.engine import Searcher
from search.errors import ServeError
from search.following import Follower
from search.server import make_app
from storage.spaces import drop_space, use_space
from tests.flows.terminal import CHECKOUT, loaded, lookalike
from tests.search.serving import SMALL, Running, running
from tests.search.stores import DIM, Store, digest_of, draw, vector_of

TOKEN = "a sécret of some length"


@pytest.fixture
def server(store: Store, tree: Path, tmp_path: Path) -> Iterator[Running]:
    """Yield a server over the tree's 12 images."""
    store.index(tree, store.space(), chunk=5)
    with follow(store, tmp_path) as follower, running(follower) as made:
        yield made


def follow(store: Store, tmp_path: Path) -> Follower:
    return Follower(store.catalog.home, device="cpu", cache=str(tmp_path / "cache"))


def test_answers_are_those_of_the_search(server: Running, store: Store, tree: Path) -> None:
    path = tree / "a/3.png"
    with Searcher(store.catalog.home) as searcher:
        [answer] = searcher.search_paths([os.fsencode(path)], 4)
    wanted = answer.to_json()
    del wanted["query"]
    best = wanted["hits"][0]
    assert best["paths"] == [str(path), str(tree / "b/copy.png")]
    vector = vector_of(digest_of(path)).tolist()
    asked = [
        {"body": {"image_id": best["image_id"], "k": 4}},
        {"body": {"vector": vector, "k": 4}},
        {"body": path.read_bytes(), "path": "/api/search?k=4"},
        {"body": path.read_bytes(), "path": "/api/search?k=4", "Content_Type": "image/x-any; a=b"},
    ]
    for each in asked:
        status, value = server.ask(**each)
        assert status == 200
        scores = [hit.pop("score") for hit in value["hits"]]
        assert value == {
            "space": "known",
            "hits": [{k: v for k, v in hit.items() if k != "score"} for hit in wanted["hits"]],
            "more": True,
        }
        assert np.allclose(scores, [hit["score"] for hit in wanted["hits"]], atol=2e-6)
    assert server.said == []


@pytest.mark.parametrize("how", ["image_id", "vector", "picture"])
def test_options_are_those_of_the_search(
    how: str, server: Running, store: Store, tree: Path
) -> None:
    path = tree / "a/1.png"
    with Searcher(store.catalog.home) as searcher:
        own = searcher.search_paths([os.fsencode(path)], 1)[0].hits[0].image_id
        all_hits = searcher.search_paths([os.fsencode(path)], 20)[0].hits
    floor = (all_hits[4].score + all_hits[5].score) / 2
    options = {"k": 20, "min_score": floor, "no_self": True}
    if how == "picture":
        query = "&".join(f"{name}={value}".lower() for name, value in options.items())
        _, value = server.ask(path.read_bytes(), path=f"/api/search?{query}")
    else:
        vector = vector_of(digest_of(path)).tolist()
        _, value = server.ask({how: {"image_id": own, "vector": vector}[how], **options})
    found = [hit["image_id"] for hit in value["hits"]]
    wanted = [hit.image_id for hit in all_hits[:5]]
    assert found == (wanted if how == "vector" else wanted[1:])
    assert len(server.ask({"image_id": own})[1]["hits"]) == 10


def test_a_name_that_is_not_utf8_comes_through(server: Running, store: Store, tree: Path) -> None:
    odd = tree / os.fsdecode(b"caf\xe9.png")
    draw(tree / "plain.png", 77).rename(odd)
    store.index(tree, store.space())
    _, value = server.ask(odd.read_bytes())
    assert os.fsencode(value["hits"][0]["path"]) == os.fsencode(odd)


def test_health_names_the_space_and_counts_its_vectors(server: Running, store: Store) -> None:
    health = {"space": "known", "dim": DIM, "vectors": 13}  # one of them is dead
    assert server.ask(path="/healthz") == (200, health)
    assert server.ask(path="/healthz", method="HEAD") == (200, None)
    drop_space(store.catalog, store.lease, "known")
    assert server.ask(path="/healthz") == (200, {"space": None, "dim": None, "vectors": 0})
    status, code, message = server.refused({"image_id": 1})
    assert (status, code) == (503, "space")
    assert message.startswith("there is no space yet")
    assert server.said == [message]


GIVE = "give one of image_id, vector, text and plus"
BAD_QUESTIONS = [
    ({}, GIVE),
    ({"image_id": 1, "vector": [1.0]}, GIVE),
    ({"image_id": "1"}, "image_id: Input should be a valid integer"),
    ({"image_id": -1}, "image_id: Input should be greater than or equal to 0"),
    ({"image_id": 2**63}, "image_id: Input should be less than 9223372036854775808"),
    ({"image_id": 1, "k": 0}, "k: Input should be greater than or equal to 1"),
    ({"image_id": 1, "k": 1001}, "k: Input should be less than or equal to 1000"),
    ({"image_id": 1, "path": "/etc/passwd"}, "path: Extra inputs are not permitted"),
    ({"vector": ["x"]}, "vector: Input should be a valid number"),
    ({"vector": [float("nan")] * DIM}, "this is no JSON: NaN is no number"),
    ({"vector": []}, "vector: List should have at least 1 item after validation, not 0"),
    ({"plus": []}, GIVE),
    ({"plus": [1, "x"]}, "plus: Input should be a valid integer"),
    ({"image_id": 1, "distinct": 0}, "distinct: Input should be greater than 0"),
    ({"image_id": 1, "skip": 9001}, "skip: Input should be less than or equal to 9000"),
    ({"text": ""}, "text: String should have at least 1 character"),
    ([1], "the JSON must be an object"),
]


def test_a_question_must_make_sense(server: Running) -> None:
    for body, message in BAD_QUESTIONS:
        assert server.refused(body) == (400, "bad_request", message)


def test_what_is_no_json_and_what_is_no_option_is_said(server: Running) -> None:
    status, code, message = server.refused(b"{", Content_Type="application/json")
    assert (status, code) == (400, "bad_request")
    assert message.startswith("this is no JSON")
    status, code, message = server.refused(b"picture", path="/api/search?k=many")
    assert (status, code, message[:3]) == (400, "bad_request", "k: ")
    for query in ("under=/etc", "k=1&k=2", "k=null", "min_score=null", "no_self=1", "k=1.5", "k="):
        assert server.refused(b"picture", path=f"/api/search?{query}")[:2] == (400, "bad_request")


def test_a_vector_must_fit_the_space(server: Running) -> None:
    for vector, message in (
        ([1.0, 0.0], f"the vector has 2 numbers, the space 'known' has {DIM}"),
        ([1.0] * DIM, "the vector has norm 4, it must be 1"),
        ([1e300] * DIM, "the vector has norm 4e+300, it must be 1"),
        ([0.0] * DIM, "the vector has norm 0, it must be 1"),
    ):
        assert server.refused({"vector": vector}) == (400, "wrong_vector", message)
    assert server.said == []


def bomb() -> bytes:
    out = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(out, "PNG")
    return out.getvalue()


def test_what_is_no_picture_is_refused_as_the_index_does(server: Running) -> None:
    for data, said in (
        (b"", "the file has no bytes"),
        (b"no picture at all", "no format that is decoded begins with"),
        (b"\x89PNG\r\n\x1a\n and no more", "PNG"),
        (bomb(), "12,000 x 12,000 pixels, limit 100,000,000 in all"),
    ):
        status, code, message = server.refused(data)
        assert (status, code) == (400, "unusable_picture")
        assert message.startswith("the picture: ")
        assert said in message
    assert server.said == []


def test_the_body_must_say_what_it_is(server: Running) -> None:
    for kind in ("", "text/plain", "multipart/form-data; boundary=x"):
        assert server.refused(b"bytes", Content_Type=kind)[:2] == (415, "unsupported_body")


def test_other_paths_and_methods_have_errors_of_the_same_shape(server: Running) -> None:
    assert server.refused(path="/nothing") == (404, "not_found", "there is nothing at this address")
    assert server.refused(path="/api/search")[:2] == (405, "method_not_allowed")
    assert server.refused({}, path="/docs")[:2] == (404, "not_found")


def test_an_image_that_is_not_there_is_not_found(server: Running) -> None:
    said = "no image 999 has a vector in the space 'known'"
    assert server.refused({"image_id": 999}) == (404, "unknown_image", said)


def head(*lines: str) -> bytes:
    first = ("POST /api/search HTTP/1.1", "Host: localhost", "Content-Type: image/png")
    return "\r\n".join((*first, *lines, "", "")).encode()


def test_a_body_that_is_too_large_is_refused_before_it_has_come(server: Running) -> None:
    picture = b"x" * (SMALL.picture_bytes + 1)
    told = (413, "too_large", "the body has more than 100,000 bytes")
    assert server.refused(picture) == told
    assert server.refused(picture[1:])[1] == "unusable_picture"
    assert server.refused({"vector": [0.1] * 1000})[:2] == (413, "too_large")
    # Nothing but the head is sent.
    assert b" 413 " in server.raw(head("Content-Length: 100000000000"))
    # The head says nothing, and the end is not sent.
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    assert b" 413 " in server.raw(head("Transfer-Encoding: chunked"), *[chunk] * 7)


def test_who_sends_too_slowly_or_goes_away_holds_up_nobody(server: Running, tree: Path) -> None:
    assert b" 408 " in server.raw(head("Content-Length: 1000"), b"x")
    socket.create_connection(server.place).close()
    with socket.create_connection(server.place) as conn:
        conn.sendall(head("Content-Length: 1000") + b"x")
    assert server.ask((tree / "a/0.png").read_bytes())[0] == 200  # the one place is free again
    assert server.said == []


OWN_NAMES = ("localhost:1", "LOCALHOST", "127.0.0.1", "[::1]:8765")
FOREIGN_NAMES = (
    "evil.example",
    "localhost.evil.example:8765",
    "127.0.0.1.evil.example",
    "evil.example@127.0.0.1.",
    "[::1",
    "",
)


def test_a_loopback_server_goes_by_its_own_names_only(server: Running) -> None:
    for name in OWN_NAMES:
        assert server.ask(path="/healthz", Host=name)[0] == 200
        assert server.ask({"image_id": 1}, Host=name)[0] == 200
    for name in FOREIGN_NAMES:
        assert server.refused(path="/healthz", Host=name)[:2] == (421, "wrong_host")
        assert server.refused({"image_id": 1}, Host=name)[:2] == (421, "wrong_host")


def test_a_token_is_asked_for_where_there_is_one(store: Store, tree: Path, tmp_path: Path) -> None:
    store.index(tree, store.space())
    right = f"Bearer {TOKEN}".encode().decode("latin-1")  # as bytes go into a header
    with follow(store, tmp_path) as follower, running(follower, TOKEN) as server:
        question = {"image_id": 1}
        for wrong in ("", "Bearer", "Bearer ", "Bearer wrong", f"Basic {right[7:]}", right + "x"):
            assert server.refused(question, Authorization=wrong)[:2] == (401, "unauthorized")
        assert server.ask(question, Authorization=right)[0] == 200
        assert server.ask(question, Authorization=right.replace("Bearer", "bearer"))[0] == 200
        assert server.ask(path="/healthz")[0] == 200
        assert server.refused(path="/nothing")[0] == 401


def test_only_a_loopback_address_needs_no_token(store: Store, tree: Path, tmp_path: Path) -> None:
    store.index(tree, store.space())
    with follow(store, tmp_path) as follower:
        for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
            assert is_loopback(host)
            make_app(follower, Address(host), say=print)
        for host in ("0.0.0.0", "::", "192.168.1.5", "localhost.example.com", ""):
            assert not is_loopback(host)
            make_app(follower, Address(host, token="x"), say=print)
            for token in (None, "", " \n"):
                with pytest.raises(ServeError, match="set LOOKALIKE_TOKEN"):
                    make_app(follower, Address(host, token=token), say=print)


def test_trouble_with_the_store_is_the_servers(store: Store, tree: Path, tmp_path: Path) -> None:
    space = store.space()
    store.index(tree, space)
    folder = Path(store.catalog.home.parts_dir(space.fingerprint))
    kept = folder.with_name("kept")
    folder.rename(kept)
    with follow(store, tmp_path) as follower, running(follower) as server:
        status, code, message = server.refused({"image_id": 1})
        assert (status, code) == (503, "store")
        assert "is missing" in message
        assert server.said == [message]
        kept.rename(folder)
        assert server.ask({"image_id": 1})[0] == 200
        folder.rename(kept)  # what is open stays open
        assert server.ask({"image_id": 1})[0] == 200
        kept.rename(folder)


def test_a_broken_index_is_told_once_to_whoever_runs_the_server(
    store: Store, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.index(tree, store.space())
    store.publish(store.space())
    monkeypatch.setattr("storage.lookup.Lookup.__init__.__kwdefaults__", {"exact_below": 1})
    [file] = Path(store.catalog.home.path).rglob("*.faiss")
    file.write_bytes(b"no index")
    with follow(store, tmp_path) as follower, running(follower) as server:
        for _ in range(3):
            status, value = server.ask({"image_id": 1})
            assert (status, len(value["hits"])) == (200, 10)
        assert len(server.said) == 1
        assert "searched without the index" in server.said[0]


def test_a_space_whose_network_is_gone_answers_what_it_knows(
    server: Running, tree: Path, tmp_path: Path
) -> None:
    """The space has the request of a network that gives other vectors than its own."""
    assert server.ask((tree / "a/0.png").read_bytes())[0] == 200
    status, code, message = server.refused(draw(tmp_path / "new.png", 500).read_bytes())
    assert (status, code) == (503, "space")
    assert "bring back the weights" in message


def test_the_server_goes_over_to_the_space_in_use(
    server: Running, store: Store, tree: Path
) -> None:
    store.index(tree, store.space("other"))
    assert server.ask({"image_id": 1})[1]["space"] == "known"
    use_space(store.catalog, "other")
    assert server.ask({"image_id": 1})[1]["space"] == "other"
    assert server.ask(path="/healthz")[1]["space"] == "other"


class TestCommand:
    """``lookalike serve`` in a process of its own."""

    @pytest.fixture
    def shop(self, sqlite_template: str, tmp_path: Path, tree: Path) -> Path:
        from storage.catalog import Catalog
        from storage.home import Home

        home = tmp_path / "home"
        home.mkdir(mode=0o700)
        shutil.copy(sqlite_template, home / "catalog.sqlite")
        with Catalog.open(Home(str(home)), write=True) as catalog:
            store = Store(catalog)
            store.index(tree, store.space())
            store.close()
        return home

    @contextlib.contextmanager
    def serving(self, home: Path, *args: str) -> Iterator[tuple[subprocess.Popen[str], Running]]:
        command = [sys.executable, "-m", "flows.cli", "serve", "--home", str(home), "--port", "0"]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            [*command, *args], cwd=CHECKOUT, text=True, stdout=pipe, stderr=pipe
        ) as process:
            try:
                assert process.stdout is not None
                yield process, Running(process.stdout.readline().strip(), [])
            finally:
                process.kill()

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
    def test_it_says_where_it_is_and_ends_cleanly(
        self, shop: Path, number: signal.Signals, code: int
    ) -> None:
        with self.serving(shop) as (process, server):
            assert server.url.startswith("http://127.0.0.1:")
            assert server.ask({"image_id": 1, "k": 3})[0] == 200
            with socket.create_connection(server.place):
                started = time.monotonic()
                process.send_signal(number)
                out, err = process.communicate(timeout=30)
            assert time.monotonic() - started < 8
            assert process.returncode == code
            assert out == ""
            assert err == ("lookalike: interrupted\n" if code else "")

    def test_it_goes_by_the_names_that_it_is_given(self, shop: Path) -> None:
        names = ("pictures.example", "other.example")
        options = [word for name in names for word in ("--allow-host", name)]
        with self.serving(shop, *options) as (_, server):
            for name in (*names, "localhost"):
                assert server.ask(path="/healthz", Host=name)[0] == 200
            assert server.refused(path="/healthz", Host="evil.example")[:2] == (421, "wrong_host")

    def test_what_it_can_not_do_is_one_line(self, shop: Path, tmp_path: Path) -> None:
        home = ("--home", str(shop))
        env = {"LOOKALIKE_TOKEN": ""}
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            for args, code, said in (
                (("--port", port, *home), 2, "--port 0 takes a free one"),
                (("--host", "0.0.0.0", *home), 2, "set LOOKALIKE_TOKEN"),
                (("--host", "no.such.host.invalid", *home), 2, "set LOOKALIKE_TOKEN"),
                (("--space", "none", *home), 2, "there are: known"),
                (("--home", str(tmp_path / "nothing")), 5, "nothing is indexed yet"),
            ):
                done = lookalike("serve", *args, code=code, env=env)
                assert said in done.stderr
                assert done.stderr.startswith("lookalike: ")
                assert done.stderr.count("\n") == 1
                assert done.stdout == ""

    def test_a_search_loads_no_server(self, shop: Path, tree: Path) -> None:
        modules = loaded("search", "--home", str(shop), str(tree / "a/0.png"))
        assert not modules & {"fastapi", "starlette", "uvicorn", "torch", "prefect"}
