"""Hits as CSV, read back by readers that others wrote."""

import csv
import io
import os
import stat
from pathlib import Path

import pandas
import pytest

from search.answers import Hit
from search.asked import Found, Term
from search.errors import SearchError
from search.table_file import COLUMNS, csv_of, odd_paths
from search.written import write_file

NAMES = (
    b"/a/plain.jpg",
    b'/a/com,ma "and" quotes.jpg',
    b"/a/line\r\nbreak.jpg",
    "/a/ü.jpg".encode(),
)


def found(query: bytes | str, *paths: bytes, skip: int = 0) -> Found:
    hits = [Hit(1 - i / 7, path, (path, b"/b"), 100 + i, i) for i, path in enumerate(paths)]
    return Found((Term(query),), "s", tuple(hits), skip)


def test_readers_of_csv_get_all_of_it_back() -> None:
    data = csv_of([found(NAMES[1], *NAMES), found("red, car", NAMES[0], skip=20), found(b"/none")])
    rows = list(csv.reader(io.StringIO(data.decode(), newline="")))
    assert tuple(rows[0]) == COLUMNS
    assert [row[4] for row in rows[1:]] == [os.fsdecode(name) for name in (*NAMES, NAMES[0])]
    assert [row[:4] for row in rows[4:]] == [
        [os.fsdecode(NAMES[1]), "4", "0.571429", "103"],
        ["red, car", "21", "1.000000", "100"],
    ]
    table = pandas.read_csv(io.BytesIO(data), lineterminator="\n")
    assert list(table.columns) == list(COLUMNS)
    assert table["rank"].tolist() == [1, 2, 3, 4, 21]
    assert table["path"].iloc[1] == os.fsdecode(NAMES[1])
    assert table["label"].isna().all()


def test_ids_and_labels_of_a_manifest_stand_in_their_columns() -> None:
    hit = Hit(0.5, b"/a", (b"/a",), 1, 1, id="sku,1", label="caf\udce9")
    data = csv_of([Found((Term(b"/q"),), "s", (hit,))])
    assert data.splitlines()[1] == b'/q,1,0.500000,1,/a,"sku,1",caf\xe9'


def test_a_path_that_is_not_utf_8_stands_as_its_bytes_and_is_counted() -> None:
    odd = b"/a/caf\xe9.jpg"
    one = found(odd, odd, b"/a/\xff.jpg", b"/fine.jpg")
    assert odd_paths([one, one]) == 2
    assert odd_paths([found(NAMES[0], *NAMES)]) == 0
    text = csv_of([one]).decode("utf-8", "surrogateescape")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [os.fsencode(row["path"]) for row in rows] == [hit.path for hit in one.hits]
    assert os.fsencode(rows[0]["query"]) == odd


class TestWritten:
    def test_it_takes_the_place_of_what_was_there(self, tmp_path: Path) -> None:
        real, link = tmp_path / "real.csv", tmp_path / "link.csv"
        link.symlink_to(real)
        for data in (b"one", b"two"):
            write_file(str(link), data, "the list")
            assert real.read_bytes() == data
        assert link.is_symlink()
        assert sorted(os.listdir(tmp_path)) == ["link.csv", "real.csv"]
        umask = os.umask(0)
        os.umask(umask)
        assert stat.S_IMODE(real.stat().st_mode) == 0o666 & ~umask

    def test_nothing_is_left_of_what_can_not_be_written(self, tmp_path: Path) -> None:
        for path in (tmp_path / "none" / "x.csv", tmp_path):
            with pytest.raises(SearchError, match=f"the list {path} can't be written: "):
                write_file(str(path), b"data", "the list")
        assert os.listdir(tmp_path) == []

    def test_a_pipe_is_written_as_it_is(self, tmp_path: Path) -> None:
        reader, writer = os.pipe()
        with open(reader, "rb") as read:
            write_file(f"/dev/fd/{writer}", b"data", "the list")
            os.close(writer)
            assert read.read() == b"data"
