"""What nobody should send: each is refused in the one shape, and the server lives on."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest

from search.bodies import SMALL_BYTES
from search.desk import THREADS
from search.following import Follower
from tests.search.serving import SMALL, Running, parsed, received, running
from tests.search.stores import Store

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

SECRET = "nobody may read this"


@pytest.fixture
def follower(store: Store, tree: Path, tmp_path: Path) -> Iterator[Follower]:
    store.index(tree, store.space())
    (tmp_path / "secret.txt").write_text(SECRET)
    (tree / "secret.txt").write_text(SECRET)
    with Follower(store.catalog.home, device="cpu", cache=str(tmp_path / "cache")) as made:
        yield made


@pytest.fixture
def server(follower: Follower) -> Iterator[Running]:
    """Yield a server that is asked something at the end, which it must answer."""
    with running(follower) as made:
        yield made
        assert made.ask({"image_id": 1})[0] == 200
        assert made.said == []


UP = (
    "..",
    "%2e%2e",
    "..%2f",
    "..%5c",
    "%2e%2e%2f",
    "%252e%252e",
    "..;",
    "....//",
    "..%c0%af",
    "\\..",
)
TARGETS = ("etc/passwd", "secret.txt", "search/server.py", "../../../../../../etc/passwd")


def traversals(secret: Path) -> list[str]:
    """Return 60 ways to name a file that lies elsewhere."""
    climbs = [f"{up}/{target}" for up in UP for target in TARGETS]
    plain = quote(str(secret), safe="")
    others = [
        *(plain, f"/{secret}", f"//{secret}", f"file://{secret}", f"%2f{plain}", f"{plain}%00.png"),
        *(
            "%00",
            "1%00",
            "1/../../etc/passwd",
            "1%2f..%2f..%2fetc%2fpasswd",
            ".",
            "%2e",
            "~",
            "~root",
        ),
        *(
            "C:%5cWindows%5cwin.ini",
            "%5c%5chost%5cshare",
            "app.css/../../layout.py",
            "css%2f..%2f..",
        ),
        *("-1", "0x1"),
    ]
    return climbs + others


ROUTES = (
    "/api/images/{}",
    "/api/thumbnails/{}",
    "/api/folders/{}",
    "/api/folders/r1?after={}",
    "/api/folders/r1?folders_after={}",
    "/api/thumbnails/1?size={}",
    "/images/{}",
    "/folders/{}",
    "/static/{}",
)


def test_no_address_leads_to_a_file(server: Running, tmp_path: Path) -> None:
    ways = traversals(tmp_path / "secret.txt")
    assert len(set(ways)) == 60
    for way in ways:
        for route in ROUTES:
            path = route.format(way)
            lines = (f"GET {path} HTTP/1.1", "Host: localhost", "Connection: close")
            answered = parsed(server.raw("\r\n".join((*lines, "", "")).encode()))
            assert SECRET.encode() not in answered.body, path
            assert b"root:" not in answered.body, path
            assert 400 <= answered.status < 500, path
            assert answered.refusal[0] == answered.status, path
        where = {"image_id": 1, "within": [way]}
        assert server.refused(where)[0] in (400, 404)
        assert server.refused({"image_id": way})[0] == 400
        for name in ("within", "plus", "minus", "k"):
            refusal = server.refused({"image_id": 1}, path=f"/api/search?{name}={quote(way)}")
            assert refusal[0] in (400, 404), way


def head(method: str, path: str, *lines: str) -> bytes:
    first = (f"{method} {path} HTTP/1.1", "Host: localhost")
    return "\r\n".join((*first, *lines, "", "")).encode()


PICTURE = "Content-Type: image/png"
JSON = "Content-Type: application/json"
FORM = "Content-Type: multipart/form-data; boundary=x"


class TestBodies:
    """Bodies that are too large, too slow, or broken."""

    @pytest.mark.parametrize(
        ("path", "kind", "most"),
        [
            ("/api/search", PICTURE, SMALL.picture_bytes),
            ("/api/search", JSON, SMALL.json_bytes),
            ("/api/retry", JSON, SMALL.json_bytes),
            ("/search", FORM, SMALL.picture_bytes + (1 << 20)),
            ("/search", "Content-Type: application/x-www-form-urlencoded", 1 << 20),
            ("/login", "Content-Type: application/x-www-form-urlencoded", SMALL_BYTES),
        ],
    )
    def test_too_large_is_refused_early(
        self, server: Running, path: str, kind: str, most: int
    ) -> None:
        # Nothing but the head is sent, and a length that is none of them.
        for length in (most + 1, 10**12, 10**18):
            got = parsed(server.raw(head("POST", path, kind, f"Content-Length: {length}")))
            assert got.refusal[:2] == (413, "too_large"), length
        # The head says nothing, and the end never comes.
        piece = b"--x\r\nContent-Disposition: form-data; name=picture; filename=a\r\n\r\n"
        piece += b"y" * 0x10000
        chunk = b"%x\r\n%s\r\n" % (len(piece), piece)
        pieces = [chunk] * (most // len(piece) + 2)
        got = parsed(server.raw(head("POST", path, kind, "Transfer-Encoding: chunked"), *pieces))
        assert got.refusal[0] in (400, 413)

    @pytest.mark.parametrize(
        ("path", "kind"),
        [
            ("/api/search", PICTURE),
            ("/api/search", JSON),
            ("/api/retry", JSON),
            ("/search", FORM),
            ("/login", "Content-Type: application/x-www-form-urlencoded"),
        ],
    )
    def test_too_slow_is_refused(self, server: Running, path: str, kind: str) -> None:
        started = time.monotonic()
        got = parsed(server.raw(head("POST", path, kind, "Content-Length: 100"), b"-"))
        assert got.refusal[:2] == (408, "too_slow")
        assert time.monotonic() - started < 10

    def test_a_drop_now_and_then_does_not_help(self, server: Running) -> None:
        """Each piece comes soon after the one before; all of them take too long."""
        started = time.monotonic()
        with socket.create_connection(server.place, timeout=30) as conn:
            conn.sendall(head("POST", "/api/search", PICTURE, "Content-Length: 100000"))
            with contextlib.suppress(ConnectionError):
                while time.monotonic() - started < 5:
                    conn.sendall(b"x")
                    time.sleep(0.1)
                    conn.settimeout(0.01)
                    with contextlib.suppress(TimeoutError):
                        if conn.recv(65536):
                            break
        assert time.monotonic() - started < 5

    def test_broken_forms_are_refused(self, server: Running) -> None:
        part = b"--x\r\nContent-Disposition: form-data; name=picture; filename=a\r\n\r\n"
        bodies = (
            b"",
            b"no form",
            b"--x",
            b"--x\r\n\r\nno name\r\n--x--\r\n",
            b"--x\r\nContent-Disposition: form-data\r\n\r\nno name\r\n--x--\r\n",
            part + b"no end",
            part * 3 + b"--x--\r\n",
            (part + b"a\r\n") * 2 + b"--x--\r\n",
            b"--x\r\n" + b"A: b\r\n" * 5000 + b"\r\n--x--\r\n",
            b"--x\r\n\x00\xff: \xff\r\n\r\n--x--\r\n",
        )
        for body in bodies:
            kind = "multipart/form-data; boundary=x"
            answered = server.send("POST", "/search", body, Content_Type=kind)
            assert 200 <= answered.status < 500, body
        for kind in ("multipart/form-data", "multipart/form-data; boundary=" + "x" * 300):
            answered = server.send("POST", "/search", b"--x", Content_Type=kind)
            assert answered.refusal[0] == 400, kind
        for path, kind in (
            ("/search", "application/json"),
            ("/login", "application/json"),
            ("/login", "multipart/form-data; boundary=x"),  # no picture comes in without a token
        ):
            answered = server.send("POST", path, b"{}", Content_Type=kind)
            assert answered.refusal[:2] == (415, "unsupported_body")

    @pytest.mark.parametrize(
        "charset", ["punycode", "undefined", "unicode_escape", "utf-7", "idna"]
    )
    def test_no_client_chooses_how_a_form_is_decoded(self, server: Running, charset: str) -> None:
        # Python's decoder of punycode takes time by the square of what it is given.
        part = b"--x\r\nContent-Disposition: form-data; name=text\r\n\r\n-" + b"a" * 500_000
        kind = f"multipart/form-data; boundary=x; charset={charset}"
        started = time.monotonic()
        answered = server.send("POST", "/search", part + b"\r\n--x--\r\n", Content_Type=kind)
        assert answered.refusal[:2] == (415, "unsupported_body")
        assert time.monotonic() - started < 1

    def test_a_form_in_utf8_may_say_so(self, server: Running) -> None:
        part = b"--x\r\nContent-Disposition: form-data; name=image\r\n\r\n1\r\n--x--\r\n"
        kind = 'multipart/form-data; boundary=x; charset="UTF-8"'
        assert server.send("POST", "/search", part, Content_Type=kind).status != 415

    def test_a_picture_in_a_form_is_bounded_as_a_bare_one_is(self, server: Running) -> None:
        begin = b"--x\r\nContent-Disposition: form-data; name=picture; filename=a\r\n\r\n"
        body = begin + b"y" * (SMALL.picture_bytes + 1) + b"\r\n--x--\r\n"
        kind = "multipart/form-data; boundary=x"
        assert server.send("POST", "/search", body, Content_Type=kind).status == 413

    def test_broken_json_is_refused(self, server: Running) -> None:
        for body in (
            b"",
            b"{",
            b"\xff\xfe",
            b"\x00",
            b'{"image_id": 1' + b" " * 100,
            b"[" * 900,
            b'{"a":' * 300,
            b'{"image_id": ' + b"9" * 1500 + b"}",
            b'{"image_id": 1e999}',
            b'{"vector": [1e999]}',
            b'{"text": "\\ud800"}',
            b'{"\\ud800": 1, "image_id": 1}',
            b'{"image_id": 1, "image_id": "x"}',
            b"null",
            b'"text"',
        ):
            refusal = server.refused(body, Content_Type="application/json")
            assert refusal[:2] == (400, "bad_request"), body

    def test_nothing_that_is_sent_is_kept(
        self, server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kept = tmp_path / "temporary"
        kept.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(kept))
        watched: set[str] = set()
        ends = threading.Event()

        def watch() -> None:
            while not ends.is_set():
                watched.update(path.name for path in kept.iterdir())

        watcher = threading.Thread(target=watch)
        watcher.start()
        begin = b"--x\r\nContent-Disposition: form-data; name=picture; filename=a\r\n\r\n"
        picture = b"\x89PNG" + b"y" * (SMALL.picture_bytes - 100)  # ends before the network's turn
        body = begin + picture + b"\r\n--x--\r\n"
        kind = "multipart/form-data; boundary=x"
        for _ in range(5):
            server.send("POST", "/search", body, Content_Type=kind)
        ends.set()
        watcher.join()
        assert watched == set()


class TestHeads:
    """First lines and headers."""

    def test_what_is_no_http_is_refused_in_the_one_shape(self, server: Running) -> None:
        for sent in (
            b"\r\n\r\n\r\nhello\r\n\r\n",
            b"GET\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",  # without a host
            b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
            b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
            b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS\r\n\r\n",
        ):
            answered = parsed(server.raw(sent))
            assert answered.refusal[:2] == (400, "bad_request"), sent
            assert answered.headers["connection"] == "close"
            assert "default-src 'none'" in answered.headers["content-security-policy"]

    def test_a_broken_body_ends_its_request_alone(self, server: Running) -> None:
        sent = head("POST", "/api/search", JSON, "Transfer-Encoding: chunked") + b"zz\r\n\r\n"
        assert parsed(server.raw(sent)).refusal[:2] == (400, "bad_request")

    def test_huge_headers_are_refused(self, server: Running) -> None:
        for sent in (
            head("GET", "/healthz", *(f"X-{i}: {'y' * 1000}" for i in range(50))),
            head("GET", "/healthz", f"Cookie: {'y' * 100_000}"),
            head("GET", "/" + "y" * 100_000),
            head("GET", "/healthz?" + "k=1&" * 25_000),
        ):
            assert parsed(server.raw(sent)).refusal[:2] == (431, "large_headers")

    def test_a_head_that_does_not_end_is_refused(self, server: Running) -> None:
        started = time.monotonic()
        answered = parsed(server.raw(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-"))
        assert answered.refusal[:2] == (408, "too_slow")
        with socket.create_connection(server.place, timeout=30) as conn:
            assert conn.recv(1) == b""  # nothing is sent, and nothing is answered
        with socket.create_connection(server.place, timeout=30) as conn:
            for n in range(2):  # the second one on the same connection never ends
                conn.sendall(head("GET", "/healthz")[: None if n == 0 else -2])
                got = received(conn)
                assert (b" 200 " if n == 0 else b" 408 ") in got
        assert time.monotonic() - started < 15

    def test_every_other_method_is_refused(self, server: Running) -> None:
        for path in (
            "/api/search",
            "/api/status",
            "/api/images/1",
            "/healthz",
            "/",
            "/static/app.css",
        ):
            for method in ("PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "BREW"):
                answered = server.send(method, path)
                assert answered.refusal[:2] == (405, "method_not_allowed"), (method, path)
                assert answered.headers["allow"]

    def test_other_names_are_refused(self, server: Running, follower: Follower) -> None:
        names = ("evil.example", "localhost.evil.example", "127.0.0.2", "0.0.0.0", "[::2]", "@", "")
        for name in names:
            for path in ("/", "/healthz", "/api/status", "/static/app.css", "/login", "/nothing"):
                assert server.send("GET", path, Host=name).refusal[:2] == (421, "wrong_host")
        with running(follower, allowed=("pictures.example", "[fd00::1]")) as other:
            for name in ("pictures.example", "PICTURES.EXAMPLE:443", "[fd00::1]:80", "localhost"):
                assert other.send("GET", "/healthz", Host=name).status == 200
            assert other.send("GET", "/healthz", Host="evil.example").refusal[0] == 421

    def test_other_origins_are_refused(self, server: Running) -> None:
        port = server.place[1]
        for origin in (
            "https://evil.example",
            "null",
            "http://127.0.0.1",
            f"http://localhost:{port}",  # another origin than the address that is asked
            f"http://127.0.0.1:{port}.evil.example",
            "http://[",
            "",
        ):
            for method, path in (
                ("POST", "/api/search"),
                ("POST", "/login"),
                ("GET", "/api/status"),
            ):
                answered = server.send(method, path, Origin=origin)
                assert answered.refusal[:2] == (403, "cross_origin"), (origin, path)
        for site in ("cross-site", "same-site", "what"):
            for path in ("/api/thumbnails/1", "/api/map", "/static/app.css"):
                answered = server.send("GET", path, Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors")
                assert answered.refusal[:2] == (403, "cross_origin")
        # A link that a person follows leads here all the same.
        link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
        assert server.send("GET", "/", **link).status == 200
        own = {"Origin": server.url, "Sec_Fetch_Site": "same-origin"}
        assert server.ask({"image_id": 1}, **own)[0] == 200


class TestTooMuch:
    """More at once than the server takes on."""

    def test_more_questions_than_may_wait_are_refused_at_once(
        self, follower: Follower, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        held = threading.Event()
        answered = follower.ask

        def slow(question: object) -> object:
            held.wait(30)
            return answered(question)  # type: ignore[arg-type]

        monkeypatch.setattr(follower, "ask", slow)
        limits = replace(SMALL, waiting=4)
        with running(follower, limits=limits) as server, ThreadPoolExecutor(60) as pool:
            asked = [pool.submit(server.ask, {"image_id": 1}) for _ in range(THREADS + 4 + 8)]
            deadline = time.monotonic() + 20
            while sum(one.done() for one in asked) < 8 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert server.ask(path="/healthz")[0] == 200
            assert server.ask(path="/api/status")[0] == 200
            held.set()
            statuses = sorted(one.result()[0] for one in asked)
        assert statuses == [200] * (THREADS + 4) + [503] * 8
        assert {one.result()[1]["error"]["code"] for one in asked if one.result()[0] == 503} == {
            "busy"
        }

    def test_who_sends_half_a_picture_and_then_nothing_holds_up_nobody(
        self, follower: Follower
    ) -> None:
        limits = replace(SMALL, seconds=60, silence=0.3, pictures=1)
        with running(follower, limits=limits) as server, ThreadPoolExecutor(4) as pool:
            sent = head("POST", "/api/search", PICTURE, "Content-Length: 100")
            silent = [pool.submit(server.raw, sent, b"ab") for _ in range(4)]
            started = time.monotonic()
            assert server.ask(b"no picture")[0] == 400
            assert {parsed(one.result()).refusal[:2] for one in silent} == {(408, "too_slow")}
            assert time.monotonic() - started < 10

    def test_failures_that_wait_for_the_catalog_keep_no_reader_waiting(
        self, follower: Follower, store: Store
    ) -> None:
        with running(follower) as server, ThreadPoolExecutor(8) as pool:
            with store.catalog.write():  # as a large commit has it for a while
                armed = [pool.submit(server.ask, {}, path="/api/retry") for _ in range(8)]
                time.sleep(0.3)
                assert not any(one.done() for one in armed)
                started = time.monotonic()
                assert server.ask(path="/api/status")[0] == 200
                assert server.send("GET", "/folders", Accept="text/html").status == 200
                assert time.monotonic() - started < 5
            assert {one.result()[0] for one in armed} == {200}

    def test_an_answer_that_takes_too_long_is_given_up(
        self, follower: Follower, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        held = threading.Event()
        answered = follower.ask
        monkeypatch.setattr(follower, "ask", lambda question: held.wait(30) and answered(question))
        with running(follower, limits=replace(SMALL, answer_seconds=0.3)) as server:
            assert server.refused({"image_id": 1})[:2] == (503, "too_long")
            assert server.ask(path="/healthz")[0] == 200
            held.set()
            assert server.ask({"image_id": 1})[0] == 200
            assert server.said == []

    def test_a_picture_waits_for_the_others_for_a_while_only(self, follower: Follower) -> None:
        limits = replace(SMALL, pictures=1, seconds=20.0, answer_seconds=0.3)
        with running(follower, limits=limits) as server:
            with socket.create_connection(server.place) as conn:
                conn.sendall(head("POST", "/api/search", PICTURE, "Content-Length: 10") + b"x")
                deadline = time.monotonic() + 20
                while server.refused(b"picture")[1] != "busy":
                    assert time.monotonic() < deadline
                assert server.ask({"image_id": 1})[0] == 200
            while server.refused(b"picture")[1] != "unusable_picture":
                assert time.monotonic() < deadline

    def test_more_requests_than_are_let_in_are_refused(self, follower: Follower) -> None:
        limits = replace(SMALL, requests=5, seconds=20.0)
        with running(follower, limits=limits) as server, contextlib.ExitStack() as stack:
            for _ in range(5):
                conn = stack.enter_context(socket.create_connection(server.place))
                conn.sendall(head("POST", "/api/search", JSON, "Content-Length: 10"))
            deadline = time.monotonic() + 20
            while server.send("GET", "/api/status").status == 200 and time.monotonic() < deadline:
                time.sleep(0.01)
            answered = server.send("GET", "/api/status")
            assert answered.refusal[:2] == (503, "busy")
            assert answered.headers["retry-after"] == "1"
            assert server.ask(path="/healthz")[0] == 200
            stack.close()
            deadline = time.monotonic() + 20
            while server.send("GET", "/api/status").status != 200:
                assert time.monotonic() < deadline
                time.sleep(0.01)

    def test_more_connections_than_may_be_open_are_refused(self, follower: Follower) -> None:
        limits = replace(SMALL, connections=6, head_seconds=20.0)
        with running(follower, limits=limits) as server, contextlib.ExitStack() as stack:
            for _ in range(6):
                stack.enter_context(socket.create_connection(server.place))
            time.sleep(0.2)
            with socket.create_connection(server.place, timeout=30) as conn:
                got = parsed(received(conn))
            assert got.refusal[:2] == (503, "busy")
            stack.close()
            deadline = time.monotonic() + 20
            while b" 200 " not in server.raw(head("GET", "/healthz")):
                assert time.monotonic() < deadline
                time.sleep(0.01)

    def test_no_page_asks_for_more_than_there_is(self, server: Running) -> None:
        assert server.ask({"image_id": 1, "k": 1000, "skip": 9000})[1]["hits"] == []
        assert server.refused({"image_id": 1, "k": 1000, "skip": 9001})[1] == "bad_request"
        assert server.refused({"plus": [1] * 101})[1] == "bad_request"
        assert server.refused({"image_id": 1, "within": ["r1"] * 101})[1] == "bad_request"
