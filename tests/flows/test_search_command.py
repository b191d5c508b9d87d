"""``lookalike search`` as a person types it: what it asks, what it tells, and what it writes."""

import base64
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from flows.cli import cli, expected_code
from flows.commands.searching import is_path
from flows.samples import draw_families
from search.errors import SearchError
from search.questions import MINUS
from storage.catalog import Catalog
from storage.home import Home
from storage.lookup import Lookup
from storage.spaces import get_space
from tests.flows.terminal import CHECKOUT, lookalike
from tests.search.test_terminal import read_kitty, read_sixel

FloatArray = npt.NDArray[np.float32]
TINY = ("--model", "shufflenet_v2_x0_5", "--weights", "random:0", "--no-prefect")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with pictures, and a store of them."""
    base = tmp_path_factory.mktemp("shop")
    draw_families(str(base / "pictures"), 3, seed=4)
    odd = os.fsencode(base / "pictures/family-002") + b"/caf\xe9,\n.jpg"
    with Image.open(base / "pictures/family-002/plain.jpg") as picture:
        picture.rotate(3).save(os.fspath(odd), "JPEG", quality=97)
    done = CliRunner().invoke(
        cli, ["--home", str(base / "home"), "index", str(base / "pictures"), *TINY]
    )
    assert done.exit_code == 0, done.output
    return base


def search(shop: Path, *words: str) -> Result:
    """Run the command in this process."""
    result = CliRunner().invoke(cli, ["--home", str(shop / "home"), "search", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(shop: Path, *words: str) -> str:
    """Run the command in this process and return the one line that says what was wrong."""
    with pytest.raises(SearchError) as error:
        search(shop, *words)
    assert expected_code(error.value) == 2
    assert "\n" not in str(error.value)
    return str(error.value)


def answers(shop: Path, *words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(search(shop, *words, "--json").stdout)
    return found


def picture(shop: Path, family: int, name: str = "plain.jpg") -> str:
    return str(shop / "pictures" / f"family-{family:03}" / name)


@pytest.fixture(scope="module")
def vectors(shop: Path) -> tuple[dict[str, int], dict[int, FloatArray]]:
    """Return the image of each path, and each image's vector, as the store has them."""
    found = answers(shop, picture(shop, 0), "-k", "1000")[0]["hits"]
    with Catalog.open(Home(str(shop / "home")), write=False) as catalog:
        lookup = Lookup(catalog, get_space(catalog, None))
        with catalog.read() as conn:
            x = lookup.vectors_in(conn, [hit["row"] for hit in found])
    images = {path: hit["image_id"] for hit in found for path in hit["paths"]}
    return images, {hit["image_id"]: each for hit, each in zip(found, x, strict=True)}


class TestCombinations:
    def test_scores_are_those_of_the_combined_vector(
        self, shop: Path, vectors: tuple[dict[str, int], dict[int, FloatArray]]
    ) -> None:
        images, x = vectors
        one, two, three = (picture(shop, family) for family in range(3))
        also = picture(shop, 1, "blur.jpg")
        found = answers(shop, one, "--plus", two, "--plus", also, "--minus", three, "-k", "9")[0]
        like = np.mean([x[images[path]] for path in (one, two, also)], axis=0)
        wanted = like - MINUS * x[images[three]]
        wanted /= np.linalg.norm(wanted)
        scores = {image: float(each @ wanted) for image, each in x.items()}
        best = sorted(scores.values(), reverse=True)[:9]
        assert [hit["score"] for hit in found["hits"]] == pytest.approx(best, abs=2e-5)
        for hit in found["hits"]:
            assert hit["score"] == pytest.approx(scores[hit["image_id"]], abs=2e-5)
        assert (found["query"], found["plus"], found["minus"]) == (one, [two, also], [three])

    def test_what_is_added_goes_to_each_question(self, shop: Path) -> None:
        one, two, three = (picture(shop, family) for family in range(3))
        both = answers(shop, one, two, "--minus", three)
        alone = [answers(shop, each, "--minus", three)[0] for each in (one, two)]
        assert both == alone
        assert [each["query"] for each in both] == [one, two]

    def test_no_self_leaves_out_all_that_was_asked_for(
        self, shop: Path, vectors: tuple[dict[str, int], dict[int, FloatArray]]
    ) -> None:
        images, x = vectors
        typed = [picture(shop, family) for family in range(3)]
        found = answers(
            shop, typed[0], "--plus", typed[1], "--minus", typed[2], "--no-self", "-k", "1000"
        )
        there = {hit["image_id"] for hit in found[0]["hits"]}
        assert there == set(x) - {images[path] for path in typed}

    def test_a_picture_that_is_not_indexed_is_combined_too(
        self, shop: Path, tmp_path: Path
    ) -> None:
        with Image.open(picture(shop, 0)) as known:
            known.rotate(9).save(tmp_path / "new.jpg")
        new = str(tmp_path / "new.jpg")
        found = answers(shop, picture(shop, 1), "--plus", new, "--minus", new)[0]
        assert found["plus"] == found["minus"] == [new]
        assert len(found["hits"]) == 10

    def test_one_that_can_not_be_read_is_named(self, shop: Path) -> None:
        for flag in ("--plus", "--minus"):
            said = refused(shop, picture(shop, 0), flag, "/nowhere/x.jpg")
            assert said == "/nowhere/x.jpg: No such file or directory"

    def test_the_table_says_what_was_asked(self, shop: Path) -> None:
        one, two, three = (picture(shop, family) for family in range(3))
        typed = (one, "--plus", two, "--minus", three, "-k", "1")
        space = answers(shop, *typed)[0]["space"]
        head = search(shop, *typed).stdout.splitlines()[0]
        assert head == f"{one} + {two} - {three} in space {space}"


class TestPages:
    def test_pages_are_the_whole_in_parts(self, shop: Path) -> None:
        query = picture(shop, 0)
        whole = answers(shop, query, "-k", "12")[0]["hits"]
        parts = [answers(shop, query, "-k", "5", "--skip", str(n))[0] for n in (0, 5, 10)]
        assert [hit for part in parts for hit in part["hits"]][:12] == whole
        assert [part.get("skip") for part in parts] == [None, 5, 10]
        lines = search(shop, query, "-k", "2", "--skip", "5").stdout.splitlines()
        assert [line.split()[0] for line in lines[2:]] == ["6", "7"]

    def test_what_is_too_deep_is_said(self, shop: Path) -> None:
        assert "11,000" in refused(shop, picture(shop, 0), "-k", "9000", "--skip", "2000")

    def test_several_folders_narrow_it_together(self, shop: Path) -> None:
        under = [str(shop / "pictures" / f"family-{i:03}") for i in (0, 2)]
        typed = [word for folder in under for word in ("--under", folder)]
        found = answers(shop, picture(shop, 1), *typed, "-k", "100")[0]["hits"]
        assert {os.path.dirname(hit["path"]) for hit in found} == set(under)
        one = answers(shop, picture(shop, 1), *typed[:2], "-k", "100")[0]["hits"]
        assert {os.path.dirname(hit["path"]) for hit in one} == {under[0]}

    def test_near_duplicates_are_left_out(
        self, shop: Path, vectors: tuple[dict[str, int], dict[int, FloatArray]]
    ) -> None:
        _, x = vectors
        every = answers(shop, picture(shop, 0), "-k", "1000")[0]["hits"]
        found = answers(shop, picture(shop, 0), "-k", "1000", "--distinct", "0.97")[0]["hits"]
        kept: list[int] = []
        for hit in every:
            if all(float(x[hit["image_id"]] @ x[other]) < 0.97 for other in kept):
                kept.append(hit["image_id"])
        assert [hit["image_id"] for hit in found] == kept
        assert 0 < len(kept) < len(every)


class TestWords:
    def test_what_is_named_like_a_file_is_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("there").touch()
        Path("link").symlink_to("nowhere")
        paths = ("there", "link", "a.jpg", "A.HEIC", "./x", "a/b", "red car.png")
        assert [is_path(typed) for typed in paths] == [True] * len(paths)
        words = ("red car", "red", "car.", "a.b", ".jpg")
        assert [is_path(typed) for typed in words] == [False] * len(words)

    def test_a_space_of_pictures_tells_both_possibilities(self, shop: Path) -> None:
        home = ("--home", str(shop / "home"))
        done = lookalike(*home, "search", "red car", code=2)
        assert done.stderr.startswith("lookalike: red car: there is no such file, and for words: ")
        assert "clip:" in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""

    def test_words_can_be_meant(self, shop: Path) -> None:
        said = refused(shop, "--text", "red car")
        assert "answers no words" in said
        assert "no such file" not in said
        assert refused(shop, "--text", picture(shop, 0)) == said

    def test_without_anything_it_is_usage(self, shop: Path) -> None:
        for words in ((), ("--plus", picture(shop, 0))):
            done = search(shop, *words)
            assert done.exit_code == 2
            assert "Missing argument 'IMAGE...'" in done.stderr


class TestFiles:
    def test_hits_are_written_as_csv(self, shop: Path, tmp_path: Path) -> None:
        target = tmp_path / "hits.csv"
        queries = [picture(shop, 2), picture(shop, 0)]
        words = (*queries, "-k", "4", "--skip", "1", "--export", str(target))
        done = search(shop, *words, "--json")
        with target.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = list(csv.DictReader(file))
        wanted = [
            (each["query"], str(rank), hit["path"], str(hit["image_id"]))
            for each in json.loads(done.stdout)
            for rank, hit in enumerate(each["hits"], 2)
        ]
        got = [(row["query"], row["rank"], row["path"], row["image_id"]) for row in rows]
        assert got == wanted
        assert done.stderr.startswith(f"hits: {target}\n")

    def test_a_path_that_is_not_utf_8_is_said(self, shop: Path, tmp_path: Path) -> None:
        target = tmp_path / "hits.csv"
        words = (picture(shop, 2), "-k", "5", "--export", str(target))
        done = search(shop, *words, "--under", str(shop / "pictures/family-002"), "-k", "100")
        line = f"lookalike: 1 path in {target} is not UTF-8 and stands as its bytes"
        assert done.stderr.splitlines() == [f"hits: {target}", line]
        assert b"/caf\xe9,\n.jpg" in target.read_bytes()
        assert "caf\\xe9,\\x0a.jpg" in done.stdout

    def test_sheets_are_written(self, shop: Path, tmp_path: Path) -> None:
        png, html = tmp_path / "hits.png", tmp_path / "hits.html"
        words = (picture(shop, 0), "--plus", picture(shop, 1), "-k", "3")
        done = search(shop, *words, "--sheet", str(png), "--html", str(html))
        assert done.stderr == f"contact sheet: {png}\ncontact sheet: {html}\n"
        with Image.open(png) as sheet:
            assert sheet.format == "PNG"
        text = html.read_text()
        assert text.count("<img ") == 5
        assert "more like this" in text

    def test_what_can_not_be_written_is_one_line(self, shop: Path, tmp_path: Path) -> None:
        for flag in ("--export", "--sheet", "--html"):
            said = refused(shop, picture(shop, 0), flag, str(tmp_path / "none" / "x"))
            assert "can't be written: No such file or directory" in said


@pytest.mark.skipif(os.name == "nt", reason="terminals of POSIX")
class TestPictures:
    def shown(self, shop: Path, *words: str, term: str = "xterm-256color", **env: str) -> str:
        """Return what the command writes to a terminal of 70 columns."""
        import fcntl
        import pty
        import struct
        import termios

        drop = ("TMUX", "STY", "KITTY_WINDOW_ID", "TERM_PROGRAM", "LC_TERMINAL", "KONSOLE_VERSION")
        clean = {name: value for name, value in os.environ.items() if name not in drop}
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 70, 560, 640))
        command = [sys.executable, "-m", "flows.cli", "--home", str(shop / "home"), "search"]
        process = subprocess.Popen(
            [*command, *words],
            cwd=CHECKOUT,
            env={**clean, "TERM": term, **env},
            stdin=slave,
            stdout=slave,
            stderr=subprocess.DEVNULL,
        )
        os.close(slave)
        read = b""
        while True:
            try:
                piece = os.read(master, 1 << 16)
            except OSError:  # the other side is closed
                break
            if not piece:
                break
            read += piece
        os.close(master)
        assert process.wait(120) == 0
        return read.decode().replace("\r\n", "\n")

    def test_a_table_where_a_terminal_shows_none(self, shop: Path) -> None:
        words = (picture(shop, 0), "-k", "3")
        plain = search(shop, *words).stdout
        assert self.shown(shop, *words) == plain
        assert self.shown(shop, *words, "--pictures", "never", term="xterm-kitty") == plain
        assert self.shown(shop, *words, term="tmux-256color", TMUX="/tmp/tmux") == plain

    def test_kitty(self, shop: Path) -> None:
        text = self.shown(shop, picture(shop, 0), "-k", "5", term="xterm-kitty")
        head, *strips, table = re.split(r"\n(?=\x1b_Ga=T|rank)", text)
        plain = search(shop, picture(shop, 0), "-k", "5").stdout
        assert f"{head}\n{table}" == plain
        shown = [read_kitty(strip) for strip in strips]
        assert [keys["c"] for _, keys in shown] == ["64", "32"]  # the query and five hits
        assert [image.size for image, _ in shown] == [(64 * 8, 8 * 16), (32 * 8, 8 * 16)]
        query, best = (shown[0][0].crop((n * 128, 0, n * 128 + 120, 128)) for n in (0, 1))
        below = [np.asarray(tile.convert("RGB")).astype(int)[60:] for tile in (query, best)]
        assert np.abs(below[0] - below[1]).max() == 0  # its best hit is the query itself

    def test_iterm(self, shop: Path) -> None:
        text = self.shown(shop, picture(shop, 0), "-k", "1", LC_TERMINAL="iTerm2")
        found = re.search(r"\x1b\]1337;File=inline=1;size=\d+;width=32:([^\x07]*)\x07\nrank", text)
        assert found is not None
        assert Image.open(BytesIO(base64.b64decode(found[1]))).size == (256, 128)

    def test_sixel_where_it_is_asked_for(self, shop: Path) -> None:
        words = (picture(shop, 0), "-k", "1", "--pictures", "sixel")
        text = self.shown(shop, *words, term="dumb")
        found = re.search(r"\n(\x1bP.*?\x1b\\)\nrank", text, re.DOTALL)
        assert found is not None
        assert read_sixel(found[1]).shape == (128, 256, 4)

    def test_never_into_a_pipe_or_json(self, shop: Path) -> None:
        words = (picture(shop, 0), "-k", "1", "--pictures", "kitty")
        assert "\x1b" not in search(shop, *words).stdout
        text = self.shown(shop, *words, "--json", term="xterm-kitty")
        assert json.loads(text)[0]["hits"]

    def test_a_picture_that_is_gone_is_grey(self, shop: Path, tmp_path: Path) -> None:
        shutil.copytree(shop / "home", tmp_path / "home")
        query = tmp_path / "query.jpg"
        shutil.copy(picture(shop, 0), query)
        hidden = shop / "pictures/family-000"
        hidden.rename(tmp_path / "hidden")
        try:
            text = self.shown(shop, str(query), "-k", "1", term="xterm-kitty")
        finally:
            (tmp_path / "hidden").rename(hidden)
        found = re.search(r"(\x1b_G.*\x1b\\)\nrank", text, re.DOTALL)
        assert found is not None
        shown, _ = read_kitty(found[1])
        assert shown.getpixel((128 + 60, 80)) == (190, 190, 190, 255)


def test_the_help_shows_each_option_in_an_example_or_says_it() -> None:
    command = cli.get_command(click.Context(cli), "search")
    assert command is not None
    text = command.get_help(click.Context(command, info_name="search"))
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            assert option.help
            assert option.opts[-1] in text
    for word in ("--plus", "--minus", '"red car"', "--distinct", "--html", "--export", "--skip"):
        assert word in text.partition("Examples:")[2]


class TestOutputs:
    def test_each_has_a_file_of_its_own(self, shop: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path)
        outputs = ("--html", str(tmp_path / "hits"), "--export", str(tmp_path / "link/hits"))
        done = search(shop, picture(shop, 0), *outputs)
        assert done.exit_code == 2
        assert "--export and --html name one file" in done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["link"]

    @pytest.mark.parametrize("option", ["--export", "--sheet", "--html"])
    @pytest.mark.parametrize("name", ["plain.jpg", "blur.jpg"])  # what is asked for, and a hit
    def test_no_picture_is_written_over(
        self, shop: Path, tmp_path: Path, option: str, name: str
    ) -> None:
        link = tmp_path / "link"
        link.symlink_to(shop / "pictures")
        before = Path(picture(shop, 0, name)).read_bytes()
        out = str(link / "family-000" / name)
        done = search(shop, picture(shop, 0), "--plus", picture(shop, 0), "-k", "50", option, out)
        assert done.exit_code == 2
        assert f"{option} names a picture of this search" in done.stderr
        assert done.stdout == ""
        assert Path(picture(shop, 0, name)).read_bytes() == before

    def test_a_device_takes_several(self, shop: Path) -> None:
        outputs = ("--export", os.devnull, "--html", os.devnull)
        assert search(shop, picture(shop, 0), *outputs).exit_code == 0


def test_nothing_typed_is_named_as_that(shop: Path) -> None:
    assert refused(shop, "").startswith("'': there is no such file, and for words: ")
