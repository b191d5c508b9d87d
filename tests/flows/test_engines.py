"""``--engine``: the same vectors, told by the report and by the parts, and refused in a line."""

import json
import sys
from contextlib import closing

import numpy as np
import pytest
from click.testing import CliRunner
from sqlalchemy import select

from flows.cli import cli
from flows.job.digests import Digests, Wanted
from flows.job.engines import Engines, opened
from flows.job.loop import IndexOptions, run_index
from flows.job.parameters import options_for, parameters_of
from flows.job.progress import Progress
from flows.job.spaces import SpaceChoice
from flows.job.steps import PlainSteps
from flows.job.worker import clear_bench
from flows.samples import draw_families
from storage.catalog import Catalog
from storage.home import Home
from storage.tables import Part
from tests.flows.terminal import lookalike

MODEL = "shufflenet_v2_x0_5"
TYPED = ("--model", MODEL, "--weights", "random:0", "--input-size", "64", "--device", "cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    draw_families(folder, 3, seed=4)
    return folder


def index(photos, home, **changes):
    choice = SpaceChoice(model=MODEL, weights="random:0", input_size=64)
    options = IndexOptions(home=str(home), roots=(str(photos),), choice=choice, **changes)
    try:
        with PlainSteps() as steps:
            return run_index(options, steps=steps, progress=Progress("silent"))
    finally:
        clear_bench(options.home, options.catalog_url)


def engines_of_parts(home):
    with closing(Catalog.open(Home(str(home), None), write=False)) as catalog, catalog.read() as c:
        return {row.facts["engine"] for row in c.execute(select(Part.facts))}


def vectors_by_digest(home):
    """Read the parts as docs/format.md describes them."""
    found = {}
    for ids in home.rglob("*.ids.npy"):
        vectors = np.load(str(ids).replace(".ids.npy", ".npy"))
        found.update(zip(map(bytes, np.load(ids)), vectors, strict=True))
    return found


def test_index_by_another_engine_gives_the_same_vectors_and_says_so(photos, tmp_path):
    plain = index(photos, tmp_path / "plain", device="cpu")
    done = lookalike(
        *("index", str(photos), *TYPED, "--engine", "onnx", "--no-prefect"),
        *("--home", str(tmp_path / "other")),
        env={"PYTHONWARNINGS": "default"},
    )
    (engine,) = engines_of_parts(tmp_path / "other")
    assert engine.startswith("onnxruntime ")
    assert f"  engine     {engine}\n" in done.stdout
    for noise in ("Warning", "torch.onnx", "INFO", "onnxruntime:"):
        assert noise not in done.stderr + done.stdout.replace(engine, "")
    (name,) = engines_of_parts(tmp_path / "plain")
    assert name.startswith("torch ")
    assert plain.engines == {name: plain.extracted}
    expected = vectors_by_digest(tmp_path / "plain")
    found = vectors_by_digest(tmp_path / "other")
    assert found.keys() == expected.keys()
    assert len(found) == plain.extracted > 0
    assert min(float(found[digest] @ vector) for digest, vector in expected.items()) > 0.99999


def test_two_devices_of_one_process_have_an_engine_each(photos, tmp_path):
    report = index(photos, tmp_path, device="cpu,cpu", engine="onnx", chunk_size=4, batch_size=2)
    assert (report.extracted, report.failed, report.warnings) == (report.new, 0, [])
    (name,) = report.engines
    assert name.startswith("onnxruntime ")
    assert report.engines[name] == report.extracted


def test_extract_tells_its_engine(photos, tmp_path):
    typed = ["extract", str(photos), str(tmp_path / "v.npz"), *TYPED, "--engine", "onnx", "--json"]
    done = CliRunner().invoke(cli, typed, catch_exceptions=False)
    report = json.loads(done.stdout)
    (name,) = report["engines"]
    assert name.startswith("onnxruntime ")
    assert report["engines"][name] == report["extracted"] == report["written"] > 0
    plain = ["extract", str(photos), str(tmp_path / "p.npz"), *TYPED]
    done = CliRunner().invoke(cli, plain, catch_exceptions=False)
    assert "  engine     torch " in done.stdout
    with np.load(tmp_path / "v.npz") as found, np.load(tmp_path / "p.npz") as expected:
        (key,) = [name for name in expected.files if expected[name].ndim == 2]
        assert np.abs(found[key] - expected[key]).max() < 1e-5


@pytest.mark.parametrize("command", ["index", "extract"])
def test_a_missing_extra_is_said_before_anything_is_made(
    command, photos, tmp_path, monkeypatch, capsys
):
    from flows.cli import main

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    out = [str(tmp_path / "v.npz")] if command == "extract" else ["--no-prefect"]
    monkeypatch.setattr(
        sys, "argv", ["lookalike", command, str(photos), *out, *TYPED, "--engine", "onnx"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].endswith("needs more packages: pip install 'lookalike[onnx]'")
    assert not list(tmp_path.rglob("v.npz*"))
    assert not list(tmp_path.rglob("spaces/*"))


def test_an_engine_is_a_setting_and_a_parameter(monkeypatch, tmp_path):
    monkeypatch.setenv("LOOKALIKE_ENGINE", "compile")
    options, _ = options_for({"roots": [str(tmp_path)]})
    assert options.engine == "compile"
    assert parameters_of(options)["engine"] == "compile"
    options, _ = options_for({"roots": [str(tmp_path)], "engine": "torch"})
    assert options.engine == "torch"
    refused = CliRunner().invoke(cli, ["index", "--engine", "tensorrt"])
    assert refused.exit_code == 2
    assert "'auto', 'torch', 'compile', 'onnx'" in refused.output


def test_the_share_of_what_is_wanted_says_how_much_is_left():
    known = {bytes([n]) for n in range(6)}
    with Wanted(Digests(), 1, lambda digest: digest not in known) as wanted:
        assert wanted.share == 1.0
        for n in range(8):
            wanted(bytes([n]))
        assert wanted.share == 0.25


def test_another_engine_on_a_device_takes_the_place_of_the_one_before():
    engines = Engines()
    with engines.seat("cpu", 1, 0, lambda: None) as seat:
        made = [opened(seat, (1, None, name), lambda: None, lambda _: object()) for name in "aab"]
    assert made[0] is made[1]
    assert made[2] is not made[1]
    assert engines.number == 1
