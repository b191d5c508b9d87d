"""Every command against a real store, as a person calls it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from sqlalchemy import update

from extractor.errors import ExtractorError
from flows.cli import cli, expected_code
from flows.errors import FlowError
from flows.job.parameters import options_for
from flows.job.spaces import SpaceChoice
from flows.samples import draw_scene
from storage.catalog import Catalog
from storage.durable import file_checksum
from storage.errors import StorageError
from storage.home import Home
from storage.leases import finish_run, start_run
from storage.reading import open_store, snapshot
from storage.roots import list_roots
from storage.runs import claim
from storage.spaces import get_space
from storage.tables import Part, Space
from tests.flows.terminal import CHECKOUT, loaded, lookalike
from tests.flows.test_report import KEYS

SOUND = (
    "clean: 1 space, 12 vectors in 1 part, 1 index, every byte read, 12 pictures extracted again\n"
)
TINY = ("--model", "resnet18", "--weights", "random:0", "--no-prefect")


def draw(path: Path, seed: int) -> None:
    import random

    path.parent.mkdir(parents=True, exist_ok=True)
    draw_scene(random.Random(seed)).resize((80, 60)).save(path, quality=90)


def settle(base: Path) -> None:
    """Let the files grow old enough for their signatures to be trusted, and index once more."""
    time.sleep(2.6)
    run(base, "index", "--no-prefect")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a store in ``home``, of 12 pictures and a broken one in ``pictures``."""
    base = tmp_path_factory.mktemp("first")
    for i in range(6):
        draw(base / "pictures" / "a" / f"{i}.jpg", i)
        draw(base / "pictures" / "b" / f"{i}.png", 10 + i)
    (base / "pictures" / "broken.jpg").write_bytes(b"no picture at all")
    time.sleep(2.6)  # younger files are read again by the next run
    result = run(base, "index", str(base / "pictures"), *TINY, "--json", code=3)
    (base / "report.json").write_text(result.stdout)
    return base


@pytest.fixture
def shop(first: Path, tmp_path: Path) -> Path:
    """Return a copy of the first store, to be changed; its root is moved along."""
    base = tmp_path / "shop"
    shutil.copytree(first, base)
    run(base, "roots", "move", str(first / "pictures"), str(base / "pictures"))
    run(base, "index", "--no-prefect")
    return base


def run(base: Path, *args: str, code: int = 0) -> Result:
    """Run a command in this process on the store of ``base``."""
    result = CliRunner().invoke(cli, ["--home", str(base / "home"), *args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, (result.stdout, result.stderr)
    return result


def values(base: Path, *args: str, code: int = 0) -> Any:
    return json.loads(run(base, *args, "--json", code=code).stdout)


class TestIndex:
    def test_the_first_report_has_the_promised_keys_and_counts(self, first: Path) -> None:
        report = json.loads((first / "report.json").read_text())
        assert list(report)[: len(KEYS)] == KEYS
        assert (report["scanned"], report["new"], report["extracted"]) == (13, 13, 12)
        assert (report["failed"], report["failures"]) == (1, {"unsupported": 1})
        assert report["space"] == "resnet18-avgpool"
        assert report["exit_code"] == 3
        assert report["stages"]["forward"] > 0
        assert report["limits"].endswith(".")

    def test_each_group_is_told_with_its_reason(self, shop: Path) -> None:
        root = shop / "pictures"
        settle(shop)
        for i in (0, 1, 2):
            os.utime(root / "a" / f"{i}.jpg")
        draw(root / "a" / "3.jpg", 300)
        draw(root / "b" / "0.png", 301)
        (root / "b" / "1.png").rename(root / "a" / "moved.png")
        shutil.copy(root / "b" / "2.png", root / "copy.png")
        (root / "b" / "3.png").unlink()
        plan = values(shop, "index", "--plan")
        report = values(shop, "index", "--no-prefect")
        assert plan["scans"][0]["reasons"] == report["reasons"]
        assert report["extracted"] == 2
        assert (report["new"], report["moved"], report["copied"]) == (2, 1, 1)
        assert (report["touched"], report["changed"], report["missing"]) == (3, 5, 2)
        assert (report["failed"], report["exit_code"]) == (0, 0)

    def test_where_nothing_changed_one_line_says_so(self, shop: Path) -> None:
        settle(shop)
        done = loaded("--home", str(shop / "home"), "index", "-q")
        assert not done & {"torch", "torchvision", "prefect", "faiss"}
        text = run(shop, "index").stdout
        assert text.startswith("Nothing changed: 13 files scanned in ")
        assert text.count("\n") == 1

    def test_a_plan_touches_nothing(self, shop: Path) -> None:
        draw(shop / "pictures" / "new.jpg", 77)
        before = (shop / "home" / "catalog.sqlite").read_bytes()
        text = run(shop, "index", "--plan").stdout
        assert "1 new" in text
        assert text.endswith("nothing was touched\n")
        assert (shop / "home" / "catalog.sqlite").read_bytes() == before

    def test_the_report_for_people_goes_to_stdout_and_progress_to_stderr(self, shop: Path) -> None:
        draw(shop / "pictures" / "new.jpg", 78)
        result = run(shop, "index", "--no-prefect")
        assert result.stdout.startswith("Done: 1 image extracted into space resnet18-avgpool in ")
        assert "files to read" in result.stderr
        draw(shop / "pictures" / "newer.jpg", 79)
        assert run(shop, "index", "--no-prefect", "--quiet").stderr == ""

    def test_a_root_that_is_gone_changes_nothing(self, shop: Path) -> None:
        (shop / "pictures").rename(shop / "away")
        result = run(shop, "index", code=4)
        [line] = [line for line in result.stderr.splitlines() if line.startswith("lookalike: ")]
        assert str(shop / "pictures") in line
        assert values(shop, "status")["roots"][0]["live"] == 13

    def test_too_many_failures_have_their_own_code(self, shop: Path) -> None:
        for i in range(3):
            (shop / "pictures" / f"bad-{i}.jpg").write_bytes(b"bad %d" % i)
        draw(shop / "pictures" / "good.jpg", 500)
        args = ("index", "--no-prefect", "--max-failures", "0.5")
        report = json.loads(run(shop, *args, "--json", code=7).stdout)
        assert (report["extracted"], report["failed"]) == (1, 3)
        assert report["troubles"] == {"7": ["75% of the images failed, --max-failures allows 50%"]}

    @pytest.mark.parametrize(
        ("args", "said"),
        [
            (("--model", "resnet19"), "resnet18"),
            (("--space", "none"), "resnet18-avgpool"),
            (("/nowhere",), "neither a directory nor a manifest"),
            ((*TINY, "--layer", "fc9"), "fc9"),
        ],
    )
    def test_what_is_asked_for_wrongly_is_usage(
        self, shop: Path, args: tuple[str, ...], said: str
    ) -> None:
        with pytest.raises((StorageError, ExtractorError), match=said) as caught:
            run(shop, "index", *args)
        assert expected_code(caught.value) == 2
        assert "\n" not in str(caught.value)

    def test_ctrl_c_keeps_what_is_done(self, shop: Path) -> None:
        for i in range(64):
            draw(shop / "pictures" / "many" / f"{i}.jpg", 1000 + i)
        program = "from flows.cli import main; main()"
        with subprocess.Popen(
            [
                *(sys.executable, "-c", program, "--home", str(shop / "home"), "index"),
                *("--no-prefect", "--chunk-size", "16", "--batch-size", "4"),
            ],
            cwd=CHECKOUT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            while "files to read" not in (line := process.stderr.readline()):
                assert line, process.communicate()
            deadline = time.monotonic() + 60
            while values(shop, "status")["spaces"][0]["vectors"] < 12 + 16:
                assert time.monotonic() < deadline
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        assert process.returncode == 130, (out, err)
        assert out.startswith("Interrupted: ")
        kept = values(shop, "status")["spaces"][0]["vectors"]
        assert 12 + 16 <= kept < 12 + 64
        assert values(shop, "index", "--no-prefect")["extracted"] == 12 + 64 - kept
        assert run(shop, "check").stdout.startswith("clean: 1 space, ")


class TestFirstRun:
    def test_without_a_root_nothing_is_made(self, tmp_path: Path) -> None:
        home = ("--home", str(tmp_path / "home"))
        for args in ((), ("--plan",), ("--space", "photos"), ("--prefect",)):
            done = lookalike(*home, "index", *args, code=2)
            assert done.stderr == "lookalike: no root is known yet: `lookalike index DIRECTORY`\n"
            assert not (tmp_path / "home").exists()

    def test_without_a_root_any_more_it_is_said_too(self, shop: Path) -> None:
        run(shop, "roots", "remove", str(shop / "pictures"))
        for args in ((), ("--plan",)):
            with pytest.raises(FlowError, match="no root is known yet"):
                run(shop, "index", *args)

    def test_the_first_space_has_the_name_and_the_settings_recipe(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        draw(tmp_path / "pictures" / "a.jpg", 1)
        monkeypatch.setenv("LOOKALIKE_MODEL", "squeezenet1_1")
        monkeypatch.setenv("LOOKALIKE_WEIGHTS", "random:0")
        args = ("index", str(tmp_path / "pictures"), "--space", "photos", "--no-prefect")
        plan = values(tmp_path, *args, "--plan")
        assert [(s["space"], s["new"], s["pending"]) for s in plan["spaces"]] == [
            ("photos", True, 1)
        ]
        assert values(tmp_path, *args)["space"] == "photos"
        [space] = values(tmp_path, "spaces")
        assert (space["name"], space["model"]["model"]) == ("photos", "squeezenet1_1")

    def test_a_plan_says_what_a_new_space_needs(self, shop: Path) -> None:
        text = run(shop, "index", "--plan", "--model", "vgg16", "--layer", "fc7").stdout
        assert (
            "new space 'vgg16-fc7': at most 13 images to extract, how much disk they take follows "
            "once the model is known\n"
        ) in text
        asked = ("--model", "resnet18", "--layer", "avgpool", "--weights", "random:0")
        draw(shop / "pictures" / "new.jpg", 90)
        text = run(shop, "index", "--plan", *asked, "--dtype", "float16").stdout
        assert "new space 'resnet18-avgpool': at most 14 images to extract, 0.0 MB of disk" in text

    def test_a_plan_keeps_to_the_roots_that_a_run_would_scan(self, shop: Path) -> None:
        time.sleep(2.6)  # none is too young to be trusted
        run(shop, "index", *TINY, "--layer", "logits", str(shop / "pictures" / "a"))
        asked = ("index", "--plan", "--space", "resnet18-logits")
        assert values(shop, *asked)["spaces"][0]["pending"] == 7
        [space] = values(shop, *asked, str(shop / "pictures" / "a"))["spaces"]
        assert (space["new"], space["pending"]) == (False, 0)
        (shop / "more").mkdir()
        (shop / "pictures").rename(shop / "away")
        plan = values(shop, *asked, str(shop / "pictures"), str(shop / "more"), code=4)
        assert list(plan["unavailable"]) == [str(shop / "pictures")]
        assert plan["spaces"][0]["pending"] == 0


class TestChoice:
    @pytest.mark.parametrize(
        ("typed", "space", "environment", "choice"),
        [
            ({}, None, {}, SpaceChoice()),
            ({"model": "vgg16"}, None, {}, SpaceChoice(model="vgg16")),
            ({}, None, {"MODEL": "vgg16"}, SpaceChoice(model="vgg16")),
            ({"model": "alexnet"}, None, {"LAYER": "fc7"}, SpaceChoice(model="alexnet")),
            ({}, "mine", {"MODEL": "vgg16"}, SpaceChoice(space="mine")),
            ({}, "all", {}, SpaceChoice(space="all")),
            ({"dtype": "float16"}, "mine", {}, SpaceChoice(space="mine", dtype="float16")),
            ({}, None, {"DTYPE": "float16"}, SpaceChoice(dtype="float16")),
        ],
    )
    def test_flags_do_not_mix_with_the_settings_recipe(
        self,
        typed: dict[str, str],
        space: str | None,
        environment: dict[str, str],
        choice: SpaceChoice,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(f"LOOKALIKE_{name}", value)
        options, _ = options_for({**typed, "space": space})
        assert options.choice == choice
        keeps = space is not None and environment and not typed
        assert options.choice.otherwise == (SpaceChoice(model="vgg16") if keeps else None)


class TestSearch:
    def test_an_indexed_picture_needs_no_torch(self, first: Path) -> None:
        query = str(first / "pictures/a/1.jpg")
        done = loaded("--home", str(first / "home"), "search", query)
        assert not done & {"torch", "torchvision", "prefect", "faiss", "alembic", "rich", "PIL"}

    def test_hits_are_a_table(self, first: Path) -> None:
        query = first / "pictures/a/1.jpg"
        lines = run(first, "search", str(query), "-k", "3").stdout.splitlines()
        assert lines[0] == f"{query} in space resnet18-avgpool"
        assert lines[1] == "rank   score  path"
        assert lines[2] == f"   1  1.0000  {query}"
        assert len(lines) == 5

    def test_json_answers_each_query_in_order(self, first: Path) -> None:
        queries = [str(first / f"pictures/a/{i}.jpg") for i in (2, 0)]
        answers = values(first, "search", *queries, "-k", "2", "--no-self")
        assert [answer["query"] for answer in answers] == queries
        for query, answer in zip(queries, answers, strict=True):
            assert answer["space"] == "resnet18-avgpool"
            assert len(answer["hits"]) == 2
            assert query not in answer["hits"][0]["paths"]

    def test_a_folder_and_a_score_narrow_it(self, first: Path) -> None:
        query = str(first / "pictures/a/1.jpg")
        [answer] = values(first, "search", query, "--under", str(first / "pictures/b"))
        assert {os.path.dirname(hit["path"]) for hit in answer["hits"]} == {
            str(first / "pictures/b")
        }
        assert "no hits" in run(first, "search", query, "--no-self", "--min-score", "1").stdout

    def test_a_new_picture_finds_the_one_that_it_is_made_of(
        self, first: Path, tmp_path: Path
    ) -> None:
        original = first / "pictures/a/4.jpg"
        with Image.open(original) as picture:
            picture.save(tmp_path / "again.jpg", quality=60)
        [answer] = values(first, "search", str(tmp_path / "again.jpg"), "-k", "1")
        assert answer["hits"][0]["path"] == str(original)
        assert 0.9 < answer["hits"][0]["score"] < 1.0

    def test_a_sheet_is_drawn(self, first: Path, tmp_path: Path) -> None:
        target = tmp_path / "sheet.png"
        args = ("search", str(first / "pictures/a/1.jpg"), "--sheet", str(target))
        assert run(first, *args).stderr == f"contact sheet: {target}\n"
        with Image.open(target) as picture:
            assert picture.width > 500

    def test_copies_ids_and_odd_names_are_told(self, shop: Path) -> None:
        root = shop / "pictures"
        shutil.copy(root / "a/1.jpg", root / "a/1\n.jpg")
        (shop / "shop.tsv").write_text(f"id\tpath\nsku-1\t{root}/a/1.jpg\nsku-2\t{root}/b/2.png\n")
        run(shop, "index", str(shop / "shop.tsv"), str(root), "--no-prefect")
        lines = run(shop, "search", str(root / "b/2.png"), "-k", "20").stdout.splitlines()
        assert sum("\\x0a" in line for line in lines) == 1
        assert sum("(and 1 more)" in line for line in lines) == 1
        args = ("search", str(root / "b/2.png"), "--under", str(shop / "shop.tsv"), "-k", "1")
        assert "id=sku-2" in run(shop, *args).stdout

    def test_pictures_of_a_manifest_are_found_by_their_folder(self, shop: Path) -> None:
        shutil.copytree(shop / "pictures", shop / "away")
        (shop / "shop.tsv").write_text("id\tpath\nsku-1\taway/a/1.jpg\nsku-2\taway/b/2.png\n")
        run(shop, "index", str(shop / "shop.tsv"), "--no-prefect")
        query = str(shop / "pictures/b/2.png")
        [answer] = values(shop, "search", query, "--under", str(shop / "away/a"))
        assert [(hit["path"], hit["id"]) for hit in answer["hits"]] == [
            (str(shop / "away/a/1.jpg"), "sku-1")
        ]

    def test_a_query_that_is_no_picture_is_usage(self, first: Path) -> None:
        home = ("--home", str(first / "home"))
        for name in ("pictures/broken.jpg", "pictures/none.jpg"):
            done = lookalike(*home, "search", str(first / name), code=2)
            assert done.stdout == ""
            assert done.stderr.startswith(f"lookalike: {first / name}: ")
            assert done.stderr.count("\n") == 1

    def test_before_the_first_run_there_is_nothing_to_search(self, tmp_path: Path) -> None:
        done = lookalike("search", "x.jpg", code=5)
        assert done.stderr.startswith("lookalike: nothing is indexed yet in ")

    def test_a_broken_index_is_said_and_gone_round(self, shop: Path) -> None:
        for path in (shop / "home/spaces").rglob("*.faiss"):
            path.write_bytes(b"broken")
        from storage.lookup import Lookup

        query = str(shop / "pictures/a/1.jpg")
        exact_below = Lookup.__init__.__kwdefaults__["exact_below"]
        Lookup.__init__.__kwdefaults__["exact_below"] = 0
        try:
            result = run(shop, "search", query, "-k", "1")
        finally:
            Lookup.__init__.__kwdefaults__["exact_below"] = exact_below
        assert query in result.stdout
        assert "searched without the index" in result.stderr


class TestStatus:
    def test_it_needs_nothing_indexed(self, tmp_path: Path) -> None:
        text = run(tmp_path, "status").stdout
        assert text.startswith(f"home {tmp_path}/home, store not made yet")
        assert "nothing is indexed yet" in text
        assert values(tmp_path, "status")["store_id"] is None
        assert not (tmp_path / "home").exists()

    def test_it_shows_roots_spaces_runs_and_each_settings_origin(self, first: Path) -> None:
        status = values(first, "status")
        assert status["settings"]["home"] == {"value": str(first / "home"), "origin": "flag"}
        assert status["settings"]["model"] == {"value": "resnet50", "origin": "default"}
        [root] = status["roots"]
        assert (root["path"], root["live"], root["missing"]) == (str(first / "pictures"), 13, 0)
        [space] = status["spaces"]
        assert (space["vectors"], space["pending"]) == (12, 0)
        assert space["failures"] == {"unsupported": 1}
        assert space["current"] is True
        assert status["runs"][-1]["kind"] == "index"
        assert status["images"] == 13
        text = run(first, "status").stdout
        for said in (status["store_id"], str(first / "pictures"), "resnet18-avgpool *", "done"):
            assert said in text

    def test_it_loads_neither_torch_nor_prefect(self, first: Path) -> None:
        done = loaded("--home", str(first / "home"), "status")
        assert not done & {"torch", "torchvision", "prefect", "faiss", "alembic"}


class TestFailures:
    def test_they_are_listed_and_armed_again(self, shop: Path) -> None:
        found = values(shop, "failures")
        assert found["counts"] == {"unsupported": 1}
        [failure] = found["failures"]
        assert failure["path"] == str(shop / "pictures/broken.jpg")
        assert (failure["stage"], failure["class"]) == ("decode", "unsupported")
        text = run(shop, "failures").stdout
        assert "decode/unsupported" in text
        assert text.endswith("\n1 unsupported\n")
        assert run(shop, "retry", "--class", "truncated").stdout.startswith("0 failures forgotten")
        assert run(shop, "retry", str(shop / "pictures/a")).stdout.startswith("0 failures")
        assert run(shop, "retry").stdout.startswith("1 failure forgotten")
        assert run(shop, "failures").stdout == "No failures in space resnet18-avgpool.\n"
        report = json.loads(run(shop, "index", "--no-prefect", "--json", code=3).stdout)
        assert (report["failed"], report["extracted"]) == (1, 0)


class TestUpkeep:
    def test_check_tells_damage_and_mends_it(self, shop: Path) -> None:
        assert run(shop, "check").stdout.startswith("clean: 1 space, ")
        assert values(shop, "check", "--deep") == []
        [part] = [
            p for p in (shop / "home/spaces").rglob("*/parts/*.npy") if p.stem.count(".") == 0
        ]
        data = bytearray(part.read_bytes())
        data[-5] ^= 0xFF
        part.write_bytes(data)
        assert run(shop, "check").stdout.startswith("clean: 1 space, ")  # the size is right
        result = run(shop, "check", "--deep", code=5)
        assert result.stdout.startswith("error: ")
        assert part.stem in result.stdout
        assert "(repaired)" in run(shop, "check", "--deep", "--repair").stdout
        assert values(shop, "index", "--no-prefect")["extracted"] == 12
        assert run(shop, "check", "--deep").stdout == SOUND

    def test_a_vector_that_is_not_its_picture_s_is_found_and_made_anew(self, shop: Path) -> None:
        home = Home(str(shop / "home"))
        with Catalog.open(home, write=True) as catalog:
            space = get_space(catalog)
            [part] = snapshot(catalog, space).parts
            path = open_store(catalog, space).path(part.name)
            x = np.load(path)
            x[3] = np.roll(x[3], 1)
            np.save(path, x)
            with catalog.write() as conn:
                conn.execute(update(Part).values(checksum=file_checksum(path)))
        assert run(shop, "check").stdout.startswith("clean: ")
        found = run(shop, "check", "--deep", code=5).stdout
        assert "1 of 12 pictures that were extracted again gave another vector" in found
        mended = run(shop, "check", "--deep", "--repair").stdout
        assert mended.endswith("12 pictures extracted again\n")
        assert mended.count("(repaired)") == 1
        assert values(shop, "index", "--no-prefect")["extracted"] == 12
        assert run(shop, "check", "--deep").stdout == SOUND

    def test_where_the_weights_are_gone_it_says_so_and_the_rest_is_verified(
        self, shop: Path
    ) -> None:
        with Catalog.open(Home(str(shop / "home")), write=True) as catalog, catalog.write() as conn:
            gone = {"model": "resnet18", "layer": "avgpool", "weights": "/nowhere/gone.pth"}
            conn.execute(update(Space).values(request=gone))
        said = run(shop, "check", "--deep").stdout
        assert "info: space resnet18-avgpool: no picture was extracted again: " in said
        assert said.endswith("every byte read, 0 pictures extracted again\n")

    def test_a_backup_is_made_checked_and_restored(self, shop: Path) -> None:
        made = run(shop, "backup", str(shop / "copy")).stdout
        assert made.startswith(f"backed up to {shop / 'copy'}, as of 20")
        assert ": 1 space, 12 vectors, 4 files\n4 copied (" in made
        again = run(shop, "backup", str(shop / "copy")).stdout
        assert again.endswith("\n0 copied (0 B), 4 there already, 0 old deleted\n")
        checked = CliRunner().invoke(cli, ["--home", str(shop / "copy"), "check", "--deep"])
        assert checked.stdout == SOUND
        with pytest.raises(StorageError, match="is a backup and is not written"):
            CliRunner().invoke(
                cli, ["--home", str(shop / "copy"), "compact"], catch_exceptions=False
            )
        query = str(shop / "pictures/a/2.jpg")
        hits = values(shop, "search", query)
        shutil.rmtree(shop / "home")
        restored = values(shop, "restore", str(shop / "copy"))
        assert (restored["vectors"], restored["copied"]) == (12, 4)
        assert run(shop, "check", "--deep").stdout == SOUND
        assert values(shop, "search", query) == hits
        with pytest.raises(StorageError, match="is there already"):
            run(shop, "restore", str(shop / "copy"))
        report = values(shop, "index", "--no-prefect")
        assert (report["extracted"], report["missing"]) == (0, 0)

    def test_compact_drops_what_is_dead(self, shop: Path) -> None:
        shutil.rmtree(shop / "pictures/b")
        run(shop, "index", "--confirm-missing", "--no-prefect")
        text = run(shop, "compact", "--force").stdout
        assert text.endswith("; what was replaced now goes after a day\n")
        assert text.startswith("space resnet18-avgpool: 6 dead vectors dropped, parts 1 -> 1, ")
        assert values(shop, "spaces", "list")[0]["vectors"] == 6
        assert run(shop, "compact", "--space", "resnet18-avgpool").stdout.startswith("space ")
        assert run(shop, "compact").stdout.endswith("\n0 old files deleted\n")
        assert run(shop, "check").stdout.startswith("clean: 1 space, ")

    def test_forget_removes_an_image_for_good(self, shop: Path) -> None:
        query = shop / "pictures/a/1.jpg"
        text = run(shop, "forget", str(query)).stdout
        assert text == "forgotten: 1 image, 1 file, 1 vector\n"
        assert values(shop, "status")["spaces"][0]["vectors"] == 11
        [answer] = values(shop, "search", str(shop / "pictures/a/2.jpg"), "-k", "50")
        assert str(query) not in [hit["path"] for hit in answer["hits"]]
        assert run(shop, "check").stdout.startswith("clean: 1 space, ")


class TestRootsAndSpaces:
    def test_roots_are_listed_moved_and_removed(self, shop: Path) -> None:
        old, new = shop / "pictures", shop / "photos"
        assert str(old) in run(shop, "roots").stdout
        old.rename(new)
        assert run(shop, "roots", "move", str(old), str(new)).stdout == (
            f"moved: {old} is now {new}\n"
        )
        assert values(shop, "index", "--no-prefect")["extracted"] == 0
        [root] = values(shop, "roots", "list")
        assert (root["path"], root["kind"], root["live"]) == (str(new), "directory", 13)
        assert run(shop, "roots", "remove", str(new)).stdout == (
            f"removed: {new}, 13 files forgotten; `lookalike compact` frees disk\n"
        )
        assert values(shop, "roots", "list") == []
        assert new.exists()

    @pytest.mark.parametrize("group", ["roots", "spaces"])
    def test_a_group_alone_lists(self, shop: Path, group: str) -> None:
        listed = values(shop, group, "list")
        assert values(shop, group) == listed
        assert len(listed) == 1
        plain = run(shop, group, "list").stdout
        assert run(shop, group).stdout == plain
        home = ("--home", str(shop / "home"))
        assert CliRunner().invoke(cli, [group, *home]).stdout == plain
        assert CliRunner().invoke(cli, [group, *home, "--json"]).stdout.startswith("[")
        done = run(shop, group, "--json", "list", code=2)
        assert "list --json" in done.stderr

    def test_the_settings_space_beside_the_current_one_is_said(
        self, shop: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said = "lookalike spaces use resnet18-logits"
        result = run(shop, "index", *TINY, "--layer", "logits")
        assert said in result.stderr
        assert said in run(shop, "index", *TINY, "--layer", "logits").stderr
        for name, value in (("MODEL", "resnet18"), ("LAYER", "logits"), ("WEIGHTS", "random:0")):
            monkeypatch.setenv(f"LOOKALIKE_{name}", value)
        result = run(shop, "index", "--no-prefect")
        assert (
            "this run maintains the space 'resnet18-logits', searches ask 'resnet18-avgpool'; "
            f"`{said}`"
        ) in result.stderr
        assert "maintains" not in run(shop, "index", "--space", "resnet18-logits").stderr
        result = run(shop, "spaces", "use", "resnet18-avgpool")
        assert result.stderr == (
            "lookalike: the settings name the model of space resnet18-logits, which `lookalike "
            "index` goes on to maintain; change them, or use `lookalike index --space "
            "resnet18-avgpool`\n"
        )
        assert run(shop, "spaces", "use", "resnet18-logits").stderr == ""
        assert "maintains" not in run(shop, "index").stderr

    def test_a_root_that_a_run_has_is_held(self, shop: Path) -> None:
        with Catalog.open(Home(str(shop / "home")), write=True) as catalog:
            lease = start_run(catalog, "index")
            [root] = list_roots(catalog)
            claim(catalog, lease, "root", root.id)
            args = ("--home", str(shop / "home"), "roots", "remove", str(shop / "pictures"))
            done = lookalike(*args, code=6)
            finish_run(catalog, lease, "done", {})
        assert lease.run_id in done.stderr
        assert done.stderr.count("\n") == 1

    def test_spaces_are_listed_chosen_and_dropped(self, shop: Path) -> None:
        result = run(
            shop,
            "index",
            *TINY,
            "--layer",
            "logits",
            "--space",
            "classes",
            "--dtype",
            "float16",
        )
        assert "made beside the current one" in result.stderr
        names = [
            (s["name"], s["current"], s["dim"], s["dtype"]) for s in values(shop, "spaces", "list")
        ]
        assert names == [
            ("resnet18-avgpool", True, 512, "float32"),
            ("classes", False, 1000, "float16"),
        ]
        assert "classes  " in run(shop, "spaces").stdout
        assert run(shop, "spaces", "use", "classes").stdout == "space classes is the current one\n"
        [answer] = values(shop, "search", str(shop / "pictures/a/1.jpg"), "-k", "1")
        assert answer["space"] == "classes"
        report = values(shop, "index", "--space", "all", "--no-prefect")
        assert (report["space"], report["extracted"]) == ("resnet18-avgpool, classes", 0)
        dropped = run(shop, "spaces", "drop", "resnet18-avgpool").stdout
        assert dropped == "space resnet18-avgpool is dropped\n"
        assert [s["name"] for s in values(shop, "spaces", "list")] == ["classes"]
        done = lookalike("--home", str(shop / "home"), "spaces", "use", "none", code=2)
        assert "there are: classes" in done.stderr


class TestOthers:
    def test_models_are_listed(self, tmp_path: Path) -> None:
        lines = run(tmp_path, "models", "resnet1*").stdout.splitlines()
        assert lines[0].split()[:2] == ["network", "numbers"]
        assert [line.split()[0] for line in lines[1:]] == ["resnet101", "resnet152", "resnet18"]
        [model] = values(tmp_path, "models", "resnet18")
        assert (model["name"], model["dim"]) == ("resnet18", 512)
        done = run(tmp_path, "models", "nothing-like-it", code=2)
        assert "no network matches 'nothing-like-it'" in done.stderr

    def test_down_without_a_server_and_up_with_one(self, tmp_path: Path) -> None:
        assert run(tmp_path, "down").stdout.startswith("no server to stop")
        from dataclasses import asdict

        from storage.owner import this_process

        folder = tmp_path / "home" / "prefect"
        folder.mkdir(parents=True)
        facts = {"url": "http://127.0.0.1:9/api", "owner": asdict(this_process())}
        (folder / "server.json").write_text(json.dumps(facts))
        said = "Prefect's server runs already: http://127.0.0.1:9\n"
        assert run(tmp_path, "up").stdout == said

    def test_a_run_that_a_person_breaks_off_is_recorded_so(self, shop: Path) -> None:
        from flows.commands.base import leased

        with Catalog.open(Home(str(shop / "home")), write=True) as catalog:
            for error, state in ((KeyboardInterrupt, "interrupted"), (ValueError, "failed")):
                with pytest.raises(error), leased(catalog, "compact"):
                    raise error
                [last] = [r for r in values(shop, "status")["runs"] if r["kind"] == "compact"][:1]
                assert last["state"] == state
