import os
import stat
from dataclasses import replace

import pytest

from storage import places
from storage.places import Place, lost_mounts, mount_points, volume_of
from storage.recognition import find_doubt

HERE = Place("fsid:1", 7, 100, b"/mnt/disk", (b"nas", b"raw/x"))
NAMELESS = replace(HERE, volume=None)


def test_a_place_survives_the_catalog():
    odd = replace(HERE, mount=b"/caf\xe9 \n", inner=(b"\xff",))
    assert Place.from_json(odd.to_json()) == odd
    assert all(ord(sign) < 128 for sign in odd.to_json()["mount"])


def test_a_folder_is_found_where_it_lies(tmp_path):
    folder = os.fsencode(tmp_path)
    place = Place.of(folder)
    status = os.stat(folder)
    assert (place.device, place.inode) == (status.st_dev, status.st_ino)
    assert folder.startswith(place.mount)
    assert place.inner == ()
    assert place.alike(Place.of(folder))
    (tmp_path / "inner").mkdir()
    assert not place.alike(Place.of(folder + b"/inner"))
    with pytest.raises(FileNotFoundError):
        Place.of(folder + b"/nothing")


def test_the_mount_points_of_this_system_are_read():
    points = mount_points()
    if points is None:
        pytest.skip("this system has no mountinfo")
    assert b"/" in points
    assert all(os.path.ismount(point) for point in (b"/", b"/proc"))


def test_mount_points_are_unescaped_and_automounters_left_out(tmp_path, monkeypatch):
    lines = tmp_path / "mountinfo"
    lines.write_bytes(
        b"1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        b"2 1 0:5 / /net rw - autofs auto rw\n"
        b"3 1 8:2 / /mnt/my\\040disk\\011\\134 rw - vfat /dev/sdb1 rw\n"
    )
    monkeypatch.setattr(places, "MOUNTS", str(lines))
    assert mount_points() == [b"/", b"/mnt/my disk\t\\"]
    assert Place.of(os.fsencode(tmp_path)).mount == b"/"
    monkeypatch.setattr(places, "MOUNTS", str(tmp_path / "none"))
    assert mount_points() is None
    point = Place.of(os.fsencode(tmp_path)).mount
    assert os.path.ismount(point)
    assert os.fsencode(tmp_path).startswith(point)


def test_a_volume_is_known_by_what_stays_with_it(tmp_path, monkeypatch):
    device = os.stat(tmp_path).st_dev
    nodes = [f"/dev/{name}" for name in os.listdir("/dev")]
    node = next((n for n in nodes if stat.S_ISBLK(os.stat(n).st_mode)
                 and os.stat(n).st_rdev == device), None)  # fmt: skip
    fsid = os.statvfs(tmp_path).f_fsid
    if fsid not in (0, device):
        assert volume_of(os.fsencode(tmp_path), device) == f"fsid:{fsid:x}"
    monkeypatch.setattr(places, "_as_fsid", lambda _: fsid)  # as FAT gives it
    monkeypatch.setattr(places, "VOLUMES", str(tmp_path / "none"))
    assert volume_of(os.fsencode(tmp_path), device) is None
    monkeypatch.setattr(places, "VOLUMES", str(tmp_path))
    (tmp_path / "DEAD-BEEF").symlink_to("nowhere")
    assert volume_of(os.fsencode(tmp_path), device) is None
    if node is None:
        pytest.skip("the device of this file system can't be seen")
    (tmp_path / "CAFE-1234").symlink_to(node)
    assert volume_of(os.fsencode(tmp_path), device) == "uuid:CAFE-1234"


@pytest.mark.parametrize(
    ("before", "now", "share", "few"),
    [
        (HERE, HERE, None, None),
        (HERE, replace(HERE, device=8, mount=b"/media/disk"), None, None),  # mounted elsewhere
        (HERE, replace(HERE, volume="fsid:2"), 0.5, 0),  # another disk
        (HERE, replace(HERE, inode=5), 0.5, 0),  # a copy
        (HERE, replace(HERE, volume=None), 0.5, 0),
        (HERE, replace(HERE, volume="fsid:2", device=1, mount=b"/mnt"), 0.9, 0),  # unmounted
        (HERE, replace(HERE, volume="fsid:2", device=1, mount=b"/"), 0.9, 0),
        (HERE, replace(HERE, volume="fsid:2", mount=b"/mnt/disk/over"), 0.5, 0),  # mounted over
        (HERE, replace(HERE, volume="fsid:2", mount=b"/mnt/dis"), 0.5, 0),
        (NAMELESS, NAMELESS, 0.5, 20),
        (NAMELESS, replace(NAMELESS, device=9), 0.5, 0),  # mounted again
        (None, HERE, 0.5, 20),
    ],
)
def test_what_speaks_against_a_root(before, now, share, few):
    doubt = find_doubt(before, now)
    assert (doubt and doubt.share, doubt and doubt.few) == (share, few)


def test_mounts_that_went_are_those_that_are_not_excluded():
    now = replace(HERE, inner=())
    assert lost_mounts(HERE, now, ()) == [b"nas", b"raw/x"]
    assert lost_mounts(HERE, now, ("raw/",)) == [b"nas"]
    assert lost_mounts(now, HERE, ()) == lost_mounts(None, HERE, ()) == []
