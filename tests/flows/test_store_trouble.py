"""What a person is told, and what happens, where a store's files are not where they belong."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.cli import cli, expected_code
from storage.backup import backup
from storage.catalog import Catalog
from storage.home import Home
from storage.leases import finish_run, start_run
from storage.publish import publish
from storage.reading import snapshot
from storage.spaces import get_space
from tests.storage.filled import Filled, clustered, local_catalog

D = 16


@pytest.fixture
def store(sqlite_template: str, tmp_path: Path) -> Home:
    """Return the home of a store of three parts, with a backup in ``backup`` beside it."""
    with local_catalog(sqlite_template, tmp_path) as catalog:
        filled = Filled(catalog, D)
        for seed in range(3):
            filled.add(clustered(20, D, seed=seed))
        lease = start_run(catalog, "index")
        publish(catalog, lease, filled.space)
        finish_run(catalog, lease, "done")
        backup(catalog, str(tmp_path / "backup"))
        return catalog.home


def said(home: str, *words: str, code: int) -> str:
    """Run a command in this process; return what it wrote, and its error."""
    result = CliRunner().invoke(cli, ["--home", home, *words])
    error = result.exception
    if error is None or isinstance(error, SystemExit):
        assert result.exit_code == code, result.output
        return result.output
    assert expected_code(error) == code, repr(error)
    assert "\n" not in str(error)
    return str(error)


def n_vectors(home: Home) -> int:
    with Catalog.open(home, write=False) as catalog:
        return snapshot(catalog, get_space(catalog)).n


def test_a_repair_gives_up_no_disk_that_is_not_mounted_before_that_is_confirmed(
    store: Home, tmp_path: Path
) -> None:
    os.rename(store.spaces_dir, tmp_path / "away")
    for words in (("check",), ("check", "--repair"), ("maintain", "--repair", "-q")):
        told = said(store.path, *words, code=5)
        assert "60 of 60 vectors are missing" in told
        assert "lookalike check --repair --confirm-missing" in told
        assert n_vectors(store) == 60
    assert "goes with --repair" in said(store.path, "check", "--confirm-missing", code=2)
    os.rename(tmp_path / "away", store.spaces_dir)
    assert said(store.path, "check", code=0).startswith("clean: 1 space, 60 vectors")
    os.rename(store.spaces_dir, tmp_path / "away")
    assert "(repaired)" in said(store.path, "check", "--repair", "--confirm-missing", code=0)
    assert n_vectors(store) == 0


def test_a_part_or_half_of_them_is_repaired_without_a_word(store: Home) -> None:
    parts = sorted(Path(store.spaces_dir).glob("*/parts/run-" + "?" * 32 + ".npy"))
    assert len(parts) == 3
    parts[0].unlink()
    assert "is missing; `lookalike check --repair`" in said(store.path, "check", code=5)
    assert "(repaired)" in said(store.path, "check", "--repair", code=0)
    parts[1].unlink()
    assert "(repaired)" in said(store.path, "check", "--repair", code=0)
    assert n_vectors(store) == 20


def test_of_a_backup_what_works_is_advised(store: Home, tmp_path: Path) -> None:
    copy = str(tmp_path / "backup")
    part = next(Path(copy).glob("spaces/*/parts/run-" + "?" * 32 + ".npy"))
    os.truncate(part, 200)
    told = said(copy, "check", code=5)
    assert f"{part} has 200 bytes instead of" in told
    assert "--repair" not in told
    assert "`lookalike backup` into it again" in told
    assert "`lookalike backup` of its store mends it" in said(copy, "check", "--repair", code=5)
    said(store.path, "backup", copy, code=0)
    assert said(copy, "check", code=0).startswith("clean")


def test_a_place_that_is_no_folder_is_said_so(store: Home, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"kept")
    (tmp_path / "dangling").symlink_to("nowhere")
    for path in (file, tmp_path / "dangling"):
        assert "is no folder; choose a new folder" in said(store.path, "backup", str(path), code=2)
    assert "Not a directory" in said(store.path, "backup", f"{file}/below", code=5)
    assert "no backup" in said(str(tmp_path / "new"), "restore", str(file), code=5)
    assert file.read_bytes() == b"kept"


@pytest.mark.parametrize(
    "words", ["status", "check", "check --repair", "index", "maintain", "spaces", "compact"]
)
def test_a_home_that_can_not_be_looked_into_is_the_store_s_trouble(
    tmp_path: Path, words: str
) -> None:
    (tmp_path / "file").write_bytes(b"")
    told = said(str(tmp_path / "file"), *words.split(), code=5)
    assert f"the home {tmp_path / 'file'} can't be used" in told
    assert told.endswith("Not a directory; mend that, or choose another --home")


@pytest.mark.parametrize(
    "words", ["status", "search a.jpg", "check", "index .", "maintain", "backup ../elsewhere"]
)
def test_a_home_whose_restoring_was_broken_off_is_left_to_restore(
    store: Home, tmp_path: Path, words: str
) -> None:
    new = tmp_path / "new"
    new.mkdir()
    (new / "restoring.json").write_text('{"catalog": null}\n')
    told = said(str(new), *words.split(), code=5)
    assert f"run `lookalike --home {new} restore BACKUP` again" in told
    assert os.listdir(new) == ["restoring.json"]
    assert "restored" in said(str(new), "restore", str(tmp_path / "backup"), code=0)
    assert said(str(new), "check", code=0).startswith("clean: 1 space, 60 vectors")
