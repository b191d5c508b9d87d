"""Where a root lies: the folder, its volume, and what is mounted at it, above it and inside it.

Nothing is written into a root, which may be read-only.  What a system says of itself is evidence
of different worth: the number of a device is given anew at every mount, and to another disk as
well; the identity of a volume stays with it wherever it goes.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote, unquote_to_bytes

from storage.excludes import SEP, Excludes

MOUNTS = "/proc/self/mountinfo"
VOLUMES = "/dev/disk/by-uuid"
"""Links that udev names after the volumes of block devices."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a directory was found.

    ``volume`` is None where the system gives nothing that stays with the volume.  ``inner`` are
    the mount points inside the directory, relative to it.
    """

    volume: str | None
    device: int
    inode: int
    mount: bytes
    """The mount point that the directory is, or that it lies below."""
    inner: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, path: bytes) -> Self:
        """Look at a directory.

        Raises
        ------
        OSError
            It is missing or can't be looked at.
        """
        status = os.stat(os.path.join(path, b"."))  # mounts it where an automounter waits
        points = mount_points()
        below = path.rstrip(SEP) + SEP
        inner = sorted({at[len(below) :] for at in points or () if at.startswith(below)})
        volume = volume_of(path, status.st_dev)
        return cls(volume, status.st_dev, status.st_ino, _above(path, points), tuple(inner))

    def to_json(self) -> dict[str, Any]:
        """Return the values for the catalog."""
        return {
            "volume": self.volume,
            "device": self.device,
            "inode": self.inode,
            "mount": quote(self.mount),
            "inner": [quote(path) for path in self.inner],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Return what ``to_json`` gave."""
        return cls(
            volume=values["volume"],
            device=values["device"],
            inode=values["inode"],
            mount=unquote_to_bytes(values["mount"]),
            inner=tuple(map(unquote_to_bytes, values["inner"])),
        )

    def same_folder(self, other: Self) -> bool:
        """Say whether this is certainly the very folder: its inode, on a volume that is known."""
        known = self.volume is not None and self.volume == other.volume
        return known and self.inode == other.inode

    def alike(self, other: Self) -> bool:
        """Say whether nothing speaks against its being the same folder."""
        seen = (self.volume, self.device, self.inode, self.mount)
        return seen == (other.volume, other.device, other.inode, other.mount)

    def unmounted_since(self, other: Self) -> bool:
        """Say whether what was mounted when it looked like ``other`` is not mounted now."""
        return self.mount != other.mount and _below(other.mount, self.mount)


def mount_points() -> list[bytes] | None:
    """Return all mount points but those where an automounter waits; None where nobody says."""
    try:
        with open(MOUNTS, "rb") as lines:
            fields = [line.partition(b" - ") for line in lines]
    except OSError:
        return None
    return [_plain(left.split()[4]) for left, _, right in fields if right.split()[0] != b"autofs"]


def volume_of(path: bytes, device: int) -> str | None:
    """Return what identifies the volume wherever it is mounted; None where there is no such thing.

    ``statvfs`` gives what the file system derives from its UUID, but FAT, exFAT and XFS give the
    number of the device, and NFS and FUSE nothing.  Of those that are block devices, udev knows
    the UUID.
    """
    if hasattr(os, "statvfs"):
        fsid = os.statvfs(path).f_fsid
        if fsid not in (0, _as_fsid(device)):
            return f"fsid:{fsid:x}"
    try:
        with os.scandir(VOLUMES) as links:
            names = [link.name for link in links if _leads_to(link.path, device)]
    except OSError:
        return None
    return f"uuid:{min(names)}" if names else None


def lost_mounts(before: Place | None, now: Place, excludes: Sequence[str]) -> list[bytes]:
    """Return the mount points inside a root that it had, and has no more; sorted."""
    if before is None:
        return []
    hides = Excludes(excludes).hides
    lost = (path for path in before.inner if path not in now.inner)
    return [path for path in lost if not hides(os.path.join(path, b"a file"))]


def _above(path: bytes, points: Iterable[bytes] | None) -> bytes:
    """Return the nearest mount point at or above a path."""
    if points is not None:
        return max((point for point in points if _below(path, point)), key=len, default=SEP)
    while not os.path.ismount(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path


def _below(path: bytes, folder: bytes) -> bool:
    """Say whether a path is a folder or lies below it."""
    return path == folder or path.startswith(folder.rstrip(SEP) + SEP)


def _plain(escaped: bytes) -> bytes:
    r"""Undo the kernel's escapes: ``\040`` is a space."""
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), escaped)


def _as_fsid(device: int) -> int:
    """Return the number of a device as the kernel's ``huge_encode_dev`` writes it."""
    major, minor = os.major(device), os.minor(device)
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def _leads_to(link: str, device: int) -> bool:
    try:
        return os.stat(link).st_rdev == device
    except OSError:
        return False
