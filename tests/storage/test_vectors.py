import errno
import hashlib
import os
import re
from dataclasses import replace

import numpy as np
import pytest

import storage.vectors
from storage.durable import DurableFile, file_checksum
from storage.errors import DiskFull, PartError, PartUnreadable, StorageError
from storage.npy import map_npy, write_npy
from storage.vectors import UNIT_TOLERANCE, PartInfo, PartWritten, VectorStore
from tests.storage.filled import limited_files

DIM = 24


def unit(n: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def digests(n: int) -> list[bytes]:
    return [hashlib.sha256(str(i).encode()).digest() for i in range(n)]


def committed(part: PartWritten, row_start: int = 0, row_end: int | None = None) -> PartInfo:
    return PartInfo(
        id=1,
        name=part.name,
        row_start=row_start,
        row_end=row_start + part.n if row_end is None else row_end,
        n=part.n,
        size_bytes=part.size_bytes,
        checksum=part.checksum,
        ids_checksum=part.ids_checksum,
        rows_checksum=part.rows_checksum,
    )


@pytest.fixture
def store(tmp_path):
    return VectorStore(str(tmp_path / "spaces" / "ab"), DIM, "float32")


def test_plain_numpy_reads_a_part(store):
    x = unit(7)
    part = store.append("run1", x, digests(7), facts={"device": "cpu"})
    assert part.facts == {"device": "cpu"}
    assert re.fullmatch(r"run1-[0-9a-f]{32}", part.name)
    path = store.path(part.name)
    np.testing.assert_array_equal(np.load(path, allow_pickle=False), x)
    ids = np.load(store.path(part.name, ".ids"), allow_pickle=False)
    assert ids.dtype == np.uint8
    assert [bytes(row) for row in ids] == digests(7) == list(part.digests)
    with open(path, "rb") as file:
        assert file.read(8) == b"\x93NUMPY\x01\x00"
    assert part.size_bytes == os.path.getsize(path)
    assert part.checksum == file_checksum(path)
    assert sorted(os.listdir(store.folder)) == [f"{part.name}.ids.npy", f"{part.name}.npy"]


def test_open_maps_what_was_written(store):
    x = unit(9)
    info = committed(store.append("run1", x, digests(9)), row_start=40)
    mapped = store.open(info)
    assert isinstance(mapped, np.memmap)
    assert not mapped.flags.writeable
    np.testing.assert_array_equal(mapped, x)
    np.testing.assert_array_equal(store.rows(info), np.arange(40, 49))
    assert [bytes(row) for row in store.digests(info)] == digests(9)
    assert store.verify(info) == []


def test_float16_is_the_rounded_vector(tmp_path):
    store = VectorStore(str(tmp_path), DIM, "float16")
    x = unit(50)
    info = committed(store.append("run1", x, digests(50)))
    np.testing.assert_array_equal(store.open(info), x.astype(np.float16))
    # What was read back may be written again: compaction does so.
    again = store.append("run2", store.open(info).astype(np.float32), digests(50))
    np.testing.assert_array_equal(store.open(committed(again)), store.open(info))


def test_offsets_leave_rows_out(store):
    offsets = np.array([0, 2, 7])
    part = store.append("run1", unit(3), digests(3), offsets=offsets)
    info = committed(part, row_start=100, row_end=110)
    np.testing.assert_array_equal(store.rows(info), [100, 102, 107])
    assert store.verify(info) == []
    with pytest.raises(PartError, match="does not ascend within"):
        store.rows(replace(info, row_end=107))
    with pytest.raises(PartError, match="no rows sidecar"):
        store.rows(replace(info, rows_checksum=None))


def test_fortran_input_is_stored_in_c_order(store):
    x = np.asfortranarray(unit(6))
    info = committed(store.append("run1", x, digests(6)))
    np.testing.assert_array_equal(store.open(info), x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, ids: (x[:, :-1], ids), r"float32 \(4, 24\).*\(4, 23\)"),
        (lambda x, ids: (x.astype(np.float64), ids), "float64"),
        (lambda x, ids: (x, ids[:-1]), "3 digests"),
        (lambda x, ids: (x[:0], ids[:0]), "0 digests"),
        (lambda x, ids: (x * 1.01, ids), "norm 1.01 instead of 1"),
        (lambda x, ids: (x * np.float32(np.nan), ids), "vector 0 of 4 has norm nan"),
        (lambda x, ids: (x * np.array([[1], [1], [np.inf], [1]], np.float32), ids), "vector 2"),
        (lambda x, ids: (x, [*ids[:-1], b"short"]), "5 bytes instead of 32"),
    ],
)
def test_refuses_what_does_not_fit(store, change, message):
    with np.errstate(invalid="ignore"):
        vectors, ids = change(unit(4), digests(4))
    with pytest.raises(ValueError, match=message):
        store.append("run1", vectors, ids)
    assert not os.path.exists(store.folder)


def test_the_length_counts_as_it_is_stored(tmp_path):
    # Float16 rounds both up.  Compaction writes what is stored anew and must not be refused.
    x = np.full((1, 2), np.sqrt(0.5) * 1.00095, np.float32)
    assert abs(np.linalg.norm(x) - 1) < UNIT_TOLERANCE
    assert abs(np.linalg.norm(x.astype(np.float16).astype(np.float32)) - 1) > UNIT_TOLERANCE
    VectorStore(str(tmp_path / "32"), 2, "float32").append("run1", x, digests(1))
    with pytest.raises(ValueError, match=r"norm 1\.001\d+ instead of 1"):
        VectorStore(str(tmp_path / "16"), 2, "float16").append("run1", x, digests(1))


@pytest.mark.parametrize("offsets", [[0, 1], [0, 0, 1], [2, 1, 3], [-1, 0, 1]])
def test_refuses_bad_offsets(store, offsets):
    with pytest.raises(ValueError, match="offsets for 3 vectors"):
        store.append("run1", unit(3), digests(3), offsets=np.array(offsets))


def test_too_little_disk_is_said_before_writing(tmp_path):
    store = VectorStore(str(tmp_path), DIM, "float32", reserve_bytes=1 << 60)
    with pytest.raises(DiskFull, match="make room"):
        store.append("run1", unit(3), digests(3))
    assert os.listdir(store.folder) == []


def test_missing_file_has_its_cause(store):
    info = committed(store.append("run1", unit(3), digests(3)))
    os.unlink(store.path(info.name))
    with pytest.raises(PartError, match="missing") as caught:
        store.open(info)
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert "can't be read" in store.verify(info)[0]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, DIM), np.float64), "float64"),
        (np.zeros((2, DIM), np.float32), r"\(2, 24\)"),
        (np.zeros((3, DIM), np.float32, order="F"), "Fortran order"),
    ],
)
def test_header_must_be_what_the_catalog_says(store, array, message):
    info = committed(store.append("run1", unit(3), digests(3)))
    np.save(store.path(info.name), array)
    with pytest.raises(PartError, match=message):
        store.open(info)


def test_truncated_long_and_foreign_files_are_refused(store):
    info = committed(store.append("run1", unit(3), digests(3)))
    path = store.path(info.name)
    with open(path, "rb") as file:
        whole = file.read()
    for data, message in (
        (whole[:-1], "bytes instead of"),
        (whole + b"x", "bytes instead of"),
        (b"not npy at all", "can't be read as npy"),
        (whole[:20], "can't be read as npy"),
        (b"\x93NUMPY\x02\x00" + whole[8:], "version"),
    ):
        with open(path, "wb") as file:
            file.write(data)
        with pytest.raises(PartError, match=message):
            store.open(info)
    write_npy(path, unit(3))
    with pytest.raises(PartError, match="bytes instead of 7"):
        store.open(replace(info, size_bytes=7))


def test_verify_sees_one_flipped_bit(store):
    part = store.append("run1", unit(5), digests(5), offsets=np.arange(5) * 2)
    info = committed(part, row_end=10)
    for kind in ("", ".ids", ".rows"):
        path = store.path(info.name, kind)
        with open(path, "r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)[0]
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last ^ 1]))
        assert store.verify(info) == [f"{path} does not have the checksum that the catalog holds"]
        with open(path, "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last]))
    assert store.verify(info) == []
    assert "no rows sidecar" in store.verify(replace(info, rows_checksum=None))[0]


def test_remove_takes_every_file(store):
    kept = store.append("run1", unit(3), digests(3))
    gone = store.append("run1", unit(3), digests(3), offsets=np.arange(3))
    store.remove(gone.name)
    store.remove(gone.name)
    assert sorted(os.listdir(store.folder)) == [f"{kept.name}.ids.npy", f"{kept.name}.npy"]


def test_durable_file_leaves_nothing_after_an_error(tmp_path):
    path = str(tmp_path / "a")

    def half() -> None:
        with DurableFile(path) as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        half()
    assert os.listdir(tmp_path) == []
    with DurableFile(path) as file:
        assert file.write(np.arange(3, dtype=np.int32)) == 12
        with DurableFile(path) as other:  # what another process writes is in nobody's way
            other.write(b"other")
        assert os.path.getsize(path) == 5
    assert os.listdir(tmp_path) == ["a"]
    assert (file.size_bytes, file.checksum) == (12, file_checksum(path))


def test_rename_trouble_is_an_error_of_the_store(tmp_path):
    os.makedirs(tmp_path / "a" / "in the way")
    with pytest.raises(StorageError, match="can't be written"), DurableFile(str(tmp_path / "a")):
        pass
    assert os.listdir(tmp_path) == ["a"]


def test_a_short_write_leaves_nothing(tmp_path):
    # A limit on the size of files gives a short write and then an error, as a full disk does.
    with limited_files(1000), pytest.raises(StorageError, match="File too large"):
        write_npy(str(tmp_path / "a"), np.zeros(1500, np.uint8))
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_no_space_left_is_disk_full(tmp_path):
    file = DurableFile(str(tmp_path / "b"))
    file._fd = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(DiskFull, match="no space left"):
        file.write(b"x")
    os.close(file._fd)


def test_map_npy_of_a_folder_is_a_part_error(tmp_path):
    with pytest.raises(PartError, match="can't be read: Is a directory"):
        map_npy(str(tmp_path), "<f4", (1,))


def test_what_can_not_be_read_now_is_no_damage(store, monkeypatch):
    part = committed(store.append("run", unit(20), digests(20)))
    assert store.verify(part) == []

    def away(number):
        def checksum(path):
            raise OSError(number, os.strerror(number))

        return checksum

    monkeypatch.setattr(storage.vectors, "file_checksum", away(errno.ESTALE))
    with pytest.raises(PartUnreadable, match="Stale file handle"):
        store.verify(part)
    monkeypatch.setattr(storage.vectors, "file_checksum", away(errno.EIO))
    assert "Input/output error" in store.verify(part)[0]
