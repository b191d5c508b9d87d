"""Known images are in one chunk at a time, whoever works on it."""

import itertools
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, func, select, update

from storage.catalog import Catalog
from storage.chunks import Chunk, claim_chunk, give_back, pending_elsewhere, still_claimed
from storage.commit import FailedItem, FileRead, commit_chunk
from storage.leases import Lease, end_runs_of, finish_run, start_run
from storage.moving import remove_root
from storage.pending import Scope, known_digest, pending_counts
from storage.runs import claim
from storage.spaces import SpaceInfo
from storage.tables import Claim, File, Image, Space, Vector
from tests.conftest import OpenCatalog
from tests.storage.copies import SIG, digest, enter_copies, other_space, root_at
from tests.storage.job import digest_of, part_of


def claims(catalog: Catalog, kind: str) -> list[tuple[int, int]]:
    """Return subject and chunk of all claims of a kind."""
    query = select(Claim.subject_id, Claim.chunk).where(Claim.kind == kind)
    with catalog.read() as conn:
        return sorted((row[0], row[1]) for row in conn.execute(query))


def image_id(catalog: Catalog, image: int) -> int:
    query = select(Image.id).where(Image.digest == digest(image))
    with catalog.read() as conn:
        return conn.execute(query).scalar_one()


def ids(chunk: Chunk | None) -> list[int]:
    return [work.file_id for work in chunk.work] if chunk else []


def commit(
    catalog: Catalog, lease: Lease, space: SpaceInfo, chunk: Chunk, *, fail: bool = False
) -> int:
    """Read and extract a chunk without a disk; return how many vectors it made.

    Where the bytes are not known, no two files hold the same.
    """
    reads = [
        FileRead(work.file_id, work.digest or digest_of(b"file %d" % work.file_id), SIG, True)
        for work in chunk.work
    ]
    first = {read.digest: read.file_id for read in reads}
    unknown = [item for item in first if known_digest(catalog, space, item) == "unknown"]
    failures = [
        FailedItem("decode", "truncated", "no", False, first[item], item, SIG)
        for item in unknown
        if fail
    ]
    commit_chunk(
        catalog,
        lease,
        space,
        chunk,
        reads=reads,
        failures=failures,
        part=part_of(unknown) if unknown and not fail else None,
    )
    return 0 if fail else len(unknown)


@pytest.fixture
def files(catalog: Catalog, tmp_path: Path) -> list[int]:
    """Return nine files: of images 1 to 3 in turn, and two that were never read."""
    root = root_at(catalog, tmp_path / "photos")
    return enter_copies(catalog, root, [1, 2, 1, 3, None, 1, 2, 3, None])


def test_a_file_waits_while_its_image_is_in_another_chunk(
    catalog: Catalog, lease: Lease, space: SpaceInfo, files: list[int]
) -> None:
    passed: list[int] = []
    first = claim_chunk(catalog, lease, space, number=1, limit=2, passed=passed)
    assert ids(first) == files[:2]
    assert passed == []
    second = claim_chunk(
        catalog, lease, space, number=2, limit=2, after_file_id=files[1], passed=passed
    )
    assert ids(second) == [files[3], files[4]]
    assert passed == [files[2]]
    third = claim_chunk(
        catalog, lease, space, number=3, limit=9, after_file_id=files[4], passed=passed
    )
    assert ids(third) == [files[8]]
    assert passed == [files[i] for i in (2, 5, 6, 7)]
    has = {1: 1, 2: 1, 3: 2}
    assert dict(claims(catalog, "image")) == {image_id(catalog, i): has[i] for i in has}
    assert len(claims(catalog, "file")) == 5


def test_copies_are_taken_together_in_one_chunk(
    catalog: Catalog, lease: Lease, space: SpaceInfo, files: list[int]
) -> None:
    passed: list[int] = []
    chunk = claim_chunk(catalog, lease, space, number=1, limit=99, passed=passed)
    assert ids(chunk) == files
    assert passed == []
    assert chunk is not None
    assert [work.digest for work in chunk.work if work.file_id in (files[0], files[4])] == [
        digest(1),
        None,
    ]
    assert [number for _, number in claims(catalog, "image")] == [1, 1, 1]


def test_what_was_passed_is_tried_among_itself(
    catalog: Catalog, lease: Lease, space: SpaceInfo, files: list[int]
) -> None:
    passed: list[int] = []
    first = claim_chunk(catalog, lease, space, number=1, limit=2, passed=passed)
    rest = claim_chunk(
        catalog, lease, space, number=2, limit=99, after_file_id=files[1], passed=passed
    )
    assert first is not None
    assert rest is not None
    assert passed == [files[2], files[5], files[6]]
    again: list[int] = []
    shuffled = [*reversed(passed), *passed]
    assert not claim_chunk(catalog, lease, space, number=3, limit=9, among=shuffled, passed=again)
    assert again == passed
    # Image 1 gets no vector: its other files are left to be tried, and those of image 2 are done.
    give_back(catalog, lease, first)
    second = claim_chunk(catalog, lease, space, number=4, limit=1, after_file_id=files[0])
    assert ids(second) == [files[1]]
    assert second is not None
    assert commit(catalog, lease, space, second) == 1
    more: list[int] = []
    chunk = claim_chunk(catalog, lease, space, number=5, limit=1, among=passed, passed=more)
    assert ids(chunk) == [files[2]]
    assert not claim_chunk(
        catalog,
        lease,
        space,
        number=6,
        limit=9,
        among=passed,
        after_file_id=files[2],
        passed=more,
    )
    assert more == [files[5]]
    assert not claim_chunk(catalog, lease, space, number=7, limit=9, among=[])


def test_more_files_can_be_tried_among_themselves_than_a_statement_takes(
    catalog: Catalog, lease: Lease, space: SpaceInfo, tmp_path: Path
) -> None:
    some = enter_copies(catalog, root_at(catalog, tmp_path / "photos"), [None] * 1_300)
    among = random.Random(0).sample(some, 1_200)
    chunk = claim_chunk(catalog, lease, space, number=1, limit=1_100, among=among)
    assert ids(chunk) == sorted(among)[:1_100]
    rest = claim_chunk(
        catalog, lease, space, number=2, limit=99, among=among, after_file_id=ids(chunk)[-1]
    )
    assert ids(rest) == sorted(among)[1_100:1_199]


def test_images_are_claimed_in_their_space_only(
    catalog: Catalog, lease: Lease, space: SpaceInfo, files: list[int]
) -> None:
    other = other_space(catalog)
    assert ids(claim_chunk(catalog, lease, space, number=1, limit=2)) == files[:2]
    assert ids(claim_chunk(catalog, lease, other, number=1, limit=99)) == files
    chunk = claim_chunk(catalog, lease, space, number=2, limit=99, after_file_id=files[1])
    assert ids(chunk) == [files[i] for i in (3, 4, 7, 8)]


def test_a_changed_file_does_not_wait_for_the_image_that_it_held(
    catalog: Catalog, lease: Lease, space: SpaceInfo, files: list[int]
) -> None:
    with catalog.write() as conn:
        conn.execute(update(File).where(File.id == files[2]).values(seen_inode=99))
    assert ids(claim_chunk(catalog, lease, space, number=1, limit=2)) == files[:2]
    chunk = claim_chunk(catalog, lease, space, number=2, limit=1, after_file_id=files[1])
    assert chunk is not None
    assert [(work.file_id, work.digest) for work in chunk.work] == [(files[2], None)]
    assert [number for _, number in claims(catalog, "image")] == [1, 1]


END: dict[str, Any] = {
    "commit": commit,
    "failure": lambda *args: commit(*args, fail=True),
    "give_back": lambda catalog, lease, space, chunk: give_back(catalog, lease, chunk),
    "finish": lambda catalog, lease, space, chunk: finish_run(catalog, lease, "done"),
    "hook": lambda catalog, lease, space, chunk: end_runs_of(catalog, "flow-1"),
}


@pytest.mark.parametrize("end", END)
def test_with_the_chunk_go_its_claims_of_both_kinds_and_no_others(
    catalog: Catalog, space: SpaceInfo, files: list[int], end: str
) -> None:
    lease, neighbour = start_run(catalog, "index", "flow-1"), start_run(catalog, "index")
    chunk = claim_chunk(catalog, lease, space, number=1, limit=2)
    theirs = claim_chunk(catalog, neighbour, space, number=1, limit=2, after_file_id=files[2])
    elsewhere = claim_chunk(catalog, neighbour, other_space(catalog), number=1, limit=2)
    assert chunk is not None
    assert ids(theirs) == [files[3], files[4]]
    assert ids(elsewhere) == files[:2]
    assert len(claims(catalog, "image")) == 2 + 1 + 2
    END[end](catalog, lease, space, chunk)
    assert len(claims(catalog, "image")) == 1 + 2
    assert sorted(file_id for file_id, _ in claims(catalog, "file")) == sorted(
        ids(theirs) + ids(elsewhere)
    )


def test_what_is_left_of_a_chunk_is_what_is_still_claimed(
    catalog: Catalog, lease: Lease, space: SpaceInfo, files: list[int]
) -> None:
    first = claim_chunk(catalog, lease, space, number=1, limit=2)
    second = claim_chunk(catalog, lease, space, number=2, limit=2, after_file_id=files[3])
    assert first is not None
    assert second is not None
    assert still_claimed(catalog, lease, first) == first
    assert still_claimed(catalog, start_run(catalog, "index"), first) is None
    assert still_claimed(catalog, lease, replace(first, number=2)) is None
    assert still_claimed(catalog, lease, replace(first, space_id=99)) is None
    commit(catalog, lease, space, first)
    assert still_claimed(catalog, lease, first) is None
    assert still_claimed(catalog, lease, second) == second
    give_back(catalog, lease, second)
    assert still_claimed(catalog, lease, second) is None


def test_files_that_went_with_their_root_are_no_longer_in_the_chunk(
    catalog: Catalog, lease: Lease, space: SpaceInfo, tmp_path: Path
) -> None:
    one, two = (root_at(catalog, tmp_path / name) for name in ("one", "two"))
    gone = enter_copies(catalog, one, [1, 2, 3])
    left = enter_copies(catalog, two, [3, 4, 1])
    chunk = claim_chunk(catalog, lease, space, number=1, limit=4)
    early = claim_chunk(catalog, lease, space, number=2, limit=2, after_file_id=gone[2])
    assert ids(chunk) == [*gone, left[0]]
    assert ids(early) == [left[1]]
    assert chunk is not None
    remove_root(catalog, one.path)
    assert ids(still_claimed(catalog, lease, chunk)) == [left[0]]
    # Nothing of this one is there any more, and yet it had images.
    nothing = replace(chunk, work=chunk.work[:3])
    assert [number for _, number in claims(catalog, "image")] == [1, 1, 1, 2]
    remove_root(catalog, two.path)
    assert still_claimed(catalog, lease, nothing) is None
    assert claims(catalog, "image") == [(image_id(catalog, 4), 2)]


def test_a_scope_waits_for_images_that_others_have_from_elsewhere(
    catalog: Catalog, lease: Lease, space: SpaceInfo, tmp_path: Path
) -> None:
    one, two = (root_at(catalog, tmp_path / name) for name in ("one", "two"))
    enter_copies(catalog, one, [1, 2])
    mine = enter_copies(catalog, two, [2, 3, 2, None], [b"a.jpg", b"b.jpg", b"c.png", b"d.jpg"])
    here = Scope(((two.id, b""),))
    other = start_run(catalog, "index")
    chunk = claim_chunk(catalog, other, space, number=1, limit=9, scope=Scope(((one.id, b""),)))
    assert len(ids(chunk)) == 2
    assert chunk is not None
    assert pending_elsewhere(catalog, lease, space, here) == 2
    assert pending_elsewhere(catalog, lease, space, replace(here, globs=("*.jpg",))) == 1
    assert pending_elsewhere(catalog, lease, space) == 2 + 2
    assert pending_elsewhere(catalog, other, space) == 0
    assert pending_elsewhere(catalog, lease, other_space(catalog)) == 0
    passed: list[int] = []
    rest = claim_chunk(catalog, lease, space, number=1, limit=9, scope=here, passed=passed)
    assert ids(rest) == [mine[1], mine[3]]
    assert passed == [mine[0], mine[2]]
    commit(catalog, other, space, chunk)
    assert pending_elsewhere(catalog, lease, space, here) == 0
    assert not claim_chunk(catalog, lease, space, number=2, limit=9, among=passed)


def test_who_loses_every_file_keeps_no_image(
    catalog: Catalog, lease: Lease, space: SpaceInfo, files: list[int]
) -> None:
    other = start_run(catalog, "index")

    class Slow(Catalog):
        """A catalog whose writer comes just after another run's."""

        def write(self) -> Any:
            if not taken:
                taken.append(claim_chunk(catalog, other, space, number=1, limit=3))
            return super().write()

    taken: list[Chunk | None] = []
    slow = Slow(catalog.home, catalog.engine, catalog.store_id, writable=True)
    passed: list[int] = []
    chunk = claim_chunk(slow, lease, space, number=1, limit=3, passed=passed)
    assert ids(taken[0]) == files[:3]
    assert ids(chunk) == [files[3], files[4], files[7]]
    assert passed == [*files[:3], files[5], files[6]]
    assert [number for _, number in claims(catalog, "image")] == [1, 1, 1]


@pytest.mark.postgres
@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_who_sees_too_late_that_the_files_are_gone_keeps_no_image(
    open_catalog: OpenCatalog, lease: Lease, space: SpaceInfo, files: list[int]
) -> None:
    catalog, neighbour = open_catalog(), open_catalog()
    other = start_run(neighbour, "index")

    def be_faster(*args: Any) -> None:
        if args[2].startswith("INSERT INTO claims") and not claims(neighbour, "file"):
            for file_id in files[:2]:
                claim(neighbour, other, "file", file_id, space.id)

    event.listen(catalog.engine, "before_cursor_execute", be_faster)
    passed: list[int] = []
    chunk = claim_chunk(catalog, lease, space, number=1, limit=2, passed=passed)
    event.remove(catalog.engine, "before_cursor_execute", be_faster)
    assert ids(chunk) == files[2:4]
    assert passed == files[:2]
    assert sorted(claims(neighbour, "image")) == sorted(
        (image_id(neighbour, image), 1) for image in (1, 3)
    )


# Many at once.


class Watch:
    """Looks whether a file, or a known image, is in two hands at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: set[object] = set()
        self.most = 0
        self._hands = 0

    def take(self, chunk: Chunk) -> None:
        with self._lock:
            mine = self._subjects(chunk)
            assert self._held.isdisjoint(mine)
            self._held |= mine
            self._hands += 1
            self.most = max(self.most, self._hands)

    def leave(self, chunk: Chunk) -> None:
        with self._lock:
            self._held -= self._subjects(chunk)
            self._hands -= 1

    def _subjects(self, chunk: Chunk) -> set[object]:
        known = {work.digest for work in chunk.work if work.digest}
        return {*(work.file_id for work in chunk.work), *known}


def work_through(
    catalog: Catalog, lease: Lease, space: SpaceInfo, numbers: Iterator[int], watch: Watch
) -> int:
    """Claim and commit until nothing is left for this worker; return how many vectors it made.

    It gives every sixth chunk back, and tries its files again like those that it passed.
    """
    chance = random.Random(threading.get_ident())
    made, after = 0, 0
    passed: list[int] = []
    among: Sequence[int] | None = None
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        chunk = claim_chunk(
            catalog,
            lease,
            space,
            number=next(numbers),
            limit=chance.randint(1, 40),
            after_file_id=after,
            among=among,
            passed=passed,
        )
        if chunk is None:
            if not passed:
                return made
            among, passed, after = passed, [], 0
            time.sleep(0.01)
            continue
        watch.take(chunk)
        time.sleep(chance.uniform(0.02, 0.08))
        after = chunk.work[-1].file_id
        watch.leave(chunk)
        if chance.random() < 1 / 6:
            give_back(catalog, lease, chunk)
            passed += ids(chunk)
        else:
            made += commit(catalog, lease, space, chunk)
    raise AssertionError("something was never done")


@pytest.mark.parametrize("seed", [1, 2])
def test_workers_of_several_runs_never_have_the_same_image(
    open_catalog: OpenCatalog, space: SpaceInfo, tmp_path: Path, seed: int
) -> None:
    catalog = open_catalog()
    chance = random.Random(seed)
    root = root_at(catalog, tmp_path / "photos")
    n_images, n_unread = 120, 60
    images = [chance.randint(1, n_images) for _ in range(600)] + list(range(1, n_images + 1))
    holds: list[int | None] = [*images, *([None] * n_unread)]
    chance.shuffle(holds)
    enter_copies(catalog, root, holds)
    watch = Watch()
    runs = [(start_run(catalog, "index"), itertools.count(1)) for _ in range(3)]
    workers = [(open_catalog(), *run) for run in runs for _ in range(2)]
    with ThreadPoolExecutor(len(workers)) as pool:
        done = [
            pool.submit(work_through, own, lease, space, numbers, watch)
            for own, lease, numbers in workers
        ]
        made = sum(future.result() for future in done)
    assert made == n_images + n_unread  # no image twice
    assert watch.most > 1
    assert pending_counts(catalog, space).total == 0
    assert claims(catalog, "file") == claims(catalog, "image") == []
    with catalog.read() as conn:
        assert conn.execute(select(func.count()).select_from(Vector)).scalar() == made
        assert conn.execute(select(Space.next_row).where(Space.id == space.id)).scalar() == made


def test_runs_that_meet_the_same_images_from_both_ends_do_not_block_each_other(
    open_catalog: OpenCatalog, space: SpaceInfo, tmp_path: Path
) -> None:
    catalog = open_catalog()
    n, rounds = 400, 4
    names = ("forwards", "backwards", "mixed")
    orders = [list(range(n)), list(range(n - 1, -1, -1)), random.Random(3).sample(range(n), n)]
    # By their ids, which follow the digests.
    images = sorted(range(n), key=digest)
    roots = [root_at(catalog, tmp_path / name) for name in names]
    for root, order in zip(roots, orders, strict=True):
        enter_copies(catalog, root, [images[i] for i in order])
    gate = threading.Barrier(len(roots))

    def take(place: tuple[Catalog, Lease, int], number: int) -> Chunk | None:
        own, lease, root_id = place
        gate.wait(30)
        scope = Scope(((root_id, b""),))
        return claim_chunk(own, lease, space, number=number, limit=n, scope=scope)

    places = [(open_catalog(), start_run(catalog, "index"), root.id) for root in roots]
    with ThreadPoolExecutor(len(places)) as pool:
        for number in range(rounds):
            chunks = list(pool.map(take, places, [number] * len(places)))
            digests = [work.digest for chunk in chunks if chunk for work in chunk.work]
            assert len(digests) == len(set(digests)) == n
            for (own, lease, _), chunk in zip(places, chunks, strict=True):
                if chunk:
                    give_back(own, lease, chunk)
