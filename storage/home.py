"""The home: the folder that holds a store's files, and how a file gets there durably.

::

    catalog.sqlite         the catalog, unless it lives on a Postgres server
    store.json             {"format": 1, "store_id": ...}, equal to the catalog's ``store`` row
    settings.toml          settings, where a person wrote some
    spaces/<fingerprint>/  the first 16 hexadecimal digits of the space's fingerprint
        parts/             vectors
        index/             published indexes

A file is durable when its bytes, its name and its folder are: temporary name in the same folder,
write, fsync, rename, fsync of the folder.
"""

import errno
import json
import os
import re
import shutil
import uuid
from contextlib import suppress
from dataclasses import dataclass

from storage.errors import CatalogError, DiskFull

FORMAT = 1
Buffer = bytes | bytearray | memoryview

# SQLite's locks and its shared memory are not to be trusted on these.
NETWORK_FS = frozenset(
    (
        *("9p", "afs", "beegfs", "beegfs_nodev", "ceph", "cifs", "coda", "gfs2", "gpfs", "lustre"),
        *("ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb3", "smbfs"),
        *("fuse.ceph", "fuse.gcsfuse", "fuse.glusterfs", "fuse.goofys", "fuse.juicefs"),
        *("fuse.mfs", "fuse.mount-s3", "fuse.rclone", "fuse.s3fs", "fuse.sshfs"),
    )
)


@dataclass(frozen=True)
class Home:
    """Where a store lives.

    Parameters
    ----------
    path
        The folder; made absolute.
    catalog_url
        ``postgresql://...`` of the catalog, or None for SQLite in the folder.
    """

    path: str
    catalog_url: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", os.path.abspath(os.path.expanduser(self.path)))

    @property
    def sqlite(self) -> str:
        """Path of the SQLite catalog."""
        return os.path.join(self.path, "catalog.sqlite")

    @property
    def store_json(self) -> str:
        """Path of the file that says which store this is."""
        return os.path.join(self.path, "store.json")

    @property
    def spaces_dir(self) -> str:
        """Folder of all spaces."""
        return os.path.join(self.path, "spaces")

    def space_dir(self, fingerprint: str) -> str:
        """Return the folder of the space with this hexadecimal fingerprint."""
        return os.path.join(self.spaces_dir, fingerprint[:16])

    def parts_dir(self, fingerprint: str) -> str:
        """Return the folder of a space's vectors."""
        return os.path.join(self.space_dir(fingerprint), "parts")

    def index_dir(self, fingerprint: str) -> str:
        """Return the folder of a space's published indexes."""
        return os.path.join(self.space_dir(fingerprint), "index")

    def has_spaces(self) -> bool:
        """Return whether any space has a folder here, so that there is something to lose."""
        with suppress(FileNotFoundError), os.scandir(self.spaces_dir) as entries:
            return any(True for _ in entries)
        return False

    def is_made(self) -> bool:
        """Return whether a store was ever recorded here; if not, the home is as good as new."""
        return self.read_store_id() is not None or self.has_spaces()

    def read_store_id(self) -> str | None:
        """Return the store id of ``store.json``, or None where there is no such file.

        Raises
        ------
        CatalogError
            The file is damaged, or of a format that this version does not know.
        """
        try:
            with open(self.store_json, "rb") as file:
                facts = json.loads(file.read())
            store_id, version = facts["store_id"], facts["format"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise CatalogError(
                f"{self.store_json} can't be read ({err}); restore it from a backup"
            ) from err
        if version != FORMAT:
            raise CatalogError(
                f"{self.store_json} has format {version}, this version of lookalike knows"
                f" {FORMAT}; use a newer lookalike"
            )
        return str(store_id)

    def write_store_id(self, store_id: str) -> None:
        """Write ``store.json`` durably."""
        facts = json.dumps({"format": FORMAT, "store_id": store_id}, sort_keys=True)
        write_durably(self.store_json, facts.encode() + b"\n")


def make_dir(path: str) -> None:
    """Create a folder for the owner alone (0700) and the folders above it, durably.

    Folders that exist already keep their permissions.
    """
    parent = os.path.dirname(path)
    if os.path.isdir(path):
        return
    if parent != path:
        make_dir(parent)
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    fsync_dir(parent)


def create_private(path: str) -> None:
    """Make an empty file for the owner alone (0600), unless there is one of this name."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL  # never opens one: SQLite's locks would go
    with suppress(FileExistsError):
        os.close(os.open(path, flags, 0o600))


def write_durably(path: str, data: Buffer) -> None:
    """Write a whole file so that after a power cut it is the old one or the new one.

    After an error the temporary file is gone for good: a failed fsync may have dropped the pages
    that it could not write, so that a second fsync of the same file succeeds without them.

    Raises
    ------
    DiskFull
        The disk or the quota is full; an earlier file of this name is untouched.
    OSError
        Anything else that the system refuses.
    """
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        fd = os.open(temporary, flags, 0o600)
        try:
            write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException as err:
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(err, OSError) and err.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"no space left to write {path}; free some and run the command again"
            ) from err
        raise
    fsync_dir(os.path.dirname(path))


def write_all(fd: int, data: Buffer) -> int:
    """Write all bytes, also where the system takes fewer at a time; return their number.

    Raises
    ------
    OSError
        The system refuses, e.g. ``ENOSPC``.
    """
    view = memoryview(data).cast("B")
    done = 0
    while done < len(view):
        done += os.write(fd, view[done : done + (1 << 30)])
    return done


def fsync_dir(path: str) -> None:
    """Make the names in a folder durable, where the system can (not on Windows)."""
    if os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def free_bytes(path: str) -> int:
    """Return the bytes that may still be written below ``path`` or where it will be."""
    return shutil.disk_usage(_existing(path)).free


def fs_type(path: str, mounts: str = "/proc/self/mounts") -> str:
    """Return the type of the file system that holds ``path``; "" where the system does not say.

    Parameters
    ----------
    path
        A path that need not exist yet.
    mounts
        List of mounts in the form of ``/proc/mounts``; later lines cover earlier ones.
    """
    place = os.fsencode(os.path.realpath(_existing(path)))
    found, length = "", -1
    try:
        with open(mounts, "rb") as file:
            lines = [line.split() for line in file]
    except OSError:
        return ""
    for line in lines:
        point = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), line[1])
        inside = place == point or place.startswith(point.rstrip(b"/") + b"/")
        if inside and len(point) >= length:
            found, length = line[2].decode("ascii", "replace"), len(point)
    return found


def _existing(path: str) -> str:
    """Return the path, or the nearest folder above it that exists."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path
