"""``lookalike regions``: from a source to the regions of its images."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
from PIL import Image

from extractor.errors import WeightsError
from extractor.regions import RegionEngine
from flows.batch.detector_options import read_config, regions_options
from flows.batch.region_told import RegionsReport
from flows.batch.regions import regions_to
from flows.errors import FlowError, SettingsError
from flows.job.progress import Progress
from storage.errors import WorkMismatch
from storage.exports.errors import ExportError
from storage.region_files import FailureList, RegionFolder
from tests.extractor.detectors import ASKED, CLASSES, photo, small_detector, write_weights
from tests.extractor.test_regions import detect, written

NAMES = ["class", "cat", "dog", "cow"]
CONFIG = f"""
model: {ASKED["model"]}
weights: seeing.pth
num_classes: {CLASSES}
class_names: [{", ".join(NAMES)}]
min_score: {ASKED["min_score"]}
num_boxes: {ASKED["num_boxes"]}
min_size: {ASKED["options"]["min_size"]}
max_size: {ASKED["options"]["max_size"]}
rpn_pre_nms_top_n_test: {ASKED["options"]["rpn_pre_nms_top_n_test"]}
"""
Files = dict[str, bytes]


@pytest.fixture
def config(tmp_path: Path) -> str:
    """Return the path of a file that says which detector, its weights beside it."""
    write_weights(tmp_path / "seeing.pth")
    (tmp_path / "detector.yaml").write_text(CONFIG)
    return str(tmp_path / "detector.yaml")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures in two folders, some of one name, and one that is broken."""
    folder = tmp_path / "photos"
    for i in range(10):
        path = folder / "ab"[i % 2] / f"{i // 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(i, ((120, 90), (90, 120), (64, 64))[i % 3]).save(path)
    whole = (folder / "a" / "0.png").read_bytes()
    (folder / "b" / "broken.png").write_bytes(whole[: len(whole) // 2])
    return folder


def run(source: Path, out: Path, config: str, **other: Any) -> RegionsReport:
    asked = {"source": str(source), "out": str(out), "config_file": config, "device": "cpu"}
    return regions_to(regions_options({**asked, "workers": 2, **other}), Progress("silent"))


def files(folder: Path) -> Files:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def regions_in(data: bytes) -> dict[str, Any]:
    with np.load(io.BytesIO(data)) as arrays:
        return {name: arrays[name].tolist() for name in arrays.files if name != "signature"}


def test_a_folder_mirrors_the_source(tmp_path: Path, photos: Path, config: str) -> None:
    report = run(photos, tmp_path / "out", config)
    assert (report.extracted, report.written, report.failed) == (10, 10, 1)
    assert report.exit_code() == 3
    there = files(tmp_path / "out")
    names = [f"{folder}/{i}.png.npz" for folder in "ab" for i in range(5)]
    assert sorted(there) == [*names, "regions.json"]
    plan = json.loads(there["regions.json"])
    assert plan["class_names"] == NAMES
    assert plan["recipe"]["num_boxes"] == ASKED["num_boxes"]
    engine = RegionEngine(small_detector(), "cpu")
    regions = 0
    for i in range(10):
        name = f"{'ab'[i % 2]}/{i // 2}.png"
        (one,) = detect(written(tmp_path, {"x.png": (photos / name).read_bytes()}), engine=engine)
        assert one.regions is not None
        with np.load(tmp_path / "out" / f"{name}.npz", allow_pickle=False) as arrays:
            for of in ("features", "boxes", "classes", "scores"):
                np.testing.assert_array_equal(arrays[of], getattr(one.regions, of))
                assert arrays[of].dtype == getattr(one.regions, of).dtype
            assert tuple(arrays["image_size"]) == one.regions.image_size
            assert str(arrays["id"]) == name
        regions += len(one.regions.scores)
    assert report.regions == regions > 30
    lines = (tmp_path / "out.failures.tsv").read_text().splitlines()
    assert lines[0] == "id\tpath\tstage\tclass\tmessage\tlabel"
    assert lines[1].endswith("\tb")
    assert [line.split("\t")[:4] for line in lines[1:]] == [
        ["b/broken.png", str(photos / "b" / "broken.png"), "decode", "truncated"]
    ]


def test_four_shards_are_one_run(tmp_path: Path, photos: Path, config: str) -> None:
    whole = run(photos, tmp_path / "whole", config)
    parts = [run(photos, tmp_path / "parts", config, shard=f"{i}/4") for i in range(1, 5)]
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert sum(part.extracted for part in parts) == whole.extracted
    assert sum(part.failed for part in parts) == whole.failed == 1
    lists = sorted(path.name for path in tmp_path.glob("parts*.failures.tsv"))
    assert len(lists) == 1
    assert (tmp_path / lists[0]).read_bytes() == (tmp_path / "whole.failures.tsv").read_bytes()


def test_a_second_run_does_only_what_is_new_or_has_changed(
    tmp_path: Path, photos: Path, config: str
) -> None:
    out = tmp_path / "out"
    run(photos, out, config)
    before = files(out)
    stamps = {path: path.stat().st_ctime_ns for path in out.rglob("*.npz")}
    (photos / "b" / "broken.png").unlink()
    again = run(photos, out, config)
    assert (again.extracted, again.kept, again.exit_code()) == (0, 10, 0)
    assert {path: path.stat().st_ctime_ns for path in out.rglob("*.npz")} == stamps
    assert not (tmp_path / "out.failures.tsv").exists()
    os.utime(photos / "a" / "1.png")  # touched, and the same
    photo(77, (80, 80)).save(photos / "a" / "2.png")
    photo(78, (80, 80)).save(photos / "new.png")
    (out / "b" / "3.png.npz").write_bytes(before["b/3.png.npz"][:-20])  # not whole
    third = run(photos, out, config)
    assert (third.extracted, third.kept) == (3, 8)
    after = files(out)
    assert after["b/3.png.npz"] == before["b/3.png.npz"]
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"a/1.png.npz", "a/2.png.npz", "new.png.npz"}  # 1: its signature only
    assert regions_in(after["a/1.png.npz"]) == regions_in(before["a/1.png.npz"])
    assert run(photos, out, config).kept == 11


@pytest.mark.parametrize("between", ["files", "folders"])
def test_pictures_of_one_time_that_change_places(
    tmp_path: Path, photos: Path, config: str, between: str
) -> None:
    for path in photos.rglob("*.png"):
        os.utime(path, ns=(10**18, 10**18))
    out = tmp_path / "out"
    run(photos, out, config)
    one, other = (photos / "a", photos / "b")
    if between == "files":
        one, other = (one / "0.png", one / "1.png")
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    assert run(photos, out, config).extracted == (2 if between == "files" else 10)
    run(photos, tmp_path / "anew", config)
    assert files(out).items() >= files(tmp_path / "anew").items()


def test_regions_of_an_earlier_version_are_kept_by_their_content(
    tmp_path: Path, photos: Path, config: str
) -> None:
    out = tmp_path / "out"
    run(photos, out, config)
    whole = files(out)
    for name in ("a/0.png", "b/1.png"):
        path, stamp = out / f"{name}.npz", (photos / name).stat().st_mtime_ns
        with np.load(path) as arrays:
            old = {of: arrays[of] for of in arrays.files if of != "signature"}
        np.savez(path, **old)
        os.utime(path, ns=(stamp, stamp))
    (photos / "b" / "1.png").write_bytes((photos / "b" / "0.png").read_bytes())
    stamp = (out / "b" / "1.png.npz").stat().st_mtime_ns
    os.utime(photos / "b" / "1.png", ns=(stamp, stamp))
    report = run(photos, out, config)
    assert (report.extracted, report.kept) == (1, 9)
    after = files(out)
    assert {name for name in after if after[name] != whole[name]} == {"b/1.png.npz"}


def test_the_list_of_failures_can_not_become_its_own_output(
    tmp_path: Path, photos: Path, config: str
) -> None:
    out, listed = tmp_path / "out.parquet", tmp_path / "out.parquet.failures.tsv"
    run(photos, out, config)
    before = (out.read_bytes(), listed.read_bytes())
    with pytest.raises(ExportError, match=r"lists what failed .*: name another output"):
        run(listed, out, config, overwrite=True)
    (tmp_path / "link.parquet").symlink_to(listed)
    with pytest.raises(ExportError, match=r"would replace the source: name another output"):
        run(listed, tmp_path / "link.parquet", config, overwrite=True)
    assert (out.read_bytes(), listed.read_bytes()) == before


def test_a_folder_takes_what_its_own_list_tries_again(
    tmp_path: Path, photos: Path, config: str
) -> None:
    out = tmp_path / "out"
    run(photos, out, config)
    (photos / "b" / "broken.png").write_bytes((photos / "b" / "0.png").read_bytes())
    assert run(tmp_path / "out.failures.tsv", out, config).extracted == 1
    assert len(list(out.rglob("*.npz"))) == 11
    assert not (tmp_path / "out.failures.tsv").exists()


def test_regions_made_otherwise_are_not_mixed(tmp_path: Path, photos: Path, config: str) -> None:
    out = tmp_path / "out"
    run(photos, out, config)
    with pytest.raises(WorkMismatch, match=r"min_score was 0.2, is 0.5.*--overwrite"):
        run(photos, out, config, min_score=0.5)
    assert run(photos, out, config, min_score=0.5, overwrite=True).extracted == 10
    assert run(photos, out, config, min_score=0.5).kept == 10
    assert run(photos, out, config, min_score=0.5, restart=True).extracted == 10


def test_one_parquet_file(tmp_path: Path, photos: Path, config: str) -> None:
    run(photos, tmp_path / "folder", config)
    report = run(photos, tmp_path / "out.parquet", config, chunk_size=3)
    assert (report.written, report.failed) == (10, 1)
    table = polars.read_parquet(tmp_path / "out.parquet")
    assert table["id"].to_list() == [f"{folder}/{i}.png" for folder in "ab" for i in range(5)]
    assert set(table["label"]) == {"a", "b"}
    for row in table.iter_rows(named=True):
        assert row["path"] == str(photos / row["id"])
        with np.load(tmp_path / "folder" / f"{row['id']}.npz") as arrays:
            for name in ("features", "boxes", "classes", "scores"):
                np.testing.assert_array_equal(np.array(row[name]), arrays[name])
            assert (row["width"], row["height"]) == tuple(arrays["image_size"])
    assert report.regions == sum(map(len, table["scores"]))
    assert b"b/broken.png" in (tmp_path / "out.parquet.failures.tsv").read_bytes()
    assert not (tmp_path / "out.parquet.partial").exists()
    with pytest.raises(ExportError, match="--overwrite"):
        run(photos, tmp_path / "out.parquet", config)


def test_a_parquet_file_of_images_without_regions(
    tmp_path: Path, photos: Path, config: str
) -> None:
    run(photos, tmp_path / "out.parquet", config, min_score=1.0)
    table = polars.read_parquet(tmp_path / "out.parquet")
    assert len(table) == 10
    assert all(len(boxes) == 0 for boxes in table["boxes"])


def test_rows_of_an_array(tmp_path: Path, config: str) -> None:
    pictures = np.stack([np.asarray(photo(i, (90, 60))) for i in range(4)])
    np.save(tmp_path / "pictures.npy", pictures)
    folder = tmp_path / "folder"
    folder.mkdir()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{i}.png")
    run(tmp_path / "pictures.npy", tmp_path / "rows", config)
    run(folder, tmp_path / "files", config)
    for row, file in zip(
        sorted((tmp_path / "rows").rglob("*.npz")),
        sorted((tmp_path / "files").rglob("*.npz")),
        strict=True,
    ):
        with np.load(row) as one, np.load(file) as other:
            np.testing.assert_array_equal(one["features"], other["features"])
    assert run(tmp_path / "pictures.npy", tmp_path / "rows", config).kept == 4


def test_ids_that_lead_outside_stay_inside(tmp_path: Path, photos: Path, config: str) -> None:
    (tmp_path / "deep").mkdir()
    photo_file = photos / "a" / "0.png"
    ids = ["../up", "/abs/olute", "abs/olute", "x" * 300, "fine", ".", "/"]
    lines = [f"{id}\t{photo_file}\n" for id in ids]
    (tmp_path / "list.tsv").write_text("id\tpath\n" + "".join(lines))
    out = tmp_path / "deep" / "out"
    report = run(tmp_path / "list.tsv", out, config)
    assert sorted(files(out)) == [
        "_.npz",
        "__/up.npz",
        "abs/olute.npz",
        "fine.npz",
        "regions.json",
    ]
    assert (report.extracted, report.failures) == (4, {"name": 3})
    said = (tmp_path / "deep" / "out.failures.tsv").read_text()
    assert "those of /abs/olute are" in said
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == [
        "out",
        "out.failures.tsv",
    ]


def test_what_is_no_whole_npz_is_made_anew(tmp_path: Path, photos: Path, config: str) -> None:
    out = tmp_path / "out"
    run(photos, out, config)
    whole = files(out)
    path = out / "a" / "0.png.npz"
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    rng = np.random.default_rng(0)
    for n in range(200):
        data = bytearray(array.getvalue() if n == 0 else whole["a/0.png.npz"])
        if n == 1:
            data = data[: len(data) // 2]
        elif n > 1:  # where a zip archive says what is in it
            for at in rng.integers(len(data) - 900, len(data), 3):
                data[at] = rng.integers(256)
        path.write_bytes(data)
        stamp = (photos / "a" / "0.png").stat().st_mtime_ns
        os.utime(path, ns=(stamp, stamp))
        if n < 2:
            assert run(photos, out, config).extracted == 1
            assert files(out) == whole
        else:
            header = RegionFolder(str(out), **plan(whole)).header(b"a/0.png")
            assert header is None or header.id == b"a/0.png"


def plan(there: Files) -> dict[str, Any]:
    said = json.loads(there["regions.json"])
    return {"recipe": said["recipe"], "class_names": tuple(said["class_names"])}


def test_two_processes_with_one_list_of_failures(tmp_path: Path) -> None:
    path = tmp_path / "out.failures.tsv"
    with FailureList(str(path), b"id\n") as first:
        first.add(b"a\n")
        with FailureList(str(path), b"id\n") as second:
            second.add(b"b\n")
            first.add(b"c\n")
        assert path.read_bytes() == b"id\nb\n"
    assert path.read_bytes() == b"id\na\nc\n"
    with suppress(KeyError), FailureList(str(path), b"id\n") as third:
        third.add(b"d\n")
        raise KeyError
    assert path.read_bytes() == b"id\na\nc\n"
    with FailureList(str(path), b"id\n"):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("out", ["", "-"])
def test_an_output_has_to_be_named(
    tmp_path: Path, photos: Path, config: str, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ExportError, match="name one"):
        regions_to(
            regions_options({"source": str(photos), "out": out, "config_file": config}),
            Progress("silent"),
        )
    assert sorted(os.listdir(tmp_path)) == before


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "flows.cli", "regions", *map(str, args), "--device", "cpu"]


@pytest.mark.parametrize("name", ["out", "out.parquet"])
def test_a_killed_run_goes_on(tmp_path: Path, photos: Path, config: str, name: str) -> None:
    (photos / "b" / "broken.png").unlink()
    for i in range(40):
        photo(100 + i, (120, 90)).save(photos / f"{i}.png")
    whole = tmp_path / "whole" / name
    whole.parent.mkdir()
    run(photos, whole, config)
    out = tmp_path / name
    args = command(photos, out, "--config-file", config, "--chunk-size", "4", "--workers", "1")
    inside = out if name == "out" else tmp_path / "out.parquet.partial"
    child = subprocess.Popen([*args, "-q"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    end = time.monotonic() + 120
    while len(list(inside.rglob("*.npz"))) < 3 and time.monotonic() < end:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    done = len(list(inside.rglob("*.npz")))
    assert 3 <= done < 50
    finished = subprocess.run([*args, "--json"], capture_output=True, text=True, check=True)
    report = json.loads(finished.stdout)
    assert report["kept"] >= 3
    assert report["kept"] + report["extracted"] == report["written"] == 50
    if name == "out":
        left = {name: data for name, data in files(out).items() if "lookalike-tmp" not in name}
        assert left == files(whole)
    else:
        one, other = (polars.read_parquet(path) for path in (out, whole))
        assert one.equals(other)


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path, photos: Path, config: str) -> None:
    for i in range(60):
        photo(100 + i, (120, 90)).save(photos / f"{i}.png")
    out = tmp_path / "out"
    args = command(photos, out, "--config-file", config, "--workers", "1")
    child = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while len(list(out.rglob("*.npz"))) < 3 and time.monotonic() < end:
        time.sleep(0.005)
    child.send_signal(signal.SIGINT)
    said, errors = child.communicate(timeout=60)
    assert child.returncode == 130, errors
    assert said.startswith("Interrupted: ")
    n = len(list(out.rglob("*.npz")))
    assert 3 <= n < 70
    assert run(photos, out, config).kept == n


def test_the_array_job_of_slurm(tmp_path: Path, photos: Path, config: str) -> None:
    """Its script as it stands, with places of the test's own, one job after the other."""
    script = Path(__file__).parents[2] / "deployments" / "slurm" / "regions.sbatch"
    text = script.read_text()
    places = {
        "source /shared/lookalike/venv/bin/activate": f"PATH={Path(sys.executable).parent}:$PATH",
        "/shared/pictures /shared/regions": f"{photos} {tmp_path / 'parts'}",
        "--model fasterrcnn_resnet50_fpn": f"--config-file {config} --device cpu",
        "--min-score 0.05": f"--min-score {ASKED['min_score']}",
        "--num-boxes 100": f"--num-boxes {ASKED['num_boxes']}",
    }
    for place, mine in places.items():
        assert text.count(place) == 1, place
        text = text.replace(place, mine)
    for number in (1, 2):
        array = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": "2"}
        of_job = {**os.environ, **array, "SLURM_CPUS_PER_TASK": "1"}
        done = subprocess.run(["bash", "-c", text], env=of_job, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    run(photos, tmp_path / "whole", config)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour: red", "unknown key 'colour'; the known ones are model, weights,"),
        ("nms: 2", "nms = 2: not a number from 0 to 1"),
        ("min_size: big", "min_size = 'big': not a whole number from 1 on"),
        ("class_names: cat", "class_names = 'cat': not a list"),
        ("image_std: [1, 2, 0]", "not three numbers above 0"),
        ("- a", "holds no keys"),
        ("a: [", "no YAML"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "d.yaml").write_text(text)
    with pytest.raises(SettingsError) as error:
        read_config(str(tmp_path / "d.yaml"))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_toml_says_the_same(tmp_path: Path, config: str) -> None:
    import yaml

    lines = [f"{key} = {json.dumps(value)}" for key, value in yaml.safe_load(CONFIG).items()]
    (tmp_path / "detector.toml").write_text("\n".join(lines))
    assert read_config(str(tmp_path / "detector.toml")) == read_config(config)
    with pytest.raises(SettingsError, match="No such file"):
        read_config(str(tmp_path / "gone.toml"))


def test_what_is_typed_wins_over_the_file(tmp_path: Path, config: str) -> None:
    asked = {"source": "x", "out": "y", "config_file": config, "num_boxes": 5, "weights": "random"}
    request = regions_options(asked).request
    assert (request.num_boxes, request.weights, request.min_score) == (5, "random", 0.2)
    assert request.options["max_size"] == 160


def test_what_can_not_be_done(tmp_path: Path, photos: Path, config: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FlowError, match="no images are there"):
        run(tmp_path / "empty", tmp_path / "out", config)
    with pytest.raises(WeightsError, match="no such weights file"):
        run(photos, tmp_path / "out", config, weights=str(tmp_path / "gone.pth"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(ExportError):
        run(photos, tmp_path / "file", config)
