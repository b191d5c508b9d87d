import os
from pathlib import Path

import pytest
from sqlalchemy import select, update

from storage.catalog import Catalog
from storage.chunks import claim_chunk, give_back
from storage.commit import FailedItem, FileRead, commit_chunk
from storage.failures import list_failures, retry
from storage.leases import Lease, end_runs_of, finish_run, reap, start_run
from storage.scan import Signature
from storage.spaces import SpaceInfo
from storage.suspects import deaths, suspect_lost
from storage.tables import File, Run, Suspect
from tests.storage.job import Job, digest_of, part_of, put


@pytest.fixture
def job(catalog: Catalog, lease: Lease, space: SpaceInfo, tmp_path: Path) -> Job:
    """Return a job that has scanned nine pictures, two of them the same."""
    job = Job(catalog, lease, space, tmp_path / "photos")
    put(job.folder, {f"{n}.jpg": b"picture %d" % n for n in range(8)})
    put(job.folder, {"8.jpg": b"picture 0"})
    job.scan()
    return job


def next_run(job: Job) -> Lease:
    """Let the job's process die and its run be declared dead; go on with a new one."""
    with job.catalog.write() as conn:
        conn.execute(update(Run).where(Run.id == job.lease.run_id).values(pid=2**22 + 1))
    assert reap(job.catalog) == [job.lease.run_id]
    job.lease = start_run(job.catalog, "index")
    return job.lease


def suspects(catalog: Catalog) -> dict[int, int]:
    with catalog.read() as conn:
        return dict(conn.execute(select(Suspect.file_id, Suspect.deaths)).all())


def test_what_a_dead_run_had_in_work_is_suspect_and_nothing_else(job: Job) -> None:
    done = job.claim(limit=3)
    assert done is not None
    job.commit(done)
    taken = job.claim(limit=2, after=done.work[-1].file_id)
    back = job.claim(limit=2, after=taken.work[-1].file_id if taken else 0)
    assert taken is not None
    assert back is not None
    assert not any(work.suspect for work in taken.work)
    give_back(job.catalog, job.lease, back)
    dead = job.lease.run_id
    next_run(job)
    ids = [work.file_id for work in taken.work]
    assert suspects(job.catalog) == dict.fromkeys(ids, 1)
    assert deaths(job.catalog, [*ids, 99]) == dict.fromkeys(ids, 1)
    with job.catalog.read() as conn:
        assert set(conn.execute(select(Suspect.run_id)).scalars()) == {dead}


def test_each_death_counts_and_a_run_that_ended_by_itself_suspects_nothing(job: Job) -> None:
    chunk = job.claim(limit=2)
    next_run(job)
    again = job.claim(limit=1)
    next_run(job)
    assert chunk is not None
    assert again is not None
    first, second = (work.file_id for work in chunk.work)
    assert suspects(job.catalog) == {first: 2, second: 1}
    job.claim(limit=9)
    finish_run(job.catalog, job.lease, "failed")
    assert suspects(job.catalog) == {first: 2, second: 1}


def test_a_run_whose_flow_crashed_leaves_suspects_too(job: Job) -> None:
    lease = start_run(job.catalog, "index", flow_run="f")
    chunk = claim_chunk(job.catalog, lease, job.space, number=1, limit=2)
    assert end_runs_of(job.catalog, "f") == [lease.run_id]
    assert chunk is not None
    assert set(suspects(job.catalog)) == {work.file_id for work in chunk.work}


def test_a_sparing_claim_passes_suspects_and_another_takes_them_marked(job: Job) -> None:
    chunk = job.claim(limit=2)
    assert chunk is not None
    lease = next_run(job)
    passed: list[int] = []
    at = (job.catalog, lease, job.space)
    spared = claim_chunk(*at, number=1, limit=99, sparing=True, passed=passed)
    assert spared is not None
    assert passed == [work.file_id for work in chunk.work]
    assert not any(work.suspect for work in spared.work)
    assert len(spared.work) == 7
    taken = claim_chunk(*at, number=2, limit=99, among=passed)
    assert taken is not None
    assert [work.path for work in taken.work] == [work.path for work in chunk.work]
    assert all(work.suspect for work in taken.work)


def test_a_file_is_suspect_until_it_was_read_and_settled(job: Job) -> None:
    job.claim(limit=3)
    next_run(job)
    chunk = job.claim(limit=3)
    assert chunk is not None
    one, two, _ = chunk.work
    sig = Signature.of(os.stat(one.path))
    digest = digest_of(b"picture 0")
    commit_chunk(
        job.catalog,
        job.lease,
        job.space,
        chunk,
        reads=[FileRead(one.file_id, digest, sig, trusted=True)],
        failures=[FailedItem("read", "io", "no", True, two.file_id, None, None)],
        part=part_of([digest]),
    )
    assert set(suspects(job.catalog)) == {work.file_id for work in chunk.work[1:]}


@pytest.mark.parametrize("failure_class", ["crashed", "timeout", "memory"])
def test_poison_stays_suspect_by_its_content_when_it_is_armed(job: Job, failure_class: str) -> None:
    broken(job, failure_class)
    assert suspects(job.catalog) == {}
    assert job.claim(limit=9) is None
    put(job.folder, {"0-copy.jpg": b"picture 0"})
    job.scan()
    job.extract()
    assert retry(job.catalog) == 1
    assert retry(job.catalog) == 0
    chunk = job.claim(limit=9)
    assert chunk is not None
    assert len(chunk.work) == 3
    assert all(work.suspect for work in chunk.work)
    job.commit(chunk)  # now it can be decoded
    assert list_failures(job.catalog) == []
    assert job.claim(limit=9) is None


def test_an_ordinary_failure_that_is_armed_is_forgotten_and_no_suspect(job: Job) -> None:
    broken(job, "truncated")
    assert retry(job.catalog) == 1
    assert list_failures(job.catalog) == []
    chunk = job.claim(limit=9)
    assert chunk is not None
    assert not any(work.suspect for work in chunk.work)


def broken(job: Job, failure_class: str) -> None:
    """Let a run die, and the next one find that one content is the reason."""
    job.claim(limit=9)
    next_run(job)
    chunk = job.claim(limit=9)
    assert chunk is not None
    reads, digests = [], []
    for work in chunk.work:
        data = Path(os.fsdecode(work.path)).read_bytes()
        sig = Signature.of(os.stat(work.path))
        digests.append(digest_of(data))
        reads.append(FileRead(work.file_id, digests[-1], sig, trusted=True))
    bad = FailedItem(
        "decode", failure_class, "no", False, chunk.work[0].file_id, digests[0], reads[0].sig
    )
    commit_chunk(
        job.catalog,
        job.lease,
        job.space,
        chunk,
        reads=reads,
        failures=[bad],
        part=part_of(dict.fromkeys(digests[1:-1])),
    )


def test_what_was_lost_with_a_worker_is_suspect_while_its_run_lives(job: Job) -> None:
    chunk = job.claim(limit=2)
    assert chunk is not None
    ids = [work.file_id for work in chunk.work]
    suspect_lost(job.catalog, job.lease.run_id, ids)
    suspect_lost(job.catalog, job.lease.run_id, ids[:1])
    assert suspects(job.catalog) == {ids[0]: 2, ids[1]: 1}


def test_files_that_are_gone_are_forgotten_with_the_next_death(job: Job) -> None:
    chunk = job.claim(limit=2)
    assert chunk is not None
    next_run(job)
    ids = [work.file_id for work in chunk.work]
    with job.catalog.write() as conn:
        conn.execute(File.__table__.delete().where(File.id == ids[0]))
    job.claim(limit=1)
    next_run(job)
    assert suspects(job.catalog) == {ids[1]: 2}
