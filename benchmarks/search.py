"""How long a search takes as a whole process: start, look up, find, print, end.

Fills a store with vectors around random centres, through the store's own functions, for files that
hold a few bytes each.  A search for one of them hashes it, looks its vector up and loads no torch.

    python benchmarks/search.py --images 10000 --dim 2048 --json OUT
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

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
COMMANDS = (
    ("help", ("--help",)),
    ("search", ("search", "{picture}")),
    ("index, nothing changed", ("index", "--no-prefect")),
)


def main() -> None:
    """Fill a store, time the commands, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", metavar="OUT")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pictures, home = os.path.join(folder, "pictures"), Home(os.path.join(folder, "home"))
        fill(home, pictures, args.images, args.dim)
        picture = os.path.join(pictures, f"{args.images // 2:08}.jpg")
        rows = {
            name: times(home, [word.format(picture=picture) for word in words], args.runs)
            for name, words in COMMANDS
        }
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{args.images:,} images, dimension {args.dim}; {machine}")
    for name, seconds in rows.items():
        print(f"{name:24} best {min(seconds):.2f} s, median {statistics.median(seconds):.2f} s")
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"machine": machine, "images": args.images, "seconds": rows}, file, indent=2)


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


def vectors(rng: np.random.Generator, n: int, space: SpaceInfo) -> "np.ndarray[tuple[int, int]]":
    """Return unit vectors around 100 centres, shape ``(n, dim)``, float32."""
    centres = np.random.default_rng(1).standard_normal((100, space.dim), dtype=np.float32)
    x = centres[rng.integers(100, size=n)]
    x = x + 0.5 * rng.standard_normal((n, space.dim), dtype=np.float32)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


if __name__ == "__main__":
    main()
