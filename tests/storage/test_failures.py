import os
from pathlib import Path

import pytest
from sqlalchemy import select

from storage.catalog import Catalog
from storage.chunks import claim_chunk, give_back
from storage.failures import counts_by_class, list_failures, retry
from storage.leases import Lease
from storage.pending import Scope, pending_counts
from storage.roots import add_root
from storage.settle import record
from storage.spaces import SpaceInfo, ensure_space
from storage.tables import Failure
from tests.storage.job import OLD_NS, Job, dump, put


@pytest.fixture
def job(catalog: Catalog, lease: Lease, space: SpaceInfo, tmp_path: Path) -> Job:
    """Return a job that has met every kind of failure."""
    job = Job(catalog, lease, space, tmp_path / "photos")
    put(job.folder, {"a/1.jpg": b"broken 1", "a/2.jpg": b"broken 1", "b/3.jpg": b"broken 3"})
    put(job.folder, {"b/4.jpg": b"dark", "b/5.jpg": b"heavy", "c.jpg": b"c", "good.jpg": b"good"})
    put(job.folder, {"gone.jpg": b"broken and gone", "d.jpg": b"d"})
    job.trouble = {
        os.fsencode(job.folder / "c.jpg"): ("permission", False),
        os.fsencode(job.folder / "d.jpg"): ("io", True),
    }
    job.run()
    (job.folder / "gone.jpg").unlink()
    job.scan()
    return job


def other_space(job: Job) -> SpaceInfo:
    return ensure_space(
        job.catalog,
        name="other",
        spec={"dim": 8, "dtype": "float32", "decode_version": 2},
        request={},
        key="other",
    )


def test_failures_are_listed_with_the_live_files_that_they_are_about(job: Job) -> None:
    infos = list_failures(job.catalog)
    folder = os.fsencode(job.folder)
    found = {
        os.path.relpath(info.path, folder): (info.stage, info.failure_class, info.copies)
        for info in infos
    }
    assert found == {
        b"a/1.jpg": ("decode", "truncated", 2),
        b"b/3.jpg": ("decode", "truncated", 1),
        b"b/4.jpg": ("forward", "nan", 1),
        b"b/5.jpg": ("forward", "memory", 1),
        b"c.jpg": ("read", "permission", 1),
        b"d.jpg": ("read", "io", 1),
    }
    assert {info.failure_class for info in infos if info.transient} == {"memory", "io"}
    assert {(info.message, info.attempts) for info in infos} == {("no", 1)}
    assert len(list_failures(job.catalog, limit=2)) == 2
    assert counts_by_class(job.catalog) == {
        "truncated": 2, "nan": 1, "memory": 1, "permission": 1, "io": 1,
    }  # fmt: skip


def test_a_space_is_shown_what_keeps_files_out_of_it(job: Job) -> None:
    assert len(list_failures(job.catalog, job.space)) == 6
    assert counts_by_class(job.catalog, other_space(job)) == {"permission": 1, "io": 1}
    assert {info.stage for info in list_failures(job.catalog, other_space(job))} == {"read"}


def test_the_latest_failure_comes_first(job: Job) -> None:
    job.extract()
    names = [info.failure_class for info in list_failures(job.catalog, limit=2)]
    assert sorted(names) == ["io", "memory"]


def test_retry_arms_everything_that_stands(job: Job) -> None:
    assert job.extract() == {"failed": 2}  # what passes is tried anyway
    assert retry(job.catalog) == 5
    counts = pending_counts(job.catalog, job.space)
    assert (counts.to_read, counts.to_extract, counts.total) == (2, 4, 6 + 1)
    assert job.extract()["failed"] == 7
    assert len(list_failures(job.catalog)) == 6


def test_retry_arms_one_class(job: Job) -> None:
    assert retry(job.catalog, failure_class="nothing like it") == 0
    assert retry(job.catalog, failure_class="io") == 0
    assert retry(job.catalog, failure_class="nan") == 1
    assert "nan" not in counts_by_class(job.catalog)
    assert retry(job.catalog, failure_class="permission") == 1
    assert counts_by_class(job.catalog) == {"truncated": 2, "memory": 1, "io": 1}


@pytest.mark.parametrize(
    ("paths", "armed"),
    [
        ([], 0),
        (["a/1.jpg"], 1),
        (["a"], 1),
        (["b"], 2),
        (["c.jpg"], 1),
        (["a/2.jpg", "c.jpg"], 2),
        (["."], 5),
        (["good.jpg", "nowhere.jpg"], 0),
        (["../elsewhere"], 0),
    ],
)
def test_retry_arms_files_and_what_lies_below_folders(
    job: Job, paths: list[str], armed: int
) -> None:
    absolute = [os.fsencode(os.path.join(job.folder, path)) for path in paths]
    assert retry(job.catalog, paths=absolute) == armed


def test_retry_takes_class_and_path_together(job: Job) -> None:
    path = [os.fsencode(job.folder / "b")]
    assert retry(job.catalog, failure_class="nan", paths=path) == 1
    assert counts_by_class(job.catalog)["truncated"] == 2


@pytest.mark.parametrize("name", ["data/x.jpg", "data", "list.csv"])
def test_retry_knows_a_manifest_s_file_by_where_it_lies(
    catalog: Catalog, lease: Lease, space: SpaceInfo, tmp_path: Path, name: str
) -> None:
    from storage.files import scan_root

    put(tmp_path / "data", {"x.jpg": b"broken"})
    (tmp_path / "list.csv").write_text("id,path\nx,data/x.jpg\n")
    job = Job(catalog, lease, space, tmp_path / "data")
    root = add_root(catalog, os.fsencode(tmp_path / "list.csv"))
    scan_root(catalog, root, confirm_missing=False, skip=None)
    assert job.extract() == {"failed": 1}
    (info,) = list_failures(catalog)
    assert info.path == os.fsencode(tmp_path / "data" / "x.jpg")
    assert retry(catalog, paths=[os.fsencode(tmp_path / "dat")]) == 0
    assert retry(catalog, paths=[os.fsencode(tmp_path / name)]) == 1


def test_nothing_is_recorded_for_no_failures(catalog: Catalog) -> None:
    with catalog.write() as conn:
        record(conn, [])
    assert dump(catalog)["failures"] == []
    assert list_failures(catalog) == []


# In a scope failures are armed and stay, so that their files are still known by them.


def everywhere(**narrower: object) -> Scope:
    return Scope(**{"failed": True, **narrower})  # type: ignore[arg-type]


def names(job: Job, scope: Scope, space: SpaceInfo | None = None) -> list[str]:
    """Return the files that a run over the scope would take."""
    chunk = claim_chunk(
        job.catalog, job.lease, space or job.space, number=90, limit=99, scope=scope
    )
    if chunk is None:
        return []
    give_back(job.catalog, job.lease, chunk)
    assert pending_counts(job.catalog, space or job.space, scope).total == len(chunk.work)
    return [os.path.relpath(os.fsdecode(work.path), job.folder) for work in chunk.work]


def recorded(job: Job) -> dict[tuple[str, int], tuple[bool, int]]:
    """Return of each class how many are recorded, by whether they pass and how often."""
    with job.catalog.read() as conn:
        rows = conn.execute(
            select(Failure.failure_class, Failure.id, Failure.transient, Failure.attempts)
        )
        return {(row[0], row[1]): (row[2], row[3]) for row in rows}


BAD = ["a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg", "b/5.jpg", "c.jpg", "d.jpg"]


def test_failures_that_are_armed_in_a_scope_still_say_which_files_are_meant(job: Job) -> None:
    put(job.folder, {"never seen.jpg": b"new"})
    job.scan()
    before = recorded(job)
    assert names(job, everywhere()) == ["b/5.jpg", "d.jpg"]
    assert retry(job.catalog, scope=everywhere(), space=job.space) == 4
    assert names(job, everywhere()) == BAD
    assert names(job, Scope()) == [*BAD, "never seen.jpg"]
    after = recorded(job)
    assert after.keys() == before.keys()
    standing = {key for key, (transient, _) in after.items() if not transient}
    assert {name for name, _ in standing} == {"truncated"}  # that of the file which is gone
    assert len(standing) == 1
    assert {attempts for _, attempts in after.values()} == {1}
    assert retry(job.catalog, scope=everywhere(), space=job.space) == 0


def test_what_was_armed_and_fails_again_stands_again(job: Job) -> None:
    before = recorded(job)
    retry(job.catalog, scope=everywhere(), space=job.space)
    assert job.extract() == {"failed": 7}
    again = recorded(job)
    assert {key: transient for key, (transient, _) in again.items()} == {
        key: transient for key, (transient, _) in before.items()
    }
    # All but that of the file which is gone were tried again.
    assert sorted(attempts for _, attempts in again.values()) == [1, 2, 2, 2, 2, 2, 2]
    assert names(job, everywhere()) == ["b/5.jpg", "d.jpg"]


def test_what_was_armed_and_succeeds_is_forgotten(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    retry(job.catalog, scope=everywhere(), space=job.space)
    monkeypatch.setattr("tests.storage.job.BAD", {})
    job.trouble = {}
    assert job.extract()["extracted"] == 6
    assert counts_by_class(job.catalog) == {}
    assert names(job, everywhere()) == []
    assert names(job, Scope()) == []


@pytest.mark.parametrize(
    ("narrower", "armed", "found"),
    [
        ({"globs": ("a/",)}, 1, ["a/1.jpg", "a/2.jpg"]),
        ({"globs": ("2.jpg",)}, 1, ["a/2.jpg"]),  # its copy is not meant, and served with it
        ({"globs": ("b/*", "c*")}, 3, ["b/3.jpg", "b/4.jpg", "b/5.jpg", "c.jpg"]),
        ({"globs": ("nothing",)}, 0, []),
        ({"places": ()}, 0, []),
        ({"since_ns": OLD_NS}, 4, BAD),
        ({"since_ns": OLD_NS + 1}, 0, []),
        ({"until_ns": OLD_NS}, 0, []),
        ({"until_ns": OLD_NS + 1}, 4, BAD),
    ],
)
def test_a_scope_says_what_is_armed(
    job: Job, narrower: dict[str, object], armed: int, found: list[str]
) -> None:
    scope = everywhere(**narrower)
    assert retry(job.catalog, scope=scope, space=job.space) == armed
    assert names(job, scope) == found


def test_places_and_classes_say_what_is_armed(job: Job) -> None:
    below = everywhere(places=((job.root.id, b"b"),))
    assert retry(job.catalog, scope=below, failure_class="nan") == 1
    assert retry(job.catalog, scope=below, paths=[os.fsencode(job.folder / "a")]) == 0
    assert names(job, below) == ["b/4.jpg", "b/5.jpg"]
    assert retry(job.catalog, scope=below, paths=[os.fsencode(job.folder / "b")]) == 1
    assert names(job, below) == ["b/3.jpg", "b/4.jpg", "b/5.jpg"]
    assert retry(job.catalog, scope=everywhere(places=((job.root.id + 1, b""),))) == 0


def test_only_what_keeps_files_out_of_a_space_is_armed_for_it(job: Job) -> None:
    other = other_space(job)
    # It decodes in another way: what could not be read concerns it, the broken pictures do not.
    assert names(job, everywhere(), other) == ["d.jpg"]
    assert retry(job.catalog, scope=everywhere(), space=other) == 1
    assert names(job, everywhere(), other) == ["c.jpg", "d.jpg"]
    assert names(job, everywhere()) == ["b/5.jpg", "c.jpg", "d.jpg"]
    assert retry(job.catalog, space=other) == 0
    assert retry(job.catalog, space=job.space) == 4
