"""Files are read again a slice at a time, and what rotted is read by the next run."""

import hashlib
import itertools
import mmap
import os
from collections.abc import Iterable, Iterator

import pytest
from sqlalchemy import func, insert, select, update

from storage import file_rows
from storage import rehash as rehash_module
from storage.errors import LeaseHeld, LeaseLost
from storage.file_rows import GRACE_S, prune_root
from storage.leases import finish_run, start_run
from storage.pending import pending_counts
from storage.rehash import (
    SLICES,
    Again,
    Outcome,
    Settled,
    count_slice,
    judge,
    next_slice,
    rehash,
    settled_files,
)
from storage.roots import add_root, list_roots
from storage.runs import claim
from storage.scan import Signature
from storage.tables import Failure, File, Run
from tests.storage.job import OLD_NS, Job, digest_of, put


@pytest.fixture
def job(catalog, lease, space, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    return Job(catalog, lease, space, folder)


def read(files: Iterable[Settled]) -> Iterator[Again]:
    """Read files one after the other: the simplest reader."""
    for known in files:
        try:
            with open(known.path, "rb") as file:
                sig = Signature.of(os.fstat(file.fileno()))
                yield judge(known, hashlib.sha256(file.read()).digest(), sig)
        except FileNotFoundError:
            yield Again(known, Outcome.VANISHED)
        except OSError as error:
            yield Again(known, Outcome.UNREADABLE, message=str(error))


def ids_by_path(job: Job) -> dict[bytes, int]:
    with job.catalog.read() as conn:
        return dict(conn.execute(select(File.path, File.id)).all())


def slice_of(job: Job, name: str) -> int:
    return ids_by_path(job)[os.fsencode(name)] % SLICES


def roots(job: Job) -> list[int]:
    return [root.id for root in list_roots(job.catalog)]


def go(job: Job, name: str, reader=read):
    """Read the slice of a file again."""
    return rehash(job.catalog, job.lease, slice_of(job, name), roots(job), reader)


def rot(job: Job, name: str, data: bytes) -> None:
    """Change bytes, and let the catalog think that nothing else of the file did."""
    path = job.folder / name
    path.write_bytes(data)
    sig = Signature.of(os.stat(path))
    values = {}
    for kind in ("seen", "digest"):
        for field in ("size_bytes", "mtime_ns", "ctime_ns", "inode"):
            values[f"{kind}_{field}"] = getattr(sig, field)
    with job.catalog.write() as conn:
        conn.execute(update(File).where(File.path == os.fsencode(name)).values(values))


def trusted(job: Job) -> dict[bytes, bool]:
    with job.catalog.read() as conn:
        return dict(conn.execute(select(File.path, File.trusted)).all())


def test_all_slices_together_read_each_settled_file_once(job, monkeypatch):
    monkeypatch.setattr(rehash_module, "PAGE", 2)
    put(job.folder, {f"{i:03}.jpg": b"%d" % i for i in range(200)})
    job.run()
    seen = []
    for number in range(SLICES):
        files = list(settled_files(job.catalog, number, roots(job)))
        assert count_slice(job.catalog, number, roots(job)) == len(files) > 3
        assert [known.file_id for known in files] == sorted(known.file_id for known in files)
        assert {known.file_id % SLICES for known in files} == {number}
        for known in files:
            with open(known.path, "rb") as file:
                assert known.digest == digest_of(file.read())
            assert known.sig == Signature.of(os.stat(known.path))
        result = rehash(job.catalog, job.lease, number, roots(job), read)
        assert result.outcomes == {"same": len(files)}
        assert result.finished
        seen += [known.file_id for known in files]
    assert sorted(seen) == sorted(ids_by_path(job).values())
    assert all(trusted(job).values())


def test_what_the_next_run_reads_anyway_or_is_not_there_is_not_read_again(job):
    put(job.folder, {name: name.encode() for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg")})
    job.untrusted = {os.fsencode(job.folder / "d.jpg")}
    job.run()
    put(job.folder, {"b.jpg": b"edited"}, mtime_ns=OLD_NS + 10)
    put(job.folder, {"e.jpg": b"new"})
    (job.folder / "c.jpg").unlink()
    job.scan()
    slices = [settled_files(job.catalog, number, roots(job)) for number in range(SLICES)]
    found = [known.path for known in itertools.chain(*slices)]
    assert found == [os.fsencode(job.folder / "a.jpg")]


def test_only_files_of_the_roots_that_are_named_are_read(job, tmp_path):
    put(job.folder, {"a.jpg": b"a"})
    other = Job(job.catalog, job.lease, job.space, tmp_path / "other")
    put(other.folder, {"b.jpg": b"b"})
    job.run()
    other.run()
    for each, name in ((job, "a.jpg"), (other, "b.jpg")):
        number = slice_of(each, name)
        files = [known.path for known in settled_files(job.catalog, number, [each.root.id])]
        assert files == [os.fsencode(each.folder / name)]
    assert not list(settled_files(job.catalog, slice_of(job, "a.jpg"), []))


def test_rotten_files_become_pending_and_the_next_run_takes_them_as_they_are(job):
    put(job.folder, {"a.jpg": b"as it was", "b.jpg": b"sound"})
    job.run()
    rot(job, "a.jpg", b"as it is.")
    assert pending_counts(job.catalog, job.space).total == 0
    result = go(job, "a.jpg")
    assert result.outcomes == {"rotten": 1}
    (bad,) = result.rotten
    assert bad.path == os.fsencode(job.folder / "a.jpg")
    assert (bad.was, bad.now) == (digest_of(b"as it was"), digest_of(b"as it is."))
    assert trusted(job) == {b"a.jpg": False, b"b.jpg": True}
    assert pending_counts(job.catalog, job.space).to_read == 1
    assert job.run()["extracted"] == 1
    assert pending_counts(job.catalog, job.space).total == 0
    assert go(job, "a.jpg").outcomes == {"same": 1}


def test_a_store_through_a_memory_map_that_leaves_no_trace_is_found(job):
    put(job.folder, {"a.jpg": b"a" * 4096})
    path = job.folder / "a.jpg"
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[0:1] = b"a"  # the page is dirty from now on: later stores set no time
        os.utime(path, ns=(OLD_NS, OLD_NS))
        job.run()
        before = os.stat(path)
        view[7:8] = b"b"
        after = os.stat(path)
        if Signature.of(before) != Signature.of(after):
            pytest.skip("this file system dates each store")
        job.scan()
        assert pending_counts(job.catalog, job.space).total == 0
        assert go(job, "a.jpg").outcomes == {"rotten": 1}
    assert pending_counts(job.catalog, job.space).to_read == 1


def test_a_changed_file_is_left_to_the_next_scan(job):
    put(job.folder, {"a.jpg": b"a"})
    job.run()
    put(job.folder, {"a.jpg": b"b"}, mtime_ns=OLD_NS + 10)
    result = go(job, "a.jpg")
    assert result.outcomes == {"changed": 1}
    assert result.rotten == []
    assert trusted(job) == {b"a.jpg": True}


def test_a_touched_file_with_the_same_bytes_is_the_same(job):
    put(job.folder, {"a.jpg": b"a"})
    job.run()
    put(job.folder, {"a.jpg": b"a"}, mtime_ns=OLD_NS + 10)
    assert go(job, "a.jpg").outcomes == {"same": 1}


def test_vanished_and_unreadable_files_are_counted_and_nothing_else(job):
    put(job.folder, {"a.jpg": b"a", "b.jpg": b"b"})
    job.run()
    (job.folder / "a.jpg").unlink()
    (job.folder / "b.jpg").unlink()
    (job.folder / "b.jpg").mkdir()
    assert go(job, "a.jpg").outcomes == {"vanished": 1}
    unreadable = go(job, "b.jpg")
    assert unreadable.outcomes == {"unreadable": 1}
    assert [path for path, _ in unreadable.unreadable] == [os.fsencode(job.folder / "b.jpg")]
    assert trusted(job) == {b"a.jpg": True, b"b.jpg": True}
    with job.catalog.read() as conn:
        assert conn.execute(select(func.count()).select_from(Failure)).scalar() == 0


def test_a_run_that_read_the_file_meanwhile_knows_better(job):
    put(job.folder, {"a.jpg": b"as it was"})
    job.run()
    rot(job, "a.jpg", b"as it is.")

    def overtaken(files):
        yield from list(read(files))
        with job.catalog.write() as conn:
            conn.execute(update(File).values(trusted=False))
        assert job.extract()["extracted"] == 1

    result = go(job, "a.jpg", overtaken)
    assert result.outcomes == {"changed": 1}
    assert result.rotten == []
    assert trusted(job) == {b"a.jpg": True}
    assert pending_counts(job.catalog, job.space).total == 0


def test_a_scan_that_saw_a_change_meanwhile_knows_better(job):
    put(job.folder, {"a.jpg": b"as it was"})
    job.run()
    rot(job, "a.jpg", b"as it is.")

    def overtaken(files):
        yield from list(read(files))
        put(job.folder, {"a.jpg": b"edited"}, mtime_ns=OLD_NS + 10)
        assert job.scan().reasons == {"size": 1}

    assert go(job, "a.jpg", overtaken).outcomes == {"changed": 1}
    assert trusted(job) == {b"a.jpg": True}


def test_a_run_that_was_declared_dead_distrusts_nothing(job):
    put(job.folder, {"a.jpg": b"as it was"})
    job.run()
    rot(job, "a.jpg", b"as it is.")
    finish_run(job.catalog, job.lease, "done")
    with pytest.raises(LeaseLost):
        go(job, "a.jpg")
    assert trusted(job) == {b"a.jpg": True}


def test_a_reader_that_ends_early_has_not_finished_the_slice(job):
    put(job.folder, {f"{i:03}.jpg": b"%d" % i for i in range(100)})
    job.run()
    number = slice_of(job, "050.jpg")
    n = count_slice(job.catalog, number, roots(job))
    assert n >= 3

    def first_two(files):
        return itertools.islice(read(files), 2)

    def all_but_one(files):
        return itertools.islice(read(list(files)), n - 1)

    for reader, done in ((first_two, 2), (all_but_one, n - 1)):
        result = rehash(job.catalog, job.lease, number, roots(job), reader)
        assert result.outcomes == {"same": done}
        assert not result.finished


def test_only_the_first_hundred_are_named(job, monkeypatch):
    monkeypatch.setattr(rehash_module, "MOST_LISTED", 1)
    put(job.folder, {f"{i:03}.jpg": b"%03d" % i for i in range(61)})
    job.run()
    names = ["000.jpg", "030.jpg", "060.jpg"]
    assert len({slice_of(job, name) for name in names}) == 1
    for name in names:
        rot(job, name, b"bad")
    result = go(job, names[0])
    assert result.outcomes == {"rotten": 3}
    assert len(result.rotten) == 1
    assert list(trusted(job).values()).count(False) == 3


def test_a_manifest_s_files_are_read_where_they_lie(job, tmp_path):
    put(job.folder, {"a.jpg": b"a"})
    manifest = tmp_path / "list.tsv"
    manifest.write_text(f"one\t{job.folder / 'a.jpg'}\n")
    add_root(job.catalog, os.fsencode(manifest), kind="manifest")
    one = Job(job.catalog, job.lease, job.space, manifest)
    one.run()
    (known,) = settled_files(job.catalog, slice_of(one, "one"), roots(one))
    assert known.path == os.fsencode(job.folder / "a.jpg")
    assert go(one, "one").outcomes == {"same": 1}


def ended(job: Job, report, *, kind: str = "maintenance", state: str = "done") -> None:
    finish_run(job.catalog, start_run(job.catalog, kind), state, report)


def rehashed(number: int, *, finished: bool = True):
    return {"rehash": {"slice": number, "finished": finished}}


def test_the_next_slice_follows_the_one_that_was_finished_last(job):
    assert next_slice(job.catalog) == 0
    ended(job, {"rehash": None})  # no root could be read
    assert next_slice(job.catalog) == 0
    ended(job, rehashed(0))
    assert next_slice(job.catalog) == 1
    ended(job, rehashed(1, finished=False), state="interrupted")
    ended(job, rehashed(7), kind="index")
    ended(job, {})
    ended(job, None)
    start_run(job.catalog, "maintenance")  # it runs yet, or was killed
    assert next_slice(job.catalog) == 1
    ended(job, rehashed(1), state="interrupted")  # in a later step
    assert next_slice(job.catalog) == 2
    ended(job, rehashed(SLICES - 1))
    assert next_slice(job.catalog) == 0


def missing(job: Job, *, for_s: float) -> None:
    with job.catalog.write() as conn:
        since = job.catalog.now(conn) - for_s
        conn.execute(update(File).where(File.state == "missing").values(missing_since=since))


def test_missing_files_are_pruned_page_by_page_after_their_grace(job, monkeypatch):
    monkeypatch.setattr(file_rows, "PAGE", 2)
    put(job.folder, {f"{i}.jpg": b"%d" % i for i in range(7)})
    job.run()
    for i in range(5):
        (job.folder / f"{i}.jpg").unlink()
    job.scan()
    missing(job, for_s=GRACE_S - 60)
    assert prune_root(job.catalog, job.lease, job.root) == 0
    missing(job, for_s=GRACE_S + 60)
    with job.catalog.write() as conn:
        ids = conn.execute(select(File.id).order_by(File.id)).scalars().all()
        row = {
            "stage": "read",
            "failure_class": "io",
            "message": "no",
            "transient": True,
            "first_at": 0.0,
            "last_at": 0.0,
            "run_id": job.lease.run_id,
        }
        conn.execute(insert(Failure), [{**row, "file_id": file_id} for file_id in ids])
    assert prune_root(job.catalog, job.lease, job.root) == 5
    assert sorted(ids_by_path(job)) == [b"5.jpg", b"6.jpg"]
    with job.catalog.read() as conn:
        left = conn.execute(select(Failure.file_id)).scalars().all()
    assert sorted(left) == sorted(ids_by_path(job).values())
    assert prune_root(job.catalog, job.lease, job.root) == 0


def test_a_root_that_is_being_scanned_is_not_pruned(job):
    put(job.folder, {"a.jpg": b"a", "b.jpg": b"b"})
    job.run()
    (job.folder / "a.jpg").unlink()
    job.scan()
    missing(job, for_s=GRACE_S + 60)
    other = start_run(job.catalog, "index")
    claim(job.catalog, other, "root", job.root.id)
    with pytest.raises(LeaseHeld):
        prune_root(job.catalog, job.lease, job.root)
    assert len(ids_by_path(job)) == 2
    finish_run(job.catalog, other, "done")
    assert prune_root(job.catalog, job.lease, job.root) == 1
    with job.catalog.read() as conn:
        assert conn.execute(select(Run.state).where(Run.id == other.run_id)).scalar() == "done"
