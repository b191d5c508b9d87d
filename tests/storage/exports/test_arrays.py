import os
import zipfile

import numpy as np
import pytest

from storage.exports.errors import ExportError
from tests.storage.exports.made import hard_numbers, records, same_bits, unit, write


def names(array):
    return [os.fsencode(name) for name in array.tolist()]


def load(path, **options):
    return np.load(path, allow_pickle=False, **options)


def test_npy_is_what_numpy_reads(tmp_path):
    some = records(hard_numbers(40, 9))
    write(tmp_path / "out.npy", None, some)
    same_bits(load(tmp_path / "out_data.npy"), some.vectors["pool"])
    labels = load(tmp_path / "out_labels.npy")
    assert labels.tolist() == [label or "" for label in some.labels]
    assert names(load(tmp_path / "out_ids.npy")) == some.ids


def test_npy_is_what_numpy_writes(tmp_path):
    some = records(unit(40, 9))
    write(tmp_path / "out.npy", None, some)
    np.save(tmp_path / "x.npy", some.vectors["pool"])
    np.save(tmp_path / "y.npy", np.array([label or "" for label in some.labels]))
    for ours, theirs in (("out_data", "x"), ("out_labels", "y")):
        assert (tmp_path / f"{ours}.npy").read_bytes() == (tmp_path / f"{theirs}.npy").read_bytes()


def test_npy_can_be_mapped(tmp_path):
    some = records(unit(40, 9))
    write(tmp_path / "out.npy", None, some)
    mapped = load(tmp_path / "out_data.npy", mmap_mode="r")
    same_bits(np.asarray(mapped[17:20]), some.vectors["pool"][17:20])


def test_several_layers_in_npy(tmp_path):
    layers = {"fc6": hard_numbers(20, 5), "fc7": hard_numbers(20, 7, seed=1)}
    some = records(layers)
    write(tmp_path / "out", "npy", some)
    for layer, x in layers.items():
        same_bits(load(tmp_path / f"out_{layer}_data.npy"), x)
    assert names(load(tmp_path / "out_ids.npy")) == some.ids
    assert len(list(tmp_path.iterdir())) == 4


def test_npz_is_what_numpy_reads(tmp_path):
    some = records(hard_numbers(40, 9))
    write(tmp_path / "out.npz", None, some)
    with load(tmp_path / "out.npz") as arrays:
        assert sorted(arrays) == ["data", "ids", "labels", "paths"]
        same_bits(arrays["data"], some.vectors["pool"])
        assert arrays["labels"].tolist() == [label or "" for label in some.labels]
        assert names(arrays["ids"]) == some.ids
        assert names(arrays["paths"]) == some.paths
    with zipfile.ZipFile(tmp_path / "out.npz") as archive:
        assert archive.testzip() is None


def test_several_layers_in_npz(tmp_path):
    layers = {"fc6": hard_numbers(20, 5), "features.3": hard_numbers(20, 7, seed=1)}
    write(tmp_path / "out.npz", None, records(layers))
    with load(tmp_path / "out.npz") as arrays:
        assert sorted(arrays) == ["fc6", "features.3", "ids", "labels", "paths"]
        for layer, x in layers.items():
            same_bits(arrays[layer], x)


def test_a_layer_that_npz_has_a_name_for(tmp_path):
    with pytest.raises(ExportError, match="can't be called ids in npz: use --format npy"):
        write(tmp_path / "out.npz", None, records({"ids": unit(3, 4), "b": unit(3, 4)}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["npy", "npz"])
def test_batches_make_no_difference(tmp_path, name):
    x = unit(50, 6)
    whole = write(tmp_path / "whole", name, records(x))
    pieces = write(tmp_path / "pieces", name, [records(x[i : i + 7], i) for i in range(0, 50, 7)])
    for one, other in zip(whole.output.paths, pieces.output.paths, strict=True):
        with open(one, "rb") as left, open(other, "rb") as right:
            assert left.read() == right.read()
