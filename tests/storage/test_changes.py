import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.changes import Change, Known, Reason, Unlisted, diff, position
from storage.scan import Excludes, FileStat, Signature, Unreadable, walk
from tests.storage.trees import plant, public_folder, unprivileged

SIG = Signature(size_bytes=10, mtime_ns=20, ctime_ns=30, inode=40)


def known(path: bytes, state: str = "live", sig: Signature = SIG, **more: Any) -> Known:
    settled = Known(1, path, sig, state, trusted=True, hashed=True)
    return settled._replace(**more)


def reasons(changes: Iterable[Change]) -> list[tuple[bytes, str]]:
    return [(change.path, change.reason.value) for change in changes]


# One reason at a time


def test_the_reasons_have_their_names() -> None:
    seen = ["new", "back", "size", "mtime", "ctime", "inode", "racy", "line"]
    assert [reason.value for reason in Reason] == [*seen, "excluded", "missing"]


@pytest.mark.parametrize(
    ("sig", "reason"),
    [
        (Signature(11, 21, 31, 41), Reason.SIZE),
        (Signature(10, 21, 31, 41), Reason.MTIME),
        (Signature(10, 19, 30, 40), Reason.MTIME),
        (Signature(10, 20, 31, 41), Reason.CTIME),
        (Signature(10, 20, 30, 41), Reason.INODE),
    ],
)
def test_a_signature_that_differs_gives_the_strongest_reason(
    sig: Signature, reason: Reason
) -> None:
    row, seen = known(b"x"), FileStat(b"x", sig)
    assert list(diff([row], [seen])) == [Change(b"x", reason, row, seen)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (known(b"x"), None),
        (known(b"x", hashed=False), None),  # pending already, without a new reason
        (known(b"x", hashed=False, trusted=False), None),
        (known(b"x", trusted=False), Reason.RACY),
        (known(b"x", "missing"), Reason.BACK),
        (known(b"x", "excluded"), Reason.BACK),
        (known(b"x", "missing", Signature(1, 2, 3, 4)), Reason.BACK),
        (known(b"x", line=(b"/m/x", "cat")), None),
        (known(b"x", line=(b"/m/x", "dog")), Reason.LINE),
        (known(b"x", line=(b"/n/x", "cat")), Reason.LINE),
        (known(b"x", line=(b"/m/x", None), trusted=False), Reason.RACY),
    ],
)
def test_a_file_that_looks_the_same(row: Known, expected: Reason | None) -> None:
    seen = FileStat(b"x", SIG, b"/m/x", "cat")
    assert list(diff([row], [seen])) == ([Change(b"x", expected, row, seen)] if expected else [])


def test_an_unknown_file_is_new() -> None:
    seen = FileStat(b"x", SIG)
    assert list(diff([], [seen])) == [Change(b"x", Reason.NEW, None, seen)]


@pytest.mark.parametrize(
    ("state", "excluded", "expected"),
    [
        ("live", False, Reason.MISSING),
        ("live", True, Reason.EXCLUDED),
        ("missing", False, None),
        ("missing", True, None),
        ("excluded", True, None),
        ("excluded", False, Reason.MISSING),  # the excludes were lifted, and it is not there
    ],
)
def test_a_file_that_is_not_seen(state: str, excluded: bool, expected: Reason | None) -> None:
    row = known(b"x", state)
    changes = list(diff([row], [], lambda path: excluded))
    assert changes == ([Change(b"x", expected, row, None)] if expected else [])


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOENT, [(b"x", "missing")]),
        (errno.ENOTDIR, [(b"x", "missing")]),
        (errno.EACCES, []),
        (errno.EIO, []),
        (errno.EISDIR, []),
    ],
)
def test_an_unreadable_file_is_missing_only_if_it_is_gone(
    code: int, expected: list[tuple[bytes, str]]
) -> None:
    assert reasons(diff([known(b"x")], [Unreadable(b"x", code, False)])) == expected
    assert reasons(diff([], [Unreadable(b"x", code, False)])) == []


def test_below_an_unreadable_folder_everything_stays() -> None:
    rows = [known(path) for path in (b"a", b"a-b/x", b"a.jpg", b"a/b/x", b"a/x", b"a0", b"b")]
    seen: list[FileStat | Unreadable] = [Unreadable(b"a", errno.EACCES, True)]
    seen.append(FileStat(b"b", SIG))
    gone = [(b"a", "missing"), (b"a-b/x", "missing"), (b"a.jpg", "missing"), (b"a0", "missing")]
    assert reasons(diff(rows, seen)) == gone


def test_an_unreadable_root_keeps_everything() -> None:
    rows = [known(b"a"), known(b"b/c", trusted=False)]
    assert reasons(diff(rows, [Unreadable(b"", errno.EIO, True)])) == []


def test_outside_the_subtree_everything_stays() -> None:
    rows = [known(path) for path in (b"a-b", b"a.jpg", b"a/x", b"a0", b"b")]
    assert reasons(diff(rows, [], under=b"a")) == [(b"a/x", "missing")]
    assert reasons(diff(rows, [], under=b"a.jpg")) == [(b"a.jpg", "missing")]


@pytest.mark.parametrize(
    ("rows", "seen"),
    [
        ([b"b", b"a"], []),
        ([b"a", b"a"], []),
        ([], [FileStat(b"b", SIG), FileStat(b"a", SIG)]),
        ([], [FileStat(b"a", SIG), Unreadable(b"a", errno.EIO, False)]),
        ([], [FileStat(b"a/x", SIG), Unreadable(b"a", errno.EIO, True)]),
    ],
)
def test_input_that_is_not_sorted_is_refused(
    rows: list[bytes], seen: list[FileStat | Unreadable]
) -> None:
    with pytest.raises(ValueError, match="not sorted"):
        list(diff([known(path) for path in rows], seen))


def test_nothing_is_read_ahead_of_need() -> None:
    """Memory is constant: a consumer that stops leaves the rest of both sides untouched."""
    taken: list[int] = []

    def rows() -> Iterator[Known]:
        for number in range(1000):
            taken.append(number)
            yield known(b"%04d" % number)

    changes = diff(rows(), [])
    assert next(changes).path == b"0000"
    assert len(taken) <= 2


def test_unlisted_hides_what_lies_below_the_last_folder_met() -> None:
    unlisted = Unlisted()
    assert not unlisted.hides(b"a/x")
    unlisted.meet(Unreadable(b"a", errno.EACCES, True))
    assert [unlisted.hides(path) for path in (b"a/x", b"a/b/c", b"a0", b"b")] == [1, 1, 0, 0]
    unlisted.meet(Unreadable(b"b", errno.EACCES, True))
    assert [unlisted.hides(path) for path in (b"b/x", b"c")] == [1, 0]
    unlisted.meet(Unreadable(b"", errno.EACCES, True))
    assert unlisted.hides(b"anything")


# Against a naive comparison of two dictionaries

components = st.sampled_from([b"a", b"a-b", b"a.jpg", b"a0", b"b"])
some_path = st.lists(components, min_size=1, max_size=3).map(b"/".join)
signatures = st.builds(Signature, *[st.integers(0, 1)] * 4)
rows_of = st.fixed_dictionaries(
    {
        "seen": signatures,
        "state": st.sampled_from(["live", "live", "missing", "excluded"]),
        "trusted": st.booleans(),
        "hashed": st.booleans(),
    }
)
codes = st.sampled_from([errno.ENOENT, errno.EACCES, errno.EIO])


def below(path: bytes, folder: bytes) -> bool:
    return folder == b"" or path.startswith(folder + b"/")


def naive(
    rows: dict[bytes, Known],
    there: dict[bytes, Signature],
    unlooked: Callable[[bytes], bool],
    hidden: Callable[[bytes], bool],
) -> list[tuple[bytes, str]]:
    """What changed, path by path: the definition that the merge must meet."""
    verdicts = [
        (path, verdict(rows.get(path), there.get(path), hidden(path)))
        for path in sorted(rows.keys() | there.keys())
        if not unlooked(path)
    ]
    return [(path, said) for path, said in verdicts if said]


def verdict(row: Known | None, sig: Signature | None, is_hidden: bool) -> str:
    if row is None:
        return "new"
    if sig is None:
        gone = {"live": "missing", "excluded": "missing", "missing": ""}
        left_out = {"live": "excluded", "excluded": "", "missing": ""}
        return (left_out if is_hidden else gone)[row.state]
    if row.state != "live":
        return "back"
    for field in ("size_bytes", "mtime_ns", "ctime_ns", "inode"):
        if getattr(row.seen, field) != getattr(sig, field):
            return field.split("_")[0]
    return "racy" if row.hashed and not row.trusted else ""


@settings(max_examples=400, deadline=None)
@given(
    recorded=st.dictionaries(some_path, rows_of, max_size=15),
    present=st.dictionaries(some_path, signatures, max_size=15),
    closed=st.dictionaries(st.one_of(some_path, st.just(b"")), codes, max_size=2),
    broken=st.dictionaries(some_path, codes, max_size=4),
    excludes=st.sets(some_path, max_size=2),
    under=st.one_of(st.just(b""), some_path),
)
def test_the_merge_equals_the_naive_comparison(
    recorded: dict[bytes, dict[str, Any]],
    present: dict[bytes, Signature],
    closed: dict[bytes, int],
    broken: dict[bytes, int],
    excludes: set[bytes],
    under: bytes,
) -> None:
    rows = {path: known(path, **row) for path, row in recorded.items()}
    # A walk enters neither an unreadable folder nor an excluded one.
    closed = {
        f: code for f, code in closed.items() if not any(below(f, g) for g in closed if g != f)
    }

    def hidden(path: bytes) -> bool:
        return any(path == out or below(path, out) for out in excludes)

    def inside(path: bytes) -> bool:
        return under in (b"", path) or below(path, under)

    def reached(path: bytes) -> bool:
        return inside(path) and not hidden(path) and not any(below(path, f) for f in closed)

    seen: list[FileStat | Unreadable] = [Unreadable(f, code, True) for f, code in closed.items()]
    seen += [Unreadable(path, code, False) for path, code in broken.items() if reached(path)]
    there = {path: sig for path, sig in present.items() if path not in broken and reached(path)}
    seen += [FileStat(path, sig) for path, sig in there.items()]

    def unlooked(path: bytes) -> bool:
        unknowable = reached(path) and broken.get(path, errno.ENOENT) != errno.ENOENT
        return not inside(path) or any(below(path, f) for f in closed) or unknowable

    changes = diff([rows[path] for path in sorted(rows)], sorted(seen, key=position), hidden, under)
    assert reasons(changes) == naive(rows, there, unlooked, hidden)


# With a real walk on both sides


def scanned(root: bytes, **options: Any) -> list[FileStat | Unreadable]:
    return list(walk(root, **options))


def as_known(seen: list[FileStat | Unreadable]) -> list[Known]:
    return [known(item.path, sig=item.sig) for item in seen if isinstance(item, FileStat)]


def test_what_happens_to_real_files_gets_its_reason(tmp_path: os.PathLike[str]) -> None:
    root = os.fsencode(tmp_path)
    names = [b"a-b/x.jpg", b"a/edited.jpg", b"a/grown.jpg", b"a/kept.jpg", b"a/lost.jpg"]
    names += [b"a/moved.jpg", b"a/restored.jpg", b"a/swapped.jpg", b"a/touched.jpg"]
    plant(root, names)
    before = as_known(scanned(root))
    assert reasons(diff(before, scanned(root))) == []

    def edit(name: bytes, text: bytes) -> os.stat_result:
        status = os.stat(root + b"/a/" + name)
        with open(root + b"/a/" + name, "r+b") as file:
            file.write(text)
        return status

    edit(b"edited.jpg", b"PICTURE")
    os.utime(root + b"/a/edited.jpg", ns=(1, 1))  # whatever the grain of the clock
    edit(b"grown.jpg", b"much longer than it was before")
    os.remove(root + b"/a/lost.jpg")
    os.rename(root + b"/a/moved.jpg", root + b"/a/new.jpg")
    old = edit(b"restored.jpg", b"PICTURE")
    os.utime(root + b"/a/restored.jpg", ns=(old.st_atime_ns, old.st_mtime_ns))
    shutil.copy2(root + b"/a/swapped.jpg", root + b"/a/swapped.tmp")
    os.replace(root + b"/a/swapped.tmp", root + b"/a/swapped.jpg")
    os.utime(root + b"/a/touched.jpg", ns=(5, 5))

    assert reasons(diff(before, scanned(root))) == [
        (b"a/edited.jpg", "mtime"),
        (b"a/grown.jpg", "size"),
        (b"a/lost.jpg", "missing"),
        (b"a/moved.jpg", "missing"),
        (b"a/new.jpg", "new"),
        (b"a/restored.jpg", "ctime"),
        (b"a/swapped.jpg", "ctime"),
        (b"a/touched.jpg", "mtime"),
    ]


def test_excludes_and_subtrees_of_a_real_walk(tmp_path: os.PathLike[str]) -> None:
    root = os.fsencode(tmp_path)
    plant(root, [b"a/raw/x.jpg", b"a/y.jpg", b"b/raw/x.jpg", b"b/z.jpg"])
    before = as_known(scanned(root))
    os.remove(root + b"/a/y.jpg")
    os.remove(root + b"/b/z.jpg")
    seen = scanned(root, excludes=["raw"])
    assert reasons(diff(before, seen, Excludes(["raw"]).hides)) == [
        (b"a/raw/x.jpg", "excluded"),
        (b"a/y.jpg", "missing"),
        (b"b/raw/x.jpg", "excluded"),
        (b"b/z.jpg", "missing"),
    ]
    partial = diff(before, scanned(root, under=b"a"), under=b"a")
    assert reasons(partial) == [(b"a/y.jpg", "missing")]


def test_a_folder_that_closes_loses_nothing() -> None:
    with public_folder() as root:
        plant(root, [b"a-b.jpg", b"a.jpg", b"a/x.jpg", b"a/y/z.jpg", b"a0.jpg"])
        before = as_known(scanned(root))
        os.remove(root + b"/a-b.jpg")
        os.remove(root + b"/a0.jpg")
        os.chmod(root + b"/a", 0)
        with unprivileged():
            seen = scanned(root)
        os.chmod(root + b"/a", 0o755)
    assert reasons(diff(before, seen)) == [(b"a-b.jpg", "missing"), (b"a0.jpg", "missing")]
