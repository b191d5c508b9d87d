"""The home: the folder that holds a store's files.

::

    catalog.sqlite         the catalog, unless it lives on a Postgres server
    store.json             {"format": 1, "store_id": ...}, equal to the catalog's ``store`` row
    settings.toml          settings, where a person wrote some
    restoring.json         while a backup is put here: only that may open the home
    spaces/<fingerprint>/  the first 16 hexadecimal digits of the space's fingerprint
        parts/             vectors
        index/             published indexes
    whitening/             what whitens vectors, each named by the SHA-256 of its file
"""

import json
import os
import re
import shutil
from dataclasses import dataclass

from storage.durable import write_durably
from storage.errors import CatalogError

FORMAT = 1

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
        """Return whether any space has a folder here, so that there is something to lose.

        Raises
        ------
        CatalogError
            The home can't be looked into.
        """
        try:
            with os.scandir(self.spaces_dir) as entries:
                return any(True for _ in entries)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self.unusable(error) from error

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
        except OSError as err:
            raise self.unusable(err) from err
        except (ValueError, KeyError, TypeError) as err:
            raise CatalogError(
                f"{self.store_json} can't be read ({err}); restore it from a backup"
            ) from err
        if version != FORMAT:
            raise CatalogError(
                f"{self.store_json} has format {version}, this version of lookalike knows"
                f" {FORMAT}; use a newer lookalike"
            )
        return str(store_id)

    def unusable(self, error: OSError) -> CatalogError:
        """Return what to tell a person where the system refuses the home, or a file in it."""
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return CatalogError(
            f"the home {self.path} can't be used: {what}; mend that, or choose another --home"
        )

    def write_store_id(self, store_id: str) -> None:
        """Write ``store.json`` durably."""
        facts = json.dumps({"format": FORMAT, "store_id": store_id}, sort_keys=True)
        write_durably(self.store_json, facts.encode() + b"\n")


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
    path = os.path.abspath(path)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path
