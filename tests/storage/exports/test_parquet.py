import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.exports import parquet
from storage.exports.errors import ExportError
from storage.exports.records import Records
from tests.storage.exports.made import hard_numbers, records, same_bits, unit, write


def escaped(names):
    return [name.decode("utf-8", "backslashreplace") for name in names]


def test_parquet_for_pyarrow(tmp_path):
    some = records(hard_numbers(40, 9))
    write(tmp_path / "out.parquet", None, some)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["id", "path", "label", "vector"]
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 9)
    assert table["id"].to_pylist() == escaped(some.ids)
    assert table["path"].to_pylist() == escaped(some.paths)
    assert table["label"].to_pylist() == some.labels
    vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(-1, 9)
    same_bits(vectors, some.vectors["pool"])


def test_parquet_for_pandas(tmp_path):
    some = records(hard_numbers(40, 9))
    write(tmp_path / "out.parquet", None, some)
    frame = pd.read_parquet(tmp_path / "out.parquet")
    assert list(frame["id"]) == escaped(some.ids)
    assert [None if pd.isna(label) else label for label in frame["label"]] == some.labels
    same_bits(np.stack(frame["vector"]), some.vectors["pool"])


def test_parquet_for_polars(tmp_path):
    some = records(hard_numbers(40, 9))
    write(tmp_path / "out.parquet", None, some)
    frame = pl.read_parquet(tmp_path / "out.parquet")
    assert frame.schema["vector"] == pl.Array(pl.Float32, 9)
    assert frame["id"].to_list() == escaped(some.ids)
    assert frame["label"].to_list() == some.labels
    same_bits(frame["vector"].to_numpy(), some.vectors["pool"])


def test_images_without_a_path(tmp_path):
    x = unit(3, 4)
    some = Records([b"0", b"1", b"2"], [b""] * 3, [None] * 3, {"pool": x})
    write(tmp_path / "out.parquet", None, some)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["path"].to_pylist() == table["label"].to_pylist() == [None] * 3
    write(tmp_path / "clip", "clip-retrieval", some)
    metadata = pq.read_table(tmp_path / "clip" / "metadata" / "metadata_0.parquet")
    assert metadata["image_path"].to_pylist() == ["0", "1", "2"]


def test_several_layers_are_columns(tmp_path):
    layers = {"fc6": hard_numbers(20, 5), "features.3": hard_numbers(20, 7, seed=1)}
    write(tmp_path / "out.parquet", None, records(layers))
    frame = pl.read_parquet(tmp_path / "out.parquet")
    assert frame.columns == ["id", "path", "label", "fc6", "features.3"]
    for layer, x in layers.items():
        same_bits(frame[layer].to_numpy(), x)
    with pytest.raises(ExportError, match="can't be called path in Parquet"):
        write(tmp_path / "no.parquet", None, records({"path": unit(2, 3), "b": unit(2, 3)}))


@pytest.mark.parametrize("size", [1, 7, 50])
def test_row_groups_are_bounded_whatever_the_batches(tmp_path, monkeypatch, size):
    monkeypatch.setattr(parquet, "GROUP_BYTES", 4 * 6 * 8)
    x = unit(50, 6)
    some = [records(x[i : i + size], i) for i in range(0, 50, size)]
    write(tmp_path / "out.parquet", None, some)
    file = pq.ParquetFile(tmp_path / "out.parquet")
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert groups == [8] * 6 + [2]
    same_bits(pl.read_parquet(tmp_path / "out.parquet")["vector"].to_numpy(), x)


@pytest.mark.parametrize(("rows", "digits"), [(50, 1), (8, 1), (5, 2)])
def test_clip_retrieval_pairs_its_files_by_name(tmp_path, monkeypatch, rows, digits):
    monkeypatch.setattr(parquet, "FILE_ROWS", rows)
    x = unit(53, 6)
    some = [records(x[i : i + 7], i) for i in range(0, 53, 7)]
    write(tmp_path / "out", "clip-retrieval", some)
    # As clip-retrieval's own reader does it: the files of both folders, sorted and zipped.
    images = sorted((tmp_path / "out" / "img_emb").iterdir())
    metadata = sorted((tmp_path / "out" / "metadata").iterdir())
    assert [path.name for path in images] == [
        f"img_emb_{i:0{digits}}.npy" for i in range(-(-53 // rows))
    ]
    assert [path.name for path in metadata] == [
        f"metadata_{i:0{digits}}.parquet" for i in range(len(images))
    ]
    found = np.concatenate([np.load(path) for path in images])
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, x.astype(np.float16))
    frames = pd.concat([pd.read_parquet(path) for path in metadata])
    assert [len(np.load(path)) for path in images] == [
        len(pd.read_parquet(path)) for path in metadata
    ]
    assert list(frames["image_path"]) == [path for each in some for path in escaped(each.paths)]
    assert list(frames["id"]) == [id for each in some for id in escaped(each.ids)]


def test_clip_retrieval_holds_halves(tmp_path):
    x = np.array([[1.0, 2.0], [3.0, -1e6]], np.float32)
    with pytest.raises(ExportError, match=r"up to 65504; a vector holds 1e\+06"):
        write(tmp_path / "out", "clip-retrieval", records(x))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["parquet", "clip-retrieval"])
def test_without_pyarrow_one_line_says_what_to_install(tmp_path, name):
    code = f"""
import sys
sys.modules["pyarrow"] = None  # what an import of a package that is not there comes to
from storage.exports.formats import open_writer
try:
    with open_writer({str(tmp_path / "x")!r}, {name!r}, {{"pool": 4}}):
        pass
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "ExportError Parquet files are written by pyarrow: pip install 'lookalike[parquet]'\n"
    )
    assert list(tmp_path.iterdir()) == []
