"""Lives of one store: each ends by a power cut or when its work is done, and the next goes on.

The work is that of a night at the level of the store: scan, append and commit chunk by chunk,
publish, compact, publish again, delete what was replaced.  Only the network is missing: the vector
of a picture is made from its digest.
"""

import hashlib
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from sqlalchemy import func, select

from storage import leases
from storage.catalog import Catalog
from storage.chunks import claim_chunk
from storage.cleanup import delete_old_files
from storage.commit import FileRead, commit_chunk
from storage.compact import compact
from storage.files import scan_root
from storage.generation import load_generation
from storage.home import Home
from storage.leases import finish_run, reap, start_run
from storage.publish import publish
from storage.reading import Rows, open_store, snapshot
from storage.roots import add_root
from storage.scan import Signature
from storage.spaces import ensure_space, list_spaces
from storage.tables import Image, Part, Vector
from tests.reliability.power import Disk

D = 96  # a vector is not a whole number of sectors
CHUNK = 4
SPEC = {"dim": D, "dtype": "float32", "decode_version": 1, "architecture": "tiny"}


class Wrong(Exception):
    """What must not be."""


@dataclass
class Known:
    """What the program has said was done, and so must outlive everything."""

    opened: bool = False
    digests: set = field(default_factory=set)
    published: bool = False


def digest_of(data):
    return hashlib.sha256(data).digest()


def vector_of(digest):
    """Return the vector of a picture, float32, unit length."""
    seed = [int.from_bytes(digest[at : at + 4], "big") for at in range(0, 16, 4)]
    x = np.random.Generator(np.random.PCG64(seed)).standard_normal(D)
    return (x / np.linalg.norm(x)).astype(np.float32)


def plant(folder, n=10):
    """Write pictures, two of them copies of others; return the vector of each by its digest."""
    os.mkdir(folder)
    contents = [b"picture %d" % number for number in range(n)]
    for number, data in enumerate([*contents, *contents[:2]]):
        with open(os.path.join(folder, f"{number:02}.jpg"), "wb") as file:
            file.write(data)
    return {digest_of(data): vector_of(digest_of(data)) for data in contents}


def the_space(catalog):
    return ensure_space(catalog, name=None, spec=SPEC, request={"model": "tiny"}, key="tiny")


def one_night(home, pictures, known):
    """Open the store and do all that is left to do, as one run."""
    with Catalog.open(home, write=True) as catalog:
        known.opened = True
        reap(catalog)
        root = add_root(catalog, os.fsencode(pictures))
        lease = start_run(catalog, "index")
        space = the_space(catalog)
        scan_root(catalog, root, confirm_missing=True, skip=None, lease=lease)
        extract(catalog, lease, space, known)
        publish(catalog, lease, space)
        known.published = True
        compact(catalog, lease, space, force=True)
        publish(catalog, lease, space)
        delete_old_files(catalog, lease, keep_s=0.0)
        finish_run(catalog, lease, "done")


def extract(catalog, lease, space, known):
    store = open_store(catalog, space)
    number = after = 0
    while chunk := claim_chunk(
        catalog, lease, space, number=number, limit=CHUNK, after_file_id=after
    ):
        reads = [read(work) for work in chunk.work]
        digests = sorted({item.digest for item in reads} - set(entered(catalog, space)))
        part = store.append(lease.run_id, stacked(digests), digests) if digests else None
        commit_chunk(catalog, lease, space, chunk, reads=reads, failures=[], part=part)
        known.digests |= {item.digest for item in reads}
        number, after = number + 1, chunk.work[-1].file_id


def read(work):
    with open(work.path, "rb") as file:
        sig = Signature.of(os.fstat(file.fileno()))
        return FileRead(work.file_id, digest_of(file.read()), sig, trusted=True)


def stacked(digests):
    return np.stack([vector_of(digest) for digest in digests])


def entered(catalog, space):
    """Return digest -> row of a space."""
    query = select(Image.digest, Vector.row).join(Vector, Vector.image_id == Image.id)
    with catalog.read() as conn:
        return dict(conn.execute(query.where(Vector.space_id == space.id)).all())


def vectors_in(catalog, space):
    """Return digest -> vector, as a reader has them."""
    rows = entered(catalog, space)
    if not rows:
        return {}
    vectors = Rows(open_store(catalog, space), snapshot(catalog, space).parts)
    return dict(zip(rows, vectors.gather(list(rows.values())), strict=True))


def judge(home, known, expected):
    """Hold a store, found as it is, against what is known; nothing is repaired."""
    if not known.opened:
        return
    with Catalog.open(home, write=False) as catalog:
        spaces = list_spaces(catalog)
        found = {}
        for space in spaces:
            found |= vectors_in(catalog, space)
            refuse_damaged(catalog, space, known)
    if lost := known.digests - found.keys():
        raise Wrong(f"{len(lost)} images that were committed have no vector")
    refuse_others(found, expected)


def refuse_damaged(catalog, space, known):
    """Look at every byte that the catalog vouches for."""
    view, store = snapshot(catalog, space), open_store(catalog, space)
    for part in view.parts:
        for problem in store.verify(part):
            raise Wrong(problem)
    if view.generation is not None:
        folder = catalog.home.index_dir(space.fingerprint)
        load_generation(folder, view.generation, space.dim)
    elif known.published:
        raise Wrong("the index that was published is gone")


def refuse_others(found, expected):
    for digest, vector in found.items():
        if digest not in expected or vector.tobytes() != expected[digest].tobytes():
            raise Wrong("a vector is another one than was committed")


def refuse_unlike(home, expected):
    """Hold a store whose work is done against one that was never interrupted."""
    with Catalog.open(home, write=False) as catalog:
        (space,) = list_spaces(catalog)
        found = vectors_in(catalog, space)
        with catalog.read() as conn:
            rows = conn.execute(select(func.sum(Part.n)).where(Part.state == "live")).scalar_one()
            names = set(conn.execute(select(Part.name)).scalars())
        parts = os.listdir(catalog.home.parts_dir(space.fingerprint))
        index = os.listdir(catalog.home.index_dir(space.fingerprint))
    refuse_others(found, expected)
    if found.keys() != expected.keys() or rows != len(expected):
        raise Wrong(f"{len(found)} vectors and {rows} rows for {len(expected)} images")
    if {name.split(".")[0] for name in parts} != names or len(index) != 2:
        raise Wrong(f"files were left: {parts} {index}")


@contextmanager
def boot(number):
    """Let the program believe that the machine was started anew: earlier runs are dead."""
    real = leases.this_process()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leases, "this_process", lambda: replace(real, boot=f"boot-{number} pid"))
        yield


@dataclass
class History:
    """One store from its beginning until its work is done, cut off again and again.

    A life meets some power cuts of which it knows nothing: what each would have left is judged, and
    the life goes on.  One more cut ends it, and the next life begins with what was left.
    """

    folder: str
    pictures: str
    expected: dict
    template: str | None  # a catalog with the schema; None: the first life makes it
    rng: object
    points: int = 170  # of the first life, among which the cuts lie; what is left over adds more
    looks: int = 8
    cuts: int = 0  # all of them, each judged
    lives: int = 0
    unsynced: int = 0  # cuts that left a choice of what is on the disk

    def run(self):
        """Live until the work is done; raises whatever goes wrong."""
        known = Known()
        world = os.path.join(self.folder, "disk-0")
        os.makedirs(world)
        if self.template is not None:
            os.mkdir(os.path.join(world, "home"))
            shutil.copyfile(self.template, os.path.join(world, "home", "catalog.sqlite"))
        while self.lives < 100:
            self.lives += 1
            most = self.points + 20 * self.lives
            looks = [self.rng.randint(1, most) for _ in range(self.looks)]
            disk = Disk(world, self.rng.randint(1, most), looks, self._looker(known))
            with boot(self.lives), disk.running():
                one_night(_home(world), self.pictures, known)
            if not disk.off:
                judge(_home(world), known, self.expected)
                refuse_unlike(_home(world), self.expected)
                return
            after = self._after_cut(disk, known)
            shutil.rmtree(world)
            world = after
        raise Wrong("the work is not done after 100 lives")

    def _looker(self, known):
        def look(disk):
            shutil.rmtree(self._after_cut(disk, known))

        return look

    def _after_cut(self, disk, known):
        self.cuts += 1
        after = os.path.join(self.folder, f"disk-{self.cuts}")
        self.unsynced += disk.found(after, self.rng)
        judge(_home(after), known, self.expected)
        return after


def _home(world):
    return Home(os.path.join(world, "home"))
