import errno
import os
import shutil
import socket
import tempfile
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import RootError
from storage.scan import (
    EXACT_MARGIN_NS,
    GUESSED_MARGIN_NS,
    SUFFIXES,
    Excludes,
    FileStat,
    Signature,
    Unreadable,
    fs_clock_offset_ns,
    walk,
)
from tests.storage.trees import plant, public_folder, unprivileged


@pytest.fixture
def root() -> Iterator[bytes]:
    """An empty folder that an unprivileged user may read as well."""
    with public_folder() as path:
        yield path


def paths(found: Iterator[FileStat | Unreadable]) -> list[bytes]:
    items = list(found)
    assert all(isinstance(item, FileStat) for item in items), items
    return [item.path for item in items]


# The order, against sorted paths of a real tree

nasty = st.sampled_from(
    [
        b"a",
        b"a-",
        b"a.",
        b"a b",
        b"a\n",
        b"-",
        b" ",
        b"~",
        b"\x01",
        b"\xff",
        b"\xc3\xa9",
        b"A",
        b"a0",
    ]
)
names = st.one_of(
    nasty,
    st.lists(nasty, min_size=1, max_size=3).map(b"".join),
    st.binary(min_size=1, max_size=5).map(lambda raw: raw.replace(b"/", b"-").replace(b"\0", b"!")),
).filter(lambda name: not name.startswith(b"."))
tails = st.sampled_from([b".jpg", b".JPG", b".png", b".txt", b""])
trees = st.lists(
    st.tuples(st.lists(names, max_size=3), names, tails).map(
        lambda t: b"/".join([*t[0], t[1] + t[2]])
    ),
    max_size=25,
    unique=True,
)
globs = st.lists(
    st.sampled_from(
        ["a", "a*", "*.png", "a/**", "**/a/*", "a/*.jpg", "*-/", "/a", "?", "**/*b*/**", "[a-c]*"]
    ),
    max_size=2,
)


def planted(root: bytes, tree: list[bytes]) -> list[bytes]:
    """Plant what does not clash with a file already there; give the sorted pictures."""
    files: set[bytes] = set()
    for path in tree:
        try:
            plant(root, [path])
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue
        files.add(path)
    return sorted(path for path in files if path.lower().endswith((b".jpg", b".png")))


@settings(max_examples=150, deadline=None)
@given(trees, globs)
def test_the_order_is_that_of_sorted_paths(tree: list[bytes], patterns: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = name.encode()
        pictures = planted(root, tree)
        assert paths(walk(root)) == pictures
        left_out = Excludes(patterns)
        kept = [path for path in pictures if not left_out.hides(path)]
        assert paths(walk(root, excludes=patterns)) == kept
        for folder in {os.path.dirname(path) for path in pictures} - {b""}:
            below = [path for path in pictures if path.startswith(folder + b"/")]
            assert paths(walk(root, under=folder)) == below


def test_a_folder_sorts_where_its_children_do(root: bytes) -> None:
    tree = [b"a/x.jpg", b"a-b/y.jpg", b"a.jpg", b"a/b/z.jpg", b"a0.jpg", b"a/b.jpg", b"a b.jpg"]
    plant(root, tree)
    assert paths(walk(root)) == [
        b"a b.jpg",
        b"a-b/y.jpg",
        b"a.jpg",
        b"a/b.jpg",
        b"a/b/z.jpg",
        b"a/x.jpg",
        b"a0.jpg",
    ]


def test_memory_is_that_of_one_folder_not_of_the_tree(root: bytes) -> None:
    plant(root, [b"%02d/%04d.jpg" % (folder, file) for folder in range(20) for file in range(300)])

    def peak(under: bytes) -> int:
        tracemalloc.start()
        for _ in walk(root, under=under):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(b"") < 2 * peak(b"07")


# What counts as a picture


def test_suffixes_are_those_that_are_promised_in_either_case(root: bytes) -> None:
    photos = {b"jpg", b"jpeg", b"jpe", b"jfif", b"avif", b"heic", b"heif"}
    assert photos | {b"png", b"webp", b"gif", b"bmp", b"tif", b"tiff"} == SUFFIXES
    wanted = [b"x." + suffix for suffix in SUFFIXES] + [b"y." + s.upper() for s in SUFFIXES]
    plant(root, [*wanted, b"jpg", b".jpg", b"x.jpg.txt", b"x.jpg~", b"x.", b"x", b"x.cr2"])
    assert paths(walk(root)) == sorted(wanted)


def test_default_excludes_are_neither_entered_nor_yielded(root: bytes) -> None:
    left_out = [b"@eaDir", b".git", b"node_modules", b".thumbnails", b".x", b"$RECYCLE.BIN"]
    left_out += [b"$Recycle.Bin", b"System Volume Information"]
    plant(root, [b"in/" + name + b"/x.jpg" for name in left_out] + [b"in/.y.jpg", b"in/ok.jpg"])
    assert paths(walk(root)) == [b"in/ok.jpg"]
    assert all(Excludes().hides(b"in/" + name + b"/x.jpg") for name in left_out)


def test_links_pipes_and_sockets_are_no_pictures(root: bytes) -> None:
    plant(root, [b"real/x.jpg"])
    os.symlink(b"real/x.jpg", root + b"/link.jpg")
    os.symlink(b"nowhere", root + b"/dangling.jpg")
    os.symlink(b"..", root + b"/real/loop")
    os.symlink(b"real", root + b"/again.jpg")
    os.mkfifo(root + b"/pipe.jpg")  # opening it would wait for ever
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(root + b"/socket.jpg")
        assert paths(walk(root)) == [b"real/x.jpg"]


def test_the_signature_is_that_of_the_open_file(root: bytes) -> None:
    plant(root, [b"d/x.jpg"])
    (seen,) = walk(root)
    with open(root + b"/d/x.jpg", "rb") as file:
        status = os.fstat(file.fileno())
    assert seen == FileStat(b"d/x.jpg", Signature.of(status))
    assert (seen.sig.size_bytes, seen.sig.inode) == (len(b"picture d/x.jpg"), status.st_ino)
    assert (seen.sig.mtime_ns, seen.sig.ctime_ns) == (status.st_mtime_ns, status.st_ctime_ns)


def test_the_root_may_end_in_a_slash_or_be_a_link(root: bytes) -> None:
    plant(root, [b"real/x.jpg"])
    os.symlink(b"real", root + b"/link")
    assert paths(walk(root + b"/real/")) == [b"x.jpg"]
    assert paths(walk(root + b"/link")) == [b"x.jpg"]


# Globs


@pytest.mark.parametrize(
    ("glob", "hidden", "kept"),
    [
        ("*.tmp.jpg", [b"x.tmp.jpg", b"a/b/x.tmp.jpg"], [b"x.jpg", b"x.tmp.jpg.png"]),
        ("raw", [b"raw/x.jpg", b"a/raw/x.jpg", b"raw"], [b"raws/x.jpg", b"draw.jpg"]),
        ("raw/", [b"raw/x.jpg", b"a/raw/b/x.jpg"], [b"raw", b"a/raw"]),
        ("/raw", [b"raw/x.jpg"], [b"a/raw/x.jpg"]),
        ("./raw//", [b"raw/x.jpg"], [b"a/raw/x.jpg", b"raw"]),
        ("a/*.jpg", [b"a/x.jpg"], [b"a/b/x.jpg", b"b/a/x.jpg", b"a/x.png"]),
        ("a/**/c", [b"a/c/x.jpg", b"a/b/b/c/x.jpg"], [b"c/x.jpg", b"a/b/x.jpg"]),
        ("**/b/x.jpg", [b"b/x.jpg", b"a/a/b/x.jpg"], [b"b/a/x.jpg", b"bb/x.jpg"]),
        ("a/**", [b"a/x.jpg", b"a/b/x.jpg"], [b"ab/x.jpg", b"b/a/x.jpg"]),
        ("[ab]?.jpg", [b"a1.jpg", b"c/b2.jpg"], [b"c1.jpg", b"a.jpg", b"a12.jpg"]),
        ("[!a].jpg", [b"b.jpg"], [b"a.jpg"]),
        ("!x.jpg", [b"!x.jpg"], [b"x.jpg"]),
        ("x\n*", [b"x\ny.jpg"], [b"x.jpg"]),
        ("caf\udce9*", [b"caf\xe9.jpg"], [b"caf\xc3\xa9.jpg"]),
        ("café*", ["café.jpg".encode()], [b"caf\xe9.jpg"]),
    ],
)
def test_a_glob_hides_what_it_should(glob: str, hidden: list[bytes], kept: list[bytes]) -> None:
    rules = Excludes([glob])
    assert [path for path in hidden if not rules.hides(path)] == []
    assert [path for path in kept if rules.hides(path)] == []


def test_match_looks_at_the_path_alone_and_hides_at_its_parents() -> None:
    rules = Excludes(["raw"])
    assert rules.match(b"a/raw", True)
    assert not rules.match(b"raw/x.jpg", False)
    assert rules.hides(b"raw/x.jpg")
    assert (bool(rules), bool(Excludes())) == (True, False)


@pytest.mark.parametrize("glob", ["", "/", "./", "//"])
def test_an_empty_glob_is_refused(root: bytes, glob: str) -> None:
    with pytest.raises(RootError, match="names nothing"):
        walk(root, excludes=[glob])


def test_an_excluded_folder_is_not_entered(root: bytes) -> None:
    plant(root, [b"secret/x.jpg", b"y.jpg"])
    os.chmod(root + b"/secret", 0)
    with unprivileged():
        assert paths(walk(root, excludes=["secret"])) == [b"y.jpg"]


# A subtree


def test_under_may_be_a_file(root: bytes) -> None:
    plant(root, [b"a/x.jpg", b"a/x.jpg.png", b"a/notes.txt"])
    assert paths(walk(root, under=b"a/x.jpg")) == [b"a/x.jpg"]
    assert paths(walk(root, under=b"a/notes.txt")) == []


def test_under_ends_with_or_without_a_slash(root: bytes) -> None:
    plant(root, [b"a/x.jpg", b"ab/x.jpg", b"a.jpg"])
    assert paths(walk(root, under=b"a/")) == paths(walk(root, under=b"a")) == [b"a/x.jpg"]


@pytest.mark.parametrize("under", [b"/a", b"a//b", b"../a", b"a/..", b"."])
def test_under_must_be_a_plain_relative_path(root: bytes, under: bytes) -> None:
    with pytest.raises(ValueError, match="plain relative"):
        walk(root, under=under)


def test_a_lost_subtree_says_nothing_of_what_was_there(root: bytes) -> None:
    assert list(walk(root, under=b"a/b")) == [Unreadable(b"a/b", errno.ENOENT, True)]
    assert list(walk(root, under=b"a/b.jpg")) == [
        Unreadable(b"a/b.jpg", errno.ENOENT, False),
        Unreadable(b"a/b.jpg", errno.ENOENT, True),
    ]


def test_a_subtree_is_not_reached_through_a_link_or_a_file(root: bytes) -> None:
    plant(root, [b"real/sub/x.jpg"])
    os.symlink(b"real", root + b"/link")
    os.mkfifo(root + b"/pipe")
    for under in (b"link", b"link/sub", b"pipe", b"real/sub/x.jpg/y"):
        assert list(walk(root, under=under)) == [Unreadable(under, errno.ENOTDIR, True)]


def test_an_excluded_subtree_stays_excluded(root: bytes) -> None:
    plant(root, [b"a/.git/b/x.jpg", b"raw/a/x.jpg"])
    assert paths(walk(root, under=b"a/.git/b")) == []
    assert paths(walk(root, under=b"raw/a", excludes=["raw"])) == []


# The store's own home


def test_the_home_is_never_entered(root: bytes) -> None:
    plant(root, [b"a/home/thumb.jpg", b"a/home2/x.jpg", b"b/home/x.jpg"])
    home = root + b"/a/home"
    os.symlink(home, root + b"/elsewhere")
    rest = [b"a/home2/x.jpg", b"b/home/x.jpg"]
    assert paths(walk(root, skip=home)) == rest
    assert paths(walk(root, skip=root + b"/elsewhere")) == rest
    assert paths(walk(root, skip=root + b"/a/../a/home/")) == rest
    assert paths(walk(root, skip=home, under=b"a/home2")) == rest[:1]
    assert paths(walk(root + b"/b", skip=home)) == [b"home/x.jpg"]


def test_what_is_the_home_or_lies_in_it_is_refused_and_never_just_empty(root: bytes) -> None:
    plant(root, [b"a/home/thumb.jpg"])
    home = root + b"/a/home"
    os.symlink(home, root + b"/elsewhere")
    for top, skip, under in (
        (root, home, b"a/home"),
        (root + b"/a/home", root + b"/a", b""),
        (root + b"/a/home", home, b""),
        (root + b"/elsewhere", home, b""),
    ):
        with pytest.raises(RootError, match="lies in the store's own home") as refused:
            walk(top, skip=skip, under=under)
        assert all(os.fsdecode(path) in str(refused.value) for path in (top, skip))


# Trouble


def test_an_unreadable_folder_is_recorded_where_its_children_would_be(root: bytes) -> None:
    plant(root, [b"a-b/x.jpg", b"a.jpg", b"a/x.jpg", b"b.jpg"])
    os.chmod(root + b"/a", 0)
    with unprivileged():
        found = list(walk(root))
        assert list(walk(root, under=b"a")) == [Unreadable(b"a", errno.EACCES, True)]
    os.chmod(root + b"/a", 0o755)
    assert [item.path for item in found] == [b"a-b/x.jpg", b"a.jpg", b"a", b"b.jpg"]
    assert found[2] == Unreadable(b"a", errno.EACCES, True)


def test_a_file_that_cannot_be_looked_at_is_recorded(root: bytes) -> None:
    plant(root, [b"a/x.jpg", b"a/y.jpg", b"b.jpg"])
    os.chmod(root + b"/a", 0o444)  # may be listed, but nothing in it looked at
    with unprivileged():
        found = list(walk(root))
    assert found[:2] == [
        Unreadable(b"a/x.jpg", errno.EACCES, False),
        Unreadable(b"a/y.jpg", errno.EACCES, False),
    ]
    assert paths(iter(found[2:])) == [b"b.jpg"]


def test_a_file_that_vanishes_after_the_listing(root: bytes) -> None:
    plant(root, [b"a.jpg", b"b.jpg", b"c.jpg", b"d/x.jpg", b"e.jpg"])
    found = walk(root)
    assert next(found).path == b"a.jpg"
    os.remove(root + b"/b.jpg")
    os.remove(root + b"/c.jpg")
    os.mkfifo(root + b"/c.jpg")
    shutil.rmtree(root + b"/d")
    rest = list(found)
    assert rest[:2] == [
        Unreadable(b"b.jpg", errno.ENOENT, False),
        Unreadable(b"d", errno.ENOENT, True),
    ]
    assert paths(iter(rest[2:])) == [b"e.jpg"]


def test_a_path_that_is_too_long_does_not_end_the_walk(root: bytes) -> None:
    handle = os.open(root, os.O_RDONLY)
    for _ in range(25):  # 25 x 201 bytes, beyond the 4,096 that a path may have
        os.mkdir(b"d" * 200, dir_fd=handle)
        deeper = os.open(b"d" * 200, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = deeper
    os.close(handle)
    plant(root, [b"e.jpg"])
    trouble, picture = walk(root)
    assert isinstance(trouble, Unreadable)
    assert (trouble.errno, trouble.is_dir) == (errno.ENAMETOOLONG, True)
    assert picture.path == b"e.jpg"


def test_a_root_that_is_gone_or_no_folder(root: bytes) -> None:
    plant(root, [b"x.jpg"])
    assert list(walk(root + b"/gone")) == [Unreadable(b"", errno.ENOENT, True)]
    assert list(walk(root + b"/x.jpg")) == [Unreadable(b"", errno.ENOTDIR, True)]


# The file system's clock


def test_the_clock_is_read_without_a_trace(root: bytes) -> None:
    plant(root, [b"x.jpg"])
    os.utime(root, ns=(10**18, 10**18))
    before = os.stat(root)
    offset_ns, margin_ns = fs_clock_offset_ns(root)
    after = os.stat(root)
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
    assert os.listdir(root) == [b"x.jpg"]
    assert margin_ns == EXACT_MARGIN_NS == 2_500_000_000
    assert abs(offset_ns) < 1_000_000_000  # a local disk shares our clock
    with open(root + b"/y.jpg", "wb"):
        written_ns = os.stat(root + b"/y.jpg").st_mtime_ns
    assert abs(time.time_ns() + offset_ns - written_ns) < 1_000_000_000


def test_the_clock_is_guessed_where_nothing_can_be_written(
    root: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    guess = (0, GUESSED_MARGIN_NS)
    assert fs_clock_offset_ns(b"/proc") == guess
    assert fs_clock_offset_ns(root + b"/gone") == guess
    with unprivileged():
        assert fs_clock_offset_ns(b"/usr") == guess
    monkeypatch.delattr(os, "O_TMPFILE")
    assert fs_clock_offset_ns(root) == guess
