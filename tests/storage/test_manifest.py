import csv
import errno
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import ManifestError, RootUnavailable
from storage.manifest import read_manifest
from storage.scan import FileStat, Signature, Unreadable
from tests.storage.trees import plant

PICTURES = [b"a.jpg", b"b.jpg", b"c.jpg", b"sub/d.jpg"]


@pytest.fixture
def folder(tmp_path: Path) -> bytes:
    """A folder with a few pictures."""
    path = os.fsencode(tmp_path)
    plant(path, PICTURES)
    return path


def write(folder: bytes, name: str, content: bytes | str) -> bytes:
    path = os.path.join(folder, os.fsencode(name))
    with open(path, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())
    return path


def read(folder: bytes, name: str, content: bytes | str) -> list[FileStat | Unreadable]:
    return list(read_manifest(write(folder, name, content)))


def lines(folder: bytes, name: str, content: bytes | str) -> list[tuple[bytes, bytes, str | None]]:
    """Read a manifest whose files are all there: key, path from the folder, label."""
    found = read(folder, name, content)
    assert all(isinstance(item, FileStat) for item in found), found
    return [
        (item.path, os.path.relpath(item.source or b"", folder), item.label)
        for item in found
        if isinstance(item, FileStat)
    ]


def refusal(folder: bytes, name: str, content: bytes | str) -> str:
    with pytest.raises(ManifestError) as caught:
        read_manifest(write(folder, name, content))
    return str(caught.value).split(f"{name}: ", 1)[1]


# Columns

IDS = [(b"1", b"b.jpg", None), (b"2", b"a.jpg", None)]
LABELS = [(b"a.jpg", b"a.jpg", "cat"), (b"b.jpg", b"b.jpg", "cat")]
PLAIN = [(b"a.jpg", b"a.jpg", None), (b"b.jpg", b"b.jpg", None)]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("m.tsv", "id\tpath\n2\ta.jpg\n1\tb.jpg\n", IDS),
        ("m.tsv", "2\ta.jpg\n1\tb.jpg\n", IDS),
        ("m.csv", "id,path\n2,a.jpg\n1,b.jpg\n", IDS),
        ("m.csv", "2,a.jpg\n1,b.jpg\n", IDS),
        ("m.CSV", "Path , ID\na.jpg,2\nb.jpg,1\n", IDS),
        ("m.txt", "2\ta.jpg\n1\tb.jpg\n", IDS),
        ("m", "uuid\tfilename\n2\ta.jpg\n1\tb.jpg\n", IDS),
        ("m.tsv", "label\tpath\ncat\tb.jpg\ncat\ta.jpg\n", LABELS),
        ("m.tsv", "cat\tb.jpg\ncat\ta.jpg\n", LABELS),
        ("m.csv", "file,class\nb.jpg,cat\na.jpg,cat\n", LABELS),
        ("m.csv", "file,whatever\nb.jpg,cat\na.jpg,cat\n", LABELS),
        ("m.csv", "whatever,file\n2,a.jpg\n1,b.jpg\n", IDS),
        ("m.txt", "b.jpg\na.jpg\n", PLAIN),
        ("m.txt", "path\nb.jpg\na.jpg\n", PLAIN),
        ("m.csv", "b.jpg\na.jpg\n", PLAIN),
        ("m.tsv", "filename\nb.jpg\na.jpg", PLAIN),
        ("m.csv", "size,path,sha\n1,b.jpg,x\n2,a.jpg,y\n", PLAIN),
        (
            "m.csv",
            "file,path\nzz,b.jpg\nyy,a.jpg\n",
            [(b"yy", *PLAIN[0][1:]), (b"zz", *PLAIN[1][1:])],
        ),
        (
            "m.tsv",
            "label\tid\tsize\tpath\ncat\t7\t1\ta.jpg\n\t5\t1\tb.jpg\n",
            [(b"5", b"b.jpg", None), (b"7", b"a.jpg", "cat")],
        ),
        ("m.tsv", "\ta.jpg\n", [(b"a.jpg", b"a.jpg", None)]),  # an empty label is none
        ("m.txt", "", []),
        ("m.csv", "id,path\n", []),
        ("m.txt", "\n\r\n", []),
    ],
)
def test_columns_are_found(
    folder: bytes, name: str, content: str, expected: list[tuple[bytes, bytes, str | None]]
) -> None:
    assert lines(folder, name, content) == expected


@pytest.mark.parametrize("name", ["m.tsv", "m.csv", "m.txt"])
def test_byte_order_mark_line_ends_and_blank_lines(folder: bytes, name: str) -> None:
    content = b"\xef\xbb\xbf\r\npath\r\n\r\nb.jpg\r\n\n\na.jpg"
    assert lines(folder, name, content) == PLAIN


def test_keys_are_kept_as_written(folder: bytes) -> None:
    absolute = folder + b"/sub/d.jpg"
    odd = [b"#1.jpg", b"./a.jpg", b"sub/../b.jpg", b" c.jpg ", b'caf\xe9,"x".jpg', absolute]
    plant(folder, [odd[0], odd[3], odd[4]])
    found = read(folder, "m.txt", b"\n".join(odd))
    assert [item.path for item in found] == sorted(odd)
    assert {item.source for item in found if isinstance(item, FileStat)} == {
        os.path.normpath(os.path.join(folder, path)) for path in odd
    }


def test_one_file_has_one_place_however_it_is_written(folder: bytes) -> None:
    plant(folder, [b"far/deep/y.jpg", b"far/a.jpg"])
    os.symlink(b"far/deep", folder + b"/link")
    ways = b"a.jpg\n.//a.jpg\nsub/../a.jpg\nsub//.././a.jpg\n" + folder + b"//a.jpg\n"
    found = read(folder, "m.txt", ways + b"link/../a.jpg\n")
    places = {item.path: item.source for item in found if isinstance(item, FileStat)}
    # Behind a symbolic link ".." leads elsewhere than it reads.
    assert places.pop(b"link/../a.jpg") == folder + b"/link/../a.jpg"
    assert len(places) == 5
    assert set(places.values()) == {folder + b"/a.jpg"}


def test_quotes_count_in_csv_alone(folder: bytes) -> None:
    plant(folder, [b'x, "y"\n.jpg', b'"q".jpg'])
    assert lines(folder, "m.csv", 'id,path\n1,"x, ""y""\n.jpg"\n') == [
        (b"1", b'x, "y"\n.jpg', None)
    ]
    assert lines(folder, "m.tsv", '1\t"q".jpg\n') == [(b"1", b'"q".jpg', None)]


def test_labels_are_text_that_a_database_takes(folder: bytes) -> None:
    found = lines(folder, "m.tsv", b"label\tpath\ncaf\xe9\ta.jpg\n\xc3\xa9t\xc3\xa9\tb.jpg\n")
    assert [label for _, _, label in found] == ["caf\\xe9", "été"]


def test_ids_that_are_not_utf8_are_kept_as_bytes(folder: bytes) -> None:
    assert lines(folder, "m.tsv", b"id\tpath\n\xff\ta.jpg\n") == [(b"\xff", b"a.jpg", None)]


def test_relative_paths_start_from_the_folder_of_the_manifest(
    folder: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, "sub/m.txt", "d.jpg\n../a.jpg\n")
    monkeypatch.chdir(os.fsdecode(folder))
    found = list(read_manifest(b"sub/m.txt"))
    assert [item.source for item in found if isinstance(item, FileStat)] == [
        folder + b"/a.jpg",
        folder + b"/sub/d.jpg",
    ]


# Files


def test_the_signature_is_that_of_the_open_file_even_through_a_link(folder: bytes) -> None:
    os.symlink(b"a.jpg", folder + b"/link")
    (seen,) = read(folder, "m.txt", "link\n")
    expected = Signature.of(os.stat(folder + b"/a.jpg"))
    assert seen == FileStat(b"link", expected, folder + b"/link", None)


def test_the_suffix_plays_no_part(folder: bytes) -> None:
    plant(folder, [b"README", b".hidden", b"x.cr2"])
    found = read(folder, "m.txt", "README\n.hidden\nx.cr2\n")
    assert [type(item) for item in found] == [FileStat] * 3


def test_what_cannot_be_read_is_recorded_under_its_key(folder: bytes) -> None:
    os.mkfifo(folder + b"/pipe")
    os.symlink(b"loop", folder + b"/loop")
    content = "id\tpath\n1\tgone.jpg\n2\tsub\n3\tpipe\n4\tloop\n5\ta.jpg/x\n6\ta.jpg\n"
    *trouble, good = read(folder, "m.tsv", content)
    assert trouble == [
        Unreadable(b"1", errno.ENOENT, False),
        Unreadable(b"2", errno.EISDIR, False),
        Unreadable(b"3", errno.EINVAL, False),
        Unreadable(b"4", errno.ELOOP, False),
        Unreadable(b"5", errno.ENOTDIR, False),
    ]
    assert good.path == b"6"


# Wrong lines


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.txt", "a.jpg\n\nb.jpg\na.jpg\na.jpg\n", "line 4 repeats line 1; line 5 repeats line 1"),
        ("m.tsv", "id\tpath\n1\ta.jpg\n2\tb.jpg\n1\tc.jpg\n", "line 4 repeats line 2"),
        ("m.tsv", "x\ta.jpg\nx\ta.jpg\n", "line 2 repeats line 1"),
        ("m.tsv", "1\ta.jpg\n2\n", "line 2: 1 columns where the first line has 2"),
        ("m.csv", "1,a.jpg\n2,b,c.jpg\n", "line 2: 3 columns where the first line has 2"),
        ("m.tsv", "1\ta.jpg\n2\t\n", "line 2: the path is empty"),
        ("m.tsv", "id\tpath\n\ta.jpg\n", "line 2: the id is empty"),
        ("m.txt", "a.jpg\nb\0.jpg\n", "line 2: a NUL byte (the text must be UTF-8)"),
        ("m.csv", '1,a.jpg\n2,"b"x.jpg\n', "line 2: ',' expected after '\"'"),
        ("m.csv", '1,a.jpg\n2,"b\n', "line 2: unexpected end of data"),
        (
            "m.tsv",
            "\n1\tx\ta.jpg\n",
            "line 2: 3 columns; name them in a header: path, and id or label",
        ),
    ],
)
def test_wrong_lines_are_named(folder: bytes, name: str, content: str, message: str) -> None:
    assert refusal(folder, name, content) == message


def test_a_table_in_utf16_is_refused(folder: bytes) -> None:
    assert "must be UTF-8" in refusal(folder, "m.csv", "id,path\n1,a.jpg\n".encode("utf-16"))


def test_ten_lines_are_named_in_their_order(folder: bytes) -> None:
    names = [f"{number}.jpg\n" for number in range(12)]
    message = refusal(folder, "m.txt", "".join(names + names[::-1]))
    shown = "; ".join(f"line {13 + n} repeats line {12 - n}" for n in range(10))
    assert message == shown + "; and 2 more"


@pytest.mark.parametrize("name", ["gone.tsv", "sub", "pipe"])
def test_a_manifest_that_is_no_file_is_an_unavailable_root(folder: bytes, name: str) -> None:
    os.mkfifo(folder + b"/pipe")
    with pytest.raises(RootUnavailable, match=name):
        read_manifest(os.path.join(folder, name.encode()))


# Against Python's own csv writer

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(texts.filter(bool), texts, max_size=12),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig"]),
)
def test_any_table_survives_csv(table: dict[str, str], ending: str, encoding: str) -> None:
    rows = [(key, label, "a.jpg") for key, label in table.items()]
    with tempfile.TemporaryDirectory() as name:
        plant(name.encode(), [b"a.jpg"])
        path = os.path.join(name, "m.csv")
        with open(path, "w", encoding=encoding, newline="") as file:
            table_file = csv.writer(file, lineterminator=ending, quoting=csv.QUOTE_ALL)
            table_file.writerows([("id", "label", "path"), *rows])
        found = [item for item in read_manifest(path.encode()) if isinstance(item, FileStat)]
    expected = sorted((key.encode(), label or None) for key, label in table.items())
    assert [(item.path, item.label) for item in found] == expected
