"""What it costs to store vectors: appending, committing, being found, and the published index.

Appending is held against ``np.save`` and an fsync of the same array.  Taking 1,000 vectors into
a space of a million, until the first search finds one, is held against the same in a small space:
what it costs must follow the 1,000.  An index that is extended by them is held against one that is
built anew.

    python benchmarks/store.py [--json OUT] [--quick] [--vectors 1000000] [--dim 512]
"""

import hashlib
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from bulk import clustered, fill
from report import Goal, finish, in_turns, median_ratio, parser

from storage.catalog import Catalog
from storage.chunks import claim_chunk
from storage.commit import FileRead, commit_chunk
from storage.files import scan_root
from storage.home import Home
from storage.leases import Lease, start_run
from storage.lookup import Lookup
from storage.publish import publish
from storage.reading import open_store
from storage.roots import add_root
from storage.scan import Signature
from storage.vectors import VectorStore

FloatArray = npt.NDArray[np.float32]

NEW = 1000
SMALL = 10_000
ROUNDS = 5
PARTS: Sequence[tuple[int, int]] = (
    (300, 512),
    (1000, 512),
    (8192, 512),
    (1000, 2048),
    (8192, 2048),
)
"""Rows and dimension: from a chunk of a laptop to the largest of a GPU."""
FACTORIES = ("IVF64,SQ8", "IVF1024,SQ8")
"""Of the small and the large space: trained in seconds also for a million."""


def main() -> None:
    """Measure, print, hold against the goals."""
    wanted = parser(__doc__ or "")
    wanted.add_argument("--vectors", type=int, default=1_000_000, help="of the large space")
    wanted.add_argument("--dim", type=int, default=512)
    options = wanted.parse_args()
    large, small, dim, new, rounds = options.vectors, SMALL, options.dim, NEW, ROUNDS
    parts, factories = PARTS, FACTORIES
    if options.quick:
        large, small, dim, new, rounds = 6_000, 2_000, 32, 200, 2
        parts, factories = ((300, 32),), ("IVF16,SQ8", "IVF64,SQ8")
    with tempfile.TemporaryDirectory() as folder:
        goals = [_throughput(folder, n, d, rounds) for n, d in parts]
        spaces = {
            f"{n:,}": Space(Path(folder, str(n)), n, dim, factory, new)
            for n, factory in zip((small, large), factories, strict=True)
        }
        commits = in_turns({name: one.commit for name, one in spaces.items()}, rounds)
        ours, few = (commits[f"{n:,}"] for n in (large, small))
        big = spaces[f"{large:,}"]
        extend_s = big.extend()
        figures = {
            "commit_s": commits,
            "steps_s": {name: one.steps() for name, one in spaces.items()},
            "build_s": {name: one.build_s for name, one in spaces.items()},
            "extend_s": extend_s,
            "vectors": large,
            "dim": dim,
        }
        for one in spaces.values():
            one.catalog.close()
    print(f"{figures['steps_s']}\nbuilt in {big.build_s:.1f} s, extended in {extend_s:.1f} s")
    goals += [
        Goal(
            f"commit of {new:,} to {large:,}",
            f"at most twice the time of {small:,}, until one is found",
            median_ratio(ours, few),
            2.0,
            higher_is_better=False,
            note=f"{1e3 * statistics.median(ours):.0f} ms, {1e3 * statistics.median(few):.0f} ms",
        ),
        Goal(
            f"extension of {large:,}",
            "at least 3 times as fast as building anew",
            big.build_s / extend_s,
            3.0,
            higher_is_better=True,
            note=f"{extend_s:.1f} s, {big.build_s:.1f} s",
        ),
    ]
    if options.quick:  # nothing here takes long enough to be told from what surrounds it
        goals = goals[:-2]
    finish("store", goals, figures, options.json)


def _throughput(folder: str, n: int, d: int, rounds: int) -> Goal:
    """Append a part, and save the same array, in turns."""
    x = np.concatenate(list(clustered(n, d)))
    store = VectorStore(os.path.join(folder, f"append-{n}-{d}"), d, "float32")
    digests = [hashlib.sha256(f"{at}".encode()).digest() for at in range(n)]

    def append() -> float:
        started = time.perf_counter()
        part = store.append("run", x, digests)
        seconds = time.perf_counter() - started
        store.remove(part.name)
        return seconds

    def save() -> float:
        path = os.path.join(folder, "saved.npy")
        started = time.perf_counter()
        with open(path, "wb") as file:
            np.save(file, x)
            file.flush()
            os.fsync(file.fileno())
        seconds = time.perf_counter() - started
        os.unlink(path)
        return seconds

    append()
    found = in_turns({"append": append, "save": save}, 2 * rounds + 1, say=False)
    mb = x.nbytes / 1e6
    rates = ", ".join(f"{name} {mb / statistics.median(s):.0f} MB/s" for name, s in found.items())
    return Goal(
        f"append of {n:,} vectors, d {d}",
        "at most twice the time of np.save and fsync",
        median_ratio(found["append"], found["save"]),
        2.0,
        higher_is_better=False,
        note=rates,
    )


class Space:
    """A space that is filled, indexed and open for searches; `commit` takes up new pictures."""

    def __init__(self, folder: Path, n: int, dim: int, factory: str, new: int) -> None:
        folder.mkdir()
        self.folder, self.dim, self.new = folder, dim, new
        self.catalog = Catalog.open(Home(str(folder / "home")), write=True)
        self.space = fill(self.catalog, dim, clustered(n, dim))
        lease = start_run(self.catalog, "benchmark")
        started = time.perf_counter()
        publish(self.catalog, lease, self.space, factory)
        self.build_s = time.perf_counter() - started
        self.lookup = Lookup(self.catalog, self.space, exact_below=0)
        self._rounds = 0
        self._spent: list[dict[str, float]] = []
        self.lookup.nearest(next(clustered(1, dim)), 10)

    def commit(self) -> float:
        """Return the seconds from vectors in memory until one of them is found.

        The claim looks through all files once a run, as the scan does, and is told apart.
        """
        self._rounds += 1
        x = np.concatenate(list(clustered(self.new, self.dim, seed=10 + self._rounds)))
        lease, digests = start_run(self.catalog, "benchmark"), self._pictures()
        marks = {"begin": time.perf_counter()}
        chunk = claim_chunk(
            self.catalog, lease, self.space, number=1, limit=self.new, after_file_id=0
        )
        assert chunk is not None
        marks["claim"] = time.perf_counter()
        reads = [
            FileRead(work.file_id, digests[work.path], Signature.of(os.stat(work.path)), True)
            for work in chunk.work
        ]
        marks["stat"] = time.perf_counter()
        part = open_store(self.catalog, self.space).append(
            lease.run_id, x, [read.digest for read in reads]
        )
        marks["append"] = time.perf_counter()
        commit_chunk(self.catalog, lease, self.space, chunk, reads=reads, failures=[], part=part)
        marks["commit"] = time.perf_counter()
        hit = self.lookup.nearest(x[-1:], 1).neighbours[0][0]
        marks["search"] = time.perf_counter()
        assert hit.score > 0.9999
        times = list(marks.values())
        took = (b - a for a, b in itertools.pairwise(times))
        self._spent.append(dict(zip(list(marks)[1:], took, strict=True)))
        return marks["search"] - marks["stat"]

    def steps(self) -> dict[str, float]:
        """Return the median seconds of each step of the commits."""
        return {
            name: round(statistics.median(spent[name] for spent in self._spent), 4)
            for name in self._spent[0]
        }

    def extend(self) -> float:
        """Return the seconds of publishing an index with what the commits have added."""
        lease: Lease = start_run(self.catalog, "benchmark")
        started = time.perf_counter()
        publish(self.catalog, lease, self.space)
        return time.perf_counter() - started

    def _pictures(self) -> dict[bytes, bytes]:
        """Make new files and let a scan find them; return their paths and digests."""
        folder = self.folder / f"new-{self._rounds}"
        folder.mkdir()
        digests = {}
        for n in range(self.new):
            path = folder / f"{n:05}.jpg"
            data = f"picture {self._rounds} {n}".encode()
            path.write_bytes(data)
            digests[os.fsencode(path)] = hashlib.sha256(data).digest()
        root = add_root(self.catalog, os.fsencode(folder))
        lease = start_run(self.catalog, "benchmark")
        scan_root(self.catalog, root, confirm_missing=False, skip=None, lease=lease)
        return digests


if __name__ == "__main__":
    main()
