import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select, update

from storage.catalog import Catalog
from storage.chunks import Chunk, claim_chunk
from storage.commit import CommitResult, FailedItem, FileRead, commit_chunk
from storage.errors import LeaseLost, SpaceError
from storage.failures import list_failures
from storage.leases import Lease, finish_run, start_run
from storage.moving import remove_root
from storage.outcomes import Before, decide
from storage.pending import pending_counts
from storage.scan import Signature
from storage.spaces import SpaceInfo, drop_space, ensure_space
from storage.tables import Failure, File, Image, Part, Run, Space, Vector
from tests.storage.job import (
    NS,
    OLD_NS,
    Job,
    bad,
    digest_of,
    dump,
    part_of,
    put,
    rows_of,
    states,
)


@pytest.fixture
def job(catalog: Catalog, lease: Lease, space: SpaceInfo, tmp_path: Path) -> Job:
    folder = tmp_path / "photos"
    folder.mkdir()
    return Job(catalog, lease, space, folder)


def other_job(job: Job) -> Job:
    """Return a job into another space, which decodes in the same way."""
    space = ensure_space(
        job.catalog,
        name="other",
        spec={"dim": 8, "dtype": "float32", "decode_version": 1, "architecture": "other"},
        request={},
        key="other",
    )
    return replace(job, space=space, chunks=1_000)


def reads_of(chunk: Chunk) -> list[FileRead]:
    """Return what reading the chunk's files gives."""
    reads = []
    for work in chunk.work:
        with open(work.path, "rb") as file:
            sig = Signature.of(os.fstat(file.fileno()))
            reads.append(FileRead(work.file_id, digest_of(file.read()), sig, True))
    return reads


def claimed(job: Job, limit: int = 100) -> Chunk:
    chunk = job.claim(limit=limit)
    assert chunk is not None
    return chunk


def commit(
    job: Job,
    chunk: Chunk,
    reads: list[FileRead],
    failures: list[FailedItem] | None = None,
    digests: list[bytes] | None = None,
) -> CommitResult:
    return commit_chunk(
        job.catalog,
        job.lease,
        job.space,
        chunk,
        reads=reads,
        failures=failures or [],
        part=None if digests is None else part_of(digests),
    )


def next_row(job: Job) -> int:
    with job.catalog.read() as conn:
        query = select(Space.next_row).where(Space.id == job.space.id)
        return conn.execute(query).scalar_one()


def test_a_chunk_becomes_files_images_rows_and_a_part(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a", "b.jpg": b"b", "copy.jpg": b"a"})
    job.scan()
    chunk = claimed(job)
    reads = reads_of(chunk)
    part = part_of([digest_of(b"b"), digest_of(b"a")])
    result = commit_chunk(
        job.catalog, job.lease, job.space, chunk, reads=reads, failures=[], part=part
    )
    assert result == CommitResult(
        outcomes=Counter(extracted=2, copied=1),
        row_start=0,
        extracted=2,
        duplicates=0,
        failures_by_class=Counter(),
    )
    assert rows_of(job.catalog, job.space) == {digest_of(b"b"): 0, digest_of(b"a"): 1}
    assert next_row(job) == 2
    with job.catalog.read() as conn:
        row = conn.execute(select(*Part.__table__.c)).one()
        images = conn.execute(select(Image.digest, Image.size_bytes)).all()
        files = conn.execute(select(*File.__table__.c).order_by(File.path)).all()
    assert (row.name, row.state, row.row_start, row.row_end, row.n) == (part.name, "live", 0, 2, 2)
    assert (row.size_bytes, row.checksum, row.ids_checksum) == (100, "c" * 32, "d" * 32)
    assert (row.rows_checksum, row.replaced_at, row.facts) == (None, None, {"device": "cpu"})
    assert (row.run_id, row.space_id) == (job.lease.run_id, job.space.id)
    assert sorted(images) == sorted([(digest_of(b"a"), 1), (digest_of(b"b"), 1)])
    for file, read in zip(files, sorted(reads, key=lambda read: read.file_id), strict=True):
        hashed = (file.digest_size_bytes, file.digest_mtime_ns, file.digest_ctime_ns)
        assert Signature(*hashed, file.digest_inode) == read.sig
        assert file.trusted
    assert dump(job.catalog)["claims"] == []
    assert pending_counts(job.catalog, job.space).total == 0


def test_commit_order_is_row_order(job: Job) -> None:
    put(job.folder, {f"{i}.jpg": b"%d" % i for i in range(6)})
    job.scan()
    first, second = claimed(job, 3), claimed(job, 3)
    later = job.commit(second)
    earlier = job.commit(first)
    assert (later.row_start, earlier.row_start) == (0, 3)
    rows = rows_of(job.catalog, job.space)
    assert [rows[digest_of(b"%d" % i)] for i in range(6)] == [3, 4, 5, 0, 1, 2]


def test_many_runs_commit_at_once_and_rows_are_without_gap(
    job: Job, catalog: Catalog, space: SpaceInfo
) -> None:
    put(job.folder, {f"{i}.jpg": b"%d" % i for i in range(48)})
    job.scan()
    jobs = [replace(job, lease=start_run(catalog, "index")) for _ in range(4)]
    gate = threading.Barrier(len(jobs))

    def run(each: Job) -> Counter[str]:
        gate.wait(30)
        return each.extract(limit=5)

    with ThreadPoolExecutor(len(jobs)) as pool:
        outcomes = sum(pool.map(run, jobs), Counter[str]())
    assert outcomes == {"extracted": 48}
    assert sorted(rows_of(catalog, space).values()) == list(range(48))
    with catalog.read() as conn:
        parts = conn.execute(select(Part.row_start, Part.row_end).order_by(Part.id)).all()
    assert [part.row_start for part in parts] == [0, *(part.row_end for part in parts[:-1])]


def test_a_second_vector_of_an_image_is_dead_from_birth(job: Job) -> None:
    put(job.folder, {"a.jpg": b"same", "b.jpg": b"same", "c.jpg": b"other"})
    job.scan()
    mine, theirs = claimed(job, 1), claimed(job, 2)
    rival = replace(job, lease=start_run(job.catalog, "index"))
    same, other = digest_of(b"same"), digest_of(b"other")
    first = commit(job, mine, reads_of(mine), digests=[same])
    second = commit(rival, theirs, reads_of(theirs), digests=[same, other])
    assert (first.row_start, first.extracted, first.duplicates) == (0, 1, 0)
    assert (second.row_start, second.extracted, second.duplicates) == (1, 1, 1)
    assert second.outcomes == {"copied": 1, "extracted": 1}
    assert rows_of(job.catalog, job.space) == {same: 0, other: 2}
    assert next_row(job) == 3
    put(job.folder, {"d.jpg": b"next"})
    job.run()
    assert rows_of(job.catalog, job.space)[digest_of(b"next")] == 3


def test_a_part_may_hold_an_image_twice(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a"})
    job.scan()
    chunk = claimed(job)
    result = commit(job, chunk, reads_of(chunk), digests=[digest_of(b"a")] * 2)
    assert (result.extracted, result.duplicates) == (1, 1)
    assert rows_of(job.catalog, job.space) == {digest_of(b"a"): 0}
    assert next_row(job) == 2


def test_a_part_of_known_images_alone_is_entered_without_vectors(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a", "b.jpg": b"a"})
    job.scan()
    first, second = claimed(job, 1), claimed(job, 1)
    commit(job, first, reads_of(first), digests=[digest_of(b"a")])
    result = commit(job, second, reads_of(second), digests=[digest_of(b"a")])
    assert (result.extracted, result.duplicates, result.row_start) == (0, 1, 1)
    assert len(dump(job.catalog)["parts"]) == 2


def lose_lease(job: Job) -> None:
    with job.catalog.write() as conn:
        conn.execute(update(Run).where(Run.id == job.lease.run_id).values(token=""))


def test_a_run_that_was_declared_dead_commits_nothing(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a", "b.jpg": b"broken"})
    job.scan()
    chunk = claimed(job)
    lose_lease(job)
    before = dump(job.catalog)
    with pytest.raises(LeaseLost):
        job.commit(chunk)
    assert dump(job.catalog) == before


def test_a_commit_that_fails_in_its_midst_leaves_nothing(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a", "b.jpg": b"b"})
    job.scan()
    first, second = claimed(job, 1), claimed(job, 1)
    part = part_of([digest_of(b"a")], "taken")
    commit_chunk(
        job.catalog, job.lease, job.space, first, reads=reads_of(first), failures=[], part=part
    )
    before = dump(job.catalog)
    part = part_of([digest_of(b"b")], "taken")
    with pytest.raises(Exception, match=r"(?i)unique"):
        commit_chunk(
            job.catalog, job.lease, job.space, second, reads=reads_of(second), failures=[],
            part=part,
        )  # fmt: skip
    assert dump(job.catalog) == before


def test_a_part_must_belong_to_its_chunk(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a"})
    job.scan()
    chunk = claimed(job)
    reads = reads_of(chunk)
    before = dump(job.catalog)
    with pytest.raises(ValueError, match="1 digests of the part belong to no file"):
        commit(job, chunk, reads, digests=[digest_of(b"a"), digest_of(b"strange")])
    short = replace(part_of([digest_of(b"a")]), n=2)
    with pytest.raises(ValueError, match="2 vectors and 1 digests"):
        commit_chunk(job.catalog, job.lease, job.space, chunk, reads=reads, failures=[], part=short)
    nameless = FailedItem("decode", "x", "x", False, chunk.work[0].file_id, None, None)
    with pytest.raises(ValueError, match="about a digest"):
        commit(job, chunk, reads, [nameless])
    assert dump(job.catalog) == before


def test_a_dropped_space_takes_nothing(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a"})
    job.scan()
    chunk = claimed(job)
    other = start_run(job.catalog, "spaces")
    with job.catalog.write() as conn:
        conn.execute(delete(Space).where(Space.id == job.space.id))
    with pytest.raises(SpaceError, match="dropped meanwhile"):
        job.commit(chunk)
    assert rows_of(job.catalog, job.space) == {}
    finish_run(job.catalog, other, "done")


def test_touched_moved_copied_and_reused(job: Job) -> None:
    contents = {f"{name}.jpg": name.encode() for name in ("touch", "move", "copy", "edit", "swap")}
    put(job.folder, contents)
    put(job.folder, {"former.jpg": b"former"})
    assert job.run() == {"extracted": 6}
    rows = rows_of(job.catalog, job.space)
    (job.folder / "touch.jpg").touch()
    (job.folder / "move.jpg").rename(job.folder / "moved.jpg")
    put(job.folder, {"copied.jpg": b"copy", "edit.jpg": b"edited", "former.jpg": b"latter"})
    assert job.run() == {"touched": 1, "moved": 1, "copied": 1, "extracted": 2}
    assert b"move.jpg" not in states(job.catalog)
    # An image that no live file holds any more serves again without a forward pass.
    put(job.folder, {"again.jpg": b"former"})
    assert job.run() == {"reused": 1}
    after = rows_of(job.catalog, job.space)
    assert {digest: after[digest] for digest in rows} == rows
    assert len(after) == 8


def test_each_missing_file_serves_one_move(job: Job) -> None:
    put(job.folder, {"a.jpg": b"same", "b.jpg": b"same", "c.jpg": b"same"})
    job.run()
    (job.folder / "a.jpg").rename(job.folder / "x.jpg")
    (job.folder / "b.jpg").rename(job.folder / "y.jpg")
    put(job.folder, {"z.jpg": b"same"})
    assert job.run() == {"moved": 2, "copied": 1}
    names = [b"c.jpg", b"x.jpg", b"y.jpg", b"z.jpg"]
    assert states(job.catalog) == dict.fromkeys(names, "live")


def test_a_missing_file_moves_onto_a_file_that_was_there(job: Job) -> None:
    put(job.folder, {"a.jpg": b"one", "b.jpg": b"two", "c.jpg": b"three"})
    job.run()
    put(job.folder, {"b.jpg": b"one, now here"})
    put(job.folder, {"a.jpg": b"one, now here"})
    assert job.run() == {"extracted": 1, "copied": 1}
    (job.folder / "c.jpg").replace(job.folder / "a.jpg")
    assert job.run() == {"moved": 1}
    assert states(job.catalog) == {b"a.jpg": "live", b"b.jpg": "live"}


def test_two_files_that_swap_their_content_are_two_known_images(job: Job) -> None:
    put(job.folder, {"a.jpg": b"one", "b.jpg": b"two"})
    job.run()
    put(job.folder, {"a.jpg": b"two", "b.jpg": b"one"}, mtime_ns=OLD_NS + 1)
    # Neither was copied: once both are read, nobody else holds what they have.
    assert job.run() == {"reused": 2}


def test_a_move_forgets_the_failures_of_the_old_path(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a"})
    job.run()
    job.trouble = {os.fsencode(job.folder / "a.jpg"): ("permission", False)}
    put(job.folder, {"a.jpg": b"longer"})
    assert job.run() == {"failed": 1}
    (job.folder / "a.jpg").unlink()
    put(job.folder, {"b.jpg": b"a"})
    assert job.run() == {"moved": 1}
    assert dump(job.catalog)["failures"] == []
    assert states(job.catalog) == {b"b.jpg": "live"}


def test_another_space_extracts_again_and_counts_copies_as_reused(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a", "b.jpg": b"b", "copy.jpg": b"a"})
    job.run()
    other = other_job(job)
    assert other.extract() == {"extracted": 2, "reused": 1}
    assert rows_of(job.catalog, other.space) == {digest_of(b"a"): 0, digest_of(b"b"): 1}
    # A file that moved before the other space saw it is extracted there, and its old path goes.
    put(job.folder, {"c.jpg": b"c"})
    job.run()
    (job.folder / "c.jpg").rename(job.folder / "d.jpg")
    other.scan()
    assert other.extract() == {"extracted": 1}
    assert b"c.jpg" not in states(job.catalog)
    assert job.run() == {}


def test_an_untrusted_file_is_read_again_until_it_is_old_enough(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a"})
    job.untrusted = {os.fsencode(job.folder / "a.jpg")}
    assert job.run() == {"extracted": 1}
    assert job.run() == {"touched": 1}
    job.untrusted = set()
    assert job.run() == {"touched": 1}
    assert job.run() == {}


def test_an_interrupted_chunk_settles_its_files_and_the_images_stay_pending(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a", "b.jpg": b"b", "c.jpg": b"c"})
    job.scan()
    chunk = claimed(job)
    reads = reads_of(chunk)
    result = commit(job, chunk, reads[:2], digests=[digest_of(b"a")])
    assert result.outcomes == {"extracted": 1, "pending": 1}
    counts = pending_counts(job.catalog, job.space)
    assert (counts.to_read, counts.to_extract) == (1, 1)
    again = claimed(job)
    assert [work.digest for work in again.work] == [digest_of(b"b"), None]
    assert commit(job, again, reads_of(again)).outcomes == {"pending": 2}


def test_a_broken_picture_is_recorded_once_and_costs_nothing_later(job: Job) -> None:
    put(job.folder, {"a.jpg": b"broken", "b.jpg": b"good"})
    assert job.run() == {"failed": 1, "extracted": 1}
    assert job.run() == {}
    (info,) = list_failures(job.catalog)
    assert (info.stage, info.failure_class, info.attempts) == ("decode", "truncated", 1)
    (job.folder / "a.jpg").touch()
    assert job.run() == {"touched": 1}
    put(job.folder, {"copy.jpg": b"broken"})
    job.scan()
    result = job.commit(claimed(job))
    assert result.outcomes == {"failed": 1}
    assert result.failures_by_class == {"truncated": 1}
    (info,) = list_failures(job.catalog)
    assert (info.attempts, info.copies) == (1, 2)
    (job.folder / "a.jpg").rename(job.folder / "moved.jpg")
    assert job.run() == {"failed": 1}
    assert set(states(job.catalog)) == {b"b.jpg", b"copy.jpg", b"moved.jpg"}


def test_copies_of_a_broken_picture_fail_together(job: Job) -> None:
    put(job.folder, {"a.jpg": b"broken", "b.jpg": b"broken"})
    job.scan()
    result = job.commit(claimed(job))
    assert result.outcomes == {"failed": 2}
    assert result.failures_by_class == {"truncated": 2}
    # In another space of the same decode version neither is tried.
    assert other_job(job).extract() == {}


def test_two_files_broken_in_another_space(job: Job) -> None:
    put(job.folder, {"a.jpg": b"dark", "b.jpg": b"dark"})
    job.run()
    other = other_job(job)
    other.scan()
    assert other.extract() == {"failed": 2}
    assert len(list_failures(job.catalog, other.space)) == 1
    assert len(list_failures(job.catalog)) == 2


def test_a_passing_failure_is_tried_on_every_run_and_then_resolved(job: Job) -> None:
    put(job.folder, {"a.jpg": b"heavy"})
    assert job.run() == {"failed": 1}
    assert job.run() == {"failed": 1}
    (info,) = list_failures(job.catalog)
    assert (info.attempts, info.transient) == (2, True)
    assert info.last_at > info.first_at
    chunk = claimed(job)
    assert chunk.work[0].digest == digest_of(b"heavy")
    commit(job, chunk, reads_of(chunk), digests=[digest_of(b"heavy")])
    assert list_failures(job.catalog) == []


def test_a_vector_resolves_only_the_failures_of_its_space(job: Job) -> None:
    put(job.folder, {"a.jpg": b"dark"})
    job.run()
    other = other_job(job)
    other.run()
    with job.catalog.write() as conn:
        here = Failure.space_id == job.space.id
        conn.execute(update(Failure).where(here).values(transient=True))
    chunk = claimed(job)
    commit(job, chunk, reads_of(chunk), digests=[digest_of(b"dark")])
    with job.catalog.read() as conn:
        assert list(conn.execute(select(Failure.space_id)).scalars()) == [other.space.id]


def test_a_read_failure_waits_for_another_signature(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a", "b.jpg": b"b"})
    path = os.fsencode(job.folder / "a.jpg")
    job.trouble = {path: ("permission", False)}
    job.scan()
    result = job.commit(claimed(job))
    assert result.outcomes == {"failed": 1, "extracted": 1}
    assert result.failures_by_class == {"permission": 1}
    with job.catalog.read() as conn:
        row = conn.execute(select(*Failure.__table__.c)).one()
    sig = Signature(row.size_bytes, row.mtime_ns, row.ctime_ns, row.inode)
    assert sig == Signature.of(os.stat(path))
    assert (row.stage, row.digest, row.space_id, row.run_id) == ("read", b"", 0, job.lease.run_id)
    assert job.run() == {}
    (job.folder / "a.jpg").touch()
    assert job.run() == {"failed": 1}
    (info,) = list_failures(job.catalog)
    assert info.attempts == 2
    job.trouble = {}
    (job.folder / "a.jpg").chmod(0o600)
    assert job.run() == {"extracted": 1}
    assert list_failures(job.catalog) == []


def test_busy_is_counted_and_never_held_against_a_file(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a"})
    job.trouble = {os.fsencode(job.folder / "a.jpg"): ("busy", True)}
    job.scan()
    result = job.commit(claimed(job))
    assert result.outcomes == {"busy": 1}
    assert result.failures_by_class == {"busy": 1}
    assert dump(job.catalog)["failures"] == []
    assert dump(job.catalog)["claims"] == []
    job.trouble = {}
    assert job.run() == {"extracted": 1}


def test_a_file_that_was_forgotten_meanwhile_is_passed_over(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a", "b.jpg": b"b", "c.jpg": b"c"})
    job.scan()
    chunk = claimed(job)
    reads = reads_of(chunk)
    failed = FailedItem("read", "io", "x", True, chunk.work[2].file_id, None, None)
    remove_root(job.catalog, os.fsencode(job.folder))
    result = commit(job, chunk, reads[:2], [failed], digests=[digest_of(b"a")])
    assert result.outcomes == {"extracted": 1, "failed": 1, "pending": 1}
    assert result.extracted == 1
    after = dump(job.catalog)
    assert (after["files"], after["failures"], after["claims"]) == ([], [], [])


def test_a_chunk_without_a_part_takes_no_row(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a"})
    job.run()
    (job.folder / "a.jpg").touch()
    job.scan()
    chunk = claimed(job)
    result = commit(job, chunk, reads_of(chunk))
    assert (result.row_start, result.extracted, result.duplicates) == (1, 0, 0)
    assert next_row(job) == 1
    assert commit(job, chunk, []).outcomes == {}


def test_a_chunk_of_thousands_is_one_transaction(job: Job) -> None:
    n = 1_100
    put(job.folder, {f"{i:05}.jpg": b"%d" % i for i in range(n)})
    job.scan()
    assert job.commit(claimed(job, 8_192)).outcomes == {"extracted": n}
    for i in range(n):
        (job.folder / f"{i:05}.jpg").rename(job.folder / f"moved{i:05}.jpg")
    job.scan()
    assert job.commit(claimed(job, 8_192)).outcomes == {"moved": n}
    assert len(states(job.catalog)) == n
    assert sorted(rows_of(job.catalog, job.space).values()) == list(range(n))


def test_a_dropped_space_leaves_the_images(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a"})
    job.run()
    drop_space(job.catalog, job.lease, job.space.name)
    other = other_job(job)
    assert other.extract() == {"extracted": 1}


# A run of changes against a model: what is searchable is what lies there, and only new content
# costs a vector.

NAMES = ["a.jpg", "b.jpg", "c/d.jpg", "c/e.jpg"]
CONTENTS = [b"one", b"two", b"three", b"broken", b"dark"]
steps = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(NAMES), st.sampled_from(CONTENTS)),
    st.tuples(st.just("move"), st.sampled_from(NAMES), st.sampled_from(NAMES)),
    st.tuples(st.just("delete"), st.sampled_from(NAMES), st.just(b"")),
    st.tuples(st.just("run"), st.just(""), st.just(b"")),
)


def act(folder: Path, step: tuple[str, str, str | bytes], now_ns: int) -> None:
    what, name, with_ = step
    path = folder / name
    if what == "write" and isinstance(with_, bytes):
        put(folder, {name: with_}, mtime_ns=now_ns)
    elif what == "move" and isinstance(with_, str) and path.exists():
        (folder / with_).parent.mkdir(exist_ok=True)
        path.replace(folder / with_)
    elif what == "delete":
        path.unlink(missing_ok=True)


@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(st.lists(steps, max_size=12))
def test_any_history_ends_in_what_lies_there(
    job: Job, steps: list[tuple[str, str, str | bytes]]
) -> None:
    job.folder = job.folder.with_name(f"photos{job.chunks}")
    job.folder.mkdir(exist_ok=True)
    put(job.folder, {"stays.jpg": b"stays"})
    extracted_before = next_row(job)
    known = set(rows_of(job.catalog, job.space))
    seen: set[bytes] = set()
    for number, step in enumerate([*steps, ("run", "", b"")]):
        if step[0] != "run":
            act(job.folder, step, OLD_NS + number)
            continue
        job.run(limit=2)
        held = {path: path.read_bytes() for path in job.folder.rglob("*.jpg")}
        seen |= set(held.values())
        live = {os.path.relpath(path, job.folder).encode(): data for path, data in held.items()}
        with job.catalog.read() as conn:
            query = (
                select(File.path, Image.digest)
                .outerjoin(Image, Image.id == File.image_id)
                .where(File.state == "live", File.root_id == job.root.id)
            )
            found = dict(conn.execute(query).all())
        assert found == {path: digest_of(data) for path, data in live.items()}
        assert pending_counts(job.catalog, job.space).total == 0
        assert job.extract() == {}
    wanted = {digest_of(data) for data in seen if bad(data) is None}
    rows = rows_of(job.catalog, job.space)
    assert wanted <= set(rows)
    assert next_row(job) - extracted_before == len(wanted - known)
    with job.catalog.read() as conn:
        assert len(conn.execute(select(Vector.row)).all()) == next_row(job)


def before(**facts: object) -> Before:
    nothing = Before(held={}, settled=set(), missing={}, elsewhere=set(), served=set(), broken={})
    return replace(nothing, **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "reads", "extracted", "expected"),
    [
        ({"held": {1: None}}, [(1, b"x")], [b"x"], "extracted"),
        ({"held": {1: b"x"}, "served": [b"x"]}, [(1, b"x")], [], "touched"),
        ({"held": {1: b"x"}, "settled": [1], "served": [b"x"]}, [(1, b"x")], [], "reused"),
        ({"held": {1: b"x"}, "settled": [1]}, [(1, b"x")], [], "pending"),
        ({"held": {1: b"x"}, "broken": {b"x": "y"}}, [(1, b"x")], [], "touched"),
        ({"held": {1: b"o"}, "broken": {b"x": "y"}}, [(1, b"x")], [], "failed"),
        ({"held": {1: None}, "served": [b"x"]}, [(1, b"x")], [], "reused"),
        ({"held": {1: None}, "served": [b"x"], "elsewhere": [b"x"]}, [(1, b"x")], [], "copied"),
        ({"held": {1: None}, "elsewhere": [b"x"]}, [(1, b"x")], [], "pending"),
        (
            {"held": {1: None}, "served": [b"x"], "elsewhere": [b"x"], "missing": {b"x": [9]}},
            [(1, b"x")],
            [],
            "moved",
        ),
        ({"held": {}, "served": [b"x"]}, [(1, b"x")], [], "reused"),
        ({"held": {}, "missing": {b"x": [9]}}, [(1, b"x")], [], "pending"),
    ],
)
def test_the_outcome_of_one_file(
    facts: dict[str, object],
    reads: list[tuple[int, bytes]],
    extracted: list[bytes],
    expected: str,
) -> None:
    outcomes = decide(before(**facts), reads, failed={}, extracted=extracted, broken={})
    assert outcomes.of_file == {1: expected}
    assert outcomes.moved_from == ([9] if expected == "moved" else [])
    assert outcomes.known_failures == ({"y": 1} if expected == "failed" else {})


def test_a_copy_may_be_read_before_the_file_that_it_was_made_of() -> None:
    facts = before(held={1: None, 2: b"x"}, served=[b"x"])
    outcomes = decide(facts, [(1, b"x"), (2, b"x")], failed={}, extracted=[], broken={})
    assert outcomes.of_file == {1: "copied", 2: "touched"}


DIGESTS = st.sampled_from([b"p", b"q", b"r", b"s"])


@st.composite
def chunks(draw: st.DrawFn) -> dict[str, Any]:
    """Return what ``decide`` is told of a chunk of up to eight files and four contents."""
    ids = draw(st.lists(st.integers(1, 9), unique=True, min_size=1))
    reads = [(file_id, draw(DIGESTS)) for file_id in ids if draw(st.integers(0, 4))]
    unread = {file_id: draw(st.sampled_from(["busy", "failed"])) for file_id in ids}
    found = {digest: file_id for file_id, digest in reads}
    known = {digest: draw(st.sampled_from(["no", "served", "broken"])) for digest in b"pqrs"}
    tried = {
        digest: draw(st.sampled_from(["no", "extracted", "broken"]))
        for digest in found
        if known[digest[0]] != "served"
    }
    broken = {digest: "now" for digest, how in tried.items() if how == "broken"}
    return {
        "before": Before(
            held={file_id: draw(st.none() | DIGESTS) for file_id in ids if draw(st.integers(0, 4))},
            settled=draw(st.sets(st.sampled_from(ids))),
            missing={
                digest: [100 + n for n in range(10 * digest[0], 10 * digest[0] + copies)]
                for digest in draw(st.sets(DIGESTS))
                if (copies := draw(st.integers(1, 3)))
            },
            elsewhere=draw(st.sets(DIGESTS)),
            served={bytes([one]) for one, how in known.items() if how == "served"},
            broken={bytes([one]): "then" for one, how in known.items() if how == "broken"},
        ),
        "reads": reads,
        "failed": {
            **{file_id: how for file_id, how in unread.items() if file_id not in dict(reads)},
            **{found[digest]: "failed" for digest in broken},  # the failure names one file of it
        },
        "extracted": {digest for digest, how in tried.items() if how == "extracted"},
        "broken": broken,
    }


def fits(outcome: str, file_id: int, digest: bytes, told: dict[str, Any], moved: bool) -> bool:
    """Say whether an outcome is the one that the table of ``storage.outcomes`` gives a file."""
    before, others = told["before"], [one for one in told["reads"] if one[0] != file_id]
    has_vector = digest in before.served or digest in told["extracted"]
    same = before.held.get(file_id) == digest
    live = digest in before.elsewhere or any(
        other in before.held and held == digest for other, held in others
    )
    tried, known = digest in told["broken"], digest in before.broken
    for_vector = file_id in before.settled
    return {
        "extracted": digest in told["extracted"],
        "touched": same and (not for_vector if has_vector else known and not tried),
        "moved": has_vector and not same and moved,
        "copied": has_vector and not same and not moved and live,
        "reused": has_vector and (for_vector if same else not moved),
        "failed": not has_vector and (tried or (known and not same)),
        "pending": not has_vector and not tried and not known,
    }[outcome]


@given(chunks())
def test_each_file_has_the_one_outcome_that_the_table_gives_it(told: dict[str, Any]) -> None:
    outcomes = decide(**told)
    held, reads, failed = told["before"].held, dict(told["reads"]), told["failed"]
    assert outcomes.of_file.keys() == reads.keys() | failed.keys()
    assert {file_id: outcomes.of_file[file_id] for file_id in failed} == failed
    rest = {file_id: digest for file_id, digest in reads.items() if file_id not in failed}
    movers = Counter(d for file_id, d in reads.items() if file_id in held and held[file_id] != d)
    missing = told["before"].missing
    forgotten = [n for d in missing for n in missing[d][: movers[d]]]
    assert sorted(outcomes.moved_from) == sorted(forgotten)
    for file_id, digest in rest.items():
        earlier = [f for f, d in told["reads"] if d == digest and f in held and held[f] != d]
        turn = earlier.index(file_id) if file_id in earlier else 99
        moved = turn < len(missing.get(digest, ()))
        outcome = outcomes.of_file[file_id]
        assert fits(outcome, file_id, digest, told, moved), (file_id, outcome)
    made = Counter(reads[f] for f, outcome in outcomes.of_file.items() if outcome == "extracted")
    assert made == Counter(told["extracted"])  # one file for each vector
    words = Counter(outcomes.of_file[file_id] for file_id in rest)
    assert outcomes.known_failures.total() == words["failed"]
    for digest in set(rest.values()) - told["before"].elsewhere - told["extracted"]:
        known = [f for f, d in rest.items() if d == digest and outcomes.of_file[f] == "reused"]
        assert len([f for f in known if held.get(f, digest) != digest]) <= 1  # the rest are copies


def test_every_copy_of_a_picture_that_fails_again_has_failed(job: Job) -> None:
    put(job.folder, {"a.jpg": b"heavy", "b.jpg": b"heavy", "c.jpg": b"broken", "d.jpg": b"broken"})
    assert job.run() == {"failed": 4}
    assert job.run() == {"failed": 2}  # memory may suffice the next time
    assert job.run(limit=1) == {"failed": 2}
    put(job.folder, {"a.jpg": b"heavy", "d.jpg": b"broken"}, mtime_ns=OLD_NS + 5 * NS)
    assert job.run() == {"failed": 2, "touched": 1}


def test_a_file_that_is_forgotten_while_it_is_read_has_its_outcome_too(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a", "b.jpg": b"b", "c.jpg": b"b"})
    job.scan()
    chunk = claimed(job)
    with job.catalog.write() as conn:
        conn.execute(delete(File).where(File.id == chunk.work[1].file_id))
    assert job.commit(chunk).outcomes == {"extracted": 2, "copied": 1}


def test_a_claim_of_another_run_is_not_dropped(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a", "b.jpg": b"b"})
    job.scan()
    mine = claimed(job, 1)
    other = start_run(job.catalog, "index")
    theirs = claim_chunk(job.catalog, other, job.space, number=mine.number, limit=9)
    assert theirs is not None
    job.commit(mine)
    assert [row[2] for row in dump(job.catalog)["claims"]] == [theirs.work[0].file_id]
