"""What a catalog must say of a tree, told without the catalog: the oracle of the state machine."""

import hashlib
import os
import stat
from collections import Counter
from dataclasses import dataclass, field, replace

from storage.scan import SUFFIXES

MONTH_S = 31 * 86400.0
FLOOR = 20


def digest_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


@dataclass(frozen=True)
class Seen:
    """A file as the last scan that could look found it."""

    size_bytes: int
    mtime_ns: int
    digest: bytes
    state: str = "live"
    missed_at: float | None = None
    missed_by: int = 0
    """Complete scans that have ended since it was missed, the one that missed it included."""


def look(root: bytes) -> dict[bytes, Seen]:
    """Return all pictures that lie in a folder by ``os.walk``, which the scan does not use."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            if name.rpartition(b".")[2].lower() not in SUFFIXES or name.startswith(b"."):
                continue
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    digest = digest_of(file.read())
                seen = Seen(status.st_size, status.st_mtime_ns, digest)
                found[os.path.relpath(path, root)] = seen
    return found


def below(path: bytes, folder: bytes | None) -> bool:
    return folder is not None and (folder == b"" or path.startswith(folder + b"/"))


@dataclass
class Model:
    """What the catalog must hold of one root."""

    files: dict[bytes, Seen] = field(default_factory=dict)
    contents: set[bytes] = field(default_factory=set)
    """All that were ever extracted."""
    place: tuple[int, int] | None = None
    now: float = 0.0
    arrived: Counter[bytes] = field(default_factory=Counter)
    """In how many files each content was found that they had not held before the last scan."""
    hidden: bytes | None = None
    """The folder that the last complete scan could not list."""

    def expect(self, root: bytes, under: bytes, hidden: bytes | None) -> bool | None:
        """Say whether a scan must be refused (True), accepted (False), or may be either (None)."""
        target = os.path.join(root, under) if under else root
        live = {path: seen for path, seen in self.files.items() if seen.state == "live"}
        part = {path: seen for path, seen in live.items() if below(path, under)}
        if not os.path.isdir(target) or (not os.listdir(target) and part):
            return True
        visible = look(root)
        reached = {p for p in visible if below(p, under) and not below(p, hidden)}
        lost = {path for path in part if path not in visible and not below(path, hidden)}
        if lost and not reached:
            return True
        if len(lost) > FLOOR and len(lost) * 2 > len(part):
            return True
        return self._strange(root, live, hidden)

    def _strange(self, root: bytes, live: dict[bytes, Seen], hidden: bytes | None) -> bool | None:
        status = os.stat(root)
        same_place = self.place == (status.st_dev, status.st_ino)
        if not live:
            return False
        visible = look(root)
        known = [is_as_it_was(seen, visible.get(path)) for path, seen in live.items()]
        if all(known):
            return False
        if same_place:  # only a volume without identity is looked at more closely
            return False if known.count(False) <= FLOOR or has_identity(root) else None
        return True if not any(known) and hidden is None else None

    def accept(self, root: bytes, under: bytes, hidden: bytes | None) -> None:
        """Take over what a scan that was not refused has seen, and what was read after it."""
        visible = look(root)
        self.arrived = Counter()
        whole = under == b""
        for path, seen in list(self.files.items()):
            if below(path, under) and not below(path, hidden) and path not in visible:
                self._miss(path, seen, whole)
        for path, found in visible.items():
            if below(path, under) and not below(path, hidden):
                self.hold(path, found)
        if whole:
            for path, seen in self.files.items():
                if seen.state == "missing":
                    self.files[path] = replace(seen, missed_by=seen.missed_by + 1)
            self.hidden = hidden
            status = os.stat(root)
            self.place = status.st_dev, status.st_ino

    def hold(self, path: bytes, found: Seen) -> None:
        """Note what was read in a file."""
        held = self.files.get(path)
        self.arrived[found.digest] += held is None or held.digest != found.digest
        self.files[path] = found
        self.contents.add(found.digest)

    def settle_moves(self, left: set[bytes]) -> None:
        """Forget a missing file for each file that took its content over; which one is open.

        ``left`` are those that the catalog still knows.
        """
        missing = {p: seen.digest for p, seen in self.files.items() if seen.state == "missing"}
        there = Counter(missing.values())
        gone = {path: digest for path, digest in missing.items() if path not in left}
        expected = {d: min(n, there[d]) for d, n in self.arrived.items() if n and there[d]}
        assert Counter(gone.values()) == expected, (gone, expected)
        for path in gone:
            del self.files[path]

    def _miss(self, path: bytes, seen: Seen, whole: bool) -> None:
        if seen.state == "live":
            self.files[path] = replace(seen, state="missing", missed_at=self.now)
        elif whole and seen.missed_by >= 1 and self.is_old(seen):
            del self.files[path]

    def is_old(self, seen: Seen) -> bool:
        return seen.missed_at is not None and self.now - seen.missed_at >= MONTH_S

    def prune(self) -> int:
        """Forget what maintenance may forget, and return how many files that is."""
        over = [
            path
            for path, seen in self.files.items()
            if seen.missed_by >= 2 and self.is_old(seen) and not below(path, self.hidden)
        ]
        for path in over:
            del self.files[path]
        return len(over)


def is_as_it_was(seen: Seen, found: Seen | None) -> bool:
    if found is None or found.size_bytes != seen.size_bytes:
        return False
    return found.mtime_ns == seen.mtime_ns or found.digest == seen.digest


def has_identity(root: bytes) -> bool:
    status, volume = os.stat(root), os.statvfs(root)
    return volume.f_fsid not in (0, os.major(status.st_dev) << 8 | os.minor(status.st_dev))
