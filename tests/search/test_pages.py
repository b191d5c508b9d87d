"""The pages over real HTTP, read as a browser without scripts reads them."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

import numpy as np
import numpy.typing as npt
import pytest

from search.bodies import Limits
from search.following import Follower
from search.pages.address import Asked, K, text_of
from search.pages.address import vector_of as vector_in
from search.pages.layout import asset, path_text
from search.pages.starting import paths_of, some_images
from search.questions import MINUS
from storage.catalog import Catalog
from storage.home import Home
from storage.spaces import ensure_space
from tests.search.html import Element, Page
from tests.search.serving import Answered, Running, running
from tests.search.stores import DIM, Store, digest_of, draw, vector_of

HTML = "text/html,application/xhtml+xml"
ODD = (
    b'<script>alert("1")<',
    b"caf\xe9 \xff",
    b"a&amp;b's\n2",
    "turn\u202egnp.exe".encode(),
    "ümläut 寿司".encode(),
)
FEW, MANY = 6, K + 20


def multipart(fields: list[tuple[str, str]], picture: bytes | None = None) -> tuple[bytes, str]:
    """Return a form's body and its Content-Type."""
    parts = [
        f'--edge\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields
    ]
    if picture is not None:
        head = '--edge\r\nContent-Disposition: form-data; name="picture"; filename="p.png"\r\n'
        parts.append(head.encode() + b"Content-Type: image/png\r\n\r\n" + picture + b"\r\n")
    return b"".join(parts) + b"--edge--\r\n", "multipart/form-data; boundary=edge"


@dataclass
class Site:
    """A server, and what lies behind it: the vector of each path, by its digest."""

    server: Running
    store: Store
    root: Path
    cache: Path
    vectors: dict[bytes, npt.NDArray[np.float32]]

    def get(self, url: str, status: int = 200) -> Page:
        return self._page(self.server.send("GET", url, Accept=HTML), status)

    def post(
        self, fields: list[tuple[str, str]], picture: bytes | None = None, status: int = 200
    ) -> Page:
        body, kind = multipart(fields, picture)
        return self._page(
            self.server.send("POST", "/search", body, Accept=HTML, Content_Type=kind), status
        )

    def _page(self, answered: Answered, status: int) -> Page:
        assert answered.status == status, answered.body.decode()[-2000:]
        assert answered.headers["content-type"] == "text/html; charset=utf-8"
        page = Page.of(answered.body)
        page.check()
        return page

    def number(self, path: Path) -> int:
        """Return the number of the image that a file holds."""
        with self.store.catalog.read() as conn:
            digest = digest_of(path)
            found = conn.exec_driver_sql("select id, digest from images").all()
        return next(row.id for row in found if bytes(row.digest) == digest)

    def best(
        self, direction: npt.NDArray[np.float32], leave: tuple[Path, ...] = ()
    ) -> list[tuple[str, str]]:
        """Return path and score of all images, best first, by comparing all: an oracle."""
        first: dict[bytes, bytes] = {}
        for path in sorted(os.fsencode(path) for path in self.root.rglob("*.png")):
            first.setdefault(digest_of(Path(os.fsdecode(path))), path)
        for path in leave:
            del first[digest_of(path)]
        unit = direction / np.linalg.norm(direction)
        scores = {path: float(self.vectors[digest] @ unit) for digest, path in first.items()}
        ordered = sorted(scores, key=lambda path: -scores[path])
        return [(path_text(path), f"{scores[path]:.3f}") for path in ordered]


def shown(page: Page) -> list[tuple[str, str]]:
    """Return path and score of each hit that a page shows."""
    return [
        (tile.one(cls="name").attrs["title"], tile.one(cls="score").text)
        for tile in page.one(id="hits").all("li", "tile")
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, sqlite_template: str) -> Iterator[Site]:
    """Yield a site over many pictures with vectors that are known; two are near-duplicates."""
    folder = tmp_path_factory.mktemp("site")
    root = folder / "pictures"
    for i in range(FEW):
        draw(root / "few" / f"{i}.png", i)
    for i in range(MANY):
        draw(root / "many" / f"{i:03}.png", 1000 + i)
    shutil.copy(root / "few/0.png", root / "many/copy.png")
    for i, name in enumerate(ODD):
        draw(root / "odd" / "x.png", 500 + i).rename(root / "odd" / os.fsdecode(name + b".png"))
    vectors = {digest: vector_of(digest) for digest in map(digest_of, root.rglob("*.png"))}
    near = vectors[digest_of(root / "few/1.png")] + 0.1 * vector_of(b"another")
    vectors[digest_of(root / "many/007.png")] = near / np.linalg.norm(near)
    home = Home(str(folder / "home"))
    Path(home.path).mkdir(mode=0o700)
    shutil.copy(sqlite_template, home.sqlite)
    with contextlib.ExitStack() as stack:
        store = Store(stack.enter_context(Catalog.open(home, write=True)))
        store.index(root, store.space(), vectors=vectors)
        cache = folder / "cache"
        follower = stack.enter_context(Follower(home, device="cpu", cache=str(cache)))
        server = stack.enter_context(running(follower, limits=Limits()))
        yield Site(server, store, root, cache, vectors)
        store.close()


def links_of(site: Site, page: Page) -> set[str]:
    """Fetch all that a page leads to; of the thumbnails a few."""
    links = page.links()
    small = sorted(link for link in links if link.startswith("/api/thumbnails/"))
    for link in sorted(links - set(small[4:])):
        answered = site.server.send("GET", link, Accept="*/*")
        assert answered.status == 200, link
    return links


def test_every_link_leads_somewhere(site: Site) -> None:
    one, two = site.number(site.root / "few/0.png"), site.number(site.root / "few/1.png")
    few = next(
        option.attrs["value"]
        for option in site.get(f"/search?image={one}&within=r1").all("option")
        if option.text == "few"
    )
    start = site.get("/")
    assert {"/", "/folders", "/map", "/status"} <= links_of(site, start)
    filters = f"within={few}&min_score=-1&distinct=0.99"
    for page in (
        site.get(f"/search?image={one}&minus={two}&{filters}"),
        site.post([("within", few)], (site.root / "few/2.png").read_bytes()),
        site.get(f"/search?image={one}&within={few}&within=r1&skip=60"),
        site.get(f"/images/{one}"),
        site.get("/images/999999", 404),
        site.get("/login"),
        site.get("/api/docs"),
    ):
        assert "/" in links_of(site, page)


def test_the_first_page_shows_some_pictures_to_start_from(site: Site) -> None:
    page = site.get("/")
    tiles = page.all("li", "tile")
    assert len(tiles) == 40
    assert len({tile.attrs["data-image"] for tile in tiles}) == 40
    for tile in tiles:
        number = tile.attrs["data-image"]
        assert tile.one("a", "view").attrs["href"] == f"/search?image={number}"
        assert tile.one("a", "name").attrs["href"] == f"/images/{number}"
    others = site.get(page.one("a", id="others").attrs["href"])
    again = site.get("/")
    assert [t.attrs["data-image"] for t in again.all("li", "tile")] == [
        tile.attrs["data-image"] for tile in tiles
    ]
    assert [t.attrs["data-image"] for t in others.all("li", "tile")] != [
        tile.attrs["data-image"] for tile in tiles
    ]
    hint = page.one(id="words-hint").text
    assert "answers no words" in hint
    assert "lookalike backfill --model clip:ViT-B-32" in hint
    assert "disabled" in page.one("input", id="text").attrs


def test_pictures_to_start_from_are_live_ones_of_the_space(store: Store, tree: Path) -> None:
    space, other = store.space(), store.space("other")
    with store.catalog.read() as conn:
        assert some_images(conn, space.id, 5, 0) == []
    store.index(tree, space, chunk=5)
    (tree / "a/0.png").unlink()
    store.index(tree, space)
    with store.catalog.read() as conn:
        found = some_images(conn, space.id, 100, 7)
        assert some_images(conn, space.id, 100, 7) == found
        assert len(some_images(conn, space.id, 5, 7)) == 5
        assert some_images(conn, other.id, 5, 7) == []
        names = paths_of(conn, [one.image_id for one in found])
    held = {digest_of(path): path for path in sorted(tree.rglob("*.png"), reverse=True)}
    assert {digest_of(Path(os.fsdecode(one.path))) for one in found} == set(held)
    assert len(found) == len(held) == 11
    assert names == {one.image_id: one.path for one in found}


def test_hits_are_those_of_comparing_all(site: Site) -> None:
    own = site.root / "few/3.png"
    page = site.get(f"/search?image={site.number(own)}")
    wanted = site.best(site.vectors[digest_of(own)], leave=(own,))
    assert shown(page) == wanted[:K]
    assert page.one("h1").text == "Like 3.png"


def test_plus_and_minus_turn_the_search(site: Site) -> None:
    own = site.root / "few/2.png"
    page = site.get(f"/search?image={site.number(own)}")
    more, less = pick(page, 3), pick(page, 20)
    page = site.get(act(page, "plus", site.number(more)).attrs["href"])
    page = site.get(act(page, "minus", site.number(less)).attrs["href"])
    x, y, z = (site.vectors[digest_of(path)] for path in (own, more, less))
    assert shown(page) == site.best((x + y) / 2 - MINUS * z, leave=(own, more, less))[:K]
    assert page.one("h1").text == "Like these 2, unlike 1"
    chips = page.one("ul", "chips").all("li")
    assert [chip.one("img").attrs["alt"] for chip in chips] == [
        "like 2.png",
        f"like {more.name}",
        f"less like {less.name}",
    ]
    for _ in range(2):
        page = site.get(page.all("a", "drop")[-1].attrs["href"])
    assert page.one("h1").text == "Like 2.png"
    assert page.one("a", "drop").attrs["href"] == "/"


def pick(page: Page, at: int) -> Path:
    """Return the file of a hit, one of those with plain names."""
    return Path([path for path, _ in shown(page) if "/many/0" in path][at])


def act(page: Page, sign: str, image: int) -> Element:
    tile = page.one("li", "tile", **{"data-image": str(image)})
    return next(one for one in tile.all(cls="act") if one.attrs["data-act"] == sign)


def test_filters_narrow_the_search_without_scripts(site: Site) -> None:
    own, near = site.root / "few/1.png", site.root / "many/007.png"
    page = site.get(f"/search?image={site.number(own)}")
    all_hits = site.best(site.vectors[digest_of(own)], leave=(own,))
    assert all_hits[0][0] == str(near)

    def sent(page: Page, **typed: str) -> Page:
        form = page.form("question")
        assert (form.method, form.action) == ("GET", "/search")
        return site.get(f"/search?{urlencode(form.fields(**typed))}")

    hidden = sent(page, distinct="on")
    assert shown(hidden)[0][0] == str(near), "what was asked for hides nothing"
    own_kept = site.get(f"/search?image={site.number(site.root / 'few/2.png')}&distinct=0.95")
    paths = [path for path, _ in shown(own_kept)]
    assert (str(own) in paths) != (str(near) in paths)
    bounded = sent(page, min_score="0.3005")
    assert 0 < len(shown(bounded)) < K
    assert shown(bounded) == [hit for hit in all_hits if float(hit[1]) >= 0.3005]
    assert bounded.one("input", id="min_score").attrs["value"] == "0.3005"
    inside = sent(bounded, within="r1")
    assert shown(inside) == shown(bounded)
    few = next(one for one in inside.all("option") if one.text == "few")
    narrow = sent(inside, within=few.attrs["value"], min_score="")
    assert shown(narrow) == [hit for hit in all_hits if "/few/" in hit[0]]
    assert next(one for one in narrow.all("option") if "selected" in one.attrs).text == "few"
    two = site.get(f"/search?image={site.number(own)}&within={few.attrs['value']}&within=r1")
    assert shown(two)[:5] == all_hits[:5]
    places = two.all("ul", "chips")[1].all(cls="label")
    assert [place.text for place in places] == ["in few", "in pictures"]
    assert "within" in dict(two.form("question").fields())


def test_nothing_that_alike_is_said(site: Site) -> None:
    page = site.get(f"/search?image={site.number(site.root / 'few/1.png')}&min_score=0.9999")
    assert not page.all("li", "tile")
    assert "Fewer filters find more" in page.one("p", "note").text


def test_pages_follow_each_other(site: Site) -> None:
    own = site.root / "few/3.png"
    wanted = site.best(site.vectors[digest_of(own)], leave=(own,))
    first = site.get(f"/search?image={site.number(own)}")
    assert not first.all("a", rel="prev")
    last = site.get(first.one("a", rel="next").attrs["href"])
    assert shown(first) + shown(last) == wanted
    assert not last.all("a", rel="next")
    back = site.get(last.one("a", rel="prev").attrs["href"])
    assert shown(back) == shown(first)
    beyond = site.get(f"/search?image={site.number(own)}&skip=600")
    assert "There are no more" in beyond.one("p", "note").text


def test_the_filters_of_a_page_are_asked_again_to_the_last_digit(site: Site) -> None:
    filters = {"min_score": "-0.98765432109", "distinct": "0.99999987654"}
    asked = {"image": str(site.number(site.root / "few/3.png")), **filters}
    page = site.get(f"/search?{urlencode(asked)}")
    more = dict(parse_qsl(urlsplit(page.one("a", rel="next").attrs["href"]).query))
    assert {name: more[name] for name in filters} == filters
    fields = dict(page.form("question").fields())
    assert {name: fields[name] for name in filters} == filters


def test_one_image_in_several_files_is_one_hit(site: Site) -> None:
    page = site.get(f"/search?image={site.number(site.root / 'few/5.png')}&within=r1")
    number = str(site.number(site.root / "few/0.png"))
    [tile] = [one for one in page.all("li", "tile") if one.attrs["data-image"] == number]
    files = tile.one("a", "files")
    assert (files.text, files.attrs["href"]) == ("2 files", f"/images/{number}")
    about = site.get(f"/images/{number}")
    paths = [one.one(cls="mono").text for one in about.one("ul", "files-list").all("li")]
    assert paths == [str(site.root / "few/0.png"), str(site.root / "many/copy.png")]
    folders = [one.attrs["href"] for one in about.one("ul", "files-list").all("a")]
    for link, name in zip(folders, ("few", "many"), strict=True):
        assert name in site.get(link).one("h1").text


def test_a_picture_has_a_page_of_its_own(site: Site) -> None:
    own = site.root / "few/2.png"
    number = site.number(own)
    page = site.get(f"/images/{number}")
    facts = page.one("dl", "facts")
    told = [
        (name.text, value.text)
        for name, value in zip(facts.all("dt"), facts.all("dd"), strict=True)
    ]
    assert ("Pixels", "40 × 30") in told
    assert ("Size", f"{own.stat().st_size / 1000:.1f} kB") in told
    assert shown(page) == site.best(site.vectors[digest_of(own)], leave=(own,))[:24]
    assert page.one("a", id="search-by").attrs["href"] == f"/search?image={number}"


def test_a_sent_picture_is_searched_for_and_refined(site: Site) -> None:
    own = site.root / "few/2.png"
    start = site.get("/").form("ask")
    assert (start.method, start.action) == ("POST", "/search")
    assert start.element.attrs["enctype"] == "multipart/form-data"
    page = site.post(start.fields(), own.read_bytes())
    x = site.vectors[digest_of(own)]
    wanted = site.best(x)
    assert shown(page) == wanted[:K]
    assert shown(page)[0] == (str(own), "1.000")
    form = page.form("question")
    assert form.method == "POST"
    kept = dict(form.fields())["vector"]
    assert np.allclose(vector_in(kept), x, atol=1e-6)

    last = site.post(form.fields(page.one("button", id="more")))
    assert shown(page) + shown(last) == wanted
    assert shown(site.post(last.form("question").fields(press(last, "skip", "0")))) == shown(page)

    more, less = pick(page, 5), pick(page, 12)
    page = site.post(form.fields(act(page, "plus", site.number(more))))
    page = site.post(page.form("question").fields(act(page, "minus", site.number(less))))
    y, z = site.vectors[digest_of(more)], site.vectors[digest_of(less)]
    assert shown(page) == site.best((x + y) / 2 - MINUS * z, leave=(more, less))[:K]
    assert dict(page.form("question").fields())["vector"] == kept

    dropped = site.post(page.form("question").fields(press(page, "drop", str(site.number(less)))))
    assert shown(dropped) == site.best((x + y) / 2, leave=(more,))[:K]
    unsent = site.get(dropped.one(id="sent").one("a", "drop").attrs["href"])
    assert unsent.one("h1").text == f"Like {more.name}"

    narrow = site.post([*page.form("question").fields(min_score="0.2005")])
    assert 0 < len(shown(narrow)) < K
    assert all(float(score) >= 0.2005 for _, score in shown(narrow))
    again = site.post(narrow.form("ask").fields(), own.read_bytes())
    assert shown(again) == [hit for hit in wanted if float(hit[1]) >= 0.2005]


def press(page: Page, name: str, value: str) -> Element:
    return page.one("button", name=name, value=value)


def test_a_sent_picture_is_stored_nowhere(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    large = draw(site.root / "large.png", 4242, size=(800, 700))
    x = {**site.vectors, digest_of(large): vector_of(digest_of(large))}
    site.store.index(site.root, site.store.space(), vectors=x)
    try:
        data = large.read_bytes()
        assert len(data) > 1 << 20
        before = files_below(site)
        monkeypatch.setattr(tempfile, "tempdir", str(site.root / "no such folder"))
        page = site.post([], data)
        assert shown(page)[0] == (str(large), "1.000")
        assert files_below(site) == before
    finally:
        large.unlink()
        site.store.index(site.root, site.store.space(), vectors=x)


def files_below(site: Site) -> set[str]:
    folders = (site.store.catalog.home.path, site.cache)
    found = (str(path) for folder in folders for path in Path(folder).rglob("*"))
    return {path for path in found if not path.endswith(("-wal", "-shm"))}


BAD = [
    ("/search", "choose a picture"),
    ("/search?text=+", "choose a picture"),
    ("/search?minus=1", "give at least one example"),
    ("/search?image=x", "image: a whole number is meant, not 'x'"),
    ("/search?image=-1", "image: a whole number is meant"),
    ("/search?image=9999999999999999999", "image: 9999999999999999999 is too large"),
    ("/search?image=1&min_score=much", "min_score: a number is meant, not 'much'"),
    ("/search?image=1&min_score=nan", "min_score: a number is meant"),
    ("/search?image=1&min_score=1_0", "min_score: a number is meant, not '1_0'"),
    ("/search?image=1&min_score=%EF%BC%90", "min_score: a number is meant"),
    ("/search?image=1&distinct=7", "distinct is 7"),
    ("/search?image=1&skip=99999", "hits beyond"),
    ("/search?image=1&" + "&".join(f"plus={i}" for i in range(200)), "at most 100 examples"),
    ("/search?text=" + "x" * 1001, "more than 1,000 letters"),
    ("/search?text=red+car", "answers no words"),
]


@pytest.mark.parametrize(("url", "said"), BAD, ids=range(len(BAD)))
def test_a_question_that_makes_no_sense_is_said_on_a_page(site: Site, url: str, said: str) -> None:
    note = site.get(url, 400).one("p", "bad")
    assert said in note.text
    assert note.attrs["role"] == "alert"


def test_what_is_not_there_is_said_on_a_page(site: Site) -> None:
    for url, said in (
        ("/search?image=999999", "no image 999999 has a vector"),
        ("/search?image=1&within=r77", "there is no root 77"),
        ("/search?image=1&within=../etc", "a place is written like"),
        ("/images/999999", "no image 999999"),
        ("/no/such/page", "there is nothing at this address"),
    ):
        assert said in site.get(url, 404).one("p", "bad").text
    site.get("/images/x", 400)
    site.get("/?seed=-1", 400)


def test_a_sent_file_that_is_no_picture_is_said_beside_the_form(site: Site) -> None:
    for data, said in ((b"no picture", "no format that is decoded"), (b"", "choose a picture")):
        page = site.post([], data, status=400)
        assert said in page.one("p", "bad").text
    page = site.post([], b"no picture", status=400)
    assert page.form("ask").method == "POST"
    for vector, said in (("*", "damaged"), (text_of(np.ones(3, np.float32)), str(DIM))):
        assert said in site.post([("vector", vector)], status=400).one("p", "bad").text


def test_odd_names_are_shown_safely(site: Site) -> None:
    names = {path_text(name + b".png") for name in ODD}
    assert '<script>alert("1")<.png' in names
    assert "caf\\xe9 \\xff.png" in names
    assert "a&amp;b's\\x0a2.png" in names
    assert "turn\\u202egnp.exe.png" in names
    odd = next(
        one.attrs["value"]
        for one in site.get("/search?image=1&within=r1").all("option")
        if one.text == "odd"
    )
    page = site.get(f"/search?image=1&within={odd}")
    tiles = page.all("li", "tile")
    assert {tile.one("a", "name").text for tile in tiles} == {f"About odd/{n}" for n in names}
    assert {tile.one("img").attrs["alt"] for tile in tiles} == names
    assert len(page.all("script")) == len(site.get("/").all("script"))
    for tile in tiles:
        about = site.get(tile.one("a", "name").attrs["href"])
        assert about.one("h1").text in names
        title = site.get(tile.one("a", "view").attrs["href"]).one("h1").text
        assert title.removeprefix("Like ") in names


def test_a_space_that_knows_words_has_a_box_for_them(store: Store, tmp_path: Path) -> None:
    spec = {"architecture": "clip:RN50", "node": "logits", "pooling": "none"}
    spec |= {"dim": DIM, "dtype": "float32", "decode_version": 1}
    request = {"model": "clip:RN50", "layer": None, "weights": "random:0"}
    ensure_space(store.catalog, name="clip", spec=spec, request=request, key="clip")
    follower = Follower(store.catalog.home, device="cpu", cache=str(tmp_path / "cache"))
    with follower, running(follower) as server:
        page = Page.of(server.send("GET", "/", Accept=HTML).body)
    page.check()
    form = page.form("words")
    assert (form.method, form.action) == ("GET", "/search")
    assert form.fields(text="red car") == [("text", "red car")]
    assert not page.all(id="words-hint")


def test_words_come_back_as_they_were(site: Site) -> None:
    words = '"><script>alert(1)</script> \u202e'
    page = site.get(f"/search?{urlencode({'text': words})}", 400)
    assert page.one("h1").text == f"Like “{words.strip()}”"
    assert len(page.all("script")) == 2


def test_static_files_are_kept_while_they_are_the_same(site: Site) -> None:
    for name, kind in (("app.css", "text/css"), ("app.js", "javascript"), ("icon.svg", "svg")):
        answered = site.server.send("GET", asset(name))
        assert answered.status == 200
        assert kind in answered.headers["content-type"]
        assert "immutable" in answered.headers["cache-control"]
        bare = site.server.send("GET", urlsplit(asset(name)).path)
        assert bare.headers["cache-control"] == "no-cache"
        tag = bare.headers["etag"]
        assert site.server.send("GET", asset(name), If_None_Match=tag).status == 304
    for path in (
        "/static/",
        "/static/none.css",
        "/static/../x.py",
        "/static/%2e%2e/layout.py",
    ):
        assert site.server.send("GET", path).status in (400, 404)


def test_pages_say_that_they_are_private(site: Site) -> None:
    answered = site.server.send("GET", "/", Accept=HTML)
    assert answered.headers["cache-control"] == "private, no-cache"
    assert "script-src 'self'" in answered.headers["content-security-policy"]
    assert site.server.send("HEAD", "/", Accept=HTML).body == b""


def test_before_anything_is_indexed_the_page_says_what_to_do(store: Store, tmp_path: Path) -> None:
    store.space()
    follower = Follower(store.catalog.home, device="cpu", cache=str(tmp_path / "cache"))
    with follower, running(follower) as server:
        page = Page.of(server.send("GET", "/", Accept=HTML).body)
    page.check()
    assert "lookalike index" in page.one("p", "note").text


def test_the_login_page_asks_for_the_token(site: Site, tmp_path: Path) -> None:
    follower = Follower(site.store.catalog.home, device="cpu", cache=str(tmp_path / "cache"))
    with follower, running(follower, "secret") as server:
        page = Page.of(server.send("GET", "/login?after=/map", Accept=HTML).body)
        page.check()
        form = next(one for one in page.all("form") if one.attrs.get("action") == "/login")
        assert form.one("input", name="after").attrs["value"] == "/map"
        assert form.one("input", name="token").attrs["type"] == "password"
        body = urlencode({"token": "wrong", "after": "/map"}).encode()
        kind = "application/x-www-form-urlencoded"
        refused = server.send("POST", "/login", body, Accept=HTML, Content_Type=kind)
        wrong = Page.of(refused.body)
        wrong.check()
        assert refused.status == 401
        assert "not the server’s token" in wrong.one(id="wrong").text
        for link in page.links() - {"/"}:
            assert server.send("GET", link).status == 200, link


def test_an_address_is_read_as_it_is_written() -> None:
    asked = Asked(
        image=3,
        text="a & b=c",
        plus=(4, 5),
        minus=(6,),
        within=("r1", "f2-1"),
        min_score=0.12345678,
        distinct=0.9876543210123,
        skip=120,
    )
    values: dict[str, list[str]] = {}
    for name, value in parse_qsl(urlsplit(asked.url).query):
        values.setdefault(name, []).append(value)
    assert Asked.read(values) == asked
    assert asked.like(6).minus == ()
    assert asked.like(6).skip == 0
    assert asked.unlike(3).image is None
    assert asked.by(9) == Asked(
        image=9, within=("r1", "f2-1"), min_score=0.12345678, distinct=0.9876543210123
    )
    assert Asked(vector="AAAA", within=("r1",)).url == "/"
