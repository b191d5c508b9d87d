import hashlib
import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, select, update

from storage.catalog import Catalog
from storage.changes import Change, Reason
from storage.chunks import Chunk, claim_chunk, give_back, pending_elsewhere
from storage.errors import LeaseLost
from storage.files import apply_changes
from storage.leases import Lease, finish_run, start_run
from storage.pending import Pending, Scope, known_digest, pending_counts
from storage.roots import RootInfo, add_root
from storage.scan import FileStat, Signature
from storage.spaces import SpaceInfo
from storage.tables import Claim, Failure, File, Image, Root, Run, Vector
from tests.storage.copies import other_space
from tests.storage.job import Job, put

SIGS = [Signature(i, i, i, i) for i in range(1, 4)]


def enter(catalog: Catalog, folder: Path, n: int, start: int = 0) -> RootInfo:
    """Enter files that nobody will open."""
    folder.mkdir(exist_ok=True)
    root = add_root(catalog, os.fsencode(folder))
    names = [b"%06d.jpg" % i for i in range(start, start + n)]
    stats = [FileStat(name, SIGS[0]) for name in names]
    new = [Change(stat.path, Reason.NEW, None, stat) for stat in stats]
    apply_changes(catalog, root, new)
    return root


def claims(catalog: Catalog) -> list[tuple[int, int]]:
    query = select(Claim.subject_id, Claim.space_id).where(Claim.kind == "file")
    with catalog.read() as conn:
        return sorted((row[0], row[1]) for row in conn.execute(query))


@pytest.fixture
def job(catalog: Catalog, lease: Lease, space: SpaceInfo, tmp_path: Path) -> Job:
    folder = tmp_path / "photos"
    folder.mkdir()
    return Job(catalog, lease, space, folder)


def test_new_files_are_claimed_in_order_and_once(job: Job, tmp_path: Path) -> None:
    put(job.folder, {f"{i}.jpg": b"%d" % i for i in range(5)})
    job.scan()
    size = sum(path.stat().st_size for path in job.folder.iterdir())
    assert pending_counts(job.catalog, job.space) == Pending(5, 0, 5, size)
    first, second = job.claim(limit=3), job.claim(limit=3)
    assert job.claim(limit=3) is None
    assert first is not None
    assert second is not None
    assert (first.number, first.space_id) == (1, job.space.id)
    work = [*first.work, *second.work]
    assert [len(first.work), len(second.work)] == [3, 2]
    assert [os.path.basename(item.path) for item in work] == [b"%d.jpg" % i for i in range(5)]
    assert all(os.path.isabs(item.path) and item.digest is None for item in work)
    assert [item.size_bytes for item in work] == [1] * 5
    # Claims do not change what is pending, and they are those of one space.
    assert pending_counts(job.catalog, job.space).total == 5
    other = other_space(job.catalog)
    chunk = claim_chunk(job.catalog, job.lease, other, number=9, limit=9)
    assert chunk is not None
    assert chunk.work == tuple(work)


def test_the_cursor_lets_a_run_try_each_file_once(job: Job) -> None:
    put(job.folder, {f"{i}.jpg": b"%d" % i for i in range(3)})
    busy = os.fsencode(job.folder / "1.jpg")
    job.trouble = {busy: ("busy", True)}
    assert job.run(limit=1) == {"extracted": 2, "busy": 1}
    assert job.extract() == {"busy": 1}
    job.trouble = {}
    assert job.extract() == {"extracted": 1}


def test_known_images_are_pending_in_a_new_space_with_their_digest(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a", "copy.jpg": b"a", "b.jpg": b"b", "broken.jpg": b"broken"})
    job.run()
    assert pending_counts(job.catalog, job.space) == Pending(0, 0, 0, 0)
    put(job.folder, {"new.jpg": b"new"})
    job.scan()
    other = other_space(job.catalog)
    # The other space decodes in another way, so the broken picture is worth a try there.
    assert pending_counts(job.catalog, other) == Pending(1, 3, 5, 1 + 1 + 1 + 6 + 3)
    chunk = claim_chunk(job.catalog, job.lease, other, number=50, limit=9)
    assert chunk is not None
    digests = {os.path.basename(work.path): work.digest for work in chunk.work}
    assert digests == {
        b"a.jpg": hashlib.sha256(b"a").digest(),
        b"copy.jpg": hashlib.sha256(b"a").digest(),
        b"b.jpg": hashlib.sha256(b"b").digest(),
        b"broken.jpg": hashlib.sha256(b"broken").digest(),
        b"new.jpg": None,
    }


def test_roots_and_sub_paths_restrict_what_is_claimed(job: Job, tmp_path: Path) -> None:
    put(job.folder, {"a/1.jpg": b"1", "a-b/2.jpg": b"2", "a.jpg": b"3", "b/4.jpg": b"4"})
    job.scan()
    put(tmp_path / "second", {"a/5.jpg": b"5"})
    second = replace(job, folder=tmp_path / "second")
    second.scan()
    one, two = job.root.id, second.root.id

    def names(*places: tuple[int, bytes]) -> list[bytes]:
        scope = Scope(places)
        assert bool(scope) == bool(places)
        total = pending_counts(job.catalog, job.space, scope).total
        chunk = claim_chunk(job.catalog, job.lease, job.space, number=70, limit=9, scope=scope)
        if chunk:
            give_back(job.catalog, job.lease, chunk)
        work = chunk.work if chunk else ()
        assert total == len(work)
        return sorted(os.path.basename(item.path) for item in work)

    assert names() == []
    assert names((one, b"")) == [b"1.jpg", b"2.jpg", b"4.jpg", b"a.jpg"]
    assert names((one, b"a")) == [b"1.jpg"]
    assert names((one, b"a.jpg"), (one, b"b"), (two, b"")) == [b"4.jpg", b"5.jpg", b"a.jpg"]
    assert names((one, b""), (two, b"")) == [b"1.jpg", b"2.jpg", b"4.jpg", b"5.jpg", b"a.jpg"]


def test_what_is_given_back_is_pending_for_everyone(job: Job, catalog: Catalog) -> None:
    root = enter(catalog, job.folder, 4)
    assert root.id
    chunk, second = job.claim(limit=2), job.claim(limit=2)
    assert chunk is not None
    assert second is not None
    other = start_run(catalog, "index")
    assert pending_elsewhere(catalog, job.lease, job.space) == 0
    assert pending_elsewhere(catalog, other, job.space) == 4
    assert pending_elsewhere(catalog, other, other_space(catalog)) == 0
    assert pending_elsewhere(catalog, other, job.space, Scope(((job.root.id, b""),))) == 4
    assert pending_elsewhere(catalog, other, job.space, Scope(((job.root.id + 1, b""),))) == 0
    give_back(catalog, other, chunk)  # not its own: stays
    assert len(claims(catalog)) == 4
    give_back(catalog, job.lease, chunk)
    assert claims(catalog) == [(work.file_id, job.space.id) for work in second.work]
    again = claim_chunk(catalog, other, job.space, number=1, limit=9)
    assert again is not None
    assert again.work == chunk.work
    finish_run(catalog, job.lease, "done")
    assert pending_elsewhere(catalog, other, job.space) == 0


def test_whoever_gives_back_waits_for_those_who_declare_the_run_dead(
    job: Job, catalog: Catalog
) -> None:
    enter(catalog, job.folder, 3)
    chunk = job.claim(limit=3)
    assert chunk is not None
    crashed = update(Run).where(Run.id == job.lease.run_id).values(state="crashed", token="")
    giving = threading.Thread(target=give_back, args=(catalog, job.lease, chunk))
    with catalog.write() as conn:
        conn.execute(crashed)
        giving.start()
        giving.join(0.5)
        assert giving.is_alive()
        conn.execute(delete(Claim).where(Claim.run_id == job.lease.run_id))
    giving.join(20)
    assert not giving.is_alive()
    assert claims(catalog) == []
    give_back(catalog, job.lease, chunk)  # nothing to say: the claims went with the lease


def test_a_run_that_was_declared_dead_claims_nothing(job: Job, catalog: Catalog) -> None:
    enter(catalog, job.folder, 1)
    with catalog.write() as conn:
        conn.execute(update(Run).values(token=""))
    with pytest.raises(LeaseLost):
        job.claim()
    assert claims(catalog) == []


def test_a_chunk_passes_over_what_others_took_meanwhile(
    job: Job, catalog: Catalog, space: SpaceInfo
) -> None:
    enter(catalog, job.folder, 6)
    other = start_run(catalog, "index")

    class Slow(Catalog):
        """A catalog whose writer comes just after another run's."""

        def write(self) -> Any:
            if not taken:
                taken.append(claim_chunk(catalog, other, space, number=1, limit=4))
            return super().write()

    taken: list[Chunk | None] = []
    slow = Slow(catalog.home, catalog.engine, catalog.store_id, writable=True)
    chunk = claim_chunk(slow, job.lease, space, number=1, limit=4)
    assert chunk is not None
    assert taken[0] is not None
    ids = [work.file_id for work in (*taken[0].work, *chunk.work)]
    assert len(set(ids)) == len(ids) == 6
    assert len(chunk.work) == 2


@pytest.mark.parametrize("limit", [1, 7, 500])
def test_four_runs_share_the_work_and_never_a_file(
    catalog: Catalog, space: SpaceInfo, tmp_path: Path, limit: int
) -> None:
    n = 500 if limit > 1 else 40
    enter(catalog, tmp_path / "photos", n)
    leases = [start_run(catalog, "index") for _ in range(4)]
    gate = threading.Barrier(len(leases))

    def work(lease: Lease) -> list[int]:
        mine: list[int] = []
        gate.wait(30)
        number, after = 0, 0
        while chunk := claim_chunk(
            catalog, lease, space, number=number, limit=limit, after_file_id=after
        ):
            assert 0 < len(chunk.work) <= limit
            mine += [work.file_id for work in chunk.work]
            number, after = number + 1, mine[-1]
        return mine

    with ThreadPoolExecutor(len(leases)) as pool:
        shares = list(pool.map(work, leases))
    taken = sorted(file_id for share in shares for file_id in share)
    with catalog.read() as conn:
        assert taken == list(conn.execute(select(File.id).order_by(File.id)).scalars())
    assert claims(catalog) == [(file_id, space.id) for file_id in taken]


def test_known_digest_says_what_a_space_knows(job: Job) -> None:
    put(job.folder, {"a.jpg": b"a", "b.jpg": b"broken", "d.jpg": b"dark", "h.jpg": b"heavy"})
    job.run()
    other = other_space(job.catalog)

    def said(space: SpaceInfo) -> list[str]:
        contents = (b"a", b"broken", b"dark", b"heavy", b"never seen")
        digests = [hashlib.sha256(data).digest() for data in contents]
        return [known_digest(job.catalog, space, digest) for digest in digests]

    assert said(job.space) == ["vector", "failed", "failed", "unknown", "unknown"]
    assert said(other) == ["unknown"] * 5


def test_a_manifest_s_files_are_opened_where_they_lie(job: Job, tmp_path: Path) -> None:
    put(tmp_path / "data", {"one.jpg": b"1"})
    (tmp_path / "list.csv").write_text("id,path\nx,data/one.jpg\n")
    root = add_root(job.catalog, os.fsencode(tmp_path / "list.csv"))
    seen = FileStat(b"x", SIGS[0], os.fsencode(tmp_path / "data" / "one.jpg"))
    apply_changes(job.catalog, root, [Change(b"x", Reason.NEW, None, seen)])
    chunk = job.claim()
    assert chunk is not None
    assert chunk.work[0].path == os.fsencode(tmp_path / "data" / "one.jpg")


def test_counting_what_is_pending_is_quick(
    catalog: Catalog, space: SpaceInfo, tmp_path: Path
) -> None:
    import time

    enter(catalog, tmp_path / "photos", 10_000)
    started = time.monotonic()
    assert pending_counts(catalog, space).to_read == 10_000
    assert time.monotonic() - started < 2


# The query against an oracle: rows of every kind, and a loop that reads like the definition.

DIGESTS = [bytes([i]) * 32 for i in range(3)]


@dataclass(frozen=True)
class Row:
    """One file: its state, what it holds, and whether somebody has claimed it."""

    state: str
    seen: Signature
    image: int | None
    hashed: Signature | None
    trusted: bool
    claimed: bool


@dataclass(frozen=True)
class Bad:
    """One failure; ``about`` is the number of a file or of a digest."""

    stage: str
    about: int
    transient: bool
    here: bool
    """Of this decode version and space, else of others."""
    sig: Signature


sigs = st.sampled_from(SIGS[:2])
files = st.builds(
    Row,
    st.sampled_from(["live", "live", "live", "missing", "excluded"]),
    sigs,
    st.none() | st.integers(0, 2),
    st.none() | sigs,
    st.booleans(),
    st.booleans(),
)
failures = st.builds(
    Bad,
    st.sampled_from(["read", "decode", "forward"]),
    st.integers(0, 2),
    st.booleans(),
    st.booleans(),
    sigs,
)


def oracle(rows: list[Row], bads: list[Bad], vectors: set[int]) -> tuple[set[int], set[int]]:
    """Return the indexes of the pending files: to be read, and to be extracted only."""
    to_read, to_extract = set(), set()
    for i, row in enumerate(rows):
        if row.state != "live":
            continue
        if any(
            b.stage == "read" and b.about == i and not b.transient and b.sig == row.seen
            for b in bads
        ):
            continue  # fmt: skip
        if row.image is None or row.hashed != row.seen or not row.trusted:
            to_read.add(i)
            continue
        hopeless = any(
            b.stage != "read" and b.about == row.image and b.here and not b.transient for b in bads
        )
        if row.image not in vectors and not hopeless:
            to_extract.add(i)
    return to_read, to_extract


def prefixed(prefix: str, sig: Signature | None) -> dict[str, Any]:
    names = ("size_bytes", "mtime_ns", "ctime_ns", "inode")
    return {prefix + name: getattr(sig, name) if sig else None for name in names}


class World:
    """A catalog whose rows are written by hand, for any number of examples."""

    def __init__(self, catalog: Catalog, lease: Lease, space: SpaceInfo, root: RootInfo) -> None:
        self.catalog, self.lease, self.space, self.root = catalog, lease, space, root
        self.other = start_run(catalog, "index")

    def write(self, rows: list[Row], bads: list[Bad], vectors: set[int]) -> None:
        with self.catalog.write() as conn:
            for table in (Claim, Failure, Vector, File, Image):
                conn.execute(delete(table))
            for i, digest in enumerate(DIGESTS):
                values = {"id": i + 1, "digest": digest, "size_bytes": 1, "first_seen_at": 0.0}
                conn.execute(insert(Image).values(values))
            for i, row in enumerate(rows):
                conn.execute(insert(File).values(self._file(i, row)))
                if row.claimed:
                    conn.execute(insert(Claim).values(self._claim(i)))
            for image in vectors:
                values = {"space_id": self.space.id, "image_id": image + 1, "row": image}
                conn.execute(insert(Vector).values(values))
            keys = {self._key(bad): bad for bad in bads}
            for key, bad in keys.items():
                conn.execute(insert(Failure).values(self._failure(key, bad)))

    def _file(self, i: int, row: Row) -> dict[str, Any]:
        return {
            "id": i + 1,
            "root_id": self.root.id,
            "path": b"%d" % i,
            "display": str(i),
            "state": row.state,
            "first_seen_at": 0.0,
            "image_id": None if row.image is None else row.image + 1,
            "trusted": row.trusted,
            **prefixed("seen_", row.seen),
            **prefixed("digest_", row.hashed),
        }

    def _claim(self, i: int) -> dict[str, Any]:
        where = {"kind": "file", "space_id": self.space.id, "subject_id": i + 1}
        return {**where, "run_id": self.other.run_id, "chunk": 1}

    def _key(self, bad: Bad) -> tuple[str, int, bytes, int, int]:
        if bad.stage == "read":
            return "read", bad.about + 1, b"", 0, 0
        digest = DIGESTS[bad.about]
        if bad.stage == "decode":
            return "decode", 0, digest, 0, self.space.decode_version + (not bad.here)
        return "forward", 0, digest, self.space.id + (not bad.here), 0

    def _failure(self, key: tuple[str, int, bytes, int, int], bad: Bad) -> dict[str, Any]:
        names = ("stage", "file_id", "digest", "space_id", "decode_version")
        about = dict(zip(names, key, strict=True))
        sig = prefixed("", bad.sig if bad.stage == "read" else None)
        facts = {"failure_class": "x", "message": "x", "first_at": 0.0, "last_at": 0.0}
        return {**about, **sig, **facts, "transient": bad.transient, "run_id": "r"}

    def distinct(self, bads: list[Bad]) -> list[Bad]:
        """Return the failures as they are recorded: the last one about the same."""
        return list({self._key(bad): bad for bad in bads}.values())


@pytest.fixture
def world(catalog: Catalog, lease: Lease, space: SpaceInfo, tmp_path: Path) -> World:
    return World(catalog, lease, space, add_root(catalog, os.fsencode(tmp_path)))


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    rows=st.lists(files, min_size=1, max_size=5),
    bads=st.lists(failures, max_size=6),
    vectors=st.sets(st.integers(0, 2)),
)
def test_pending_is_what_its_definition_says(
    world: World, rows: list[Row], bads: list[Bad], vectors: set[int]
) -> None:
    world.write(rows, bads, vectors)
    to_read, to_extract = oracle(rows, world.distinct(bads), vectors)
    counts = pending_counts(world.catalog, world.space)
    assert counts.to_read == len(to_read)
    assert counts.to_extract == len({rows[i].image for i in to_extract})
    assert counts.total == len(to_read | to_extract)
    assert counts.bytes == sum(rows[i].seen.size_bytes for i in to_read | to_extract)
    chunk = claim_chunk(world.catalog, world.lease, world.space, number=1, limit=10)
    work = chunk.work if chunk else ()
    free = sorted(i for i in to_read | to_extract if not rows[i].claimed)
    assert [item.file_id - 1 for item in work] == free
    for item in work:
        image = rows[item.file_id - 1].image
        expected = None if item.file_id - 1 in to_read or image is None else DIGESTS[image]
        assert item.digest == expected


def test_the_oracle_meets_every_kind_of_row() -> None:
    """Hold the oracle against cases that a person has worked out."""
    live = Row("live", SIGS[0], 0, SIGS[0], True, False)
    rows = [
        live,
        replace(live, image=None, hashed=None),
        replace(live, hashed=SIGS[1]),
        replace(live, trusted=False),
        replace(live, state="missing", image=None),
        replace(live, image=1),
        replace(live, image=2),
    ]
    bads = [Bad("decode", 2, False, True, SIGS[0]), Bad("read", 1, False, True, SIGS[0])]
    assert oracle(rows, [], {0}) == ({1, 2, 3}, {5, 6})
    assert oracle(rows, bads, {0}) == ({2, 3}, {5})
    assert Counter(row.state for row in rows) == {"live": 6, "missing": 1}
    assert Root.__tablename__ == "roots"
