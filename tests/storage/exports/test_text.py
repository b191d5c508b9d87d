import csv
import json
import re

import numpy as np
import pandas as pd
import polars as pl
import pytest

from tests.storage.exports.made import hard_numbers, records, same_bits, unit, write


def float32(cells):
    return np.array([[np.float32(cell) for cell in row] for row in cells], np.float32)


def read_csv(path, delimiter=","):
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.reader(file, delimiter=delimiter, strict=True))


def names(cells):
    return [row[0].encode("utf-8", "surrogateescape") for row in cells]


def test_tsv_reads_back_to_the_same_bits(tmp_path):
    some = records(hard_numbers(40, 9))
    write(tmp_path / "out.tsv", None, some)
    rows = read_csv(tmp_path / "out.tsv", "\t")
    assert names(rows) == some.ids
    assert all(len(row) == 2 for row in rows)
    arrays = [json.loads(row[1], parse_float=np.float32, parse_int=np.float32) for row in rows]
    same_bits(np.array(arrays, np.float32), some.vectors["pool"])


def test_plain_ids_of_tsv_need_no_more_than_a_split(tmp_path):
    some = records(unit(30, 4), start=12)
    write(tmp_path / "out.tsv", None, some)
    pairs = [line.split(b"\t") for line in (tmp_path / "out.tsv").read_bytes().splitlines()]
    assert [id for id, _ in pairs] == some.ids
    assert [len(json.loads(numbers)) for _, numbers in pairs] == [4] * 30


def test_numbers_are_the_shortest_text(tmp_path):
    x = np.concatenate([hard_numbers(300, 64, seed=5), unit(300, 64)])
    write(tmp_path / "out.csv", None, records(x))
    cells = [row[1:] for row in read_csv(tmp_path / "out.csv")]
    same_bits(float32(cells), x)
    for cell, number in zip(np.ravel(cells), np.ravel(x), strict=True):
        shortest = np.format_float_scientific(number, unique=True, trim="-")
        assert digits(str(cell)) == digits(shortest), (cell, shortest)


def digits(text: str) -> str:
    """Return the significant digits of a decimal number."""
    mantissa = re.split("[eE]", text.lstrip("-"))[0].replace(".", "")
    return mantissa.strip("0")


def test_csv_is_what_csv_reads(tmp_path):
    some = records(hard_numbers(40, 9))
    write(tmp_path / "out.csv", None, some)
    rows = read_csv(tmp_path / "out.csv")
    assert names(rows) == some.ids
    same_bits(float32([row[1:] for row in rows]), some.vectors["pool"])


def test_csv_for_pandas_and_polars(tmp_path):
    some = records(unit(40, 9), start=12)
    write(tmp_path / "out.csv", None, some)
    frame = pd.read_csv(tmp_path / "out.csv", header=None)
    assert [name.encode() for name in frame[0]] == some.ids
    same_bits(frame.iloc[:, 1:].to_numpy().astype(np.float32), some.vectors["pool"])
    frame = pl.read_csv(tmp_path / "out.csv", has_header=False)
    assert [name.encode() for name in frame.to_series(0)] == some.ids
    same_bits(frame[:, 1:].to_numpy().astype(np.float32), some.vectors["pool"])


def test_table_has_the_header_of_orange(tmp_path):
    some = records(unit(40, 3))
    write(tmp_path / "out.csv", "table", some)
    head, *rows = read_csv(tmp_path / "out.csv")
    assert head == ["Class", "n0", "n1", "n2"]
    assert [row[0] for row in rows] == [label or "" for label in some.labels]
    same_bits(float32([row[1:] for row in rows]), some.vectors["pool"])
    frame = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert list(frame["Class"]) == [label or "" for label in some.labels]
    same_bits(frame.iloc[:, 1:].to_numpy().astype(np.float32), some.vectors["pool"])


@pytest.mark.parametrize("name", ["tsv", "csv", "table"])
def test_several_layers_are_files_of_a_folder(tmp_path, name):
    layers = {"fc6": unit(20, 5), "features.3": unit(20, 7, seed=1), "a/b": unit(20, 2, seed=2)}
    writer = write(tmp_path / "out", name, records(layers))
    suffix = "tsv" if name == "tsv" else "csv"
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert found == [f"a_b.{suffix}", f"fc6.{suffix}", f"features.3.{suffix}"]
    assert writer.output.paths == [str(tmp_path / "out")]
    for layer, x in layers.items():
        alone = tmp_path / f"alone.{suffix}"
        write(alone, name, records(x), overwrite=True)
        whole = tmp_path / "out" / f"{layer.replace('/', '_')}.{suffix}"
        assert whole.read_bytes() == alone.read_bytes()


def test_one_layer_in_a_folder_on_request(tmp_path):
    write(f"{tmp_path}/out/", "csv", records({"fc7": unit(3, 5)}))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["fc7.csv"]


@pytest.mark.parametrize("name", ["tsv", "csv", "table"])
def test_batches_make_no_difference(tmp_path, name):
    x = unit(50, 6)
    write(tmp_path / "whole.txt", name, records(x))
    write(tmp_path / "pieces.txt", name, [records(x[i : i + 7], i) for i in range(0, 50, 7)])
    assert (tmp_path / "whole.txt").read_bytes() == (tmp_path / "pieces.txt").read_bytes()


def test_vectors_in_any_layout_in_memory(tmp_path):
    x = unit(8, 12)
    write(tmp_path / "c.csv", None, records(x))
    write(tmp_path / "f.csv", None, records(np.asfortranarray(x)))
    write(tmp_path / "s.csv", None, records(np.repeat(x, 2, axis=1)[:, ::2]))
    assert (tmp_path / "c.csv").read_bytes() == (tmp_path / "f.csv").read_bytes()
    assert (tmp_path / "c.csv").read_bytes() == (tmp_path / "s.csv").read_bytes()
