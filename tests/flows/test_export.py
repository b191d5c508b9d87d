"""``lookalike export`` against a real store, as a person calls it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from flows.cli import cli
from flows.commands.export import FORMATS
from flows.samples import draw_families
from search.engine import Searcher
from storage.catalog import Catalog
from storage.exports import formats
from storage.home import Home
from storage.reading import Rows, open_store, snapshot
from storage.spaces import get_space
from tests.flows.contents import age, contents
from tests.flows.terminal import CHECKOUT, loaded, lookalike
from tests.storage.filled import Filled, clustered

TINY = ("--model", "shufflenet_v2_x0_5", "--weights", "random:0", "--no-prefect")


def run(base: Path, *args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["--home", str(base / "home"), *args])
    found = getattr(result.exception, "exit_code", result.exit_code)
    assert found == code, (result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``home``: pictures in two class folders, a broken one, a manifest."""
    base = tmp_path_factory.mktemp("indexed")
    for name in ("cats", "dogs"):
        draw_families(str(base / "pictures" / name), 2, seed=len(name) + ord(name[0]))
    (base / "pictures" / "broken.jpg").write_bytes(b"no picture at all")
    age(str(base / "pictures"))
    first = sorted((base / "pictures" / "cats").rglob("*.*"))[:3]
    lines = [f"id-{9 - i}\tclass {i}\t{path}" for i, path in enumerate(first)]
    (base / "list.tsv").write_text("\n".join(["id\tlabel\tpath", *lines]) + "\n")
    roots = (str(base / "pictures"), str(base / "list.tsv"))
    run(base, "index", *roots, *TINY, "-q", code=3)
    return base


def test_the_formats_are_those_of_the_store():
    assert FORMATS == formats.FORMATS


def test_every_image_with_the_vector_that_search_knows(indexed, tmp_path):
    done = run(indexed, "export", str(tmp_path / "x.csv"), "--root", str(indexed / "pictures"))
    held = contents(str(indexed / "home"))
    frame = pd.read_csv(tmp_path / "x.csv", header=None)
    due = sorted(
        path
        for path, (state, digest) in held.files.items()
        if state == "live" and digest in held.vectors and not path.startswith(b"id-")
    )
    assert [name.encode() for name in frame[0]] == due
    x = np.stack([held.vectors[held.files[path][1]] for path in due])
    np.testing.assert_array_equal(frame.iloc[:, 1:].to_numpy().astype(np.float32), x)
    assert f"{len(due)} images of space shufflenet_v2_x0_5-mean, 1024 numbers each" in done.stdout
    assert "1 file without a vector in this space: not exported" in done.stderr


def test_labels_of_folders_and_manifests(indexed, tmp_path):
    run(indexed, "export", "-", str(tmp_path / "x.npz"))
    with np.load(tmp_path / "x.npz") as arrays:
        labels = dict(zip(arrays["ids"].tolist(), arrays["labels"].tolist(), strict=True))
        paths = dict(zip(arrays["ids"].tolist(), arrays["paths"].tolist(), strict=True))
    assert {id: label for id, label in labels.items() if id.startswith("id-")} == {
        f"id-{9 - i}": f"class {i}" for i in range(3)
    }
    assert {label for id, label in labels.items() if not id.startswith("id-")} == {"cats", "dogs"}
    assert all(os.path.isfile(path) for path in paths.values())
    listed = (indexed / "list.tsv").read_text().splitlines()[1:]
    assert {line.split("\t")[0]: line.split("\t")[2] for line in listed} == {
        id: path for id, path in paths.items() if id.startswith("id-")
    }


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_as_json_tells(indexed, tmp_path, format):
    options = ("--format", format, "--json")
    told = json.loads(run(indexed, "export", str(tmp_path / "x"), *options).stdout)
    assert told["format"] == format
    assert (told["dim"], told["without_vector"]) == (1024, 1)
    assert told["images"] > 10
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert told["size_bytes"] == sum(path.stat().st_size for path in files)
    for path in told["paths"]:
        assert os.path.exists(path)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("nope", "x.csv"), "there is no space 'nope'; there are: shufflenet_v2_x0_5-mean"),
        (("x",), "the name x says no format"),
        (("/no/such/folder/x.csv",), "the folder /no/such/folder is not there"),
        (("x.csv", "--root", "/nowhere"), "/nowhere is not in any root"),
        (("a", "b", "c.csv"), "too many arguments"),
        ((), "Missing argument"),
        (("x.csv", "--format", "xls"), "'xls' is not one of"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(indexed, tmp_path, monkeypatch, args, said):
    monkeypatch.chdir(tmp_path)
    result = run(indexed, "export", *args, code=2)
    assert said in (result.output + str(result.exception))
    assert os.listdir(tmp_path) == []


def test_an_earlier_output_is_kept(indexed, tmp_path):
    home = ("--home", str(indexed / "home"))
    out = str(tmp_path / "x.tsv")
    lookalike(*home, "export", "-", out)
    before = Path(out).read_bytes()
    done = lookalike(*home, "export", "-", out, code=2)
    assert done.stderr == f"lookalike: {out} is there already; --overwrite replaces it\n"
    lookalike(*home, "export", "-", out, "--overwrite", "-q")
    assert Path(out).read_bytes() == before


def test_a_name_that_is_not_utf8(indexed, tmp_path):
    out = os.fsencode(tmp_path) + b"/x \xe9.tsv"
    done = lookalike("--home", str(indexed / "home"), "export", "-", out)
    assert "x \\xe9.tsv" in done.stdout
    assert os.listdir(os.fsencode(tmp_path)) == [b"x \xe9.tsv"]


def test_neither_network_nor_index_is_loaded(indexed, tmp_path):
    modules = loaded("--home", str(indexed / "home"), "export", str(tmp_path / "x.tsv"))
    assert not modules & {"torch", "torchvision", "prefect", "faiss", "PIL", "pyarrow"}


def test_nothing_indexed_yet(tmp_path):
    done = lookalike("--home", str(tmp_path / "home"), "export", str(tmp_path / "x.csv"), code=5)
    assert "nothing is indexed yet" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "home").exists()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a ``home`` of 6,000 vectors of 2048 numbers."""
    base = tmp_path_factory.mktemp("large")
    with Catalog.open(Home(str(base / "home")), write=True) as catalog:
        filled = Filled(catalog, 2048)
        filled.add(clustered(6000, 2048))
    return base


@pytest.mark.parametrize(("how", "left"), [(signal.SIGKILL, 1), (signal.SIGINT, 0)])
@pytest.mark.parametrize("format", ["csv", "clip-retrieval"])
def test_ended_in_the_middle(large, tmp_path, format, how, left):
    home, out = str(large / "home"), tmp_path / "x"
    command = [sys.executable, "-m", "flows.cli", "--home", home, "export", "-", str(out)]
    command += ["--format", format]
    # An interrupt inside the measurement of coverage can leave that locked for ever.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    with subprocess.Popen(
        command, cwd=CHECKOUT, env=env, stderr=subprocess.PIPE, text=True
    ) as child:
        while not any(path.stat().st_size for path in tmp_path.glob("*tmp/**/*") if path.is_file()):
            assert child.poll() is None, child.communicate()
            time.sleep(0.001)
        child.send_signal(how)
        stderr = child.communicate(timeout=60)[1]
    assert child.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), stderr
    assert not out.exists()
    assert len(os.listdir(tmp_path)) == left
    lookalike("--home", home, "export", "-", str(out), "--format", format)
    assert os.listdir(tmp_path) == ["x"]
    with Catalog.open(Home(home), write=False) as catalog:
        space = get_space(catalog)
        x = Rows(open_store(catalog, space), snapshot(catalog, space).parts).gather(range(6000))
    if format == "csv":
        found = pd.read_csv(out, header=None).iloc[:, 1:].to_numpy().astype(np.float32)
    else:
        found, x = np.load(out / "img_emb" / "img_emb_0.npy"), x.astype(np.float16)
    np.testing.assert_array_equal(found, x)


def test_what_is_exported_finds_itself(indexed, tmp_path):
    run(indexed, "export", "-", str(tmp_path / "x.npz"), "--absolute")
    with np.load(tmp_path / "x.npz") as arrays:
        ids, x = arrays["ids"].tolist(), arrays["data"]
    with Searcher(Home(str(indexed / "home"))) as searcher:
        for id, hits in zip(ids, searcher.search_vectors(x, 1), strict=True):
            assert id.encode() in hits[0].paths
