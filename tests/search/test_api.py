"""The API over real HTTP: each answer is held against the store, asked without the server."""

import hashlib
import io
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import insert, select

from search.collection import failure_classes
from search.engine import Searcher
from search.following import Follower
from search.overview import overview
from search.questions import Example, Question, Wanted
from search.thumbnails import SIZES
from storage.spaces import drop_space
from storage.tables import Failure
from storage.tables import Image as Known
from tests.search.serving import Answered, Running, running
from tests.search.stores import DIM, Store, digest_of, draw, vector_of

TOKEN = "a sécret of some length"


@pytest.fixture
def follower(store: Store, tree: Path, tmp_path: Path) -> Iterator[Follower]:
    """Yield who knows the tree's 12 images."""
    store.index(tree, store.space(), chunk=5)
    with Follower(store.catalog.home, device="cpu", cache=str(tmp_path / "cache")) as made:
        yield made


@pytest.fixture
def server(follower: Follower) -> Iterator[Running]:
    with running(follower) as made:
        yield made


def get(server: Running, path: str, status: int = 200) -> Any:
    answered = server.send("GET", path)
    assert answered.status == status
    return answered.json


def ids_of(store: Store) -> dict[bytes, int]:
    with store.catalog.read() as conn:
        return {row.digest: row.id for row in conn.execute(select(Known.digest, Known.id))}


def hits_of(store: Store, question: Question, wanted: Wanted) -> list[int]:
    with Searcher(store.catalog.home) as searcher:
        return [hit.image_id for hit in searcher.reply(question, wanted).hits]


def found(value: Any) -> list[int]:
    return [hit["image_id"] for hit in value["hits"]]


class TestSearch:
    """``POST /api/search``."""

    def test_pages_make_the_whole(self, server: Running) -> None:
        whole = server.ask({"image_id": 1, "k": 12})[1]
        assert not whole["more"]
        pages = [server.ask({"image_id": 1, "k": 5, "skip": skip})[1] for skip in (0, 5, 10)]
        assert [page["more"] for page in pages] == [True, True, False]
        assert [hit for page in pages for hit in page["hits"]] == whole["hits"]
        assert server.ask({"image_id": 1, "k": 5, "skip": 12})[1] == {
            "space": "known",
            "hits": [],
            "more": False,
        }

    def test_examples_are_those_of_the_search(
        self, server: Running, store: Store, tree: Path
    ) -> None:
        ids = ids_of(store)
        one, two, three = (ids[digest_of(tree / f"a/{i}.png")] for i in range(3))
        plus, minus = (Example(image_id=two),), (Example(image_id=three),)
        data = (tree / "a/0.png").read_bytes()
        vector = vector_of(digest_of(tree / "a/0.png"))
        beside = {"plus": [two], "minus": [three]}
        wanted = hits_of(store, Question((Example(image_id=one), *plus), minus), Wanted())
        query = f"/api/search?plus={two}&minus={three}"
        for body, path in (
            ({"image_id": one, **beside}, "/api/search"),
            ({"vector": vector.tolist(), **beside}, "/api/search"),
            ({"plus": [one, two], "minus": [three]}, "/api/search"),
            ({"image_id": one}, query),
            (data, query),
        ):
            assert found(server.ask(body, path=path)[1]) == wanted
        alone = hits_of(store, Question((Example(image_id=one),)), Wanted())
        assert found(server.ask({"image_id": one, "minus": []}, path=query + "&plus=9")[1]) != alone
        assert found(server.ask({"image_id": one, "plus": [], "minus": []}, path=query)[1]) == alone

    def test_filters_are_those_of_the_search(
        self, server: Running, store: Store, tree: Path
    ) -> None:
        example = Example(image_id=1)
        [root] = get(server, "/api/folders")["folders"]
        folders = {
            each["name"]: each for each in get(server, f"/api/folders/{root['place']}")["folders"]
        }
        within = [folders["b"]["place"]]
        for options, wanted in (
            ({"within": within}, Wanted(20, under=(os.fsencode(tree / "b"),))),
            ({"within": [root["place"]]}, Wanted(20)),
            ({"distinct": 0.2}, Wanted(20, distinct=0.2)),
            ({"no_self": True}, Wanted(20, no_self=True)),
            ({"min_score": 0.1}, Wanted(20, min_score=0.1)),
        ):
            expected = hits_of(store, Question((example,)), wanted)
            assert 0 < len(expected) <= 12
            value = server.ask({"image_id": 1, "k": 20, **options})[1]
            assert found(value) == expected
            query = urlencode({"k": 20, **options}, doseq=True).replace("True", "true")
            value = server.ask({"image_id": 1}, path=f"/api/search?{query}")[1]
            assert found(value) == expected

    def test_the_vector_that_was_searched_for_gives_the_same_hits(self, server: Running) -> None:
        asked = {"plus": [1, 2, 3], "minus": [4], "want_vector": True}
        value = server.ask(asked)[1]
        assert abs(np.linalg.norm(value["vector"]) - 1) < 1e-6
        again = server.ask({"vector": value["vector"]})[1]
        assert "vector" not in again
        assert found(again) == found(value)

    def test_what_is_not_there_is_said(self, server: Running) -> None:
        for body, status, code in (
            ({"image_id": 1, "within": ["r99"]}, 404, "unknown_place"),
            ({"image_id": 1, "within": ["f99-1"]}, 404, "unknown_place"),
            ({"image_id": 1, "within": ["/etc"]}, 400, "bad_request"),
            ({"image_id": 1, "plus": [99]}, 404, "unknown_image"),
            ({"image_id": 1, "minus": [99]}, 404, "unknown_image"),
            ({"text": "a red car"}, 400, "no_words"),
        ):
            assert server.refused(body)[:2] == (status, code), body
        assert server.said == []


class TestImages:
    """``GET /api/images/{id}`` and ``GET /api/thumbnails/{id}``."""

    def test_an_image_has_all_its_files(self, server: Running, store: Store, tree: Path) -> None:
        number = ids_of(store)[digest_of(tree / "a/3.png")]
        value = get(server, f"/api/images/{number}")
        paths = [str(tree / "a/3.png"), str(tree / "b/copy.png")]
        assert [file["path"] for file in value["files"]] == paths
        assert {file["root"] for file in value["files"]} == {str(tree)}
        assert {file["id"] for file in value["files"]} == {None}
        with Image.open(paths[0]) as picture:
            assert (value["width"], value["height"]) == picture.size
        assert value["size_bytes"] == os.path.getsize(paths[0])
        assert (value["image_id"], value["copies"], value["has_vector"]) == (number, 2, True)
        assert abs(value["first_seen"] - time.time()) < 600
        for file in value["files"]:
            names = {
                each["name"] for each in get(server, f"/api/folders/{file['place']}")["pictures"]
            }
            assert os.path.basename(file["path"]) in names

    def test_what_is_not_live_is_not_found(self, server: Running, store: Store, tree: Path) -> None:
        number = ids_of(store)[digest_of(tree / "a/1.png")]
        (tree / "a/1.png").unlink()
        store.index(tree, store.space())
        for address in (f"/api/images/{number}", f"/api/thumbnails/{number}", "/api/images/999"):
            assert server.refused(path=address)[:2] == (404, "unknown_image")

    def test_an_image_is_shown_while_there_is_no_space(self, server: Running, store: Store) -> None:
        drop_space(store.catalog, store.lease, "known")
        assert get(server, "/api/images/1")["has_vector"] is False
        assert server.send("GET", "/api/thumbnails/1").status == 200
        assert get(server, "/healthz") == {"space": None, "dim": None, "vectors": 0}
        assert b"lookalike_vectors{" not in server.send("GET", "/metrics").body

    def test_a_thumbnail_is_pixels_alone(self, server: Running, store: Store, tree: Path) -> None:
        exif = Image.Exif()
        exif[0x010E] = "a secret place"
        exif[0x0112] = 6  # on its side
        path = draw(tree / "a/large.jpg", 50, size=(900, 500), exif=exif, quality=80)
        assert b"a secret place" in path.read_bytes()
        store.index(tree, store.space())
        number = ids_of(store)[digest_of(path)]
        for size in SIZES:
            answered = server.send("GET", f"/api/thumbnails/{number}?size={size}")
            assert answered.status == 200
            assert answered.headers["content-type"] == "image/jpeg"
            assert answered.headers["x-content-type-options"] == "nosniff"
            assert answered.headers["cache-control"].startswith("private, max-age=")
            with Image.open(io.BytesIO(answered.body)) as made:
                assert made.format == "JPEG"
                assert made.height == min(size, 900)
                assert not made.getexif()
            assert b"secret" not in answered.body
        smallest = server.send("GET", f"/api/thumbnails/{number}")
        assert smallest.body == server.send("GET", f"/api/thumbnails/{number}?size=320").body

    def test_a_thumbnail_that_is_known_is_not_sent_again(self, server: Running) -> None:
        first = server.send("GET", "/api/thumbnails/1?size=160")
        tag = first.headers["etag"]
        for known in (tag, f'"x", W/{tag}', "*"):
            again = server.send("GET", "/api/thumbnails/1?size=160", If_None_Match=known)
            assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
        for other in ('"x"', ""):
            again = server.send("GET", "/api/thumbnails/1?size=160", If_None_Match=other)
            assert (again.status, again.body) == (200, first.body)
        assert server.send("GET", "/api/thumbnails/1?size=320").headers["etag"] != tag
        assert server.refused(path="/api/thumbnails/1?size=161")[:2] == (400, "bad_request")

    def test_what_is_no_longer_the_image_is_not_shown(
        self, server: Running, store: Store, tree: Path
    ) -> None:
        path = tree / "a/2.png"
        number = ids_of(store)[digest_of(path)]
        draw(path, 999)
        address = f"/api/thumbnails/{number}?size=640"
        status, code, message = server.refused(path=address)
        assert (status, code) == (404, "no_thumbnail")
        assert "has changed" in message
        assert get(server, f"/api/images/{number}")["width"] is None


class TestStore:
    """What the API tells of the store as a whole."""

    def test_the_status_is_that_of_the_command(self, server: Running, store: Store) -> None:
        assert get(server, "/api/status") == json.loads(json.dumps(overview(store.catalog)))

    def test_all_files_are_found_by_browsing(self, server: Running, tree: Path) -> None:
        seen: list[str] = []

        def browse(place: str, path: str) -> None:
            value = get(server, f"/api/folders/{place}")
            seen.extend(f"{path}/{picture['name']}" for picture in value["pictures"])
            for folder in value["folders"]:
                browse(folder["place"], f"{path}/{folder['name']}")

        for root in get(server, "/api/folders")["folders"]:
            browse(root["place"], root["name"])
        assert sorted(seen) == sorted(str(path) for path in tree.rglob("*.png"))

    def test_folders_come_in_pages(self, server: Running, store: Store, tree: Path) -> None:
        for i in range(65):
            draw(tree / f"many/{i:03d}/x.png", 1000 + i, size=(8, 8))
            draw(tree / f"many/{i:03d}.png", 2000 + i, size=(8, 8))
        store.index(tree, store.space())
        [root] = get(server, "/api/folders")["folders"]
        inside = get(server, f"/api/folders/{root['place']}")["folders"]
        [place] = [folder["place"] for folder in inside if folder["name"] == "many"]
        first = get(server, f"/api/folders/{place}")
        folders = get(server, f"/api/folders/{place}?folders_after={first['folders_after']}")
        names = [folder["name"] for folder in first["folders"] + folders["folders"]]
        assert names == [f"{i:03d}" for i in range(65)]
        pictures = get(server, f"/api/folders/{place}?after={first['after']}")
        names = [picture["name"] for picture in first["pictures"] + pictures["pictures"]]
        assert names == [f"{i:03d}.png" for i in range(65)]
        assert (pictures["after"], folders["folders_after"]) == (None, None)
        assert (pictures["folders"], folders["pictures"]) == ([], [])
        for wrong in ("x", "-1", "1.5", "9" * 30):
            address = f"/api/folders/{place}?after={wrong}"
            assert server.refused(path=address)[:2] == (400, "bad_request")

    def test_the_map_has_every_image(self, server: Running, store: Store) -> None:
        answered = server.send("GET", "/api/map")
        value = answered.json
        assert sorted(value["images"]) == sorted(ids_of(store).values())
        assert len(value["x"]) == len(value["y"]) == 12
        again = server.send("GET", "/api/map", If_None_Match=answered.headers["etag"])
        assert (again.status, again.body) == (304, b"")

    def test_what_is_new_is_found_without_a_restart(
        self, server: Running, store: Store, tree: Path
    ) -> None:
        path = draw(tree / "new.png", 700)
        vector = vector_of(digest_of(path)).tolist()
        assert server.ask({"vector": vector, "k": 1})[1]["hits"][0]["score"] < 0.99
        store.index(tree, store.space())
        [hit] = server.ask({"vector": vector, "k": 1})[1]["hits"]
        assert (hit["path"], round(hit["score"], 5)) == (str(path), 1)
        assert get(server, "/healthz") == {"space": "known", "dim": DIM, "vectors": 14}

    def test_a_publish_drops_no_question(self, server: Running, store: Store) -> None:
        wanted = server.ask({"image_id": 1})
        wrong: list[Any] = []
        asked = [0] * 4
        ends = threading.Event()

        def ask(i: int) -> None:
            while not ends.is_set():
                answer = server.ask({"image_id": 1})
                asked[i] += 1
                if answer != wanted:
                    wrong.append(answer)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(asked))]
        for thread in threads:
            thread.start()
        for _ in range(4):
            store.publish(store.space())
        ends.set()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert min(asked) > 0


class TestRetry:
    """``POST /api/retry``, the one request that writes."""

    @pytest.fixture
    def broken(self, store: Store, follower: Follower) -> int:
        """Return how many failures the store has, each of a live image."""
        digests = list(ids_of(store))[:3]
        values = {"stage": "decode", "decode_version": 1, "attempts": 1, "first_at": 1.0}
        values |= {"failure_class": "truncated", "message": "cut off", "transient": False}
        values |= {"last_at": 2.0, "run_id": store.lease.run_id}
        with store.catalog.write() as conn:
            conn.execute(insert(Failure), [{"digest": digest, **values} for digest in digests])
        return len(digests)

    def count(self, store: Store) -> int:
        return sum(each.n for each in failure_classes(store.catalog))

    def test_it_arms_failures(self, broken: int, server: Running, store: Store) -> None:
        assert self.count(store) == broken
        status, of_space = server.ask({"space": "known"}, path="/api/retry")
        assert (status, of_space) == (200, {"armed": broken - self.count(store)})
        rest = self.count(store)
        assert server.ask({}, path="/api/retry") == (200, {"armed": rest})
        assert self.count(store) == 0
        assert server.ask({}, path="/api/retry") == (200, {"armed": 0})

    def test_nobody_else_arms_them(self, broken: int, server: Running, store: Store) -> None:
        own = server.url
        for headers in (
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": own + "0"},
            {"Sec_Fetch_Site": "cross-site"},
            {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "navigate"},
        ):
            refusal = server.refused({}, path="/api/retry", **headers)
            assert refusal[:2] == (403, "cross_origin"), headers
        for body, status, code in (
            ({"space": "none"}, 404, "unknown_space"),
            ({"class": "truncated"}, 400, "bad_request"),
            ({"space": 1}, 400, "bad_request"),
            ([], 400, "bad_request"),
        ):
            assert server.refused(body, path="/api/retry")[:2] == (status, code)
        kind = {"Content_Type": "text/plain"}
        assert server.refused({}, path="/api/retry", **kind)[:2] == (415, "unsupported_body")
        assert server.refused(path="/api/retry")[:2] == (405, "method_not_allowed")
        assert self.count(store) == broken
        fine = {"Origin": own, "Sec_Fetch_Site": "same-origin"}
        assert server.ask({}, path="/api/retry", **fine)[0] == 200


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
class TestItself:
    """What the server tells of itself."""

    def metrics(self, server: Running) -> dict[tuple[str, tuple[str, ...]], float]:
        answered = server.send("GET", "/metrics")
        assert answered.headers["content-type"].startswith("text/plain; version=")
        families = text_string_to_metric_families(answered.body.decode())
        return {
            (sample.name, tuple(sorted(sample.labels.values()))): sample.value
            for family in families
            for sample in family.samples
        }

    def test_it_counts_what_it_answers(self, server: Running, store: Store) -> None:
        name = "lookalike_requests_total"
        before = self.metrics(server)
        assert before["lookalike_vectors", ("known",)] == 13
        assert before["lookalike_generation", ("known",)] == 0
        assert before["lookalike_model_loaded", ()] == 0
        server.ask({"image_id": 1})
        server.ask({"image_id": 2})
        server.refused({"image_id": 999})
        server.refused(path="/nothing/at/all")
        server.send("GET", "/api/images/1")
        server.send("GET", "/api/images/2")
        server.send("BREW", "/healthz")
        server.refused({"image_id": 1}, Host="evil.example")
        after = self.metrics(server)
        assert after[name, ("/api/search", "200", "POST")] == 2
        assert after[name, ("/api/search", "404", "POST")] == 1
        assert after[name, ("/api/images/{image_id}", "200", "GET")] == 2
        assert after[name, ("404", "GET", "none")] == 1
        assert after[name, ("421", "POST", "none")] == 1
        assert after[name, ("/healthz", "405", "other")] == 1
        assert after["lookalike_request_seconds_count", ("/api/search",)] == 3
        assert after["lookalike_questions", ("questions", "waiting")] == 0
        assert after["lookalike_questions", ("pictures", "running")] == 0
        store.publish(store.space())
        assert self.metrics(server)["lookalike_generation", ("known",)] > 0

    def test_each_answer_says_what_a_browser_may_do(self, server: Running) -> None:
        policy = (
            "default-src 'none'; img-src 'self' blob: data:; style-src 'self'; script-src 'self';"
            " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        )
        for path in ("/healthz", "/api/status", "/nothing", "/", "/metrics", "/api/docs"):
            for name in ("localhost", "evil.example"):
                headers = server.send("GET", path, Host=name, Accept="text/html").headers
                assert headers["content-security-policy"] == policy
                assert headers["x-content-type-options"] == "nosniff"
                assert headers["referrer-policy"] == "same-origin"
                assert headers["cross-origin-resource-policy"] == "same-origin"
                assert headers["cross-origin-opener-policy"] == "same-origin"
                assert "access-control-allow-origin" not in headers
                assert "cache-control" in headers

    def test_people_see_a_page_where_programs_see_json(self, server: Running) -> None:
        browser = "text/html,application/xhtml+xml,*/*;q=0.8"
        page = server.send("GET", "/nothing", Accept=browser)
        assert page.status == 404
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert b"there is nothing at this address" in page.body
        assert server.send("GET", "/api/nothing", Accept=browser).refusal[0] == 404

    def test_a_bug_is_one_line_and_the_server_lives(
        self, server: Running, follower: Follower, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(follower, "health", lambda: 1 // 0)
        assert server.refused(path="/healthz")[:2] == (500, "bug")
        assert len(server.said) == 1
        assert server.said[0].startswith("ZeroDivisionError: ")
        assert server.ask({"image_id": 1})[0] == 200

    def test_only_a_retry_writes(self, server: Running, store: Store, tree: Path) -> None:
        home = Path(store.catalog.home.path)
        before = {path: stamp(path) for path in home.rglob("*") if "catalog" not in path.name}
        seen = [overview(store.catalog), digest_of(tree / "a/0.png")]
        for path in ("/", "/api/status", "/api/folders", "/api/images/1", "/api/thumbnails/1"):
            assert server.send("GET", path).status == 200
        server.ask((tree / "a/0.png").read_bytes())
        server.refused(draw(tree.parent / "sent.png", 5000).read_bytes())
        assert [overview(store.catalog), digest_of(tree / "a/0.png")] == seen
        after = {path: stamp(path) for path in home.rglob("*") if "catalog" not in path.name}
        assert after == before


def stamp(path: Path) -> tuple[int, bytes]:
    return path.stat().st_mtime_ns, hashlib.sha256(
        path.read_bytes() if path.is_file() else b""
    ).digest()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
class TestLogin:
    """The page on which people give the token."""

    @pytest.fixture
    def locked(self, follower: Follower) -> Iterator[Running]:
        with running(follower, TOKEN) as made:
            yield made

    def log_in(self, server: Running, token: str = TOKEN, after: str = "/") -> Answered:
        form = urlencode({"token": token, "after": after}).encode()
        kind = "application/x-www-form-urlencoded"
        return server.send("POST", "/login", form, Content_Type=kind)

    def test_a_person_is_led_there_and_back(self, locked: Running) -> None:
        sent = locked.send("GET", "/images/3?a=b", Accept="text/html")
        assert sent.status == 303
        assert sent.headers["location"] == "/login?after=%2Fimages%2F3%3Fa%3Db"
        page = locked.send("GET", sent.headers["location"], Accept="text/html")
        assert page.status == 200
        assert b'value="/images/3?a=b"' in page.body
        wrong = self.log_in(locked, "wrong")
        assert (wrong.status, "set-cookie" in wrong.headers) == (401, False)
        right = self.log_in(locked, after="/images/3?a=b")
        assert (right.status, right.headers["location"]) == (303, "/images/3?a=b")
        cookie = right.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        pair = cookie.partition(";")[0]
        assert TOKEN not in pair
        assert locked.send("GET", "/api/status", Cookie=pair).status == 200
        assert locked.send("GET", "/", Cookie=f"other=1; {pair}").status == 200

    def test_programs_are_told_to_send_the_token(self, locked: Running) -> None:
        for path in ("/api/status", "/metrics", "/api/openapi.json", "/api/thumbnails/1"):
            answered = locked.send("GET", path, Accept="*/*")
            assert answered.refusal[:2] == (401, "unauthorized")
            assert answered.headers["www-authenticate"] == "Bearer"
        assert locked.ask(path="/healthz")[0] == 200
        assert locked.send("GET", "/static/app.css").status == 200

    def test_a_cookie_counts_for_its_time_and_its_server(
        self, locked: Running, follower: Follower
    ) -> None:
        pair = self.log_in(locked).headers["set-cookie"].partition(";")[0]
        name, _, value = pair.partition("=")
        until, _, code = value.partition(".")
        bad = (
            f"{int(until) + 1}.{code}",
            f"{until}.{code[:-1]}0" if code[-1] != "0" else f"{until}.{code[:-1]}1",
            f"{until}.",
            f".{code}",
            until,
            "",
            '"\\"',
        )
        for each in bad:
            assert locked.send("GET", "/api/status", Cookie=f"{name}={each}").status == 401
        with running(follower, TOKEN + "2") as other:
            assert other.send("GET", "/api/status", Cookie=pair).status == 401

    def test_it_leads_to_this_server_alone(self, locked: Running) -> None:
        for after in ("//evil.example", "https://evil.example", "/\\evil.example", "x", "/a\nb"):
            assert self.log_in(locked, after=after).headers["location"] == "/"

    def test_another_site_logs_nobody_in(self, locked: Running) -> None:
        form = urlencode({"token": TOKEN}).encode()
        kind = "application/x-www-form-urlencoded"
        answered = locked.send(
            "POST", "/login", form, Content_Type=kind, Origin="https://evil.example"
        )
        assert answered.refusal[:2] == (403, "cross_origin")
