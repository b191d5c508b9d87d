import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from storage.errors import DiskFull
from storage.exports.errors import ExportError
from storage.exports.formats import FORMATS, check_output, open_writer, plan_output
from storage.exports.records import Records
from tests.storage.exports.made import records, unit, write
from tests.storage.filled import limited_files


def outs(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("out", "format", "layers", "said"),
    [
        ("-", "csv", ["a"], "an output is a file or a folder: name one"),
        ("x.txt", None, ["a"], "says no format: end it with .tsv, .csv"),
        ("x", None, ["a"], "--format"),
        ("x.csv", "xls", ["a"], "no format 'xls'; there are: tsv, csv, table"),
        ("x.csv", None, ["a", "b"], "use x --format csv instead of x.csv"),
        ("x", "clip-retrieval", ["a", "b"], "use --format parquet"),
        ("x/", "npz", ["a"], "npz is written to a file"),
        ("x", "csv", ["a/b", "a_b"], "one name"),
    ],
)
def test_plans_that_can_not_be(out, format, layers, said):
    with pytest.raises(ExportError, match=said) as caught:
        plan_output(out, format, layers)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("out", "format", "names"),
    [
        ("x.tsv", None, ["x.tsv"]),
        ("x.CSV", None, ["x.CSV"]),
        ("x.pq", None, ["x.pq"]),
        ("x", "csv", ["x"]),
        ("x.npy", None, ["x_ids.npy", "x_labels.npy", "x_data.npy"]),
        ("x_data.npy", None, ["x_ids.npy", "x_labels.npy", "x_data.npy"]),
        ("x", "npy", ["x_ids.npy", "x_labels.npy", "x_data.npy"]),
    ],
)
def test_names_of_files(tmp_path, out, format, names):
    output = plan_output(str(tmp_path / out), format, ["fc7"])
    assert output.paths == [str(tmp_path / name) for name in names]


def test_what_is_there_is_kept_without_overwrite(tmp_path):
    out = tmp_path / "x.csv"
    write(out, None, records(unit(3, 4)))
    before = out.read_bytes()
    with pytest.raises(ExportError, match=r"x.csv is there already; --overwrite replaces it"):
        open_writer(str(out), None, {"pool": 4})
    write(out, None, records(unit(2, 4, seed=9)), overwrite=True)
    assert out.read_bytes() != before
    assert outs(tmp_path) == ["x.csv"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "real" / "x.csv")
    write(tmp_path / "link.csv", None, records(unit(3, 4)))
    assert (tmp_path / "link.csv").is_symlink()
    assert outs(tmp_path / "real") == ["x.csv"]


def test_a_folder_of_something_else_is_never_replaced(tmp_path):
    layers = {"a": unit(3, 4), "b": unit(3, 4)}
    write(tmp_path / "x", "csv", records(layers))
    write(tmp_path / "x", "csv", records(layers), overwrite=True)
    (tmp_path / "x" / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"holds notes.txt, which this output would not"):
        write(tmp_path / "x", "csv", records(layers), overwrite=True)
    assert outs(tmp_path) == ["x", "x/a.csv", "x/b.csv", "x/notes.txt"]


@pytest.mark.parametrize("format", ["csv", "tsv", "table"])
def test_a_table_of_the_users_own_is_never_replaced(tmp_path, format):
    layers = {"a": unit(3, 4), "b": unit(3, 4)}
    write(tmp_path / "x", format, records(layers))
    mine = tmp_path / "x" / f"prices.{'tsv' if format == 'tsv' else 'csv'}"
    mine.write_text("mine")
    with pytest.raises(ExportError, match=rf"holds {mine.name}, which this output would not"):
        write(tmp_path / "x", format, records(layers), overwrite=True)
    assert mine.read_text() == "mine"


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "x").mkdir()
    write(tmp_path / "x", "csv", records({"a": unit(3, 4), "b": unit(3, 4)}))
    assert outs(tmp_path) == ["x", "x/a.csv", "x/b.csv"]


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("missing/x.csv", "the folder .*missing is not there: make it first"),
        ("folder.csv", "folder.csv is not a file"),
        ("file", "file is no folder"),
        (f"{'x' * 254}.csv", "can't be written: File name too long"),
    ],
)
def test_places_that_can_not_be(tmp_path, out, said):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").write_text("")
    format = "clip-retrieval" if out == "file" else "csv"
    before = outs(tmp_path)
    with pytest.raises(ExportError, match=said):
        write(tmp_path / out, format, records(unit(3, 4)), overwrite=True)
    assert outs(tmp_path) == before


@pytest.mark.parametrize("format", FORMATS)
def test_an_exception_leaves_nothing_and_changes_nothing(tmp_path, format):
    write(tmp_path / "old", format, records(unit(3, 4)))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "old", format, overwrite=True)
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "new", format)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert not [name for name in outs(tmp_path) if "new" in name or "tmp" in name]


def interrupted(out, format, **options):
    with open_writer(str(out), format, {"pool": 4}, **options) as writer:
        writer.write(records(unit(300, 4)))
        raise KeyboardInterrupt


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, format):
    x = unit(20_000, 32)
    with limited_files(300_000), pytest.raises(DiskFull, match="no space left to write"):
        write(tmp_path / "x", format, [records(x[i : i + 500], i) for i in range(0, 20_000, 500)])
    assert outs(tmp_path) == []


@pytest.mark.parametrize("format", FORMATS)
def test_no_images_are_an_output_too(tmp_path, format):
    none = Records([], [], [], {"pool": np.empty((0, 4), np.float32)})
    writer = write(tmp_path / "x", format, none)
    assert writer.n == 0
    assert all(os.path.exists(path) for path in writer.output.paths)


KILLED = """
import sys, time
sys.path.insert(0, {root!r})
from storage.exports.formats import open_writer
from tests.storage.exports.made import records, unit
with open_writer({out!r}, {format!r}, {{"pool": 64}}, overwrite=True) as writer:
    writer.write(records(unit(40_000, 64)))
    print("wrote", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("format", FORMATS)
def test_killed_in_the_middle(tmp_path, format):
    write(tmp_path / "x", format, records(unit(3, 64)))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    root = str(Path(__file__).parents[3])
    code = KILLED.format(root=root, out=str(tmp_path / "x"), format=format)
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "wrote\n"
        with pytest.raises(ExportError, match=r"another process writes .*/x; wait for it to end"):
            write(tmp_path / "x", format, records(unit(3, 64)), overwrite=True)
        child.send_signal(signal.SIGKILL)
    for path, data in before.items():
        assert path.read_bytes() == data
    write(tmp_path / "x", format, records(unit(5, 64)), overwrite=True)
    assert before.keys() == {path for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("format", ["csv", "npy", "clip-retrieval"])
@pytest.mark.parametrize("foreign", [b"half a file", None])
def test_files_of_another_process_are_not_put_in_place(tmp_path, format, foreign):
    """What could happen where the file system has no locks."""
    with pytest.raises(ExportError, match=r"another process writes .*/x; wait"):
        meddled(tmp_path, format, foreign)
    assert not [name for name in outs(tmp_path) if name.startswith("x") and "tmp" not in name]


def meddled(folder, format, foreign):
    with open_writer(str(folder / "x"), format, {"pool": 4}) as writer:
        writer.write(records(unit(30, 4)))
        staged = next(path for path in folder.rglob("*") if path.is_file())
        staged.unlink()
        if foreign is not None:
            staged.write_bytes(foreign)


def test_killed_while_a_folder_was_replaced(tmp_path):
    layers = {"a": unit(3, 4), "b": unit(3, 4)}
    write(tmp_path / "x", "csv", records(layers))
    os.rename(tmp_path / "x", tmp_path / "x.lookalike-old")
    with pytest.raises(ExportError, match="is there already"):
        write(tmp_path / "x", "csv", records(layers))
    assert outs(tmp_path) == ["x", "x/a.csv", "x/b.csv"]


def test_all_but_the_last_file_stand_before_it(tmp_path):
    write(tmp_path / "x.npy", None, records(unit(3, 4)))
    names = plan_output(str(tmp_path / "x.npy"), None, ["pool"]).names
    times = [os.stat(tmp_path / name).st_ctime_ns for name in names]
    assert times == sorted(times)
    assert names[-1] == "x_data.npy"


def test_check_without_writing(tmp_path):
    check_output(plan_output(str(tmp_path / "x.tsv"), None, ["fc6"]))
    assert outs(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"paths": []}, "0 paths"),
        ({"labels": [None]}, "1 labels"),
        ({"vectors": {"a": np.zeros((3, 4), np.float32)}}, r"float32 \(2, D\); a gives float32"),
        ({"vectors": {"a": np.zeros((2, 4))}}, "float64"),
        ({"vectors": {"a": np.array([[1], [np.nan]], np.float32)}}, "not all finite"),
        ({"vectors": {"a": np.array([[1], [np.inf]], np.float32)}}, "not all finite"),
    ],
)
def test_records_that_are_none(change, said):
    good = {
        "ids": [b"1", b"2"],
        "paths": [b"", b""],
        "labels": [None, "x"],
        "vectors": {"a": np.zeros((2, 4), np.float32)},
    }
    assert len(Records(**good)) == 2
    with pytest.raises(ValueError, match=said):
        Records(**(good | change))


def test_records_of_other_layers(tmp_path):
    with (
        pytest.raises(ValueError, match="opened for"),
        open_writer(str(tmp_path / "x.csv"), None, {"pool": 5}) as writer,
    ):
        writer.write(records(unit(3, 4)))
    assert outs(tmp_path) == []
