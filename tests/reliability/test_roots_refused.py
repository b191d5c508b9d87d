"""Roots that must not be believed, names of every kind, and dates that can't be.

Each case goes through the real scan; a root that is refused changes no row of the catalog.
"""

import errno
import os
import shutil
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from storage.absence import Absence
from storage.errors import RootUnavailable
from storage.files import scan_root
from storage.leases import start_run
from storage.roots import add_root
from storage.spaces import ensure_space
from tests.reliability.scale import tally
from tests.storage.job import OLD_NS, Job, dump, put, states

N = 60


@pytest.fixture
def job(catalog, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    spec = {"dim": 8, "dtype": "float32", "decode_version": 1}
    space = ensure_space(catalog, name=None, spec=spec, request={"model": "m"}, key="m")
    return Job(catalog, start_run(catalog, "index"), space, folder)


def _gone(folder):
    folder.rename(folder.with_name("away"))


def _emptied(folder):
    _gone(folder)
    folder.mkdir()


def _file(folder):
    _gone(folder)
    folder.write_bytes(b"no folder")


def _dangling(folder):
    _gone(folder)
    folder.symlink_to("nowhere")


def _loop(folder):
    _gone(folder)
    folder.symlink_to(folder.name)


def _pipe(folder):
    _gone(folder)
    os.mkfifo(folder)


def _foreign(folder):
    _emptied(folder)
    put(folder, {f"{i:02}.jpg": b"foreign %d!" % i for i in range(N)}, mtime_ns=OLD_NS + 1)


def _foreign_link(folder):
    _foreign(folder)
    folder.rename(folder.with_name("foreign"))
    folder.symlink_to("foreign")


def _few_left(folder):
    for i in range(N // 2 + 1):
        (folder / f"{i:02}.jpg").unlink()


def _other_names(folder):
    for i in range(N):
        (folder / f"{i:02}.jpg").rename(folder / f"{i:02}-edited.jpg")


GUARDS = [
    _gone, _emptied, _file, _dangling, _loop, _pipe, _foreign, _foreign_link, _few_left,
    _other_names,
]  # fmt: skip


@pytest.mark.parametrize("harm", GUARDS, ids=lambda harm: harm.__name__)
def test_a_root_that_is_not_itself_changes_nothing(job, harm):
    put(job.folder, {f"{i:02}.jpg": b"content %d" % i for i in range(N)})
    job.run()
    root, before = job.root, dump(job.catalog)
    harm(job.folder)
    with pytest.raises(RootUnavailable) as caught:
        scan_root(job.catalog, root, confirm_missing=False, skip=None, lease=job.lease)
    assert "\n" not in str(caught.value)
    assert "nothing of it was changed" in str(caught.value)
    assert dump(job.catalog) == before
    tally("roots-refused", harm=harm.__name__, rows_changed=0)


MOUNTS = """
    import os, subprocess, sys
    from pathlib import Path
    from storage.catalog import Catalog
    from storage.errors import RootUnavailable
    from storage.files import scan_root
    from storage.home import Home
    from storage.leases import start_run
    from storage.places import Place
    from storage.recognition import recorded_place
    from storage.roots import add_root, find_root
    from storage.spaces import ensure_space
    from tests.storage.job import Job, dump, put, states

    base = Path(sys.argv[1])
    disk, photos = base / "disk", base / "disk" / "photos"
    disk.mkdir()

    def mount(at):
        subprocess.run(["mount", "-t", "tmpfs", "none", str(at)], check=True)

    def umount(at):
        subprocess.run(["umount", str(at)], check=True)

    def content(word, n=30):
        return {f"{i:02}.jpg": word + b" %d" % i for i in range(n)}

    mount(disk)
    photos.mkdir()
    put(photos, content(b"own"))
    catalog = Catalog.open(Home(str(base / "home")), write=True)
    space = ensure_space(catalog, name=None, spec={"dim": 8, "dtype": "float32",
                         "decode_version": 1}, request={"model": "m"}, key="m")
    job = Job(catalog, start_run(catalog, "index"), space, photos)
    root = job.root

    def scan(confirm=False):
        return scan_root(catalog, root, confirm_missing=confirm, skip=None, lease=job.lease)

    def refused(match):
        before = dump(catalog)
        try:
            scan()
        except RootUnavailable as error:
            assert match in str(error), error
        else:
            raise AssertionError("believed: " + match)
        assert dump(catalog) == before

    job.run()
    assert recorded_place(catalog, root).mount == os.fsencode(disk)
    assert scan().reasons == {}

    # Unmounted, with a stale copy of a few pictures below the mount point.
    subprocess.run(["mount", "--move", str(disk), str(base / "aside")], check=False)
    (base / "aside").mkdir()
    subprocess.run(["mount", "--move", str(disk), str(base / "aside")], check=True)
    refused("can't be read")
    photos.mkdir()
    put(photos, content(b"own", 12))
    refused("was a mount point, and nothing is mounted there now")

    # Another disk with the same names is mounted there.
    mount(disk)
    photos.mkdir()
    put(photos, content(b"foreign"), mtime_ns=10**18)
    refused("another disk or folder may be in its place")
    umount(disk)

    # The disk comes back; and a copy of it on a new disk is known too.
    subprocess.run(["mount", "--move", str(base / "aside"), str(disk)], check=True)
    assert scan().reasons == {}
    subprocess.run(["cp", "-a", str(photos), str(base / "copy")], check=True)
    umount(disk)
    mount(disk)
    subprocess.run(["cp", "-a", str(base / "copy"), str(photos)], check=True)
    assert set(scan().reasons) <= {"ctime", "inode"}
    assert "extracted" not in job.extract()
    assert scan().reasons == {}

    # A mount inside the root: its files stay while it is away.
    nas = photos / "nas"
    nas.mkdir()
    mount(nas)
    put(nas, content(b"nas", 5))
    job.run()
    assert recorded_place(catalog, root).inner == (b"nas",)
    (base / "later").mkdir()
    subprocess.run(["mount", "--move", str(nas), str(base / "later")], check=True)
    for _ in range(2):
        found = scan()
        assert found.reasons == {}, found
        assert found.unreadable == [(str(nas), "nothing is mounted there now")]
    assert set(states(catalog).values()) == {"live"}
    subprocess.run(["mount", "--move", str(base / "later"), str(nas)], check=True)
    assert scan().unreadable == []
    umount(nas)
    assert scan(confirm=True).reasons == {"missing": 5}

    # A bind mount of the same folder is the same folder.
    subprocess.run(["mount", "--bind", str(photos), str(photos)], check=True)
    assert Place.of(os.fsencode(photos)).mount == os.fsencode(photos)
    assert scan().reasons == {}
    umount(photos)
    assert scan().reasons == {}
    print("mounts were believed and refused as they should be")
"""


def test_real_mounts_are_told_apart(tmp_path):
    """Mount and unmount in a name space of the test's own."""
    apart = ["unshare", "--mount", "--propagation", "private"]
    apart += [] if os.geteuid() == 0 else ["--map-root-user"]
    can = (
        shutil.which("unshare")
        and not subprocess.run(
            [*apart, "mount", "-t", "tmpfs", "none", str(tmp_path)],
            capture_output=True,
            check=False,
        ).returncode
    )
    if not can:
        pytest.skip("this system lets nobody mount in a name space of his own")
    done = subprocess.run(
        [*apart, sys.executable, "-c", textwrap.dedent(MOUNTS), str(tmp_path)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "as they should be" in done.stdout


def test_names_of_every_kind_are_pictures_or_nothing(job):
    """Bytes that are no UTF-8, control characters, both forms of an accent, case, great length."""
    names = [
        b"caf\xe9.jpg", b"new\nline.jpg", b"tab\t\x1b[31mred.jpg", "é.jpg".encode(),
        "e\u0301.jpg".encode(), b"Case.jpg", b"case.jpg", b"n" * 251 + b".jpg", b" .jpg",
        b"-rf.jpg",
        b"%41.jpg", b"a\\b.jpg", b"\xff\xfe.png", b"quote'\".jpg", "\u202egpj.jpg".encode(),
    ]  # fmt: skip
    folder = os.fsencode(job.folder)
    for i, name in enumerate(names):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(b"picture %d" % i)
    deep = b"/".join([b"d" * 200] * 12)  # a path of 2.4 kB
    os.makedirs(os.path.join(folder, deep))
    shutil.copy(os.path.join(folder, names[0]), os.path.join(folder, deep, b"deep.jpg"))
    os.symlink(b"loop.jpg", os.path.join(folder, b"loop.jpg"))
    os.symlink(b".", os.path.join(folder, b"circle"))
    os.symlink(b"nowhere", os.path.join(folder, b"dangling.jpg"))
    os.mkfifo(os.path.join(folder, b"pipe.jpg"))
    os.mkdir(os.path.join(folder, b"folder.jpg"))
    with socket.socket(socket.AF_UNIX) as door:
        here = os.getcwd()
        os.chdir(folder)
        try:
            door.bind("socket.jpg")
        finally:
            os.chdir(here)
        outcomes = job.run()
    there = {os.path.basename(name) for name in os.listdir(folder)} & set(names)
    assert outcomes == {"extracted": len(there), "copied": 1}
    expected = dict.fromkeys([*there, os.path.join(deep, b"deep.jpg")], "live")
    assert states(job.catalog) == expected
    assert job.scan(confirm_missing=False).reasons == {}
    tally("names", names=len(there))


@pytest.mark.parametrize(
    "mtime_ns",
    [-(10**18), -1, 0, 1, (1 << 31) * 10**9, 4_354_819_200 * 10**9, (1 << 33) * 10**9],
    ids=["1938", "1969", "1970", "1970 and 1 ns", "2038", "2107", "2242"],
)
def test_no_date_hides_a_change(job, mtime_ns):
    put(job.folder, {"a.jpg": b"one", "b.jpg": b"kept"}, mtime_ns=mtime_ns)
    assert job.run() == {"extracted": 2}
    assert job.scan(confirm_missing=False).reasons == {}
    put(job.folder, {"a.jpg": b"two"}, mtime_ns=mtime_ns)
    result = job.scan(confirm_missing=False)
    assert result.reasons in ({"ctime": 1}, {"inode": 1})
    assert job.extract() == {"extracted": 1}


def test_a_name_that_a_walk_left_out_is_not_missing(job, monkeypatch):
    """Leave a name out of the listing, as a folder that changes meanwhile may."""
    put(job.folder, {"a/1.jpg": b"1", "a/2.jpg": b"2", "b.jpg": b"b"})
    job.run()
    from storage import files
    from storage.scan import walk

    def forgetful(root, **how):
        return (item for item in walk(root, **how) if item.path != b"a/1.jpg")

    monkeypatch.setattr(files, "walk", forgetful)
    assert job.scan(confirm_missing=False).reasons == {}
    assert states(job.catalog)[b"a/1.jpg"] == "live"
    (job.folder / "a" / "1.jpg").unlink()
    assert job.scan(confirm_missing=False).reasons == {"missing": 1}


def test_absence_is_what_a_walk_would_say(tmp_path):
    put(tmp_path, {"a/1.jpg": b"1", "b/2.jpg": b"2"})
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "a" / "link.jpg").symlink_to("1.jpg")
    (tmp_path / "a" / "folder.jpg").mkdir()
    absence = Absence(os.fsencode(tmp_path))
    paths = {b"a/1.jpg": False, b"a/3.jpg": True, b"a/link.jpg": True, b"a/folder.jpg": True,
             b"b/2.jpg": False, b"b/2.jpg/x.jpg": True, b"link/1.jpg": True,
             b"no/x.jpg": True}  # fmt: skip
    assert {path: absence.confirms(path) for path in paths} == paths
    assert not absence.confirms(b"x" * 300 + b"/a.jpg")  # too long a name: nobody can say
    with pytest.raises(OSError, match=os.strerror(errno.ENAMETOOLONG)):
        os.listdir(os.path.join(tmp_path, "x" * 300))


def test_a_clock_that_runs_ahead_is_told(job):
    put(job.folder, {"a.jpg": b"a", "b.jpg": b"b"}, mtime_ns=4_354_819_200 * 10**9)
    assert add_root(job.catalog, os.fsencode(job.folder)).id
    assert job.scan().future == 2
