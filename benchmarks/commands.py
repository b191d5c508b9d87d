"""How long commands take as whole processes: start, do it, print, end.

One store is filled through the store's own functions, as an indexing run does it, for files that
hold a few bytes each: a search for one of them hashes it, looks its vector up and loads no torch.
The other one is large, and its files are in the page cache when it is searched.

    python benchmarks/commands.py --store /tmp/stores --json OUT
"""

import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import numpy.typing as npt
from filled import Filled, filled
from report import Goal, finish, parser

from storage.catalog import Catalog
from storage.chunks import claim_chunk
from storage.commit import FileRead, commit_chunk
from storage.files import scan_root
from storage.home import Home
from storage.leases import finish_run, start_run
from storage.publish import publish
from storage.reading import open_store
from storage.roots import add_root
from storage.scan import Signature
from storage.spaces import SpaceInfo, ensure_space

CHUNK = 2048
IMAGES, DIM = 10_000, 2048
LARGE, LARGE_DIM = 1_000_000, 512
COMMANDS = (
    ("help", ("--help",), 0.1),
    ("search", ("search", "{picture}"), None),
    ("index, nothing changed", ("index", "--no-prefect"), None),
)
"""Name, words, and at most how many seconds."""
COLD_S = 0.7


def main() -> None:
    """Fill stores, time the commands, print the table."""
    made = parser(__doc__)
    made.add_argument("--images", type=int, default=IMAGES)
    made.add_argument("--dim", type=int, default=DIM)
    made.add_argument("--large", type=int, default=LARGE, help="images of the large store")
    made.add_argument("--runs", type=int, default=9)
    made.add_argument("--store", metavar="DIR", help="where the large store is, or is made")
    args = made.parse_args()
    if args.quick:
        args.images, args.dim, args.large, args.runs = 200, 32, 2000, 1
    goals, seconds = [], {}
    with tempfile.TemporaryDirectory() as folder:
        pictures, home = os.path.join(folder, "pictures"), Home(os.path.join(folder, "home"))
        fill(home, pictures, args.images, args.dim)
        picture = os.path.join(pictures, f"{args.images // 2:08}.jpg")
        for name, words, limit in COMMANDS:
            took = times(home, [word.format(picture=picture) for word in words], args.runs)
            seconds[name] = took
            if limit is not None:
                goals.append(_goal(name, limit, took))
    shared = nullcontext(args.store) if args.store else tempfile.TemporaryDirectory()
    with shared as where:
        large = filled(where, args.large, 32 if args.quick else LARGE_DIM)
        seconds["cold search"] = cold(large, args.runs)
        goals.append(_goal(f"search, {args.large:,} vectors", COLD_S, seconds["cold search"]))
    for name, took in seconds.items():
        print(f"{name:24} best {min(took):.2f} s, median {statistics.median(took):.2f} s")
    figures = {f"{name} s": round(statistics.median(took), 3) for name, took in seconds.items()}
    finish("commands", goals, {"images": args.images, "dim": args.dim, **figures}, args.json)


def cold(store: Filled, runs: int) -> list[float]:
    """Return the wall seconds of searches, each a process, with what they read in the cache."""
    for folder, _, names in os.walk(store.home.path):
        for name in names:
            Path(folder, name).read_bytes()
    return times(store.home, ["search", store.picture(5)], runs)


def _goal(name: str, limit: float, took: list[float]) -> Goal:
    said = f"at most {limit} s, whole process"
    return Goal(name, said, statistics.median(took), limit, higher_is_better=False)


def times(home: Home, words: list[str], runs: int) -> list[float]:
    """Return the wall seconds of some runs of a command, after one that warms the caches."""
    command = [sys.executable, "-m", "flows.cli", "--home", home.path, *words]
    seconds = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def fill(home: Home, pictures: str, images: int, dim: int) -> None:
    """Make files and commit a vector for each, as an indexing run does."""
    os.mkdir(pictures)
    for n in range(images):
        with open(os.path.join(pictures, f"{n:08}.jpg"), "w") as file:
            file.write(f"picture {n}")
    rng = np.random.default_rng(0)
    with Catalog.open(home, write=True) as catalog:
        lease = start_run(catalog, "benchmark")
        root = add_root(catalog, os.fsencode(pictures))
        scan_root(catalog, root, confirm_missing=False, skip=None, lease=lease)
        space = ensure_space(
            catalog,
            name="synthetic",
            spec={"dim": dim, "dtype": "float32", "decode_version": 1, "architecture": "none"},
            request={"model": "none", "layer": None, "weights": "none"},
            key="synthetic",
        )
        number, after = 0, 0
        while chunk := claim_chunk(
            catalog, lease, space, number=number + 1, limit=CHUNK, after_file_id=after
        ):
            number, after = chunk.number, chunk.work[-1].file_id
            reads = []
            for work in chunk.work:
                with open(work.path, "rb") as file:
                    digest = hashlib.sha256(file.read()).digest()
                    sig = Signature.of(os.fstat(file.fileno()))
                reads.append(FileRead(work.file_id, digest, sig, trusted=True))
            part = open_store(catalog, space).append(
                lease.run_id, vectors(rng, len(reads), space), [read.digest for read in reads]
            )
            commit_chunk(catalog, lease, space, chunk, reads=reads, failures=[], part=part)
        publish(catalog, lease, space)
        finish_run(catalog, lease, "done")


def vectors(rng: np.random.Generator, n: int, space: SpaceInfo) -> npt.NDArray[np.float32]:
    """Return unit vectors around 100 centres, shape ``(n, dim)``, float32."""
    centres = np.random.default_rng(1).standard_normal((100, space.dim), dtype=np.float32)
    x = centres[rng.integers(100, size=n)]
    x = x + 0.5 * rng.standard_normal((n, space.dim), dtype=np.float32)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


if __name__ == "__main__":
    main()
