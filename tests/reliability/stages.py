"""A small store in stages, with vectors that follow from the pictures.

What is loaded here is loaded before any fork: a child would load it by itself, each one again.
"""

import functools
import glob
import hashlib
import os
from pathlib import Path

import alembic.command
import faiss
import numpy as np
from sqlalchemy import func, select

from storage import build, cleanup, compact, generation, index, publish, recall
from storage.backup import backup
from storage.catalog import Catalog
from storage.check import check
from storage.chunks import claim_chunk
from storage.commit import FileRead, commit_chunk
from storage.database import make_engine
from storage.durable import create_private, make_dir
from storage.errors import CatalogError
from storage.files import scan_root
from storage.home import Home
from storage.leases import finish_run, reap, start_run
from storage.migrations import REVISIONS, upgrade
from storage.reading import Rows, open_store, snapshot
from storage.restore import restore
from storage.roots import add_root
from storage.scan import Signature
from storage.spaces import ensure_space, list_spaces
from storage.tables import Image, Part, Vector

BACKED_UP = bytes(32)
"""Acknowledged among the digests when a backup is complete."""
LOADED = (alembic, faiss, build, generation, index, recall)

D = 8
CHUNK = 2


def digest_of(data):
    return hashlib.sha256(data).digest()


def vector_of(digest):
    """Return the vector that the picture of a digest has, float32, unit length."""
    x = np.random.default_rng(list(digest)).standard_normal(D)
    return (x / np.linalg.norm(x)).astype(np.float32)


def pictures_in(folder):
    return {digest_of(path.read_bytes()) for path in Path(folder).glob("*.jpg")}


def the_space(catalog):
    return ensure_space(
        catalog,
        name=None,
        spec={"dim": D, "dtype": "float32", "decode_version": 1, "architecture": "tiny"},
        request={"model": "tiny", "layer": "pool", "weights": "DEFAULT"},
        key="tiny:pool",
    )


# The stages.  Each takes the home, the folder of pictures, and what to call with the digests that
# a commit has acknowledged.


def opened(home, folder, ack):
    """Make a home, or open it."""
    Catalog.open(home, write=True).close()


def run(work):
    """Return a stage that does some work as one run in a space."""

    @functools.wraps(work)
    def stage(home, folder, ack):
        with Catalog.open(home, write=True) as catalog:
            reap(catalog)
            lease = start_run(catalog, "index")
            work(catalog, lease, the_space(catalog), folder, ack)
            finish_run(catalog, lease, "done")

    return stage


@run
def indexed(catalog, lease, space, folder, ack):
    """Scan, append and commit, chunk by chunk."""
    take_up(catalog, lease, space, folder, ack)


@run
def indexed_mostly(catalog, lease, space, folder, ack):
    """Do the same, but for the last chunk."""
    take_up(catalog, lease, space, folder, ack, most=len(os.listdir(folder)) - CHUNK)


def take_up(catalog, lease, space, folder, ack, most=None):
    root = add_root(catalog, os.fsencode(folder))
    scan_root(catalog, root, confirm_missing=True, skip=None, lease=lease)
    store = open_store(catalog, space)
    number = after = 0
    while (most is None or number * CHUNK < most) and (
        chunk := claim_chunk(catalog, lease, space, number=number, limit=CHUNK, after_file_id=after)
    ):
        reads = []
        for work in chunk.work:
            with open(work.path, "rb") as file:
                seen = Signature.of(os.fstat(file.fileno()))
                reads.append(FileRead(work.file_id, digest_of(file.read()), seen, trusted=True))
        digests = sorted({read.digest for read in reads})
        part = store.append(lease.run_id, np.stack([vector_of(d) for d in digests]), digests)
        commit_chunk(catalog, lease, space, chunk, reads=reads, failures=[], part=part)
        ack(digests)
        number, after = number + 1, chunk.work[-1].file_id


@run
def published(catalog, lease, space, folder, ack):
    """Publish an index: build it, or extend the one that there is by what is new."""
    publish.publish(catalog, lease, space)


@run
def compacted(catalog, lease, space, folder, ack):
    """Make one part of the small ones, publish anew, and delete what was replaced."""
    compact.compact(catalog, lease, space, force=True)
    publish.publish(catalog, lease, space)
    cleanup.delete_old_files(catalog, lease, keep_s=0.0)


def backed_up(home, folder, ack):
    """Make a backup beside the home, or bring it up to date."""
    with Catalog.open(home, write=False) as catalog:
        backup(catalog, beside(home, "backup"))
    ack([BACKED_UP])


def beside(home, name):
    return os.path.join(os.path.dirname(home.path), name)


def earlier(home, folder, ack):
    """Make a home with the schema before this one."""
    make_dir(home.path)
    create_private(home.sqlite)
    engine = make_engine(home, write=True, migrate=True)
    with engine.begin() as conn:
        upgrade(conn, to=REVISIONS[-2])
    engine.dispose()


STAGES = {
    "open": ([], opened),
    "migrate": ([earlier], opened),
    "index": ([opened], indexed),
    "publish": ([opened, indexed], published),
    "extend": ([opened, indexed_mostly, published, indexed], published),
    "compact": ([opened, indexed, published], compacted),
    "backup": ([opened, indexed, published], backed_up),
    "backup again": ([opened, indexed, published, backed_up, compacted], backed_up),
}


class Wrong(Exception):
    """The judge's word for what must not be."""


def judge(home, folder, acknowledged):
    """Hold the home that a fault has left against what was acknowledged, then mend it by a run."""
    digests = acknowledged - {BACKED_UP}
    if digests:
        kept(home, digests)
    if os.path.isdir(beside(home, "backup")):
        judge_backup(home, digests, complete=BACKED_UP in acknowledged)
    for stage in (indexed, published, compacted):
        stage(home, folder, lambda digests: None)
    with Catalog.open(home, write=False) as catalog:
        whole(catalog, pictures_in(folder))


def kept(home, digests):
    with Catalog.open(home, write=False) as catalog:
        found = vectors_in(catalog)
    if lost := [d for d in digests if not same(found.get(d), vector_of(d))]:
        raise Wrong(f"{len(lost)} acknowledged vectors are lost or changed")


def judge_backup(home, digests, *, complete):
    """Restore what is there: a backup that was complete once stays so, or is the newer one."""
    first, second = (Home(beside(home, name)) for name in ("restored", "restored again"))
    try:
        restore(beside(home, "backup"), first)
        kept(first, digests)
    except CatalogError:
        if complete:
            raise
    backed_up(home, "", lambda digests: None)
    restore(beside(home, "backup"), second)
    kept(second, digests)
    if left := glob.glob(f"{glob.escape(beside(home, 'backup'))}/**/*.tmp", recursive=True):
        raise Wrong(f"{left[0]} was left")


def whole(catalog, digests):
    problems = [f.what for f in check(catalog, deep=True) if f.severity == "error"]
    problems += [path for space in list_spaces(catalog) for path in cleanup.orphans(catalog, space)]
    if problems:
        raise Wrong("; ".join(problems))
    found = vectors_in(catalog)
    if found.keys() != digests or not all(same(found[d], vector_of(d)) for d in digests):
        raise Wrong("the next run did not make the store whole")
    with catalog.read() as conn:
        vectors = conn.execute(select(func.count()).select_from(Vector)).scalar_one()
        held = conn.execute(select(func.sum(Part.n))).scalar_one()
    if (vectors, held) != (len(digests), len(digests)):
        raise Wrong(f"{vectors} vectors and {held} rows for {len(digests)} pictures")
    if left := glob.glob(f"{glob.escape(catalog.home.path)}/**/*.tmp", recursive=True):
        raise Wrong(f"{left[0]} was left")


def vectors_in(catalog):
    """Return digest -> vector of every space."""
    found = {}
    for space in list_spaces(catalog):
        view = snapshot(catalog, space)
        with catalog.read() as conn:
            query = select(Vector.row, Image.digest).join(Image)
            pairs = conn.execute(query.where(Vector.space_id == space.id)).all()
        if pairs:
            rows = Rows(open_store(catalog, space), view.parts).gather([row for row, _ in pairs])
            found |= {digest: x for (_, digest), x in zip(pairs, rows, strict=True)}
    return found


def same(one, other):
    return one is not None and one.tobytes() == other.tobytes()
