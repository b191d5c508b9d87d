"""`lookalike duplicates` as a person runs it, and the script and page that it writes."""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from flows.cli import cli
from search import duplicate_page, duplicate_report, groups
from storage.catalog import Catalog
from storage.files import scan_root
from storage.roots import find_root
from tests.flows.terminal import CHECKOUT
from tests.search.stores import Store, digest_of, draw, vector_of

NAMES = (b"plain.png", b"it's.png", b"new\nline.png", b"$(touch pwned) `id` \\.png")
ODD = bytes([b for b in range(1, 256) if b != ord("/")])
SHELLS = [name for name in ("dash", "bash", "busybox", "sh") if shutil.which(name)]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def store(catalog: Catalog) -> Iterator[Store]:
    made = Store(catalog)
    yield made
    made.close()


@pytest.fixture
def root(store: Store, tmp_path: Path) -> Path:
    """Return a root of 12 files: two images of several files each, two that look alike, others."""
    root = tmp_path / "pictures"
    kept = draw(root / "kept.png", 1, size=(30, 20))
    os.utime(kept, (1_000_000, 1_000_000))
    for name in NAMES:
        shutil.copyfile(kept, os.path.join(os.fsencode(root), name))
    twin = draw(root / "twin-large.png", 2, size=(40, 20))
    small = draw(root / "twin-small.png", 3, size=(20, 10))
    shutil.copyfile(small, root / "twin-again.png")
    for i in range(4):
        draw(root / "others" / f"{i}.png", 10 + i)
    vectors = {digest_of(path): vector_of(digest_of(path)) for path in root.rglob("*.png")}
    vectors[digest_of(small)] = vectors[digest_of(twin)]
    store.index(root, store.space(), vectors=vectors)
    return root


def words(store: Store, *typed: str) -> list[str]:
    home = store.catalog.home
    where = ["--home", home.path]
    if home.catalog_url is not None:
        where += ["--catalog-url", home.catalog_url]
    return [*where, "duplicates", *typed]


def run(store: Store, *typed: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, words(store, *typed))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, (result.stdout, result.stderr)
    return result


def values(store: Store, *typed: str) -> Any:
    return json.loads(run(store, *typed, "--json").stdout)


def by_keep(told: Any) -> dict[str, set[str]]:
    return {g["keep"]["path"]: {each["path"] for each in g["others"]} for g in told["groups"]}


def due(root: Path) -> dict[str, set[str]]:
    """Return what the files themselves say: which hold the same bytes."""
    kept = str(root / "kept.png")
    copies = {os.fsdecode(os.path.join(os.fsencode(root), name)) for name in NAMES}
    return {kept: copies}


class TestTold:
    def test_exact_groups_are_those_of_equal_bytes(self, store: Store, root: Path) -> None:
        told = values(store, "--exact")
        again, small = str(root / "twin-again.png"), str(root / "twin-small.png")
        assert by_keep(told) == {**due(root), small: {again}}
        assert (told["space"], told["near"]) == (None, None)
        size = (root / "kept.png").stat().st_size * 4 + (root / "twin-again.png").stat().st_size
        assert (told["n"], told["others"], told["size_bytes"]) == (2, 5, size)
        [group] = [g for g in told["groups"] if g["keep"]["path"] == str(root / "kept.png")]
        assert group["kind"] == "exact"
        assert group["keep"]["digest"] == digest_of(root / "kept.png").hex()
        assert group["keep"]["modified"] == 1_000_000

    def test_groups_by_vector_have_all_files_of_their_images(
        self, store: Store, root: Path
    ) -> None:
        told = values(store)
        twins = {str(root / "twin-small.png"), str(root / "twin-again.png")}
        assert by_keep(told) == {**due(root), str(root / "twin-large.png"): twins}
        assert (told["space"], told["near"]) == ("known", 0.95)
        near = told["groups"][0]
        assert near["kind"] == "near"
        assert (near["keep"]["width"], near["keep"]["height"]) == (40, 20)
        assert [each["score"] for each in near["others"]] == [1.0, 1.0]

    def test_they_are_told_as_text(self, store: Store, root: Path) -> None:
        said = run(store).stdout
        assert f"  keep        40x20     2.5 kB  {root / 'twin-large.png'}" in said
        assert r"new\x0aline.png" in said
        assert "\n\n2 groups, 6 files beside the kept ones, " in said
        assert said.endswith(
            "score of at least 0.95 in space known, and files with the same bytes.\n"
        )

    def test_only_files_below_a_path_count(self, store: Store, root: Path) -> None:
        assert run(store, "--under", str(root / "others")).stdout.startswith("No duplicates. ")
        assert "not in any root" in str(_error(store, "--under", "/nowhere"))

    def test_what_changed_since_is_left_out(self, store: Store, root: Path) -> None:
        (root / "twin-again.png").write_bytes(b"something else")
        info = find_root(store.catalog, os.fsencode(root))
        scan_root(store.catalog, info, confirm_missing=True, skip=None, lease=store.lease)
        assert by_keep(values(store, "--exact")) == due(root)

    @pytest.mark.parametrize(
        ("typed", "said"),
        [
            (("--exact", "--near", "0.9"), "leave out --near and --space"),
            (("--exact", "--space", "known"), "leave out --near and --space"),
            (("--near", "1.2"), "not in the range"),
            (("--near", "0"), "not in the range"),
        ],
    )
    def test_options_that_do_not_fit_are_refused(
        self, store: Store, typed: tuple[str, ...], said: str
    ) -> None:
        assert said in run(store, *typed, code=2).stderr


def _error(store: Store, *typed: str) -> BaseException | None:
    return CliRunner().invoke(cli, words(store, *typed)).exception


class TestOutputs:
    @pytest.mark.parametrize("option", ["--report", "--script"])
    def test_only_what_this_command_wrote_is_replaced(
        self, store: Store, root: Path, tmp_path: Path, option: str
    ) -> None:
        out = tmp_path / "out"
        run(store, option, str(out))
        first = out.read_bytes()
        (root / "kept.png").unlink()
        run(store, option, str(out))
        assert out.read_bytes()[:200] == first[:200]
        photo = root / "twin-large.png"
        before = photo.read_bytes()
        error = _error(store, option, str(photo))
        assert "was not written by this command" in str(error)
        assert getattr(error, "exit_code", None) == 2
        assert photo.read_bytes() == before
        link = tmp_path / "link"
        link.symlink_to(out)
        assert "was not written by this command" in str(_error(store, option, str(link)))
        assert "there is no folder" in str(_error(store, option, str(tmp_path / "no" / "out")))

    def test_an_error_on_the_way_leaves_no_output(
        self, store: Store, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(duplicate_page, "GROUPS", 1)
        taken = tmp_path / "out-2.html"
        taken.write_text("a page of somebody")
        error = _error(
            store, "--report", str(tmp_path / "out.html"), "--script", str(tmp_path / "out.sh")
        )
        assert "out-2.html is there already" in str(error)
        outputs = {path.name for path in tmp_path.glob("out*")}
        assert outputs == {"out-2.html"}
        assert taken.read_text() == "a page of somebody"


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = path.read_text()
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


class TestReport:
    def test_the_page_shows_each_image_and_names_each_file(
        self, store: Store, root: Path, tmp_path: Path
    ) -> None:
        hostile = root / "<img src=x onerror=alert(1)>&quot;\"'.png"
        shutil.copyfile(root / "kept.png", hostile)
        store.index(root, store.space())
        out = tmp_path / "out.html"
        said = run(store, "--report", str(out)).stderr
        assert f"report: {out}" in said
        page = Page(out)
        linked = {unquote_to_bytes(str(a["href"]).removeprefix("file://")) for a in page.all("a")}
        told = {path for keep, others in by_keep(values(store)).items() for path in (keep, *others)}
        assert linked == {os.fsencode(path) for path in told}
        assert os.fsencode(hostile) in linked
        assert str(hostile) in page.text
        assert page.all("script") == []
        shown = [base64_of(str(img["src"])) for img in page.all("img")]
        assert [Image.open(BytesIO(data)).size for data in shown] == [(40, 20), (20, 10), (30, 20)]
        assert all(img["alt"] for img in page.all("img"))
        assert page.text.count("\nkeep: ") == 2
        assert str(page.all("meta")).count("default-src 'none'; img-src data:;") == 1

    def test_it_asks_for_nothing_else_and_runs_nothing(
        self, store: Store, root: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out.html"
        run(store, "--report", str(out))
        page = Page(out)
        for tag, attrs in page.tags:
            assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
            assert not [name for name in attrs if name.startswith("on") or name == "style"]
            if "src" in attrs:
                assert str(attrs["src"]).startswith("data:image/jpeg;base64,")
            if "href" in attrs:
                assert str(attrs["href"]).startswith("file:///")
        assert "url(" not in page.source
        assert "prefers-color-scheme: dark" in page.source

    def test_a_picture_that_is_gone_or_broken_leaves_a_gap(
        self, store: Store, root: Path, tmp_path: Path
    ) -> None:
        (root / "twin-large.png").unlink()
        for path in root.glob("twin-[as]*.png"):
            path.write_bytes(b"no picture")
        out = tmp_path / "out.html"
        run(store, "--report", str(out))
        page = Page(out)
        assert page.text.count("no picture now") == 2
        assert len(page.all("img")) == 1

    def test_many_groups_become_several_pages_with_links(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = tmp_path / "many"
        for i in range(14):
            draw(root / f"{i}.png", i // 2)
        store.index(root, store.space())
        monkeypatch.setattr(duplicate_page, "GROUPS", 2)
        out = tmp_path / "out.html"
        run(store, "--exact", "--report", str(out))
        pages = [out, *(tmp_path / f"out-{n}.html" for n in (2, 3, 4))]
        assert sorted(tmp_path.glob("out*")) == sorted(pages)
        links = [
            {str(a["rel"]): a["href"] for a in Page(path).all("a") if "rel" in a} for path in pages
        ]
        assert links == [
            {"next": "out-2.html"},
            {"prev": "out.html", "next": "out-3.html"},
            {"prev": "out-2.html", "next": "out-4.html"},
            {"prev": "out-3.html"},
        ]
        numbers = [re.findall(r"Group (\d+):", Page(path).text) for path in pages]
        assert numbers == [["1", "2"], ["3", "4"], ["5", "6"], ["7"]]
        monkeypatch.setattr(duplicate_report, "PAGES", 2)
        said = run(store, "--exact", "--report", str(out)).stderr
        assert sorted(tmp_path.glob("out*")) == sorted(pages[:2])  # no page of the report before
        assert "3 groups more than the report shows" in said
        assert "3 more groups are not shown." in Page(pages[1]).text

    def test_long_groups_are_cut_and_counted(
        self, store: Store, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(duplicate_page, "PATHS_SHOWN", 2)
        monkeypatch.setattr(duplicate_page, "IMAGES_SHOWN", 1)
        monkeypatch.setattr(groups, "MOST_TOLD", 3)
        out = tmp_path / "out.html"
        run(store, "--report", str(out))
        page = Page(out)
        assert "and 2 more files" in page.text
        assert "And 1 more pictures." in page.text
        assert "more than 4 files" in page.text
        assert len(page.all("section")) == 2

    def test_one_that_finds_nothing_says_so(self, store: Store, root: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.html"
        run(store, "--under", str(root / "others"), "--report", str(out))
        assert "There are none." in Page(out).text


def base64_of(src: str) -> bytes:
    return base64.b64decode(src.partition(",")[2], validate=True)


def contents(folder: Path) -> dict[bytes, bytes]:
    """Return all files below a folder, by their relative paths."""
    found = {}
    for at, _, names in os.walk(os.fsencode(folder)):
        for name in names:
            path = os.path.join(at, name)
            if not os.path.islink(path):
                with open(path, "rb") as file:
                    found[os.path.relpath(path, os.fsencode(folder))] = file.read()
    return found


class TestScript:
    @pytest.fixture
    def script(self, store: Store, root: Path, tmp_path: Path) -> Path:
        out = tmp_path / "clean up.sh"
        run(store, "--script", str(out))
        return out

    def sh(
        self, script: Path, *typed: str, code: int, shell: str = "sh"
    ) -> subprocess.CompletedProcess[bytes]:
        command = [shell, *(["sh"] if shell == "busybox" else []), str(script), *typed]
        done = subprocess.run(command, cwd=script.parent, capture_output=True, check=False)
        assert done.returncode == code, (done.stdout, done.stderr)
        return done

    @pytest.mark.parametrize("typed", [(), ("--move-to", "x"), ("-h",), ("--really", "--move-to")])
    def test_without_the_word_it_does_nothing(
        self, script: Path, root: Path, tmp_path: Path, typed: tuple[str, ...]
    ) -> None:
        before = contents(tmp_path)
        assert self.sh(script, *typed, code=2).stdout == b""
        assert contents(tmp_path) == before

    @pytest.mark.parametrize("shell", SHELLS)
    def test_it_removes_the_others_and_nothing_else(
        self, script: Path, root: Path, tmp_path: Path, shell: str
    ) -> None:
        before = contents(root)
        done = self.sh(script, "--really", code=0, shell=shell)
        gone = {*NAMES, b"twin-small.png", b"twin-again.png"}
        assert contents(root) == {path: data for path, data in before.items() if path not in gone}
        assert done.stdout.endswith(b"6 done, 0 left\n")
        assert not list(tmp_path.rglob("pwned"))
        again = self.sh(script, "--really", code=1, shell=shell)
        assert again.stdout == b"0 done, 6 left\n"
        assert again.stderr.count(b"it is gone or has changed") == 6

    @pytest.mark.parametrize("folder", ["away", "/abs", "-odd 'one"])
    def test_it_moves_them_with_their_whole_paths(
        self, script: Path, root: Path, tmp_path: Path, folder: str
    ) -> None:
        if folder == "/abs":
            folder = str(tmp_path / "abs")
        before = contents(root)
        self.sh(script, "--really", "--move-to", folder, code=0)
        after = contents(root)
        moved = contents(Path(f"{script.parent / folder}{root}"))
        assert {**after, **moved} == before
        assert set(moved) == {*NAMES, b"twin-small.png", b"twin-again.png"}

    def test_any_byte_may_be_in_a_name(self, store: Store, tmp_path: Path) -> None:
        root = tmp_path / "odd"
        kept = draw(root / "kept.png", 5)
        os.utime(kept, (1_000_000, 1_000_000))
        pieces = [ODD[i : i + 80] for i in range(0, len(ODD), 80)] + [b" ", b"-rf", b"x\n", b"\\"]
        for piece in pieces:
            folder = os.path.join(os.fsencode(root), b"d" + piece)
            os.mkdir(folder)
            shutil.copyfile(kept, os.path.join(folder, piece + b".png"))
            shutil.copyfile(kept, os.path.join(folder, b"'" + piece + b"\n.png"))
        store.index(root, store.space())
        out = tmp_path / "out.sh"
        run(store, "--exact", "--script", str(out))
        for shell in SHELLS:
            copy = tmp_path / shell
            shutil.copytree(root, copy)
            script = tmp_path / f"{shell}.sh"
            script.write_bytes(
                out.read_bytes().replace(os.fsencode(root) + b"/", os.fsencode(copy) + b"/")
            )
            done = self.sh(script, "--really", code=0, shell=shell)
            assert done.stdout.endswith(b"%d done, 0 left\n" % (2 * len(pieces)))
            assert contents(copy) == {b"kept.png": kept.read_bytes()}
            assert not set(done.stdout) & ({*range(32), 127} - {ord("\n")})

    def test_a_file_that_changed_stays(self, script: Path, root: Path) -> None:
        (root / "twin-small.png").write_bytes(b"edited since")
        (root / "plain.png").unlink()
        done = self.sh(script, "--really", code=1)
        assert done.stdout.endswith(b"4 done, 2 left\n")
        assert (root / "twin-small.png").read_bytes() == b"edited since"
        assert not (root / "twin-again.png").exists()

    @pytest.mark.parametrize("what", ["changed", "gone", "link", "folder"])
    def test_nothing_goes_where_the_kept_file_is_not_what_it_was(
        self, script: Path, root: Path, what: str
    ) -> None:
        kept = root / "kept.png"
        data = kept.read_bytes()
        kept.unlink()
        if what == "changed":
            kept.write_bytes(data[:-1] + b"\0")
        elif what == "link":
            kept.symlink_to(root / "plain.png")
        elif what == "folder":
            kept.mkdir()
        done = self.sh(script, "--really", code=1)
        assert done.stdout.endswith(b"2 done, 4 left\n")
        assert all((Path(os.fsdecode(os.fsencode(root) + b"/" + name))).exists() for name in NAMES)

    def test_one_file_under_two_names_stays(self, script: Path, root: Path) -> None:
        for name in ("plain.png", "it's.png"):
            (root / name).unlink()
        os.link(root / "kept.png", root / "plain.png")
        (root / "it's.png").symlink_to(root / "kept.png")
        done = self.sh(script, "--really", code=1)
        assert done.stderr.count(b"it is the kept file itself") == 2
        assert (root / "plain.png").exists()
        assert (root / "it's.png").is_symlink()
        assert (root / "kept.png").exists()

    def test_a_folder_that_became_a_link_to_the_kept_one_costs_nothing(
        self, store: Store, tmp_path: Path
    ) -> None:
        root = tmp_path / "roots"
        kept = draw(root / "a" / "one.png", 1)
        os.utime(kept, (1_000_000, 1_000_000))
        (root / "b").mkdir()
        shutil.copyfile(kept, root / "b" / "one.png")
        store.index(root, store.space())
        out = tmp_path / "out.sh"
        run(store, "--exact", "--script", str(out))
        shutil.rmtree(root / "b")
        (root / "b").symlink_to(root / "a")
        done = self.sh(out, "--really", code=1)
        assert b"it is the kept file itself" in done.stderr
        assert kept.exists()

    def test_a_line_without_its_group_does_nothing(self, script: Path, root: Path) -> None:
        lines = script.read_bytes().splitlines(keepends=True)
        script.write_bytes(b"".join(line for line in lines if not line.startswith(b"keep ")))
        before = contents(root)
        done = self.sh(script, "--really", code=1)
        assert done.stdout == b"0 done, 6 left\n"
        assert contents(root) == before

    def test_what_lies_in_the_folder_already_is_not_overwritten(
        self, script: Path, root: Path, tmp_path: Path
    ) -> None:
        taken = Path(f"{tmp_path / 'away'}{root}") / "plain.png"
        taken.parent.mkdir(parents=True)
        taken.write_bytes(b"mine")
        done = self.sh(script, "--really", "--move-to", "away", code=1)
        assert done.stdout.endswith(b"5 done, 1 left\n")
        assert taken.read_bytes() == b"mine"
        assert (root / "plain.png").exists()

    def test_without_a_tool_for_digests_it_refuses(
        self, script: Path, root: Path, tmp_path: Path
    ) -> None:
        before = contents(root)
        done = subprocess.run(
            [shutil.which("sh") or "/bin/sh", str(script), "--really"],
            env={"PATH": str(tmp_path / "nothing")},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 2
        assert b"nothing can be checked" in done.stderr
        assert contents(root) == before

    def test_another_file_can_be_kept_by_hand(self, script: Path, root: Path) -> None:
        lines = script.read_bytes().splitlines(keepends=True)
        large = next(line for line in lines if b"/twin-large.png" in line)
        small = next(line for line in lines if b"/twin-small.png" in line)
        lines[lines.index(small)] = large.replace(b"keep", b"other", 1)
        lines[lines.index(large)] = small.replace(b"other", b"keep", 1)
        script.write_bytes(b"".join(lines))
        assert self.sh(script, "--really", code=0).stdout.endswith(b"6 done, 0 left\n")
        assert sorted(path.name for path in root.glob("twin*")) == ["twin-small.png"]


class TestInterrupted:
    def test_ctrl_c_ends_it_at_once_and_leaves_nothing(
        self, store: Store, root: Path, tmp_path: Path
    ) -> None:
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        outputs = ["--report", str(tmp_path / "out.html"), "--script", str(tmp_path / "out.sh")]
        # It waits for a reader of its output, in the middle of its groups.
        program = (
            "import search.duplicate_script as s, os, time\n"
            "add = s.Script.add\n"
            "def slow(self, group):\n"
            "    add(self, group); open(os.environ['FIFO'], 'w').close(); time.sleep(60)\n"
            "s.Script.add = slow\n"
            "from flows.cli import main; main()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program, *words(store, *outputs)],
            cwd=CHECKOUT,
            env={**os.environ, "FIFO": str(fifo)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        fifo.read_text()
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 130
        assert time.monotonic() - started < 10
        assert stderr.decode().splitlines()[-1] == "lookalike: interrupted"
        assert not list(tmp_path.glob("out*"))


def test_report_and_script_are_two_files(store: Store, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(store, "--exact", "--report", str(out), "--script", str(out), code=2)
    assert "--report and --script name one file" in done.stderr
    assert not out.exists()


def test_a_score_that_is_no_number_is_refused(store: Store, root: Path) -> None:
    assert "'--near': not a number" in run(store, "--near", "nan", code=2).stderr
