"""What the commands show of the recall of each index."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from flows.cli import cli
from storage.leases import start_run
from storage.publish import publish
from storage.recall import latest, record
from tests.storage.filled import Filled, clustered, local_catalog


@pytest.fixture
def filled(sqlite_template, tmp_path):
    with local_catalog(sqlite_template, tmp_path) as catalog:
        space = Filled(catalog, 16)
        space.add(clustered(50, 16))
        yield space


def shown(filled: Filled, *args: str) -> str:
    result = CliRunner().invoke(cli, ["--home", filled.catalog.home.path, *args])
    assert (result.exit_code, result.exception) == (0, None)
    return result.stdout


def table(filled: Filled) -> list[list[str]]:
    """Return the lines about spaces of ``lookalike status``, word by word."""
    [block] = [b for b in shown(filled, "status").split("\n\n") if b.startswith("space")]
    return [line.split() for line in block.splitlines()]


def test_the_recall_stands_beside_the_index(filled: Filled) -> None:
    head, row = table(filled)
    assert (head[-2:], row[-3:]) == (["index", "recall"], ["none:", "searched", "exactly"])
    lease = start_run(filled.catalog, "index")
    for _ in range(2):
        publish(filled.catalog, lease, filled.space)
    head, row = table(filled)
    assert row[-3:] == ["SQ8", "100.0", "%"]
    newest, _ = latest(filled.catalog, filled.space)
    assert newest is not None
    with filled.catalog.write() as conn:
        record(conn, filled.space.id, replace(newest, recall=0.5))
    head, row, note = table(filled)
    assert row[-3:] == ["SQ8", "50.0", "%"]
    assert " ".join(note).startswith(f"the index of space {filled.space.name} (SQ8) finds 50.0 %")


def test_scripts_get_the_newest_with_its_kind_and_the_series(filled: Filled) -> None:
    assert json.loads(shown(filled, "status", "--json"))["spaces"][0]["recall"] is None
    lease = start_run(filled.catalog, "index")
    for factory in (None, "Flat"):
        publish(filled.catalog, lease, filled.space, factory)
    [space] = json.loads(shown(filled, "status", "--json"))["spaces"]
    assert (space["recall"]["factory"], space["recall"]["recall"]) == ("Flat", 1.0)
    assert space["fallen"] is None
    assert "recalls" not in space
    for args in (("spaces", "--json"), ("spaces", "list", "--json")):
        [space] = json.loads(shown(filled, *args))
        assert [each["factory"] for each in space["recalls"]] == ["Flat", "SQ8"]
