import errno
import os
import resource
import shutil
from pathlib import Path

import pytest

from storage.durable import create_private, delete_durably, make_dir, write_durably
from storage.errors import CatalogError, DiskFull, StorageError
from storage.fs import Fs, using, write_all
from storage.home import Home, free_bytes, fs_type

MOUNTS = """\
rootfs / rootfs rw 0 0
/dev/sda1 / ext4 rw 0 0
server:/export /mnt/photos nfs4 rw 0 0
/dev/sdb1 /mnt/photos/local xfs rw 0 0
//nas/share /mnt/my\\040share cifs rw 0 0
/dev/sdc1 /mnt/twice ext4 rw 0 0
user@host: /mnt/twice fuse.sshfs rw 0 0
"""


def test_paths_are_absolute_and_keep_spaces_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    home = Home("somewhere")
    assert home.path == str(tmp_path / "somewhere")
    assert home == Home(str(tmp_path / "other" / ".." / "somewhere"))
    one, two = "a" * 64, "b" * 64
    assert home.space_dir(one) == str(tmp_path / "somewhere" / "spaces" / ("a" * 16))
    assert os.path.dirname(home.parts_dir(one)) == home.space_dir(one)
    assert len({home.parts_dir(one), home.parts_dir(two), home.index_dir(one)}) == 3


def test_the_store_id_survives_and_its_absence_is_told(home: Home) -> None:
    make_dir(home.path)
    assert home.read_store_id() is None
    home.write_store_id("7f7d")
    assert home.read_store_id() == "7f7d"


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": 1}', b"\xff", b'{"store_id": "x"}'])
def test_a_damaged_store_file_is_refused(home: Home, content: bytes) -> None:
    make_dir(home.path)
    Path(home.store_json).write_bytes(content)
    with pytest.raises(CatalogError, match=r"store\.json can't be read"):
        home.read_store_id()


def test_a_newer_format_is_refused_naming_both(home: Home) -> None:
    make_dir(home.path)
    Path(home.store_json).write_text('{"format": 2, "store_id": "x"}')
    with pytest.raises(CatalogError, match=r"format 2, .* knows 1; use a newer"):
        home.read_store_id()


def test_an_empty_folder_of_spaces_holds_nothing_to_lose(home: Home) -> None:
    assert not home.has_spaces()
    make_dir(home.spaces_dir)
    assert not home.has_spaces()
    make_dir(home.space_dir("c" * 64))
    assert home.has_spaces()


def test_new_folders_are_for_the_owner_alone_and_old_ones_stay_as_they_are(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    make_dir(str(tmp_path / "a" / "b"))
    make_dir(str(tmp_path / "a" / "b"))
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    assert tmp_path.stat().st_mode & 0o777 == 0o755


class Syncing(Fs):
    """The real file system, which remembers the folders whose names it was asked to sync."""

    def __init__(self) -> None:
        self.synced: list[str] = []

    def fsync_dir(self, path: str) -> None:
        self.synced.append(path)
        super().fsync_dir(path)


def test_a_folder_is_synced_though_whoever_made_it_was_killed_before(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with using(Syncing()) as disk:
        make_dir(str(tmp_path / "a" / "b"))
    assert disk.synced == [str(tmp_path), str(tmp_path / "a")]


def test_a_folder_that_cannot_be_made_or_a_file_that_cannot_go_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="can't be written: Not a directory"):
        make_dir(str(tmp_path / "file" / "b"))
    with pytest.raises(StorageError, match="can't be deleted: Is a directory"):
        delete_durably(str(tmp_path / "folder"))


def test_files_are_deleted_in_their_order_and_synced_once(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with using(Syncing()) as disk:
        delete_durably(str(tmp_path / "a"), str(tmp_path / "never there"))
    assert os.listdir(tmp_path) == []
    assert disk.synced == [str(tmp_path)]


def test_a_private_file_is_for_the_owner_alone_and_one_that_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    create_private(str(path))
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"", 0o600)
    path.write_bytes(b"old")
    create_private(str(path))
    assert path.read_bytes() == b"old"


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (b"", b"first", b"x" * 3_000_000):
        write_durably(str(path), data)
        assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["file"]


def test_a_disk_that_takes_only_the_beginning_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_durably(str(path), b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # first a short write, then EFBIG
    try:
        with pytest.raises(StorageError, match="File too large"):
            write_durably(str(path), b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


class Sparing(Fs):
    """A disk that takes seven bytes at a time."""

    def write(self, fd: int, data: memoryview) -> int:
        return super().write(fd, data[:7])


def test_short_writes_are_continued(tmp_path: Path) -> None:
    with using(Sparing()):
        write_durably(str(tmp_path / "file"), bytes(range(100)))
    assert (tmp_path / "file").read_bytes() == bytes(range(100))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_an_error_of_the_system() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="No space left"):
            write_all(fd, b"x")
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EIO, StorageError)],
)
def test_a_failed_sync_abandons_the_file_at_once(
    code: int, kind: type[Exception], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    write_durably(str(path), b"old")
    calls = []

    class Failing(Fs):
        def fsync(self, fd: int) -> None:
            calls.append(fd)
            raise OSError(code, os.strerror(code))

    with using(Failing()), pytest.raises(kind):
        write_durably(str(path), b"new")
    assert len(calls) == 1
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_free_space_is_asked_of_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    asked, told = free_bytes(str(tmp_path / "not" / "yet")), shutil.disk_usage(tmp_path).free
    assert abs(asked - told) < 1 << 30


def test_free_bytes_takes_a_relative_name_that_is_not_there_yet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert free_bytes("not/yet") > 0
    assert fs_type("not/yet") == fs_type(str(tmp_path))


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/nowhere/at/all", "ext4"),
        ("/mnt/photos", "nfs4"),
        ("/mnt/photos/2024/home", "nfs4"),
        ("/mnt/photos/local/home", "xfs"),
        ("/mnt/photos-old", "ext4"),
        ("/mnt/my share/home", "cifs"),
        ("/mnt/twice", "fuse.sshfs"),
    ],
)
def test_the_longest_and_latest_mount_decides(path: str, kind: str, tmp_path: Path) -> None:
    top = str(tmp_path.resolve())
    (tmp_path / "mounts").write_text(
        "".join(
            f"{device} {(top + point).rstrip('/')} {rest}\n"
            for device, point, rest in (line.split(" ", 2) for line in MOUNTS.splitlines())
        )
    )
    os.makedirs(top + path)
    assert fs_type(top + path, mounts=str(tmp_path / "mounts")) == kind


def test_without_a_list_of_mounts_nothing_is_claimed(tmp_path: Path) -> None:
    assert fs_type(str(tmp_path), mounts=str(tmp_path / "none")) == ""


def test_memory_is_no_network() -> None:
    if not os.path.isdir("/dev/shm"):
        pytest.skip("no /dev/shm")
    assert fs_type("/dev/shm/not/yet") == "tmpfs"
