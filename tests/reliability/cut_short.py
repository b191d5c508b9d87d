"""Small works that a power cut ends: a file that is replaced, chunks that are finished."""

import os
import shutil
from dataclasses import dataclass

import numpy as np

from storage.durable import write_durably
from storage.workfolder import WorkFolder
from tests.reliability.lives import Wrong
from tests.reliability.power import Disk


@dataclass
class Saves:
    """A file that is replaced again and again until the power goes: it is one of its versions."""

    folder: str
    rng: object
    cuts: int = 0

    def run(self):
        """Save and be cut off, and hold what is found against what was saved."""
        world, after = os.path.join(self.folder, "disk"), os.path.join(self.folder, "found")
        os.makedirs(world)
        path, saved = os.path.join(world, "file"), 0
        disk = Disk(world, self.rng.randint(1, 30))
        with disk.running():
            for version in range(1, 6):
                write_durably(path, _version(version))
                saved = version
        self.cuts += disk.off
        for _ in range(3):  # three of the states that may be found
            disk.found(after, self.rng)
            found = _content(os.path.join(after, "file"))
            if found not in (_version(saved), _version(saved + 1)):
                raise Wrong(f"after version {saved} the file is neither that nor the next one")
            shutil.rmtree(after)


def _version(number):
    """Return what is saved as a version; before the first one there is no file."""
    return (b"version %d\n" % number) * 100 if number else None


def _content(path):
    if not os.path.exists(path):
        return None
    with open(path, "rb") as file:
        return file.read()


@dataclass
class Batch:
    """Work for an output that is not complete yet: what was finished is not done again."""

    folder: str
    rng: object
    cuts: int = 0

    def run(self):
        """Finish one chunk after the other until the power goes, and see which are there."""
        world, after = os.path.join(self.folder, "disk"), os.path.join(self.folder, "found")
        os.makedirs(world)
        finished = []
        disk = Disk(world, self.rng.randint(1, 30))
        with disk.running(), _work_in(world) as work:
            for start in range(4):
                work.write(start, 1, _KEY, {"x": np.full(200, start)})
                finished.append(start)
        self.cuts += disk.off
        for _ in range(3):  # three of the states that may be found
            disk.found(after, self.rng)
            with _work_in(after) as work:
                for start in finished:
                    chunk = work.take(start, _KEY)
                    if chunk is None or set(work.read(chunk)["x"]) != {start}:
                        raise Wrong(f"chunk {start} of {len(finished)} that were finished is gone")
            shutil.rmtree(after)


_KEY = "a" * 32


def _work_in(folder):
    return WorkFolder(os.path.join(folder, "out.tsv"), {"model": "tiny"})
