"""A disk that loses power: what was not synced is there, half there, elsewhere, or gone.

A real folder is the page cache, in which the program sees all that it did.  Beside it stands what
is durable: of a file the bytes of its last sync and the writes since, in sectors of 512 bytes; of a
folder every name's history since its last sync.  Any of these writes and any entry of a history
may have reached the disk when the power goes, in any order.  SQLite keeps its own promise: its file
is as of the last commit where ``synchronous`` is ``FULL``, else of an earlier one too.
"""

import os
import shutil
import sqlite3
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Engine, event

from storage.database import BEGIN
from storage.fs import Fs, using

SECTOR = 512
CATALOG = "catalog.sqlite"
_FULL = 2


class PowerCut(BaseException):
    """The machine is off; nothing that the program still does has an effect."""


@dataclass(eq=False)
class _File:
    synced: bytes = b""
    writes: list = field(default_factory=list)  # (offset, bytes) since the last sync

    def size(self):
        return max([len(self.synced), *(at + len(data) for at, data in self.writes)])


@dataclass(eq=False)
class _Folder:
    names: dict = field(default_factory=dict)  # name -> its history; the first is durable


class Disk(Fs):
    """A folder on a disk that is cut off before the `cut`-th change or commit from now on.

    ``points`` counts these; 0 never cuts.  ``looks`` are points at which ``look`` is called with
    the disk, to see what a cut would have left there; then the program goes on.  Paths outside of
    the folder are not the disk's own.
    """

    def __init__(self, path, cut=0, looks=(), look=None):
        self.path, self.cut, self.points, self.off = path, cut, 0, False
        self.looks, self.look = frozenset(looks), look
        self.earlier = []  # what SQLite may fall back to, where it does not sync
        self._root = _scanned(path)
        self._open = {}

    @contextmanager
    def running(self):
        """Put the disk in force; ends at the cut, if one comes."""
        event.listen(Engine, "commit", self._commit)
        try:
            with using(self):
                yield self
        except PowerCut:
            assert self.off
        finally:
            event.remove(Engine, "commit", self._commit)

    def found(self, path, rng):
        """Make the folder as it may be found when the power is back; say if anything was open."""
        kept, named = (rng.choice((0.0, 1.0, rng.random())) for _ in range(2))
        _Found(rng, kept, named).write(self._root, path)
        for at, _, names in os.walk(self.path):
            there = os.path.join(path, os.path.relpath(at, self.path))
            if CATALOG in names and os.path.isdir(there):
                self._restore(os.path.join(at, CATALOG), os.path.join(there, CATALOG), rng)
        return _undecided(self._root)

    # What the program calls.

    def open_new(self, path, mode=0o600):
        self._point()
        fd = super().open_new(path, mode)
        self._open[fd] = os.fstat(fd).st_ino, _File()
        self._name(path, self._open[fd][1])
        return fd

    def write(self, fd, data):
        self._point()
        at = os.lseek(fd, 0, os.SEEK_CUR)
        done = super().write(fd, data)
        self._file(fd).writes.append((at, bytes(data[:done])))
        return done

    def fsync(self, fd):
        self._point()
        file = self._file(fd)
        file.synced, file.writes = os.pread(fd, file.size(), 0), []

    def close(self, fd):
        super().close(fd)
        if self.off:
            raise PowerCut

    def replace(self, old, new):
        self._point()
        super().replace(old, new)
        node = self._node(old)
        self._name(old, None)
        self._name(new, node)

    def unlink(self, path):
        self._point()
        super().unlink(path)
        self._name(path, None)

    def mkdir(self, path, mode=0o777):
        self._point()
        super().mkdir(path, mode)
        self._name(path, _Folder())

    def rmdir(self, path):
        self._point()
        super().rmdir(path)
        self._name(path, None)

    def fsync_dir(self, path):
        self._point()
        folder = self._node(path)
        if folder is not None:
            folder.names = {n: past[-1:] for n, past in folder.names.items() if past[-1]}

    def _point(self):
        if self.off:
            raise PowerCut
        self.points += 1
        if self.points == self.cut:
            self.off = True
            raise PowerCut
        if self.points in self.looks:
            self.look(self)

    def _commit(self, connection):
        if connection.get_execution_options().get(BEGIN) is None:
            return  # it has only read
        self._point()
        sqlite = connection.connection.driver_connection
        if sqlite.execute("PRAGMA synchronous").fetchone()[0] < _FULL:
            path = sqlite.execute("PRAGMA database_list").fetchone()[2]
            self.earlier.append(_copy_of(path))

    def _restore(self, source, target, rng):
        """Copy the catalog as of its last commit, or an earlier one, if it has had any."""
        state = rng.choice([*self.earlier, None])
        if state is not None:
            with open(target, "wb") as file:
                file.write(state)
        elif os.path.getsize(source) or _size(f"{source}-wal"):
            shutil.copyfile(source, target)
            if _size(f"{source}-wal"):
                shutil.copyfile(f"{source}-wal", f"{target}-wal")

    def _file(self, fd):
        inode, file = self._open[fd]
        assert os.fstat(fd).st_ino == inode, "a descriptor that this disk has not opened"
        return file

    def _node(self, path):
        """Return the file or folder at a path, None outside of the disk."""
        steps = os.path.relpath(os.fsdecode(path), self.path).split(os.sep)
        if steps[0] == os.pardir:
            return None
        node = self._root
        for step in steps if steps != [os.curdir] else ():
            node = node.names[step][-1]
        return node

    def _name(self, path, node):
        folder, name = os.path.split(os.fsdecode(path))
        self._node(folder).names.setdefault(name, [None]).append(node)


@dataclass
class _Found:
    """One of the states that are possible."""

    rng: object
    kept: float  # how likely a write since the last sync is on the disk
    named: float  # how likely a name is one that was not synced

    def write(self, folder, path):
        os.mkdir(path)
        for name, past in folder.names.items():
            node = past[0]
            if len(past) > 1 and self.rng.random() < self.named:
                node = past[self.rng.randrange(1, len(past))]
            if isinstance(node, _Folder):
                self.write(node, os.path.join(path, name))
            elif node is not None:
                with open(os.path.join(path, name), "xb") as file:
                    file.write(self.content(node))

    def content(self, file):
        if not file.writes:
            return file.synced
        data = bytearray(file.synced)
        garbage = self.rng.randbytes if self.rng.random() < 0.5 else bytes
        size = file.size()

        def grow(to):
            data.extend(garbage(max(0, to - len(data))))

        for at, piece in file.writes:
            for start in range(at // SECTOR * SECTOR, at + len(piece), SECTOR):
                if self.rng.random() < self.kept:
                    first, end = max(start, at), min(start + SECTOR, at + len(piece))
                    grow(first)
                    data[first:end] = piece[first - at : end - at]
        if self.rng.random() < 0.5:
            grow(size)
        return bytes(data)


def _scanned(path):
    folder = _Folder()
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir():
                folder.names[entry.name] = [_scanned(entry.path)]
            elif not entry.name.startswith(CATALOG):
                with open(entry.path, "rb") as file:
                    folder.names[entry.name] = [_File(file.read())]
    return folder


def _undecided(node):
    """Say whether anything was not synced, so that more than one state is possible."""
    if isinstance(node, _File):
        return bool(node.writes)
    pasts = node.names.values()
    return any(len(past) > 1 or (past[0] is not None and _undecided(past[0])) for past in pasts)


def _copy_of(path):
    """Return a SQLite file as of its last commit."""
    source, copy = sqlite3.connect(path), sqlite3.connect(":memory:")
    try:
        source.backup(copy)
        return copy.serialize()
    finally:
        source.close()
        copy.close()


def _size(path):
    return os.path.getsize(path) if os.path.exists(path) else 0
