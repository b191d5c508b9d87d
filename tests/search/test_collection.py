"""The pages of the collection over real HTTP, read as a browser without scripts reads them."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import delete, insert, select, update

from search.collection import failure_classes, retry, run_reports
from search.following import Follower
from search.pages.plot import HEIGHT, LEFT, RIGHT, TOP, WIDTH, recall_plot
from search.pages.status import duration_text
from storage.catalog import Catalog
from storage.leases import finish_run, start_run
from storage.pending import pending_counts
from storage.recall import RecallInfo
from storage.spaces import SpaceInfo
from storage.tables import Failure, File, Image, Run, Vector
from tests.search.html import Page
from tests.search.serving import Running, running
from tests.search.stores import Store, draw

HTML = "text/html,application/xhtml+xml"
ODD = (b"<script>x<", b"caf\xe9 \xff", b"a&amp;b's\n2", "ümläut 寿司".encode())
MANY = 130
STAGES = {"scan": 0.5, "forward": 4.0, "commit": 1.0}


@dataclass
class Site:
    server: Running
    store: Store
    root: Path
    space: SpaceInfo

    def get(self, url: str, status: int = 200) -> Page:
        answered = self.server.send("GET", url.partition("#")[0], Accept=HTML)
        assert (answered.status, answered.headers["content-type"]) == (
            status,
            "text/html; charset=utf-8",
        )
        page = Page.of(answered.body)
        page.check()
        return page


@pytest.fixture
def site(store: Store, tree: Path, tmp_path: Path) -> Iterator[Site]:
    """Yield a server over the tree's 13 pictures and folders with odd names."""
    for n, name in enumerate(ODD):
        folder = Path(os.fsdecode(os.fsencode(tree) + b"/" + name))
        shutil.copy(
            draw(tmp_path / f"{n}.png", 300 + n), _made(folder / f"{os.fsdecode(name)}.png")
        )
    space = store.space()
    store.index(tree, space)
    store.publish(space)
    cache = str(tmp_path / "cache")
    with (
        Follower(store.catalog.home, device="cpu", cache=cache) as follower,
        running(follower) as server,
    ):
        yield Site(server, store, tree, space)


def _made(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    return path


def reached(site: Site, url: str) -> tuple[set[str], set[str]]:
    """Return the addresses of all folders and of all pictures that links lead to."""
    folders, pictures, ahead = set[str](), set[str](), [url]
    while ahead:
        here = ahead.pop()
        if here in folders:
            continue
        folders.add(here)
        links = site.get(here).links()
        pictures |= {link for link in links if link.startswith("/images/")}
        ahead += [link for link in links if link.startswith("/folders/")]
    return folders, pictures


def all_images(catalog: Catalog) -> set[int]:
    live = select(Image.id).join(File, File.image_id == Image.id).where(File.state == "live")
    with catalog.read() as conn:
        return set(conn.execute(live).scalars())


# Folders


def test_links_lead_from_the_roots_to_every_picture(site: Site) -> None:
    folders, pictures = reached(site, "/folders")
    assert pictures == {f"/images/{image}" for image in all_images(site.store.catalog)}
    assert len(folders) == 1 + 1 + 2 + len(ODD)
    for link in pictures:
        site.get(link)


def test_no_address_holds_a_path(site: Site) -> None:
    folders, _ = reached(site, "/folders")
    for url in folders:
        for link in site.get(url).links():
            assert str(site.root) not in link
            assert not any(name in link for name in ("a/", "copy", "png", "caf"))


def test_odd_names_are_shown_and_harmless(site: Site) -> None:
    page = site.get("/folders/r1")
    names = {one.text for one in page.one("ul", "folders").all("span", "name")}
    assert names == {"a", "b", "<script>x<", r"caf\xe9 \xff", r"a&amp;b's\x0a2", "ümläut 寿司"}
    assert page.one("h1").text == str(site.root)
    for folder in page.one("ul", "folders").all("a"):
        inside = site.get(folder.attrs["href"])
        crumbs = inside.one("nav", **{"aria-label": "Folders above"}).all("a")
        assert [crumb.attrs["href"] for crumb in crumbs] == ["/folders", "/folders/r1"]
        assert inside.one("h1").text == folder.text
        assert inside.one("ol", "grid").all("img")[0].attrs["alt"]


def test_a_folder_is_paged(site: Site, tmp_path: Path) -> None:
    root = tmp_path / "many"
    for n in range(MANY):
        draw(root / "all" / f"{n:03}.png", 1000 + n, size=(4, 3))
    site.store.index(root, site.space)
    [place] = {one for one in site.get("/folders/r2").links() if one.startswith("/folders/f")}
    shown, sizes, url = [], [], place
    while url:
        page = site.get(url)
        tiles = page.one("ol", "grid").all("li", "tile")
        shown += [tile.one("a", "name").attrs["title"] for tile in tiles]
        sizes.append(len(tiles))
        url = next((one.attrs["href"] for one in page.all("a", rel="next")), "")
        assert urlsplit(url).path in ("", place)
    assert shown == [f"{n:03}.png" for n in range(MANY)]
    assert sizes == [60, 60, 10]


def test_a_search_can_be_kept_to_a_folder(site: Site) -> None:
    [place, *_] = (
        one.attrs["href"]
        for one in site.get("/folders/r1").one("ul", "folders").all("a")
        if one.text == "b"
    )
    form = site.get(place).form("ask")
    assert dict(form.fields()) == {"within": place.removeprefix("/folders/")}


def test_what_is_no_folder_is_said_so(site: Site) -> None:
    for place in ("r99", "f99-1", "f1-9", "f0-1", "r1.", "..%2fr1", "%2e%2e%2fetc", "x" * 300):
        page = site.get(f"/folders/{place}", status=404)
        assert page.one("p", role="alert").text
    for query in ("after=x", "after=0", f"after={1 << 63}", "folders_after=-1"):
        site.get(f"/folders/r1?{query}", status=400)
    site.get("/folders/r1?after=99", status=404)


def test_what_has_no_vector_is_shown_by_its_name(site: Site) -> None:
    with site.store.catalog.write() as conn:
        meant = select(File.image_id).where(File.path == b"a/2.png")
        image = conn.execute(meant).scalar_one()
        conn.execute(delete(Vector).where(Vector.image_id == image))
    [place] = [
        one.attrs["href"]
        for one in site.get("/folders/r1").one("ul", "folders").all("a")
        if one.text == "a"
    ]
    tiles = site.get(place).one("ol", "grid").all("li", "tile")
    assert len(tiles) == 6
    [blank] = [tile for tile in tiles if not tile.all("img")]
    assert "2.png" in blank.text
    assert {one.attrs["href"] for one in blank.all("a")} == {f"/images/{image}"}
    site.get(f"/images/{image}")


def test_a_folder_that_vanished_meanwhile_says_so(site: Site) -> None:
    [place] = [
        one.attrs["href"]
        for one in site.get("/folders/r1").one("ul", "folders").all("a")
        if one.text == "a"
    ]
    shutil.rmtree(site.root / "a")
    site.store.index(site.root, site.space)
    assert "No picture lies in here now" in site.get(place).one("main").text
    assert place not in site.get("/folders/r1").links()


# The map


def test_the_map_is_drawn_without_a_script(site: Site) -> None:
    page = site.get("/map")
    drawn = page.one("svg", role="group")
    images = {f"/images/{image}" for image in all_images(site.store.catalog)}
    links = {one.attrs["href"] for one in drawn.all("a")}
    assert links
    assert links <= images
    for one in drawn.all("image"):
        assert one.attrs["href"] in {
            f"/api/thumbnails/{link.removeprefix('/images/')}?size=160" for link in links
        }
    assert drawn.one("path").attrs["d"].count("h0") == len(images)
    assert f"{len(images)} pictures of the space known" in page.one("main").text
    told = site.server.ask(path="/api/map")[1]
    assert {f"/images/{image}" for image in told["images"]} == images


def test_nothing_indexed_is_said_on_each_page(store: Store, tmp_path: Path) -> None:
    store.space()
    with (
        Follower(store.catalog.home, device="cpu", cache=str(tmp_path / "c")) as follower,
        running(follower) as server,
    ):
        for url in ("/folders", "/map", "/status"):
            answered = server.send("GET", url, Accept=HTML)
            assert answered.status == 200
            page = Page.of(answered.body)
            page.check()
            assert "lookalike index" in page.one("main").text


# The status page


def fail(store: Store, path: str, failure_class: str, **values: object) -> None:
    """Record that what a file holds can't be decoded."""
    with store.catalog.write() as conn:
        named = File.path == os.fsencode(path)
        digest = select(Image.digest).join(File, File.image_id == Image.id).where(named)
        now = store.catalog.now(conn)
        row = {
            "stage": "decode",
            "failure_class": failure_class,
            "message": "it ends <early>",
            "transient": False,
            "digest": conn.execute(digest).scalar_one(),
            "decode_version": 1,
            "first_at": now,
            "last_at": now,
            "run_id": store.lease.run_id,
        }
        conn.execute(insert(Failure).values(**{**row, **values}))


def test_counts_are_those_of_the_store(site: Site) -> None:
    (site.root / "a/0.png").unlink()
    site.store.index(site.root, site.space)
    page = site.get("/status")
    numbers = [one.text for one in page.one("ul", "numbers").all("li")]
    assert numbers == ["16 images", "16 files", "16 vectors", "0 pending", "0 failures"]
    roots, spaces, *_ = page.all("table")
    [row] = roots.one("tbody").all("tr")
    assert [cell.text for cell in row.all("td")][:4] == [str(site.root), "16", "1", "0"]
    assert row.one("a").attrs["href"] == "/folders/r1"
    [row] = spaces.one("tbody").all("tr")
    cells = [cell.text for cell in row.all("td")]
    assert cells[0].startswith("known current resnet18")
    assert cells[5].startswith("SQ8")
    assert cells[6] == "100.0 %"


def test_runs_are_shown_with_their_stages(site: Site) -> None:
    catalog = site.store.catalog
    lease = start_run(catalog, "backfill")
    told = {"duration_s": 200.4, "stages": STAGES, "extracted": 7, "failed": 0, "limits": "So.",
            "warnings": ["odd <b>"], "index": None}  # fmt: skip
    finish_run(catalog, lease, "done", told)
    with catalog.write() as conn:  # after the fixture's run, whatever the clock's grain
        later = update(Run).where(Run.id == lease.run_id)
        conn.execute(later.values(started_at=Run.started_at + 1))
    page = site.get("/status")
    newest, *_ = page.all("details", "run")
    assert "open" in newest.attrs
    summary = newest.one("summary").text
    assert summary.startswith("backfill done")
    assert summary.endswith("3 min 20 s")
    rows = newest.one("table", "stages").all("tr")
    assert [row.one("th").text for row in rows] == list(STAGES)
    assert [row.one("td", "number").text for row in rows] == ["0.50 s", "4.0 s", "1.0 s"]
    assert [float(row.one("rect").attrs["width"]) for row in rows] == [12.5, 100, 25]
    assert "7 extracted" in newest.text
    assert "0 failed" not in newest.text
    assert "odd <b>" in newest.text


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"stages": None, "warnings": "no list", "duration_s": "no number", "extracted": "many"},
        {"stages": {"scan": "no number"}, "extracted": True, "limits": None},
        {"stages": {"scan": 0.0}},
    ],
)
def test_reports_of_another_shape_do_not_matter(store: Store, told: dict[str, object]) -> None:
    lease = start_run(store.catalog, "maintain")
    finish_run(store.catalog, lease, "done", told)
    report = run_reports(store.catalog, [lease.run_id, "unknown"])[lease.run_id]
    assert report.duration_s is not None
    assert all(stage.share == 0 for stage in report.stages)
    assert report.warnings == ()
    assert report.limits == ""


def test_failures_stand_by_class_with_examples(site: Site) -> None:
    for n in range(5):
        fail(site.store, f"a/{n}.png", "truncated", last_at=1_000_000.0 + n)
    fail(site.store, "b/0.png", "too_large")
    page = site.get("/status")
    often, once = page.all("article", "failure")
    assert [one.one("code").text for one in (often.one("h3"), once.one("h3"))] == [
        "truncated",
        "too_large",
    ]
    assert "5 failures" in often.one("h3").text
    shown = [one.one("span", "path").text for one in often.one("ul", "examples").all("li")]
    assert shown == [str(site.root / f"a/{n}.png") for n in (4, 3, 2)]  # the latest first
    assert "it ends <early>" in once.text
    assert str(site.root / "b/0.png") in once.text


def test_a_button_arms_failures_anew(site: Site) -> None:
    """A failure for good keeps a file out; once armed, the file is pending."""
    for path, failure_class in (
        ("a/0.png", "truncated"),
        ("a/1.png", "truncated"),
        ("b/0.png", "io"),
    ):
        fail(site.store, path, failure_class)
    with site.store.catalog.write() as conn:
        conn.exec_driver_sql("DELETE FROM vectors")
    assert pending_counts(site.store.catalog, site.space, None).to_extract == 16 - 3
    page = site.get("/status")
    forms = [form for form in page.all("form", method="post") if "status" in form.attrs["action"]]
    assert len(forms) == 3  # two classes, and all
    wanted = next(form for form in forms if form.attrs["action"].endswith("truncated"))
    answered = site.server.send("POST", wanted.attrs["action"], b"", Accept=HTML)
    assert answered.status == 303
    to = urlsplit(answered.headers["location"])
    assert (to.path, parse_qs(to.query), to.fragment) == ("/status", {"armed": ["2"]}, "failures")
    page = site.get(answered.headers["location"])
    assert "2 failures armed again" in page.one("main").text
    assert [one.one("code").text for one in page.all("article", "failure")] == ["io"]
    assert pending_counts(site.store.catalog, site.space, None).to_extract == 16 - 1
    everything = site.server.send("POST", "/status/retry", b"", Accept=HTML)
    assert everything.headers["location"] == "/status?armed=1#failures"
    assert "No file has failed" in site.get("/status").one("main").text
    nothing = site.server.send("POST", "/status/retry", b"", Accept=HTML)
    assert "nothing to arm" in site.get(nothing.headers["location"]).one("main").text


def test_other_sites_arm_nothing(site: Site) -> None:
    fail(site.store, "a/0.png", "truncated")
    refused = site.server.send("POST", "/status/retry", b"", Origin="https://elsewhere.example")
    assert refused.status == 403
    assert site.server.send("GET", "/status/retry", Accept=HTML).status == 405
    assert [one.n for one in failure_classes(site.store.catalog)] == [1]


def test_failures_of_one_space_are_armed_alone(store: Store, tree: Path) -> None:
    one, two = store.space("one"), store.space("two")
    store.index(tree, one)
    for space, path in ((one, "a/0.png"), (two, "a/0.png"), (two, "a/1.png")):
        fail(store, path, "nan", stage="forward", space_id=space.id)
    assert retry(store.catalog, space="two") == 2
    assert retry(store.catalog, failure_class="io") == 0
    assert retry(store.catalog) == 1


def test_a_server_that_only_reads_arms_too(site: Site) -> None:
    fail(site.store, "a/0.png", "truncated")
    with Catalog.open(site.store.catalog.home, write=False) as reader:
        assert retry(reader) == 1


def test_the_recall_of_each_index_is_plotted(site: Site) -> None:
    site.store.publish(site.space)
    page = site.get("/status")
    figure = page.one("figure")
    assert len(figure.all("circle")) == 2
    assert len(figure.one("polyline").attrs["points"].split()) == 2
    rows = figure.one("tbody").all("tr")
    assert [row.all("td")[3].text for row in rows] == ["100.0 % of 10"] * 2


def series(*recalls: float) -> list[RecallInfo]:
    return [RecallInfo(f"g{n}", "Flat", 10, 10, 10, r, 100.0 * n) for n, r in enumerate(recalls)]


@pytest.mark.parametrize(
    ("recalls", "lowest"),
    [((1.0,), 0.9), ((0.99, 0.95, 1.0), 0.9), ((0.83,), 0.8), ((0.0, 1.0), 0.0), ((0.5,), 0.5)],
)
def test_a_plot_is_true_to_its_numbers(recalls: tuple[float, ...], lowest: float) -> None:
    plot = recall_plot(series(*recalls))
    assert plot.ticks[0].recall == 1
    assert plot.ticks[-1].recall == pytest.approx(lowest)
    assert 3 <= len(plot.ticks) <= 7
    top, bottom = plot.ticks[0].y, plot.ticks[-1].y
    for dot, recall in zip(plot.dots, recalls, strict=True):
        assert (bottom - dot.y) / (bottom - top) == pytest.approx((recall - lowest) / (1 - lowest))
        assert LEFT <= dot.x <= WIDTH - RIGHT
        assert TOP <= dot.y < HEIGHT
    assert [dot.x for dot in plot.dots] == sorted({dot.x for dot in plot.dots})


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, ""), (0.0, "0.0 s"), (9.94, "9.9 s"), (12.4, "12 s"), (59.7, "1 min 0 s"),
     (200.4, "3 min 20 s"), (7500, "2 h 5 min"), (3_600_000, "1,000 h 0 min")],
)  # fmt: skip
def test_times_are_said_in_words(seconds: float | None, said: str) -> None:
    assert duration_text(seconds) == said
