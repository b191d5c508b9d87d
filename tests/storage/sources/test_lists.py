import csv
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import ManifestError, SourceError
from storage.manifest import read_manifest
from storage.scan import FileStat
from storage.sources.items import Item
from storage.sources.lists import ListSource
from storage.sources.opening import SourceOptions, open_source
from storage.sources.shard import Shard
from tests.flows.terminal import CHECKOUT
from tests.storage.trees import plant

Rows = list[tuple[str, str, str | None]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of lists that is not the current one."""
    for name in ("elsewhere", "lists"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "lists"


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def rows(path: str, columns: str | None = None) -> Rows:
    """Read a list: id, path from its folder, label."""
    with open_source(path, SourceOptions(columns=columns)) as source:
        found = list(source.items())
        assert source.count_hint() == len(found)
        assert list(source.items()) == found
    items = [item for item in found if isinstance(item, Item)]
    start = os.fsencode(os.path.dirname(path))
    assert all(item.path.startswith(b"/") and item.row is None for item in items)
    relative = [os.fsdecode(os.path.relpath(item.path, start)) for item in items]
    return [
        (os.fsdecode(item.id), path, item.label) for item, path in zip(items, relative, strict=True)
    ]


IDS = [("2", "a.jpg", None), ("1", "sub/b.jpg", None)]
LABELS = [("b.jpg", "b.jpg", "cat"), ("a.jpg", "a.jpg", "cat")]
OR_LABELS = "(if they are labels and no ids, say --columns label,path)"
PLAIN = [("b.jpg", "b.jpg", None), ("a.jpg", "a.jpg", None)]


@pytest.mark.parametrize(
    ("name", "content", "columns", "expected"),
    [
        ("m.tsv", "2\ta.jpg\n1\tsub/b.jpg\n", None, IDS),
        ("m.tsv", "id\tpath\n2\ta.jpg\n1\tsub/b.jpg", None, IDS),
        ("m.csv", "path,id\r\na.jpg,2\r\nsub/b.jpg,1\r\n", None, IDS),
        ("m.txt", "2\ta.jpg\n1\tsub/b.jpg\n", None, IDS),
        ("m.csv", "cat,b.jpg\ncat,a.jpg\n", None, LABELS),
        ("m.csv", "label,path\ncat,b.jpg\ncat,a.jpg\n", None, LABELS),
        ("m.tsv", "file\twhatever\nb.jpg\tcat\na.jpg\tcat\n", None, LABELS),
        ("m.txt", "path,label\nb.jpg,cat\na.jpg,cat\n", None, LABELS),
        ("m.txt", "b.jpg\n\na.jpg\n", None, PLAIN),
        ("m.csv", "b.jpg\na.jpg\n", None, PLAIN),
        ("m", "\ufefffile\nb.jpg\na.jpg\n", None, PLAIN),
        ("m.txt", "cat,b.jpg\ncat,a.jpg\n", "label,path", LABELS),
        ("m.tsv", "cat\tb.jpg\ncat\ta.jpg\n", "label,path", LABELS),
        (
            "m.csv",
            "cat,b.jpg\ndog,a.jpg\n",
            None,
            [("b.jpg", "b.jpg", "cat"), ("a.jpg", "a.jpg", "dog")],
        ),
        (
            "m.csv",
            "cat,b.jpg\ndog,a.jpg\n",
            "label,path",
            [("b.jpg", "b.jpg", "cat"), ("a.jpg", "a.jpg", "dog")],
        ),
        ("m.tsv", "7\t2\ta.jpg\n8\t1\tsub/b.jpg\n", "-,id,path", IDS),
        ("m.tsv", "path\tx\na.jpg\t2\nsub/b.jpg\t1\n", " Path, ID ", IDS),
        ("m.txt", "", None, []),
        ("m.csv", "id,path\n", "id,path", []),
        ("m.txt", "", "label,path", []),
    ],
)
def test_columns_are_found_or_said(
    folder: Path, name: str, content: str, columns: str | None, expected: Rows
) -> None:
    assert rows(write(folder, name, content), columns) == expected


def test_the_order_is_that_of_the_lines(folder: Path) -> None:
    names = [f"{number * 7919 % 1000}.jpg" for number in range(1000)]
    assert [row[0] for row in rows(write(folder, "m.txt", "\n".join(names)))] == names


def test_nothing_is_looked_at_and_paths_are_plain(folder: Path) -> None:
    content = b"/x/gone.jpg\n./a.jpg\na//b.jpg\nlink/../c.jpg\ncaf\xe9.jpg\n"
    with open_source(write(folder, "m.txt", content)) as source:
        items = [item for item in source.items() if isinstance(item, Item)]
    here = os.fsencode(folder)
    assert [item.id for item in items] == content.splitlines()
    assert [item.path for item in items] == [
        b"/x/gone.jpg",
        here + b"/a.jpg",
        here + b"/a/b.jpg",
        here + b"/link/../c.jpg",  # behind a link it would not be c.jpg of this folder
        here + b"/caf\xe9.jpg",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.txt", "a.jpg\n\nb.jpg\na.jpg\na.jpg\n", "line 4 repeats line 1; line 5 repeats line 1"),
        ("m.tsv", "id\tpath\n1\ta.jpg\n2\tb.jpg\n1\tc.jpg\n", "line 4 repeats line 2"),
        ("m.tsv", "x\ta.jpg\nx\tb.jpg\n", f"line 2 repeats line 1 {OR_LABELS}"),
        ("m", "1\ta.jpg\n2\tb.jpg\n1\tc.jpg\n", f"line 3 repeats line 1 {OR_LABELS}"),
        ("m.tsv", "1\ta.jpg\n\tb.jpg\n", "line 2: the id is empty"),
        ("m.csv", "x,a.jpg\nx,a.jpg\n", "line 2 repeats line 1"),
        ("m.csv", 'id,path\n1,"a\n.jpg"\n1,b.jpg\n', "line 4 repeats line 3"),
        ("m.tsv", "1\ta.jpg\n2\n", "line 2: 1 columns where the first line has 2"),
        ("m.tsv", "id\tpath\n\ta.jpg\n", "line 2: the id is empty"),
        ("m.csv", '1,a.jpg\n2,"b"x.jpg\n', "line 2: ',' expected after '\"'"),
        (
            "m.tsv",
            "1\tx\ta.jpg\n",
            "line 1: 3 columns; name them in a header: path, and id or label",
        ),
    ],
)
def test_wrong_lines_are_named(folder: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        open_source(write(folder, name, content))
    assert str(caught.value).split(f"{name}: ", 1)[1] == message
    assert str(caught.value).startswith("list /")


@pytest.mark.parametrize("n", [12, 3000])
def test_ten_repeats_are_named_and_the_others_counted(folder: Path, n: int) -> None:
    names = [f"{number}.jpg\n" for number in range(n)]
    with pytest.raises(ManifestError) as caught:
        open_source(write(folder, "m.txt", "".join(names + names[::-1])))
    shown = "; ".join(f"line {n + 1 + i} repeats line {n - i}" for i in range(10))
    assert str(caught.value).split("m.txt: ", 1)[1] == f"{shown}; and {n - 10} more"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("id,label", "write the words path, id, label"),
        ("path,foo", "write the words path, id, label"),
        ("", "write the words path, id, label"),
        ("path,path", "a word comes twice"),
        ("id,path,label", "line 1 has 2 columns, --columns says 3"),
    ],
)
def test_columns_that_cannot_be_are_refused(folder: Path, columns: str, message: str) -> None:
    path = write(folder, "m.csv", "1,a.jpg\n2,b.jpg\n")
    with pytest.raises(SourceError, match=message) as caught:
        open_source(path, SourceOptions(columns=columns))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("gone.tsv", None, SourceOptions(), r"gone\.tsv: No such file or directory"),
        ("x.jpg", b"\xff\xd8\xff", SourceOptions(), r"x\.jpg is a picture; a source is a direct"),
        ("x.zip", b"PK\3\4\0\0", SourceOptions(), r"x\.zip is no UTF-8 text"),
        ("m.csv", "id,path\n".encode("utf-16"), SourceOptions(), "is no UTF-8 text"),
        ("m.txt", b"a.jpg\n", SourceOptions(labels="y.npy"), "--labels is for an npy array"),
    ],
)
def test_what_is_no_list_is_refused(
    folder: Path, name: str, content: bytes | None, options: SourceOptions, message: str
) -> None:
    path = str(folder / name) if content is None else write(folder, name, content)
    with pytest.raises(SourceError, match=message) as caught:
        open_source(path, options)
    assert "\n" not in str(caught.value)


def test_parts_together_are_the_whole_in_order(folder: Path) -> None:
    path = write(folder, "m.txt", "".join(f"{number}.jpg\n" for number in range(500)))
    with open_source(path) as source:
        whole = list(source.items())
        parts = [list(source.items(Shard(i, 4))) for i in (1, 2, 3, 4)]
    assert sorted(itertools.chain(*parts), key=whole.index) == whole
    assert all(part == [item for item in whole if item in part] for part in parts)
    assert all(parts)


def test_several_streams_are_read_side_by_side(folder: Path) -> None:
    content = "".join(f"{number:06}-{'x' * 100}.jpg\n" for number in range(40_000))
    with open_source(write(folder, "m.txt", content)) as source:
        first, second = source.items(), source.items()
        ahead = [next(first) for _ in range(30_000)]
        assert [next(second) for _ in range(30_000)] == ahead
        found: list[list[Any]] = [[], []]
        threads = [
            threading.Thread(target=lambda box=box: box.extend(source.items())) for box in found
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found[0] == found[1] == [*ahead, *first]


def identity(path: str, columns: str | None = None) -> dict[str, Any]:
    with open_source(path, SourceOptions(columns=columns)) as source:
        return source.identity


def test_identity_tells_another_list_from_the_same(folder: Path) -> None:
    content = "1,a.jpg\n2,b.jpg\n"
    path = write(folder, "m.csv", content)
    first = identity(path)
    assert json.loads(json.dumps(first)) == first
    assert identity(path) == first
    assert identity(write(folder, "other.csv", content)) == first  # it means the same
    assert identity(path, "label,path") != first
    (folder / "sub").mkdir()
    assert identity(write(folder / "sub", "m.csv", content)) != first
    assert identity(write(folder, "m.csv", content.replace("b", "c"))) != first


def test_a_list_that_changes_in_use_is_told(folder: Path) -> None:
    path = write(folder, "m.csv", "1,a.jpg\n2,b.jpg\n")
    with open_source(path) as source:
        write(folder, "m.csv", "1,a.jpg\n2,b.jpg\n3,c.jpg\n")
        with pytest.raises(SourceError, match="changed while it was in use: 2 lines, then 3"):
            list(source.items())
        write(folder, "m.csv", "1,a.jpg\n2\n")
        with pytest.raises(SourceError, match="line 2 changed while it was in use"):
            list(source.items())


# Pipes

READ = (
    "import sys\n"
    "from storage.sources.opening import SourceOptions, open_source\n"
    "options = SourceOptions(columns=sys.argv[2] or None)\n"
    "with open_source(sys.argv[1], options) as source:\n"
    "    for item in [*source.items(), *source.items()]:\n"
    "        print(item.id, item.path, item.label)\n"
    "    print(source.description, sorted(source.identity))\n"
)


def piped(folder: Path, content: bytes, source: str = "-", columns: str = "") -> list[str]:
    """Read a source in a process of its own, whose current folder is ``folder``."""
    done = subprocess.run(
        [sys.executable, "-c", READ, source, columns],
        input=content,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        timeout=60,
        check=True,
    )
    return done.stdout.decode().splitlines()


def test_standard_input_starts_from_the_current_folder(folder: Path) -> None:
    *items, told = piped(folder, b"1\ta.jpg\n2\t/x/b.jpg\n")
    here = os.fsencode(folder)
    once = [f"{b'1'} {here + b'/a.jpg'} None", f"{b'2'} {b'/x/b.jpg'} None"]
    assert items == [*once, *once]
    assert told.startswith("standard input: 2 lines of id, path")


def test_a_csv_on_standard_input_is_known_by_its_header_or_what_is_said(folder: Path) -> None:
    expected = [f"{b'a.jpg'} {os.fsencode(folder) + b'/a.jpg'} cat"] * 2
    assert piped(folder, b"label,path\ncat,a.jpg\n")[:-1] == expected
    assert piped(folder, b"cat,a.jpg\n", columns="label,path")[:-1] == expected
    assert piped(folder, b"cat,a.jpg\n")[0].startswith(repr(b"cat,a.jpg"))


def test_a_pipe_by_name_is_read_like_standard_input(folder: Path) -> None:
    os.mkfifo(folder / "pipe.txt")
    feed = threading.Thread(target=lambda: (folder / "pipe.txt").write_bytes(b"a.jpg\n"))
    feed.start()
    found = piped(folder, b"", source="pipe.txt")
    feed.join()
    assert found[0] == found[1] == f"{b'a.jpg'} {os.fsencode(folder) + b'/a.jpg'} None"


# Against others

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(texts.filter(bool), texts, max_size=12), st.sampled_from(["\n", "\r\n"]))
def test_any_table_survives_csv(table: dict[str, str], ending: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = os.path.join(name, "m.csv")
        with open(path, "w", encoding="utf-8", newline="") as file:
            written = csv.writer(file, lineterminator=ending, quoting=csv.QUOTE_ALL)
            written.writerows([("id", "label", "path")])
            written.writerows((key, label, "a.jpg") for key, label in table.items())
        with open_source(path) as source:
            found = [(item.id, item.label) for item in source.items() if isinstance(item, Item)]
    assert found == [(key.encode(), label or None) for key, label in table.items()]


cells = st.text(st.sampled_from('ab1,\t"\r\n'), max_size=4)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(cells, min_size=1, max_size=3), max_size=6),
    st.sampled_from(["m.csv", "m.tsv", "m.txt"]),
)
def test_a_list_means_what_it_means_as_a_manifest(table: list[list[str]], name: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        plant(place.encode(), [b"x"])
        path = os.path.join(place, name)
        separator = "," if name == "m.csv" else "\t"
        with open(path, "w", encoding="utf-8", newline="") as file:
            file.write("\n".join(separator.join(row) for row in table))
        manifest = _as_manifest(path)
        if manifest is None or _repeats_an_id(path):
            with pytest.raises(ManifestError):
                ListSource(path.encode())
            return
        with ListSource(path.encode()) as source:
            items = sorted(source.items(), key=lambda item: item.id)
        assert [item.id for item in items] == [key for key, _ in manifest]
        for item, (_, label) in zip(items, manifest, strict=True):
            assert label in (item.label, "(not there)")


def _repeats_an_id(path: str) -> bool:
    """Tell whether the first cells of a TSV of two columns, which hold ids, are none."""
    with open(path, encoding="utf-8", newline="") as file:
        lines = [line.removesuffix("\n").removesuffix("\r") for line in file.read().split("\n")]
    rows = [line.split("\t") for line in lines if line]
    if path.endswith(".csv") or not rows or len(rows[0]) != 2:
        return False
    ids = [row[0] for row in rows]
    return "" in ids or len(set(ids)) < len(ids)


def _as_manifest(path: str) -> list[tuple[bytes, str | None]] | None:
    try:
        found = list(read_manifest(path.encode()))
    except ManifestError:
        return None
    return [
        (each.path, each.label if isinstance(each, FileStat) else "(not there)") for each in found
    ]


def test_pandas_reads_the_same(folder: Path) -> None:
    path = folder / "m.csv"
    frame = pandas.DataFrame(
        {
            "size": range(300),
            "category": [f'c "{number % 7}", é' for number in range(300)],
            "file_name": [f"sub/{number}, x.jpg" for number in range(300)],
            "uid": [f"u{number}" for number in range(300)],
        }
    )
    frame.to_csv(path, index=False)
    read = pandas.read_csv(path)
    with open_source(str(path)) as source:
        items = [item for item in source.items() if isinstance(item, Item)]
    assert [item.id.decode() for item in items] == read["uid"].tolist()
    assert [item.label for item in items] == read["category"].tolist()
    expected = [str(folder / name) for name in read["file_name"]]
    assert [item.path.decode() for item in items] == expected


# Memory


def test_many_lines_take_little_memory(folder: Path) -> None:
    """Half a million ids are half a million hashes: some 40 MB with all, 400 as Python's lists."""
    content = "".join(f"id-{n:07}\tphotos/{n % 100}/picture-{n:07}.jpg\n" for n in range(500_000))
    path = write(folder, "m.tsv", content)
    program = (
        "import resource, sys\n"
        "from storage.sources.opening import open_source\n"
        "open_source(sys.argv[2]).close()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "n = sum(1 for _ in open_source(sys.argv[1]).items())\n"
        "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    small = write(folder, "small.tsv", "1\ta.jpg\n")
    done = subprocess.run(
        [sys.executable, "-c", program, path, small],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    n, grown = map(int, done.stdout.split())
    unit = 1024 if sys.platform == "darwin" else 1
    assert (n, grown // unit < 40 * 1024) == (500_000, True), grown
