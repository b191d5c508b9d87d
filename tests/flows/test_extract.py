"""``lookalike extract``: every source and output, what is kept, what is refused."""

import csv
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import polars
import pytest
from click.testing import CliRunner
from PIL import Image

from extractor.decode import decode
from extractor.engine import Engine
from extractor.models import ModelRequest, open_model
from extractor.preprocess import pixels
from flows.batch.extracting import extract_to
from flows.batch.failing import Failed, from_json
from flows.batch.options import extract_options
from flows.cli import cli, expected_code
from flows.job.progress import Progress
from flows.samples import draw_families
from storage.errors import DiskFull, ExportError, LeaseHeld, WorkMismatch
from storage.sources.items import Unreadable
from storage.sources.shard import Shard
from tests.flows.terminal import CHECKOUT, lookalike

TINY = {"model": "shufflenet_v2_x0_5", "weights": "random:0", "device": "cpu"}
REQUEST = ModelRequest(model="shufflenet_v2_x0_5", weights="random:0")


def go(source, out, **more):
    """Run in this process and return the report."""
    asked = {**TINY, "source": os.fsdecode(source), "out": os.fsdecode(out), **more}
    return extract_to(extract_options(asked), Progress("silent"))


def refused(error, source, out, **more):
    with pytest.raises(error) as caught:
        go(source, out, **more)
    assert expected_code(caught.value) is not None
    assert "\n" not in str(caught.value)
    return str(caught.value)


def read_tsv(path):
    """Return id -> vector of a TSV, by json alone; no id may repeat."""
    with open(path, "rb") as file:
        pairs = [line.rstrip(b"\n").split(b"\t") for line in file]
    assert len({id for id, _ in pairs}) == len(pairs)
    return {id: np.array(json.loads(values), np.float32) for id, values in pairs}


@pytest.fixture(scope="module")
def model():
    return open_model(REQUEST)


@pytest.fixture(scope="module")
def engine(model):
    return Engine(model, "cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return two class folders of 9 pictures each, and a copy of one of them in the other."""
    folder = tmp_path_factory.mktemp("photos")
    draw_families(str(folder), 2, seed=1)
    copied = (folder / "family-000" / "plain.jpg").read_bytes()
    (folder / "family-001" / "copy.jpg").write_bytes(copied)
    return folder


@pytest.fixture(scope="module")
def expected(photos, engine, model):
    """Return id -> vector, one picture after the other."""
    found = {}
    for path in sorted(photos.rglob("*.*")):
        image = decode(path.read_bytes(), target=model.preprocess.target)
        x = engine.forward(pixels(image, model.preprocess)[None])[0]
        found[os.fsencode(path.relative_to(photos))] = x
    return found


def same(found, expected):
    assert found.keys() == expected.keys()
    for id, x in expected.items():
        np.testing.assert_allclose(found[id], x, rtol=0, atol=1e-5)


def test_a_directory_gives_each_id_its_vector_and_copies_theirs(tmp_path, photos, expected):
    out = tmp_path / "v.tsv"
    report = go(photos, out)
    same(read_tsv(out), expected)
    assert (report.written, report.extracted, report.kept, report.failed) == (19, 19, 0, 0)
    assert report.exit_code() == 0
    assert os.listdir(tmp_path) == ["v.tsv"]
    assert b"family-001/copy.jpg" in expected


@pytest.mark.parametrize("size", [1, 5, 18, 19, 100])
def test_pieces_of_any_size_make_the_same_output(tmp_path, photos, expected, size):
    go(photos, tmp_path / "v.tsv", chunk_size=size)
    found = read_tsv(tmp_path / "v.tsv")
    assert list(found) == sorted(expected)
    same(found, expected)


def test_several_devices_share_the_pieces(tmp_path, photos, expected):
    go(photos, tmp_path / "v.tsv", chunk_size=2, device="cpu,cpu")
    found = read_tsv(tmp_path / "v.tsv")
    assert list(found) == sorted(expected)
    same(found, expected)


def test_a_full_disk_is_refused_before_the_work(tmp_path):
    np.lib.format.open_memmap(
        tmp_path / "p.npy", mode="w+", dtype=np.uint8, shape=(10**9, 1, 1)
    )  # a sparse file: its pictures would take 8 TB of numbers
    said = refused(DiskFull, tmp_path / "p.npy", tmp_path / "v.tsv")
    assert "8,192.00 GB" in said
    assert "--shard" in said
    assert os.listdir(tmp_path) == ["p.npy"]


def test_lists_and_standard_input_give_the_same_vectors(tmp_path, photos, expected):
    ids = sorted(expected)
    lines = {
        "list.txt": [id.decode() for id in ids],
        "list.tsv": [f"{n}\t{id.decode()}" for n, id in enumerate(ids)],
        "list.csv": ["label,path", *(f"c{n % 3},{id.decode()}" for n, id in enumerate(ids))],
    }
    for name, text in lines.items():
        (photos / name).write_text("\n".join(text) + "\n")
        go(photos / name, tmp_path / f"{name}.npz")
        with np.load(tmp_path / f"{name}.npz") as found:
            keys = (
                [str(n) for n in range(19)] if name == "list.tsv" else [id.decode() for id in ids]
            )
            assert found["ids"].tolist() == keys
            np.testing.assert_allclose(
                found["data"], [expected[id] for id in ids], rtol=0, atol=1e-5
            )
            if name == "list.csv":
                assert found["labels"].tolist() == [f"c{n % 3}" for n in range(19)]
    typed = "\n".join(lines["list.txt"]) + "\n"
    words = ["-m", "flows.cli", "extract", "-", os.path.relpath(tmp_path / "in.tsv", photos)]
    words += ["--model", TINY["model"], "--weights", TINY["weights"], "--json"]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=photos,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        input=typed.encode(),
        capture_output=True,
        check=True,
        timeout=300,
    )
    assert json.loads(done.stdout)["written"] == 19
    same(read_tsv(tmp_path / "in.tsv"), expected)


FORMATS = {
    "tsv": "v.tsv",
    "csv": "v.csv",
    "table": "t.csv",
    "npy": "v.npy",
    "npz": "v.npz",
    "parquet": "v.parquet",
    "clip-retrieval": "clip",
}


def read_format(name, folder):
    """Read one layer's output of ``FORMATS``: ids or labels, and vectors."""
    import pandas as pd

    path = folder / FORMATS[name]
    if name == "tsv":
        found = read_tsv(path)
        return list(found), np.array(list(found.values()))
    if name == "csv":
        with open(path, newline="") as file:
            rows = list(csv.reader(file))
        return [row[0].encode() for row in rows], np.array([row[1:] for row in rows], np.float32)
    if name == "table":
        found = pd.read_csv(path)
        assert list(found.columns) == ["Class", *(f"n{i}" for i in range(1024))]
        return list(found["Class"]), found.iloc[:, 1:].to_numpy(np.float32)
    if name == "npy":
        ids = np.load(folder / "v_ids.npy")
        return [id.encode() for id in ids.tolist()], np.load(folder / "v_data.npy")
    if name == "npz":
        with np.load(path) as found:
            return [id.encode() for id in found["ids"].tolist()], found["data"]
    if name == "parquet":
        found = pd.read_parquet(path)
        return [id.encode() for id in found["id"]], np.stack(found["vector"])
    meta = pd.read_parquet(path / "metadata" / "metadata_0.parquet")
    return list(meta["image_path"]), np.load(path / "img_emb" / "img_emb_0.npy")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_holds_the_same(tmp_path, photos, expected, name):
    report = go(photos, tmp_path / FORMATS[name], format=name)
    assert (report.format, report.written) == (name, 19)
    ids, x = read_format(name, tmp_path)
    wanted = sorted(expected)
    if name == "table":
        assert ids == [id.decode().split("/")[0] for id in wanted]
    elif name == "clip-retrieval":
        assert ids == [str(photos / id.decode()) for id in wanted]
    else:
        assert ids == wanted
    atol = 1e-3 if name == "clip-retrieval" else 1e-5
    np.testing.assert_allclose(x, [expected[id] for id in wanted], rtol=0, atol=atol)


def test_several_layers_are_what_each_alone_is(tmp_path, photos):
    both = go(photos, tmp_path / "both", format="csv", layers=("mean", "logits"))
    assert both.layers == {"mean": 1024, "logits": 1000}
    assert sorted(os.listdir(tmp_path / "both")) == ["logits.csv", "mean.csv"]
    for layer in ("mean", "logits"):
        go(photos, tmp_path / f"{layer}.csv", layers=(layer,))
        with (
            open(tmp_path / f"{layer}.csv") as one,
            open(tmp_path / "both" / f"{layer}.csv") as two,
        ):
            for a, b in zip(csv.reader(one), csv.reader(two), strict=True):
                assert a[0] == b[0]
                np.testing.assert_allclose(
                    np.array(a[1:], float), np.array(b[1:], float), rtol=0, atol=1e-5
                )


def test_features_can_stay_as_they_are(tmp_path, photos, expected):
    go(photos, tmp_path / "raw.tsv", normalize=False)
    raw = read_tsv(tmp_path / "raw.tsv")
    norms = np.array([np.linalg.norm(x) for x in raw.values()])
    assert not np.allclose(norms, 1)
    same({id: x / np.linalg.norm(x) for id, x in raw.items()}, expected)


def test_an_array_gives_rows_labels_and_the_vectors_of_its_pictures(tmp_path, engine, model):
    rng = np.random.default_rng(5)
    pictures = rng.integers(0, 256, (11, 20, 30, 3), dtype=np.uint8)
    pictures[7] = pictures[3]
    np.save(tmp_path / "p.npy", pictures)
    np.save(tmp_path / "l.npy", np.arange(11) % 4)
    go(tmp_path / "p.npy", tmp_path / "v.npz", labels=str(tmp_path / "l.npy"), chunk_size=4)
    want = [
        engine.forward(pixels(Image.fromarray(one), model.preprocess)[None])[0] for one in pictures
    ]
    with np.load(tmp_path / "v.npz") as found:
        assert found["ids"].tolist() == [str(n) for n in range(11)]
        assert found["labels"].tolist() == [str(n % 4) for n in range(11)]
        np.testing.assert_allclose(found["data"], want, rtol=0, atol=1e-5)


def test_a_row_out_of_range_fails_alone(tmp_path):
    values = np.random.default_rng(0).random((6, 8, 8, 3)).astype(np.float32)
    values[2, 0, 0, 0] = 1.5
    np.save(tmp_path / "p.npy", values)
    report = go(tmp_path / "p.npy", tmp_path / "v.tsv", values="unit")
    assert report.failures == {"range": 1}
    assert list(read_tsv(tmp_path / "v.tsv")) == [b"0", b"1", b"3", b"4", b"5"]


@pytest.fixture
def spoilt(tmp_path):
    """Return a folder of 6 good pictures, and of 4 bad ones in between."""
    folder = tmp_path / "some"
    draw_families(str(folder), 1, seed=3)
    for name in ("crop.jpg", "png.png", "turned.jpg"):
        (folder / "family-000" / name).unlink()
    (folder / "a text.jpg").write_bytes(b"no picture")
    (folder / "z text.jpg").write_bytes(b"no picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.jpg").write_bytes((folder / "family-000" / "plain.jpg").read_bytes()[:2000])
    return folder


def test_bad_pictures_are_listed_and_the_others_go_on(tmp_path, spoilt):
    out = tmp_path / "v.tsv"
    report = go(spoilt, out, chunk_size=3)
    assert report.exit_code() == 3
    assert report.failures == {"unsupported": 2, "empty": 1, "truncated": 1}
    assert len(read_tsv(out)) == report.written == 6
    with open(f"{out}.failures.tsv", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    assert rows[0] == ["id", "path", "stage", "class", "message", "label"]
    assert [row[0] for row in rows[1:]] == ["a text.jpg", "cut.jpg", "empty.png", "z text.jpg"]
    assert [row[1] for row in rows[1:]] == [str(spoilt / row[0]) for row in rows[1:]]
    assert {row[2] for row in rows[1:]} == {"decode"}


def test_the_list_of_failures_is_a_source_that_tries_them_again(tmp_path, spoilt):
    go(spoilt, tmp_path / "v.tsv")
    good = (spoilt / "family-000" / "plain.jpg").read_bytes()
    for name in ("a text.jpg", "cut.jpg", "empty.png"):
        (spoilt / name).write_bytes(good)
    report = go(tmp_path / "v.tsv.failures.tsv", tmp_path / "again.tsv")
    assert (report.written, report.failures) == (3, {"unsupported": 1})
    assert list(read_tsv(tmp_path / "again.tsv")) == [b"a text.jpg", b"cut.jpg", b"empty.png"]
    (spoilt / "z text.jpg").write_bytes(good)
    report = go(tmp_path / "v.tsv.failures.tsv", tmp_path / "again.tsv", overwrite=True)
    assert (report.written, report.failed, report.exit_code()) == (4, 0, 0)
    assert not os.path.exists(tmp_path / "again.tsv.failures.tsv")


def test_labels_come_back_by_the_list_of_failures(tmp_path, spoilt):
    good = (spoilt / "family-000" / "plain.jpg").read_bytes()
    (spoilt / "family-000" / "broken.jpg").write_bytes(good[:2000])
    go(spoilt, tmp_path / "v.tsv")
    for name in ("cut.jpg", "family-000/broken.jpg"):
        (spoilt / name).write_bytes(good)
    go(tmp_path / "v.tsv.failures.tsv", tmp_path / "again.parquet")
    again = polars.read_parquet(tmp_path / "again.parquet")
    assert dict(again.select("id", "label").iter_rows()) == {
        "cut.jpg": None,
        "family-000/broken.jpg": "family-000",
    }


def test_a_folder_that_can_not_be_looked_at_is_listed_by_its_whole_path() -> None:
    failed = Failed.unseen(Unreadable(b"class/deep", errno.EACCES, True), b"/photos")
    assert failed.line().split(b"\t") == [
        b"class/deep",
        b"/photos/class/deep",
        b"read",
        b"permission",
        b"Permission denied",
        b"class\n",
    ]


def test_failures_that_an_earlier_version_kept_have_no_label() -> None:
    [failed] = from_json([["a", "/a", "decode", "truncated", "cut"]])
    assert failed.line() == b"a\t/a\tdecode\ttruncated\tcut\t\n"


def test_a_folder_of_layers_is_replaced_whatever_they_are_called(tmp_path, photos):
    out = f"{tmp_path / 'layers'}/"
    go(photos, out, format="csv")
    before = sorted(os.listdir(out))
    go(photos, out, format="csv", overwrite=True)
    assert sorted(os.listdir(out)) == before
    (tmp_path / "layers" / "prices.csv").write_text("mine")
    assert "prices.csv" in refused(ExportError, photos, out, format="csv", overwrite=True)


def test_the_list_of_failures_can_not_become_its_own_output(tmp_path, spoilt):
    out = tmp_path / "v.tsv"
    go(spoilt, out)
    before = {path: path.read_bytes() for path in (out, tmp_path / "v.tsv.failures.tsv")}
    said = refused(ExportError, tmp_path / "v.tsv.failures.tsv", out, overwrite=True)
    assert "name another output" in said
    assert {path: path.read_bytes() for path in before} == before


def test_too_many_failures_are_told_by_the_exit_code(tmp_path, spoilt):
    assert go(spoilt, tmp_path / "a.tsv", max_failures=0.4).exit_code() == 3
    assert go(spoilt, tmp_path / "b.tsv", max_failures=0.39).exit_code() == 7


def test_names_that_are_not_utf8_come_back_as_they_are(tmp_path, photos):
    folder = os.fsencode(tmp_path / "odd")
    os.mkdir(folder)
    picture = (photos / "family-000" / "plain.jpg").read_bytes()
    for name in (b"caf\xe9.jpg", b"bad\xff.jpg", "naïve ü.jpg".encode()):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(picture if name[0] != 98 else b"no")
    report = go(folder, tmp_path / "v.tsv", chunk_size=1)
    assert list(read_tsv(tmp_path / "v.tsv")) == sorted([b"caf\xe9.jpg", "naïve ü.jpg".encode()])
    with open(tmp_path / "v.tsv.failures.tsv", "rb") as file:
        assert file.read().splitlines()[1].startswith(b"bad\xff.jpg\t" + folder + b"/bad\xff.jpg\t")
    assert report.failed == 1


def test_shards_are_disjoint_and_together_the_whole(tmp_path, photos, expected):
    parts = []
    for index in (1, 2, 3):
        go(photos, tmp_path / f"{index}.tsv", shard=f"{index}/3")
        parts.append(read_tsv(tmp_path / f"{index}.tsv"))
        assert all(Shard(index, 3).holds(id) for id in parts[-1])
    assert sum(map(len, parts)) == 19
    same({id: x for part in parts for id, x in part.items()}, expected)


def test_an_output_that_is_there_is_not_replaced_unasked(tmp_path, photos, expected):
    out = tmp_path / "v.tsv"
    out.write_text("mine")
    assert "--overwrite" in refused(ExportError, photos, out)
    assert out.read_text() == "mine"
    assert os.listdir(tmp_path) == ["v.tsv"]
    go(photos, out, overwrite=True)
    same(read_tsv(out), expected)


def kill_half_way(source, out, *words, kept=6):
    """Run until some pieces are kept, then SIGKILL."""
    command = [sys.executable, "-m", "flows.cli", "extract", str(source), str(out)]
    command += ["--model", TINY["model"], "--weights", TINY["weights"], "--device", "cpu", *words]
    with subprocess.Popen(command, cwd=CHECKOUT, stderr=subprocess.PIPE) as child:
        while pieces(out) < kept:
            assert child.poll() is None, child.stderr.read()
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
    return pieces(out)


def pieces(out):
    try:
        return sum(name.endswith(".npz") for name in os.listdir(f"{out}.partial"))
    except FileNotFoundError:
        return 0


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    n = 2000
    pictures = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "p.npy", pictures)
    more = {"chunk_size": 50, "input_size": 64}
    words = ["--chunk-size", "50", "--input-size", "64"]
    kept = kill_half_way(tmp_path / "p.npy", tmp_path / "v.tsv", *words, kept=20)
    assert not os.path.exists(tmp_path / "v.tsv")
    report = go(tmp_path / "p.npy", tmp_path / "v.tsv", **more)
    assert kept * 50 <= report.kept <= (kept + 1) * 50 < n
    assert report.kept + report.extracted == report.written == n
    go(tmp_path / "p.npy", tmp_path / "whole.tsv", **more)
    found = read_tsv(tmp_path / "v.tsv")
    assert list(found) == [b"%d" % row for row in range(n)]
    same(found, read_tsv(tmp_path / "whole.tsv"))
    assert sorted(os.listdir(tmp_path)) == ["p.npy", "v.tsv", "whole.tsv"]


def test_pieces_whose_items_changed_and_damaged_ones_are_done_again(tmp_path, photos):
    folder, out = tmp_path / "some", tmp_path / "v.tsv"
    folder.mkdir()
    picture = [path.read_bytes() for path in sorted((photos / "family-000").iterdir())]
    for n in range(8):
        (folder / f"{n}.jpg").write_bytes(picture[n])
    finish_all_but_the_output(folder, out)
    (folder / "2.jpg").rename(folder / "2b.jpg")  # in the second piece of two
    names = sorted(name for name in os.listdir(f"{out}.partial") if name.endswith(".npz"))
    assert len(names) == 4
    with open(f"{out}.partial/{names[3]}", "ab") as file:
        file.write(b"more")
    report = go(folder, out, chunk_size=2)
    assert (report.kept, report.extracted, report.written) == (4, 4, 8)
    ids = [b"0.jpg", b"1.jpg", b"2b.jpg", *(b"%d.jpg" % n for n in range(3, 8))]
    go(folder, tmp_path / "whole.tsv")
    assert list(read_tsv(out)) == ids
    same(read_tsv(out), read_tsv(tmp_path / "whole.tsv"))


def test_a_picture_that_changed_since_or_came_after_all_is_done_again(tmp_path, photos):
    folder, out = tmp_path / "some", tmp_path / "v.tsv"
    folder.mkdir()
    picture = [path.read_bytes() for path in sorted((photos / "family-000").iterdir())]
    for n in range(6):
        (folder / f"{n}.jpg").write_bytes(picture[n])
    names = [f"{folder}/{n}.jpg\n" for n in range(7)]
    (tmp_path / "list.txt").write_text("".join(names))
    finish_all_but_the_output(tmp_path / "list.txt", out)
    (folder / "1.jpg").write_bytes(picture[7])  # the first of four pieces
    (folder / "6.jpg").write_bytes(picture[8])  # the last, of a picture that was not there
    report = go(tmp_path / "list.txt", out, chunk_size=2)
    assert (report.kept, report.extracted, report.written, report.failed) == (4, 3, 7, 0)
    go(tmp_path / "list.txt", tmp_path / "whole.tsv")
    same(read_tsv(out), read_tsv(tmp_path / "whole.tsv"))


def finish_all_but_the_output(folder, out):
    """Do all pieces; the output can't be written, as if another process were at it."""
    os.mkdir(f"{out}.lookalike-tmp")
    lock = os.open(f"{out}.lookalike-tmp", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    refused(ExportError, folder, out, chunk_size=2)
    os.close(lock)
    os.rmdir(f"{out}.lookalike-tmp")


def test_a_source_that_shrank_leaves_nothing_of_what_is_gone(tmp_path, photos):
    folder, out = tmp_path / "some", tmp_path / "v.tsv"
    folder.mkdir()
    for path in sorted((photos / "family-000").iterdir())[:6]:
        (folder / path.name).write_bytes(path.read_bytes())
    finish_all_but_the_output(folder, out)
    for name in sorted(os.listdir(folder))[3:]:
        (folder / name).unlink()
    report = go(folder, out, chunk_size=2)
    assert report.written == 3
    assert list(read_tsv(out)) == [os.fsencode(name) for name in sorted(os.listdir(folder))]


def test_an_output_never_replaces_its_source(tmp_path, photos):
    layers = tmp_path / "layers"
    layers.mkdir()
    lists = [tmp_path / "list.tsv", layers / "list.csv"]
    for path in lists:
        path.write_text(f"path\n{photos}/family-000/plain.jpg\n")
    np.save(tmp_path / "x_data.npy", np.zeros((2, 8, 8, 3), np.uint8))
    np.save(tmp_path / "x_labels.npy", np.arange(2))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    both = {"overwrite": True, "layers": ("fc", "mean"), "format": "csv"}
    for source, out, more in (
        (lists[0], lists[0], {"overwrite": True}),
        (lists[1], layers, both),
        (tmp_path / "x_data.npy", tmp_path / "x.npy", {"overwrite": True}),
    ):
        assert "would replace the source" in refused(ExportError, source, out, **more)
    np.save(tmp_path / "z.npy", np.zeros((2, 8, 8, 3), np.uint8))
    labels = {"overwrite": True, "labels": str(tmp_path / "x_labels.npy")}
    said = refused(ExportError, tmp_path / "z.npy", tmp_path / "x.npy", **labels)
    assert "x_labels.npy would replace the source" in said
    assert {path: path.read_bytes() for path in before} == before


def test_another_request_for_the_same_output_is_refused_until_restart(tmp_path, photos):
    out = tmp_path / "v.tsv"
    kill_half_way(photos, out, "--chunk-size", "2", kept=2)
    assert 'layers was ["mean"], is ["logits"]' in refused(
        WorkMismatch, photos, out, layers=("fc",)
    )
    assert "normalize was true, is false" in refused(WorkMismatch, photos, out, normalize=False)
    assert 'shard was null, is "1/2"' in refused(WorkMismatch, photos, out, shard="1/2")
    assert "weights was" in refused(WorkMismatch, photos, out, weights="random:1")
    assert "source.path was" in refused(WorkMismatch, photos / "family-000", out)
    report = go(photos / "family-000", out, restart=True)
    assert (report.kept, report.written) == (0, 9)


def test_two_processes_on_one_output_are_told_apart(tmp_path, photos):
    out = tmp_path / "v.tsv"
    command = [sys.executable, "-m", "flows.cli", "extract", str(photos), str(out)]
    command += ["--model", TINY["model"], "--weights", TINY["weights"], "--chunk-size", "1"]
    with subprocess.Popen(command, cwd=CHECKOUT, stderr=subprocess.DEVNULL) as child:
        while not pieces(out):
            assert child.poll() is None
            time.sleep(0.005)
        child.send_signal(signal.SIGSTOP)
        assert f"process {child.pid} on" in refused(LeaseHeld, photos, out)
        assert f"process {child.pid} on" in refused(LeaseHeld, photos, out, restart=True)
        child.send_signal(signal.SIGCONT)
        assert child.wait(120) == 0
    assert len(read_tsv(out)) == 19


def test_ctrl_c_keeps_finished_images_and_says_how_to_go_on(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (3000, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "p.npy", pictures)
    out = tmp_path / "v.npz"
    command = [sys.executable, "-m", "flows.cli", "extract", str(tmp_path / "p.npy"), str(out)]
    command += ["--model", TINY["model"], "--weights", TINY["weights"], "--input-size", "64"]
    with subprocess.Popen(
        command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        while not pieces(out):
            assert child.poll() is None
            time.sleep(0.005)
        child.send_signal(signal.SIGINT)
        said, noted = child.communicate(timeout=60)
    assert child.returncode == 130
    assert said.startswith(b"Interrupted: ")
    assert b"left; the same command goes on from here" in said
    assert noted.count(b"stopping: finished images are kept") == 1
    assert b"Traceback" not in noted
    report = go(tmp_path / "p.npy", out, input_size=64)
    assert 0 < report.kept < report.written == 3000
    with np.load(out) as found:
        assert found["ids"].tolist() == [str(n) for n in range(3000)]


def test_what_is_wrong_is_one_line_and_leaves_nothing(tmp_path, photos):
    model = ["--model", TINY["model"], "--weights", TINY["weights"]]
    (tmp_path / "empty").mkdir()
    wrong = {
        (str(photos), "v.tsv", "--layer", "nonsense"): 2,
        (str(photos), "v.what"): 2,
        (str(photos), "none/v.tsv"): 2,
        (str(photos), "v.tsv", "--shard", "5/4"): 2,
        (str(photos), "v.tsv", "--layer", "fc", "--layer", "fc"): 2,
        (str(photos), "v", "--format", "csv", "--layer", "fc", "--layer", "logits"): 2,
        (str(photos), "v.tsv", "--layer", "fc", "--layer", "mean"): 2,
        (str(tmp_path / "nothing"), "v.tsv"): 2,
        (str(tmp_path / "empty"), "v.tsv"): 2,
    }
    for n, ((source, out, *words), code) in enumerate(wrong.items()):
        words = ["extract", source, str(tmp_path / out), *model, *words]
        if n:
            error = CliRunner().invoke(cli, words).exception
            assert expected_code(error) == code, repr(error)
            assert "\n" not in str(error)
        else:
            done = lookalike(*words, code=code)
            assert done.stderr.splitlines()[-1].startswith("lookalike: "), done.stderr
            assert "a bug" not in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["empty"]


def test_memory_stays_small_whatever_the_number_of_pictures(tmp_path):
    """100,000 are measured by hand; a tenth of them shows the same where they are kept."""
    program = """
import re, sys
from flows.cli import main
try:
    main()
finally:  # `getrusage` would count the process that has started this one as well
    print(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1], file=sys.stderr)
"""

    def peak_kb(n):
        pictures = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
        np.save(tmp_path / f"{n}.npy", pictures)
        words = ["extract", str(tmp_path / f"{n}.npy"), str(tmp_path / f"{n}.tsv"), "-q"]
        words += ["--model", TINY["model"], "--weights", TINY["weights"], "--input-size", "32"]
        done = subprocess.run(
            [sys.executable, "-c", program, *words], cwd=CHECKOUT, capture_output=True, check=True
        )
        return int(done.stderr.split()[-1])

    assert peak_kb(10_000) < 1_500_000
