"""Whether the catalog holds up when many workers claim and commit at once.

Some processes, each a run of its own as on a machine of its own, share one store: they claim a
chunk, extract it, write a part and commit, until nothing is left.  Three ways:

``network``
    Small drawn pictures through a tiny network: all of it is real.
``paced``
    No picture is read: a chunk takes as long as a fast GPU would take for it, and its vectors are
    random.  Claims, parts and commits are real.
``catalog``
    The same without any pause: the most that catalog and disk can take.

Prints commits and images a second, and which share of the workers' time went into claims and
commits, their work and their waiting for each other together; the same for one worker beside it.

    python benchmarks/workers.py [--workers 16] [--database both] [--json OUT]
"""

import argparse
import contextlib
import hashlib
import multiprocessing
import os
import queue
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from report import finish, parser
from sqlalchemy import func, select

sys.path.insert(0, str(Path(__file__).parents[1]))

from storage.catalog import Catalog
from storage.chunks import Chunk, claim_chunk
from storage.commit import FileRead, commit_chunk
from storage.files import scan_root
from storage.home import Home
from storage.leases import Lease, finish_run, start_run
from storage.reading import open_store
from storage.roots import add_root
from storage.runs import Heartbeat
from storage.scan import Signature
from storage.spaces import SpaceInfo, ensure_space, get_space
from storage.tables import Part, Vector
from tests.postgres import durable_database

DIM = 512
MODEL = "shufflenet_v2_x0_5"


@dataclass(frozen=True)
class Trial:
    """What one measurement does."""

    way: str
    database: str
    workers: int
    images: int
    chunk: int
    pace_s: float


@dataclass
class Spent:
    """What one worker did, and how long each of its claims and commits took."""

    wall_s: float = 0.0
    images: int = 0
    claims_s: list[float] = field(default_factory=list)
    commits_s: list[float] = field(default_factory=list)


def main() -> None:
    """Measure each way on each database, with one worker and with many."""
    args = _arguments()
    rows = []
    for database in ("sqlite", "postgres") if args.database == "both" else (args.database,):
        for way in args.ways:
            for workers in (1, args.workers):
                images = {"network": args.pictures, "paced": 0, "catalog": args.files}[way]
                images = images or workers * args.chunk * args.rounds
                chunk = args.small_chunk if way == "network" else args.chunk
                pace_s = args.pace if way == "paced" else 0.0
                rows.append(measured(Trial(way, database, workers, images, chunk, pace_s)))
                print(line(rows[-1]), flush=True)
    figures = {f"{row['database']}, {row['way']}, {row['workers']}": row for row in rows}
    finish("workers", [], figures, args.json)


def line(row: dict[str, Any]) -> str:
    """Return one measurement as a line."""
    return (
        f"{row['database']:8} {row['way']:8} {row['workers']:3} workers, chunks of {row['chunk']}: "
        f"{row['commits_per_s']:7.1f} commits/s, {row['images_per_s']:8.0f} images/s; "
        f"claim {1e3 * row['claim_median_s']:5.0f} ms (worst {1e3 * row['claim_worst_s']:.0f}), "
        f"commit {1e3 * row['commit_median_s']:5.0f} ms (worst {1e3 * row['commit_worst_s']:.0f}); "
        f"{row['catalog_share']:.1%} of their time in the catalog"
    )


def measured(trial: Trial) -> dict[str, Any]:
    """Fill a store with files, let the workers at it, and return what came of it."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        url = stack.enter_context(durable_database()) if trial.database == "postgres" else None
        home = Home(os.path.join(folder, "home"), url)
        _prepare(home, os.path.join(folder, "pictures"), trial)
        spent = _race(home, trial)
        with Catalog.open(home, write=False) as catalog, catalog.read() as conn:
            rows = conn.execute(select(func.coalesce(func.sum(Part.n), 0))).scalar_one()
            entered = conn.execute(select(func.count()).select_from(Vector)).scalar_one()
        if not rows == entered == trial.images:
            sys.exit(f"{trial}: {rows} rows and {entered} vectors for {trial.images} images")
    return _summary(trial, spent)


def _summary(trial: Trial, spent: list[Spent]) -> dict[str, Any]:
    claims = [s for worker in spent for s in worker.claims_s]
    commits = [s for worker in spent for s in worker.commits_s]
    wall = max(worker.wall_s for worker in spent)
    return {
        **asdict(trial),
        "wall_s": wall,
        "commits_per_s": len(commits) / wall,
        "images_per_s": sum(worker.images for worker in spent) / wall,
        "claim_median_s": statistics.median(claims),
        "claim_worst_s": max(claims),
        "commit_median_s": statistics.median(commits),
        "commit_worst_s": max(commits),
        "catalog_share": (sum(claims) + sum(commits)) / sum(worker.wall_s for worker in spent),
    }


def _prepare(home: Home, pictures: str, trial: Trial) -> None:
    """Make the files, scan them, and record the space."""
    os.mkdir(pictures)
    rng = np.random.default_rng(0)
    for n in range(trial.images):
        path = os.path.join(pictures, f"{n:08}.jpg")
        if trial.way == "network":
            pixels = np.repeat(np.repeat(rng.integers(0, 256, (8, 8, 3), np.uint8), 8, 0), 8, 1)
            Image.fromarray(pixels).save(path, quality=90)
        else:
            Path(path).touch()
    with Catalog.open(home, write=True) as catalog:
        lease = start_run(catalog, "benchmark")
        root = add_root(catalog, os.fsencode(pictures))
        scan_root(catalog, root, confirm_missing=False, skip=None, lease=lease)
        finish_run(catalog, lease, "done")
        if trial.way == "network":
            from flows.job.spaces import SpaceChoice, make_space

            make_space(catalog, SpaceChoice(space="space", model=MODEL, weights="random:0"))
        else:
            ensure_space(
                catalog,
                name="space",
                spec={"dim": DIM, "dtype": "float32", "decode_version": 1, "architecture": "none"},
                request={"model": "none", "layer": None, "weights": "none"},
                key="synthetic",
            )


def _race(home: Home, trial: Trial) -> list[Spent]:
    """Let all workers begin at the same moment; return what each spent."""
    context = multiprocessing.get_context("spawn")
    ready, answers = context.Barrier(trial.workers), context.Queue()
    workers = [
        context.Process(target=_work, args=(home, trial, ready, answers), daemon=True)
        for _ in range(trial.workers)
    ]
    os.environ["OMP_NUM_THREADS"] = "1"
    for worker in workers:
        worker.start()
    spent: list[Spent] = []
    while len(spent) < len(workers):
        with contextlib.suppress(queue.Empty):
            spent.append(Spent(**answers.get(timeout=1)))
        if any(worker.exitcode for worker in workers):
            sys.exit("a worker has failed")
    for worker in workers:
        worker.join()
    return spent


def _work(
    home: Home, trial: Trial, ready: Barrier, answers: "Queue[dict[str, Any]]"
) -> None:  # in a process of its own
    spent = Spent()
    with Catalog.open(home, write=True) as catalog:
        lease = start_run(catalog, "benchmark")
        space = get_space(catalog, "space")
        extract = _random(trial)
        if trial.way == "network":
            extract = _network(home, lease, space)
            warm = claim_chunk(catalog, lease, space, number=0, limit=1)
            if warm is not None:  # the model is loaded before the clock runs
                extract(catalog, lease, space, warm)
        ready.wait()
        started = time.perf_counter()
        with Heartbeat(catalog, lease):
            for chunk in _claimed(catalog, lease, space, trial.chunk, spent):
                spent.commits_s.append(extract(catalog, lease, space, chunk))
                spent.images += len(chunk.work)
        spent.wall_s = time.perf_counter() - started
        finish_run(catalog, lease, "done")
    answers.put(asdict(spent))


def _claimed(
    catalog: Catalog, lease: Lease, space: SpaceInfo, limit: int, spent: Spent
) -> Iterator[Chunk]:
    number, after = 0, 0
    while True:
        number += 1
        began = time.perf_counter()
        chunk = claim_chunk(catalog, lease, space, number=number, limit=limit, after_file_id=after)
        spent.claims_s.append(time.perf_counter() - began)
        if chunk is None:
            return
        after = chunk.work[-1].file_id
        yield chunk


def _network(home: Home, lease: Lease, space: SpaceInfo) -> Any:
    """Return the real extraction, its model loaded."""
    import torch

    from flows.job.extraction import extract_step
    from flows.job.orders import ChunkOrder, Place

    torch.set_num_threads(1)
    place = Place(home.path, home.catalog_url, lease)

    def extract(_catalog: Catalog, _lease: Lease, _space: SpaceInfo, chunk: Chunk) -> float:
        order = ChunkOrder(place, space.name, chunk, "cpu", 16, 2)
        return float(extract_step(order)["seconds"]["commit"])

    return extract


def _random(trial: Trial) -> Any:
    """Return what stands in for an extraction: a pause, and vectors of random numbers."""
    rng = np.random.default_rng()

    def extract(catalog: Catalog, lease: Lease, space: SpaceInfo, chunk: Chunk) -> float:
        time.sleep(trial.pace_s)
        digests = [hashlib.sha256(b"%d" % work.file_id).digest() for work in chunk.work]
        x = rng.standard_normal((len(digests), DIM), dtype=np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        part = open_store(catalog, space).append(lease.run_id, x, digests)
        reads = [
            FileRead(work.file_id, digest, Signature.of(os.stat(work.path)), trusted=True)
            for work, digest in zip(chunk.work, digests, strict=True)
        ]
        began = time.perf_counter()
        commit_chunk(catalog, lease, space, chunk, reads=reads, failures=[], part=part)
        return time.perf_counter() - began

    return extract


def _arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--workers", type=int, default=16)
    options.add_argument("--database", choices=("both", "sqlite", "postgres"), default="both")
    options.add_argument("--ways", nargs="+", default=("network", "paced", "catalog"))
    options.add_argument("--pictures", type=int, default=2000, help="for the network")
    options.add_argument("--files", type=int, default=100_000, help="for the catalog alone")
    options.add_argument("--chunk", type=int, default=256)
    options.add_argument("--small-chunk", type=int, default=16, help="for the network")
    options.add_argument("--rounds", type=int, default=20, help="chunks of a paced worker")
    options.add_argument("--pace", type=float, default=1.0, help="seconds of a paced chunk")
    args = options.parse_args()
    if args.quick:
        args.workers, args.database, args.ways = 2, "sqlite", ["catalog"]
        args.files, args.chunk = 200, 20
    return args


if __name__ == "__main__":
    main()
