import os
import shutil

import pytest
from sqlalchemy import select, update

from storage.errors import RootUnavailable
from storage.file_rows import GRACE_S, prune_root
from storage.files import scan_root
from storage.guard import preflight
from storage.places import Place
from storage.recognition import known_sample, recorded_place
from storage.tables import File, Root
from tests.storage.job import OLD_NS, Job, dump, put, states


@pytest.fixture
def job(catalog, lease, space, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    return Job(catalog, lease, space, folder)


def fill(job, n=40):
    put(job.folder, {f"{i:02}.jpg": b"content %d" % i for i in range(n)})
    job.run()


def other_disk(job, n=40, *, prefix=b"of another disk ", mtime_ns=OLD_NS + 1):
    """Put another folder with the same names in the place of the root."""
    job.folder.rename(job.folder.with_name("away"))
    job.folder.mkdir()
    put(job.folder, {f"{i:02}.jpg": prefix + b"%d" % i for i in range(n)}, mtime_ns=mtime_ns)


def refused(job, match):
    before = dump(job.catalog)
    with pytest.raises(RootUnavailable, match=match) as caught:
        job.scan(confirm_missing=False)
    assert dump(job.catalog) == before
    assert "--confirm-missing" in str(caught.value)


def test_another_disk_with_the_same_names_is_refused_until_it_is_confirmed(job):
    fill(job)
    other_disk(job)
    refused(job, "only 0 of 32 known files that were looked for are as they were")
    with pytest.raises(RootUnavailable):  # nor are its files read again
        preflight(job.catalog, job.root)
    assert job.scan(confirm_missing=True).reasons == {"size": 40}
    shutil.rmtree(job.folder)
    job.folder.with_name("away").rename(job.folder)
    refused(job, "another disk or folder")


def test_one_file_is_enough_to_be_refused_in_another_folder(job):
    fill(job, 1)
    other_disk(job, 1)
    refused(job, "only 0 of 1 known files")


@pytest.mark.parametrize("keep_dates", [True, False])
def test_a_restored_copy_is_the_root(job, keep_dates):
    fill(job)
    other_disk(job, prefix=b"content ", mtime_ns=OLD_NS if keep_dates else OLD_NS + 10**9)
    before = recorded_place(job.catalog, job.root)
    reasons = job.scan(confirm_missing=False).reasons
    assert set(reasons) == ({"ctime"} if keep_dates else {"mtime"})
    assert "extracted" not in job.extract()
    after = recorded_place(job.catalog, job.root)
    assert before != after == Place.of(os.fsencode(job.folder))


def test_a_folder_in_which_everything_was_edited_stays_the_root(job):
    fill(job)
    put(job.folder, {f"{i:02}.jpg": b"edited, all of them" for i in range(40)}, mtime_ns=OLD_NS + 9)
    if recorded_place(job.catalog, job.root).volume is None:
        refused(job, "not what it was")
        return
    assert job.scan(confirm_missing=False).reasons == {"size": 40}


@pytest.mark.parametrize(("edited", "strange"), [(20, False), (21, True)])
def test_on_a_volume_without_identity_half_must_be_known(job, monkeypatch, edited, strange):
    monkeypatch.setattr("storage.places.volume_of", lambda *_: None)
    fill(job, 32)
    put(job.folder, {f"{i:02}.jpg": b"edited!" for i in range(edited)}, mtime_ns=OLD_NS + 9)
    if strange:
        refused(job, "only 11 of 32")
        assert job.scan(confirm_missing=True).reasons == {"size": 21}
    else:
        assert job.scan(confirm_missing=False).reasons == {"size": 20}
    assert job.scan(confirm_missing=False).reasons == {}


def test_a_remount_under_another_number_is_noticed_by_nobody(job, monkeypatch):
    monkeypatch.setattr("storage.places.volume_of", lambda *_: None)
    fill(job)
    place = recorded_place(job.catalog, job.root).to_json() | {"device": 4711}
    with job.catalog.write() as conn:
        conn.execute(update(Root).values(place=place))
    put(job.folder, {f"{i:02}.jpg": b"edited!" for i in range(15)}, mtime_ns=OLD_NS + 9)
    assert job.scan(confirm_missing=False).reasons == {"size": 15}
    assert recorded_place(job.catalog, job.root).device == os.stat(job.folder).st_dev


def test_a_mount_point_where_nothing_is_mounted_is_refused(job):
    fill(job)
    place = recorded_place(job.catalog, job.root)
    below = {"mount": str(job.folder), "inode": 2, "volume": "fsid:a"}
    with job.catalog.write() as conn:
        conn.execute(update(Root).values(place=place.to_json() | below))
    put(job.folder, {f"{i:02}.jpg": b"edited!" for i in range(8)}, mtime_ns=OLD_NS + 9)
    refused(job, f"{job.folder} was a mount point, and nothing is mounted there now")
    put(job.folder, {f"{i:02}.jpg": b"content %d" % i for i in range(8)})
    assert set(job.scan(confirm_missing=False).reasons) == {"ctime"}


def test_a_catalog_of_an_older_schema_is_taken_as_it_is(job):
    fill(job)
    with job.catalog.write() as conn:
        conn.execute(update(Root).values(place=None))
    job.scan(confirm_missing=False)
    assert recorded_place(job.catalog, job.root) == Place.of(os.fsencode(job.folder))
    with job.catalog.write() as conn:
        conn.execute(update(Root).values(place=None))
    other_disk(job)
    refused(job, "it is not known where it lay before")


def test_a_sample_is_spread_and_holds_digests_of_what_was_read(job):
    fill(job, 100)
    put(job.folder, {"new.jpg": b"not read yet"})
    job.scan()
    with job.catalog.read() as conn:
        sample = known_sample(conn, job.root.id)
    assert len(sample) == 32
    assert {file.path for file in sample} >= {b"00.jpg", b"new.jpg"}
    assert [file.path for file in sample if file.digest is None] == [b"new.jpg"]


def _await_mount(job, path):
    """Say that a folder of the root was a mount point at the last scan."""
    place = recorded_place(job.catalog, job.root).to_json() | {"inner": [path]}
    with job.catalog.write() as conn:
        conn.execute(update(Root).values(place=place))


def _inner(job):
    return recorded_place(job.catalog, job.root).inner


@pytest.mark.parametrize("folder_left", [True, False])
def test_files_of_a_disk_that_is_not_mounted_inside_a_root_stay(job, folder_left):
    put(job.folder, {f"nas/{i}.jpg": b"nas %d" % i for i in range(5)} | {"own.jpg": b"own"})
    job.run()
    _await_mount(job, "nas")
    shutil.rmtree(job.folder / "nas")
    if folder_left:
        put(job.folder, {"nas/hidden.jpg": b"lies below the mount point"})
    put(job.folder, {"new.jpg": b"new"})
    for expected in ({"new": 1}, {}):
        result = job.scan(confirm_missing=False)
        assert result.reasons == expected
        said = (str(job.folder / "nas"), "nothing is mounted there now")
        assert result.unreadable == [said]
        assert _inner(job) == (b"nas",)
    with pytest.raises(RootUnavailable):
        part(job, "nas")
    reasons = job.scan(confirm_missing=True).reasons
    assert reasons == {"missing": 5} | ({"new": 1} if folder_left else {})
    assert _inner(job) == ()


def part(job, under):
    from storage.roots import find_root

    root = find_root(job.catalog, os.fsencode(job.folder / under))
    return scan_root(job.catalog, root, confirm_missing=False, skip=None, lease=job.lease)


def test_a_mount_without_known_files_is_not_awaited(job):
    fill(job, 3)
    _await_mount(job, "card")
    assert job.scan(confirm_missing=False).unreadable == []
    assert _inner(job) == ()


def _age_missing(job):
    with job.catalog.write() as conn:
        conn.execute(update(File).values(missing_since=File.missing_since - GRACE_S - 60))
        before = Root.scanned_before_at - GRACE_S - 60
        times = {"scanned_at": Root.scanned_at - GRACE_S - 60, "scanned_before_at": before}
        conn.execute(update(Root).values(times))


def test_one_complete_scan_is_not_enough_to_forget(job):
    put(job.folder, {"a/1.jpg": b"1", "a/2.jpg": b"2", "b.jpg": b"b"})
    job.run()
    (job.folder / "a" / "1.jpg").unlink()
    part(job, "a")  # a part is no complete scan
    _age_missing(job)
    assert prune_root(job.catalog, job.lease, job.root) == 0
    job.scan()
    assert states(job.catalog)[b"a/1.jpg"] == "missing"
    assert prune_root(job.catalog, job.lease, job.root) == 0
    job.scan()
    assert b"a/1.jpg" not in states(job.catalog)


def test_what_nobody_could_look_for_is_not_forgotten(job):
    put(job.folder, {"nas/1.jpg": b"1", "nas/2.jpg": b"2", "b.jpg": b"b"})
    job.run()
    (job.folder / "nas" / "1.jpg").unlink()
    (job.folder / "b.jpg").unlink()
    job.scan()
    _await_mount(job, "nas")
    job.scan(confirm_missing=False)
    _age_missing(job)
    job.scan(confirm_missing=False)
    assert states(job.catalog) == {b"nas/1.jpg": "missing", b"nas/2.jpg": "live"}
    assert prune_root(job.catalog, job.lease, job.root) == 0
    with job.catalog.read() as conn:
        assert conn.execute(select(Root.unlisted)).scalar() == {"paths": ["nas"]}
    with job.catalog.write() as conn:
        conn.execute(update(Root).values(unlisted={"paths": None}))  # too many to be kept
    assert prune_root(job.catalog, job.lease, job.root) == 0
    with job.catalog.write() as conn:
        conn.execute(update(Root).values(unlisted=None))
    assert prune_root(job.catalog, job.lease, job.root) == 1
