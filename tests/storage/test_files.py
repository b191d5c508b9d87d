import errno
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, select, update

import storage.file_rows
from storage.catalog import Catalog
from storage.changes import Change, Known, Reason
from storage.errors import LeaseHeld, LeaseLost, ManifestError, RootUnavailable
from storage.file_rows import GRACE_S
from storage.files import ScanResult, apply_changes, known_files, scan_root
from storage.leases import Lease, finish_run, start_run
from storage.roots import RootInfo, add_root, find_root, resolve_root
from storage.runs import claim
from storage.scan import FileStat, Signature
from storage.slices import sliced
from storage.spaces import SpaceInfo
from storage.spool import Spool
from storage.tables import File, Root, Run
from tests.storage.job import OLD_NS, Job, dump, put, states
from tests.storage.trees import public_folder, unprivileged


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "photos"
    path.mkdir()
    return path


@pytest.fixture
def job(catalog: Catalog, lease: Lease, space: SpaceInfo, folder: Path) -> Job:
    return Job(catalog, lease, space, folder)


def scan(job: Job, under: str = "", **options: bool) -> ScanResult:
    root = find_root(job.catalog, os.fsencode(job.folder / under)) if under else job.root
    options.setdefault("confirm_missing", False)
    return scan_root(job.catalog, root, skip=None, lease=job.lease, **options)


def refused(job: Job, match: str, **options: bool) -> None:
    """Check that a scan is refused and that nothing of the catalog changed."""
    before = dump(job.catalog)
    for dry in (True, False):
        with pytest.raises(RootUnavailable, match=match):
            scan(job, dry=dry, **options)
    assert dump(job.catalog) == before


def test_a_first_scan_enters_every_file(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a", "b/c.jpg": b"cc", "b.jpg": b"b"})
    result = scan(job)
    assert result.reasons == {"new": 3}
    assert (result.root, result.scanned, result.unchanged) == (str(job.folder), 3, 0)
    assert result.duration_s > 0
    known = list(known_files(job.catalog, job.root.id))
    assert [row.path for row in known] == [b"a.jpg", b"b.jpg", b"b/c.jpg"]
    for row in known:
        status = os.stat(os.path.join(os.fsencode(job.folder), row.path))
        assert row.seen == Signature.of(status)
        assert (row.state, row.trusted, row.hashed) == ("live", False, False)


def test_a_second_scan_finds_nothing_and_notes_when(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a"})
    scan(job)
    before = dump(job.catalog)
    result = scan(job)
    assert (result.scanned, result.unchanged, result.reasons) == (1, 1, {})
    after = dump(job.catalog)
    assert {**after, "roots": []} == {**before, "roots": []}
    with job.catalog.read() as conn:
        assert conn.execute(select(Root.scanned_at)).scalar_one() == pytest.approx(
            time.time(), abs=60
        )


def test_every_reason_changes_what_it_should(job: Job) -> None:
    names = ["size", "mtime", "ctime", "inode", "missing", "back", "excluded", "same", "racy"]
    put(job.folder, {f"{name}.jpg": b"old " + name.encode() for name in names})
    (job.folder / "back.jpg").rename(job.folder / "back.away")
    job.run()
    (job.folder / "back.away").rename(job.folder / "back.jpg")
    job.run()
    (job.folder / "back.jpg").rename(job.folder / "back.away")
    job.untrusted = {os.fsencode(job.folder / "racy.jpg")}
    put(job.folder, {"racy.jpg": b"racy now"})
    job.run()
    (job.folder / "back.away").rename(job.folder / "back.jpg")
    put(job.folder, {"size.jpg": b"longer than before", "new.jpg": b"new"})
    put(job.folder, {"mtime.jpg": b"new mtime"}, mtime_ns=OLD_NS + 1)
    (job.folder / "ctime.jpg").chmod(0o600)
    (job.folder / "missing.jpg").unlink()
    with job.catalog.write() as conn:  # a new file with all times equal can't be made on purpose
        change = update(File).where(File.path == b"inode.jpg")
        conn.execute(change.values(seen_inode=File.seen_inode + 1))
    add_root(job.catalog, os.fsencode(job.folder), excludes=["excluded*"])
    dry = scan(job, dry=True)
    result = scan(job)
    assert Counter(result.reasons) == Counter([*names, "new"]) - Counter(["same"])
    assert replace(dry, duration_s=0) == replace(result, duration_s=0)
    assert (result.scanned, result.unchanged) == (8, 1)
    expected = {b"%s.jpg" % name.encode(): "live" for name in [*names, "new"]}
    expected |= {b"missing.jpg": "missing", b"excluded.jpg": "excluded"}
    assert states(job.catalog) == expected
    with job.catalog.read() as conn:
        since = dict(conn.execute(select(File.path, File.missing_since)).all())
    assert since.pop(b"missing.jpg") == pytest.approx(time.time(), abs=60)
    assert set(since.values()) == {None}
    assert scan(job).reasons == {"racy": 1}


def test_a_file_that_is_back_keeps_what_is_known_of_it(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a", "b.jpg": b"b"})
    job.run()
    root = os.fsencode(job.folder)
    add_root(job.catalog, root, excludes=["a*"])
    assert scan(job).reasons == {"excluded": 1}
    assert scan(job).reasons == {}
    add_root(job.catalog, root, excludes=["other"])
    assert scan(job).reasons == {"back": 1}
    assert job.extract() == {}
    assert states(job.catalog) == {b"a.jpg": "live", b"b.jpg": "live"}


def test_an_excluded_folder_is_not_missing(job: Job) -> None:
    put(job.folder, {f"raw/{i}.jpg": b"%d" % i for i in range(30)} | {"a.jpg": b"a"})
    scan(job)
    add_root(job.catalog, os.fsencode(job.folder), excludes=["raw"])
    assert scan(job).reasons == {"excluded": 30}
    shutil.rmtree(job.folder / "raw")
    assert scan(job).reasons == {}


def test_losses_of_a_small_root_need_no_word_unless_it_is_empty(job: Job) -> None:
    put(job.folder, {f"{i}.jpg": b"%d" % i for i in range(20)} | {"readme.txt": b"kept"})
    scan(job)
    for i in range(1, 20):
        (job.folder / f"{i}.jpg").unlink()
    assert scan(job).reasons == {"missing": 19}
    (job.folder / "0.jpg").unlink()
    refused(job, r"1 of 1 known files .*--confirm-missing")
    assert scan(job, confirm_missing=True).reasons == {"missing": 1}
    assert scan(job).reasons == {}


def test_too_many_losses_change_nothing_at_all(job: Job) -> None:
    put(job.folder, {f"{i:02}.jpg": b"%d" % i for i in range(42)})
    scan(job)
    for i in range(22):
        (job.folder / f"{i:02}.jpg").unlink()
    put(job.folder, {"41.jpg": b"edited too", "new.jpg": b"new"})
    refused(job, r"22 of 42 known files of .*--confirm-missing")
    assert scan(job, confirm_missing=True).reasons == {"missing": 22, "new": 1, "size": 1}


def test_half_of_a_root_may_go(job: Job) -> None:
    put(job.folder, {f"{i:02}.jpg": b"%d" % i for i in range(42)})
    scan(job)
    for i in range(21):
        (job.folder / f"{i:02}.jpg").unlink()
    put(job.folder, {"41.jpg": b"edited too", "new.jpg": b"new"})
    assert scan(job).reasons == {"missing": 21, "new": 1, "size": 1}


def test_a_root_that_is_not_there_changes_nothing(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a"})
    scan(job)
    root = job.root
    away = job.folder.rename(job.folder.with_name("away"))
    before = dump(job.catalog)
    for confirm in (False, True):
        with pytest.raises(RootUnavailable, match="can't be read"):
            scan_root(job.catalog, root, confirm_missing=confirm, skip=None, lease=job.lease)
    job.folder.mkdir()
    refused(job, "1 of 1 known files")
    assert dump(job.catalog) == before
    assert scan(job, confirm_missing=True).reasons == {"missing": 1}
    job.folder.rmdir()
    away.rename(job.folder)
    assert scan(job).reasons == {"back": 1}


class Eventful(Catalog):
    """A catalog during whose second read something happens: a walk is about to begin then."""

    reads = 0
    event: Callable[[], object]

    def read(self) -> AbstractContextManager[Connection]:
        self.reads += 1
        if self.reads == 2:
            self.event()
        return super().read()


@pytest.mark.parametrize("put_another", [True, False])
def test_a_root_that_goes_away_during_the_walk_changes_nothing(
    job: Job, tmp_path: Path, put_another: bool
) -> None:
    put(job.folder, {f"{i}/x.jpg": b"%d" % i for i in range(30)})
    put(tmp_path / "another", {"other.jpg": b"other"})
    scan(job)
    root, before = job.root, dump(job.catalog)

    def unmount() -> None:
        job.folder.rename(tmp_path / "away")
        if put_another:
            (tmp_path / "another").rename(job.folder)

    catalog = Eventful(job.catalog.home, job.catalog.engine, job.catalog.store_id, writable=True)
    catalog.event = unmount
    with pytest.raises(RootUnavailable, match="replaced" if put_another else "can't be read"):
        scan_root(catalog, root, confirm_missing=True, skip=None)
    assert dump(job.catalog) == before


def test_an_unreadable_folder_keeps_its_files(job: Job) -> None:
    with public_folder() as path:
        job.folder = Path(os.fsdecode(path))
        put(job.folder, {"a.jpg": b"a", "b/1.jpg": b"1"})
        scan(job)
        (job.folder / "b").chmod(0)
        with unprivileged():
            result = scan(job)
        assert result.unreadable == [(str(job.folder / "b"), os.strerror(errno.EACCES))]
        assert result.unreadable_count == 1
        assert result.reasons == {}
        job.folder.chmod(0)
        with unprivileged():
            refused(job, "can't be read")
        job.folder.chmod(0o755)
        (job.folder / "b").chmod(0o755)


def test_unreadable_lines_are_counted_and_the_first_are_named(job: Job, tmp_path: Path) -> None:
    lines = tmp_path / "list.txt"
    lines.write_text("".join(f"{i:03}.jpg\n" for i in range(120)))
    root = add_root(job.catalog, os.fsencode(lines))
    result = scan_root(job.catalog, root, confirm_missing=False, skip=None)
    assert result.unreadable_count == 120
    assert len(result.unreadable) == 100
    assert result.unreadable[0] == (f"{lines}: 000.jpg", os.strerror(errno.ENOENT))


def test_a_sub_path_compares_its_subtree_only(job: Job) -> None:
    names = ["a.jpg", "a/1.jpg", "a/2.jpg", "a-b/3.jpg", "b/4.jpg"]
    put(job.folder, {name: name.encode() for name in names})
    scan(job)
    for name in ("a.jpg", "a/1.jpg", "a-b/3.jpg", "b/4.jpg"):
        (job.folder / name).unlink()
    put(job.folder, {"a/new.jpg": b"new", "b/new.jpg": b"new"})
    result = scan(job, "a")
    assert result.root == str(job.folder / "a")
    assert (result.scanned, result.unchanged) == (2, 1)
    assert result.reasons == {"missing": 1, "new": 1}
    assert [k for k, state in states(job.catalog).items() if state == "missing"] == [b"a/1.jpg"]
    with job.catalog.write() as conn:
        conn.execute(update(Root).values(scanned_at=None))
    scan(job, "a")
    with job.catalog.read() as conn:
        assert conn.execute(select(Root.scanned_at)).scalar() is None
    # The file a.jpg is a sub-path too, and it is gone with its whole subtree.
    with pytest.raises(RootUnavailable, match="can't be read") as caught:
        scan(job, "a.jpg")
    # It may as well be mistyped: no reason to speak of the root.
    assert str(caught.value).startswith(f"{job.folder}/a.jpg can't be read")
    assert "remove" not in str(caught.value)


def _age_missing(job: Job, age_s: float) -> None:
    with job.catalog.write() as conn:
        since = job.catalog.now(conn) - age_s
        conn.execute(update(File).where(File.state == "missing").values(missing_since=since))


def test_what_is_missing_is_forgotten_after_its_grace_with_its_failures(job: Job) -> None:
    put(job.folder, {"a/1.jpg": b"1", "a/2.jpg": b"2", "b/3.jpg": b"3", "4.jpg": b"4"})
    job.trouble = {os.fsencode(job.folder / name): ("io", False) for name in ("a/1.jpg", "4.jpg")}
    job.run()
    (job.folder / "a" / "1.jpg").unlink()
    scan(job)
    _age_missing(job, GRACE_S - 60)
    (job.folder / "a" / "2.jpg").unlink()  # a little later
    scan(job)
    assert states(job.catalog)[b"a/1.jpg"] == "missing"
    with job.catalog.write() as conn:
        first = (File.path == b"a/1.jpg", File.state == "missing")
        past = File.missing_since - 120
        conn.execute(update(File).where(*first).values(missing_since=past))
    scan(job, "b")  # says nothing about the whole root
    assert states(job.catalog)[b"a/1.jpg"] == "missing"
    scan(job, dry=True)
    assert states(job.catalog)[b"a/1.jpg"] == "missing"
    assert scan(job).reasons == {}
    assert states(job.catalog) == {b"a/2.jpg": "missing", b"b/3.jpg": "live", b"4.jpg": "live"}
    assert [row[2] for row in dump(job.catalog)["failures"]] == ["io"]  # of 4.jpg
    assert len(dump(job.catalog)["images"]) == 2  # compaction drops what nothing holds


def test_what_comes_back_within_its_grace_or_after_is_no_loss(job: Job) -> None:
    put(job.folder, {"1.jpg": b"1", "2.jpg": b"2"})
    assert job.run() == {"extracted": 2}
    (job.folder / "1.jpg").unlink()
    scan(job)
    _age_missing(job, GRACE_S + 60)
    put(job.folder, {"1.jpg": b"1"})
    assert scan(job).reasons == {"back": 1}  # seen before anything is pruned
    assert states(job.catalog) == {b"1.jpg": "live", b"2.jpg": "live"}
    assert "extracted" not in job.extract()
    (job.folder / "1.jpg").unlink()
    scan(job)
    _age_missing(job, GRACE_S + 60)
    scan(job)
    assert states(job.catalog) == {b"2.jpg": "live"}
    put(job.folder, {"1.jpg": b"1"})
    assert scan(job).reasons == {"new": 1}
    assert "extracted" not in job.extract()  # its vector was not compacted away yet


def test_the_losses_of_a_sub_path_are_held_against_its_own_files(job: Job) -> None:
    put(job.folder, {f"a/{i}.jpg": b"%d" % i for i in range(30)})
    put(job.folder, {f"b/{i}.jpg": b"b%d" % i for i in range(60)})
    scan(job)
    for i in range(25):
        (job.folder / "a" / f"{i}.jpg").unlink()
    with pytest.raises(RootUnavailable, match="25 of 30"):
        scan(job, "a")
    assert scan(job, "a", confirm_missing=True).reasons == {"missing": 25}


def test_a_picture_is_a_sub_path(job: Job) -> None:
    put(job.folder, {"a/1.jpg": b"1", "a/2.jpg": b"2"})
    scan(job)
    put(job.folder, {"a/1.jpg": b"longer", "a/2.jpg": b"longer"})
    assert scan(job, "a/1.jpg").reasons == {"size": 1}
    assert scan(job).reasons == {"size": 1}


def test_a_plan_of_a_root_that_is_not_registered_needs_no_file_of_it(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a", "raw/b.jpg": b"b"})
    root = resolve_root([], os.fsencode(job.folder), excludes=["raw"])
    before = dump(job.catalog)
    result = scan_root(job.catalog, root, confirm_missing=False, skip=None, dry=True)
    assert (result.scanned, result.reasons) == (1, {"new": 1})
    assert dump(job.catalog) == before


def test_the_home_is_not_scanned(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a", "home/b.jpg": b"b"})
    home = os.fsencode(job.folder / "home")
    result = scan_root(job.catalog, job.root, confirm_missing=False, skip=home)
    assert result.scanned == 1


def test_pictures_from_the_future_are_counted(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a"}, mtime_ns=time.time_ns() + 86_400 * 10**9)
    put(job.folder, {"b.jpg": b"b"})
    assert scan(job).future == 1


def test_one_run_scans_a_root_at_a_time(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a"})
    other = start_run(job.catalog, "index")
    claim(job.catalog, other, "root", job.root.id)
    with pytest.raises(LeaseHeld, match=other.run_id):
        scan(job)
    assert scan(job, dry=True).reasons == {"new": 1}
    finish_run(job.catalog, other, "done")
    assert scan(job).reasons == {"new": 1}
    assert dump(job.catalog)["claims"] == []


def test_a_refused_scan_gives_its_claim_back(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a"})
    scan(job)
    (job.folder / "a.jpg").unlink()
    with pytest.raises(RootUnavailable):
        scan(job)
    assert dump(job.catalog)["claims"] == []


def test_a_run_that_was_declared_dead_changes_nothing(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a"})
    root, lost = job.root, start_run(job.catalog, "index")
    new = Change(b"a.jpg", Reason.NEW, None, FileStat(b"a.jpg", Signature(1, 2, 3, 4)))
    with job.catalog.write() as conn:
        conn.execute(update(Run).where(Run.id == lost.run_id).values(token=""))
    with pytest.raises(LeaseLost):
        apply_changes(job.catalog, root, [new], lease=lost)
    with pytest.raises(LeaseLost):
        scan_root(job.catalog, root, confirm_missing=False, skip=None, lease=lost)
    assert states(job.catalog) == {}


def test_a_manifest_is_scanned_by_its_lines(job: Job, tmp_path: Path) -> None:
    put(tmp_path / "data", {"one.jpg": b"1", "two.bin": b"2", ".hidden/three.jpg": b"3"})
    lines = tmp_path / "list.tsv"
    lines.write_text("id\tpath\nx\tdata/one.jpg\ny\tdata/two.bin\nz\tdata/.hidden/three.jpg\n")
    root = add_root(job.catalog, os.fsencode(lines), excludes=["*"])

    def again() -> dict[str, int]:
        return scan_root(
            job.catalog, root, confirm_missing=False, skip=None, lease=job.lease
        ).reasons

    assert again() == {"new": 3}
    assert states(job.catalog) == {b"x": "live", b"y": "live", b"z": "live"}
    assert job.extract() == {"extracted": 3}
    assert again() == {}
    # The same file under another folder name: nothing of it changes but where it lies.
    (tmp_path / "data").rename(tmp_path / "moved")
    lines.write_text("id\tpath\nx\tmoved/one.jpg\ny\tmoved/two.bin\n")
    assert again() == {"line": 2, "missing": 1}
    assert job.extract() == {}
    with job.catalog.read() as conn:
        source = conn.execute(select(File.source).where(File.path == b"x")).scalar_one()
    assert source == os.fsencode(tmp_path / "moved" / "one.jpg")
    lines.write_text("id\tpath\nx\tmoved/one.jpg\ny\tmoved/nothing.bin\n")
    result = scan_root(job.catalog, root, confirm_missing=False, skip=None)
    assert result.reasons == {"missing": 1}
    assert result.unreadable_count == 1
    lines.write_text("id\tpath\nx\tmoved/one.jpg\nx\tmoved/two.bin\n")
    with pytest.raises(ManifestError):
        again()
    assert states(job.catalog) == {b"x": "live", b"y": "missing", b"z": "missing"}


def test_a_racy_line_takes_its_new_label(catalog: Catalog, tmp_path: Path) -> None:
    lines = tmp_path / "list.txt"
    lines.write_text("x.jpg\n")
    root = add_root(catalog, os.fsencode(lines))
    seen = FileStat(b"x", Signature(1, 2, 3, 4), b"/x", "cat")
    apply_changes(catalog, root, [Change(b"x", Reason.NEW, None, seen)])
    (known,) = known_files(catalog, root.id, lines=True)
    assert known.line == (b"/x", "cat")
    same = Change(b"x", Reason.RACY, known, seen)
    assert apply_changes(catalog, root, [same]) == {"racy": 1}
    apply_changes(catalog, root, [same._replace(seen=seen._replace(label="dog"))])
    (known,) = known_files(catalog, root.id, lines=True)
    assert known.line == (b"/x", "dog")


def test_pages_and_batches_join_without_a_seam(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.file_rows, "PAGE", 7)
    root = add_root(catalog, os.fsencode(tmp_path))
    names = sorted(
        [b"%d.jpg" % i for i in range(20)]
        + [b"a/%d.jpg" % i for i in range(20)]
        + [b"a\xff.jpg", b"a-b/x.jpg", b"a0.jpg"]
    )
    new = (
        Change(name, Reason.NEW, None, FileStat(name, Signature(i, i, i, i)))
        for i, name in enumerate(names)
    )
    assert apply_changes(catalog, root, new) == {"new": len(names)}
    assert [row.path for row in known_files(catalog, root.id)] == names
    below = [name for name in names if name.startswith(b"a/")]
    assert [row.path for row in known_files(catalog, root.id, b"a")] == below
    assert [row.path for row in known_files(catalog, root.id, b"a0.jpg")] == [b"a0.jpg"]
    known = list(known_files(catalog, root.id))
    gone = [Change(row.path, Reason.MISSING, row, None) for row in known]
    assert apply_changes(catalog, root, gone) == {"missing": len(names)}
    assert set(states(catalog).values()) == {"missing"}


def test_ten_thousand_files_are_entered_quickly(catalog: Catalog, tmp_path: Path) -> None:
    root = add_root(catalog, os.fsencode(tmp_path))
    new = [
        Change(b"%06d.jpg" % i, Reason.NEW, None, FileStat(b"%06d.jpg" % i, Signature(i, i, i, i)))
        for i in range(10_000)
    ]
    started = time.process_time()
    assert apply_changes(catalog, root, new) == {"new": 10_000}
    known = list(known_files(catalog, root.id))
    assert time.process_time() - started < 10
    assert [row.path for row in known] == [change.path for change in new]


signatures = st.builds(Signature, *[st.integers(0, 2**63 - 1)] * 4)
paths = st.binary(min_size=1)
lines = st.none() | st.tuples(st.none() | paths, st.none() | st.text())
stats = st.builds(FileStat, paths, signatures, st.none() | paths, st.none() | st.text())
known_rows = st.builds(
    Known, st.integers(1), paths, signatures, st.sampled_from(["live"]), st.booleans(),
    st.booleans(), lines,
)  # fmt: skip


@st.composite
def changes(draw: st.DrawFn) -> Change:
    path = draw(paths)
    known = draw(st.none() | known_rows.map(lambda row: row._replace(path=path)))
    seen = draw(st.none() | stats.map(lambda stat: stat._replace(path=path)))
    return Change(path, draw(st.sampled_from(Reason)), known, seen)


@given(st.lists(changes()), st.sampled_from([1, 1 << 20]))
def test_a_spool_gives_back_what_it_was_given(given: list[Change], memory_bytes: int) -> None:
    with Spool(memory_bytes) as spool:
        for change in given:
            spool.add(change)
        assert list(spool) == given
        assert list(spool) == given
        assert len(spool) == len(given)


@given(st.lists(st.integers()), st.integers(1, 5))
def test_slices_are_full_and_in_order(items: list[int], size: int) -> None:
    slices = list(sliced(items, size))
    assert [item for some in slices for item in some] == items
    assert all(len(some) == size for some in slices[:-1])
    assert all(slices)


def test_a_root_info_is_its_sub_path() -> None:
    root = RootInfo(1, b"/a", "directory", ())
    assert root.target == b"/a"
    assert replace(root, under=b"b/c").target == b"/a/b/c"
