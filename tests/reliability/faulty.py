"""Disks that fail at one call: a stand-in for the store's own, and a shim under SQLite's."""

import ctypes
import errno
import os
import shutil
import signal
import subprocess
from collections import Counter

from storage.fs import Fs

WRITES = ("torn", "short", "lying")
"""Faults of a write alone."""
KINDS = ("kill", "killed after", "torn", "short", "full", "broken", "full on", "broken on")
"""``full`` is ENOSPC, ``broken`` EIO, once; with ``on`` from that call to the end.

``torn`` writes half and kills the process, ``short`` says that half was written, and it was."""
_CODES = {"full": errno.ENOSPC, "broken": errno.EIO}
CALLS = (
    "open_new", "write", "fsync", "close", "replace", "unlink", "mkdir", "rmdir", "fsync_dir",
)  # fmt: skip


class Faulty(Fs):
    """The file system whose k-th call fails; all calls are counted by their names.

    ``lying`` is no fault of a disk that a store can stand: the write is told to be done, and was
    not.  It shows that the judges see damage.
    """

    def __init__(self, kind="", at=-1):
        self.kind, self.at = kind, at
        self.calls = []

    def count(self):
        return Counter(self.calls)

    def _call(self, name, *args):
        k = len(self.calls)
        self.calls.append(name)
        word, _, on = self.kind.partition(" ")
        due = k == self.at or (on == "on" and k > self.at >= 0)
        plain = getattr(super(), name)
        if not due:
            return plain(*args)
        if word in _CODES:
            raise OSError(_CODES[word], os.strerror(_CODES[word]))
        if self.kind == "lying":
            return memoryview(args[1]).nbytes
        if name == "write" and self.kind in WRITES:
            fd, data = args
            done = plain(fd, data[: max(1, len(data) // 2)])
            return done if self.kind == "short" else self._die()
        try:
            if self.kind == "killed after":
                plain(*args)
        finally:
            self._die()

    def _die(self):
        os.kill(os.getpid(), signal.SIGKILL)


def _counted(name):
    def method(self, *args):
        return self._call(name, *args)

    return method


for _name in CALLS:
    setattr(Faulty, _name, _counted(_name))


def points(calls, kinds=KINDS):
    """Yield every fault that can be at calls of these names, as kind and number of the call."""
    for k, name in enumerate(calls):
        for kind in kinds:
            if name in ("write", "pwrite") or kind not in WRITES:
                yield kind, k


class Shim:
    """The same under SQLite: a library loaded before libc that fails calls on its files."""

    def __init__(self):
        self._lib = ctypes.CDLL(os.environ["LD_PRELOAD"])
        self._lib.fault_calls.restype = ctypes.c_char_p

    def arm(self, kind, at):
        """Count from now on, and fail at the k-th call."""
        word, _, on = kind.partition(" ")
        number = {"kill": 1, "killed": 2, "torn": 3, "short": 4, "full": 5, "broken": 5}[word]
        self._lib.fault_arm(number, _CODES.get(word, 0), int(on == "on"), ctypes.c_long(at))

    def calls(self):
        """Return the names of the calls so far; all are, when none fails."""
        names = {"o": "open", "w": "pwrite", "s": "fsync", "t": "ftruncate", "u": "unlink"}
        return [names[letter] for letter in self._lib.fault_calls().decode()]


def build_shim(folder):
    """Compile the library; return its path, or None where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None or os.name == "nt":
        return None
    source = os.path.join(os.path.dirname(__file__), "shim.c")
    path = os.path.join(folder, "shim.so")
    words = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", path, source, "-ldl"]
    subprocess.run(words, check=True)
    return path
