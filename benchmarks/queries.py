"""Questions inside one process, as a server has them: beside FAISS's own calls, and by folder.

The other side of each ratio is what nobody can do without: ``index.search`` of the same index with
the same parameters and as many candidates, their vectors out of the memory maps, and the products
with the query in numpy.  It asks no catalog and knows of no file.  FAISS is called as it is, with
one thread a query, where the program lets all of them share the lists of one; ``shared`` is FAISS
told to do so too.

Single questions are asked in blocks, one side after the other: each works with what it left in the
processor's caches itself, as it does in a server.

    python benchmarks/queries.py --store /tmp/stores --json OUT
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import faiss
import numpy as np
import numpy.typing as npt
from filled import FOLDERS, Filled, filled, queries
from report import Goal, finish, in_turns, median_ratio, parser

from search.engine import Searcher
from search.garbage import settle
from storage.candidates import fetch_width
from storage.dead import rows_at
from storage.generation import load_generation
from storage.index import search_parameters
from storage.reading import open_store, snapshot

FloatArray = npt.NDArray[np.float32]
RowArray = npt.NDArray[np.int64]

K = 10
DIM = 512
SIZES = (100_000, 1_000_000)
QUICK = (5_000,)
BATCH = 1000
BATCHES = 3
ASKED = 600
BLOCK = 25
"""Questions of one side before it is the other's turn."""
FILTERED = 20
NARROW = 5
"""Percent: what leaves less must be exact."""


class Plain:
    """The index and the vectors of a store, without the store."""

    def __init__(self, searcher: Searcher) -> None:
        catalog, space = searcher.catalog, searcher.space
        view = snapshot(catalog, space)
        if view.generation is None:
            raise SystemExit("the store has no index")
        loaded = load_generation(
            catalog.home.index_dir(space.fingerprint), view.generation, space.dim
        )
        store = open_store(catalog, space)
        self.factory = view.generation.factory
        self.parameters = dict(view.generation.parameters)
        self.n = view.n
        self._index, self._rowmap = loaded.index, loaded.rowmap
        self._maps = [np.asarray(store.open(part)) for part in view.parts]
        self._starts = np.array([part.row_start for part in view.parts])
        self._searched = search_parameters(loaded.index, self.parameters)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Let threads share the lists of a query."""
        ivf: Any = faiss.try_extract_index_ivf(self._index)
        if ivf is None:
            yield
            return
        ivf.parallel_mode = 1
        try:
            yield
        finally:
            ivf.parallel_mode = 0

    def search(self, xq: FloatArray) -> list[tuple[RowArray, FloatArray]]:
        """Return the k nearest rows and their products, for each query."""
        fetch = fetch_width(K, self.n)
        _, positions = self._index.search(xq, fetch, params=self._searched)
        return [
            self._rescored(q, self._rowmap[at[at >= 0]])
            for q, at in zip(xq, positions, strict=True)
        ]

    def gather(self, rows: RowArray) -> FloatArray:
        """Return the vectors of rows, shape ``(n, d)``."""
        which = np.searchsorted(self._starts, rows, side="right") - 1
        places = rows - self._starts[which]
        maps = self._maps
        return np.stack([maps[a][b] for a, b in zip(which.tolist(), places.tolist(), strict=True)])

    def _rescored(self, q: FloatArray, rows: RowArray) -> tuple[RowArray, FloatArray]:
        scores = self.gather(rows) @ q
        best = np.argsort(-scores)[:K]
        return rows[best], scores[best]

    def products(self, xq: FloatArray) -> FloatArray:
        """Return the queries' products with every vector, shape ``(nq, n)``, by row."""
        return np.concatenate([xq @ x.T for x in self._maps], axis=1)


def nearest(products: FloatArray, allowed: RowArray) -> list[set[int]]:
    """Return the k nearest of the allowed rows, by comparison with each."""
    scores = products[:, allowed]
    return [set(allowed[np.argpartition(-each, K)[:K]].tolist()) for each in scores]


def main() -> None:
    """Fill the stores that are not there, measure each, print the table."""
    made = parser(__doc__)
    made.add_argument("--store", metavar="DIR", help="where filled stores are, or are made")
    made.add_argument("--images", type=int, action="append", help="instead of the two sizes")
    args = made.parse_args()
    goals: list[Goal] = []
    figures: dict[str, Any] = {}
    folder = nullcontext(args.store) if args.store else tempfile.TemporaryDirectory()
    with folder as where:
        for images in args.images or (QUICK if args.quick else SIZES):
            started = time.perf_counter()
            store = filled(where, images, 32 if args.quick else DIM)
            took = time.perf_counter() - started
            print(f"{images:,} images: the store took {took:.0f} s", flush=True)
            with Searcher(store.home) as searcher:
                searcher.prepare()
                settle()  # as a server does, and the command
                plain = Plain(searcher)
                found = {"store_s": took, "factory": plain.factory, **plain.parameters}
                found |= _one_by_one(store, searcher, plain, goals, quick=args.quick)
                found |= _in_batches(store, searcher, plain, goals, quick=args.quick)
                found |= _by_folder(store, searcher, plain, goals, quick=args.quick)
            figures[f"{images}"] = found
    finish("queries", goals, figures, args.json)


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _one_by_one(
    store: Filled, searcher: Searcher, plain: Plain, goals: list[Goal], *, quick: bool
) -> dict[str, Any]:
    """Ask single questions, by vector and by image, each of the three ways in blocks."""
    asked = 2 * BLOCK if quick else ASKED
    xq = queries(store, asked)
    ids = np.random.default_rng(3).integers(1, store.images + 1, asked)
    sides: dict[str, dict[str, Callable[[int], object]]] = {
        "vector": {
            "plain": lambda at: plain.search(xq[at : at + 1]),
            "shared": lambda at: plain.search(xq[at : at + 1]),
            "lookalike": lambda at: searcher.search_vectors(xq[at : at + 1], K),
        },
        "image": {
            "plain": lambda at: plain.search(plain.gather(ids[at : at + 1] - 1)),
            "shared": lambda at: plain.search(plain.gather(ids[at : at + 1] - 1)),
            "lookalike": lambda at: searcher.search_image(int(ids[at]), K),
        },
    }
    figures: dict[str, Any] = {}
    for kind, ways in sides.items():
        seconds = _in_blocks(ways, asked, plain)
        ratio = statistics.median(seconds["lookalike"]) / statistics.median(seconds["plain"])
        figures |= {f"{kind}_{who}_ms": _ms(values) for who, values in seconds.items()}
        goals.append(
            Goal(
                f"query by {kind}, {store.images:,}",
                "at most 1.3 times FAISS and rescoring",
                ratio,
                1.3,
                higher_is_better=False,
                note=f"{plain.factory}: {_ms(seconds['lookalike'])} ms against"
                f" {_ms(seconds['plain'])} ms, {_ms(seconds['shared'])} ms with shared lists",
            )
        )
    return figures


def _in_blocks(
    ways: dict[str, Callable[[int], object]], asked: int, plain: Plain
) -> dict[str, list[float]]:
    """Return the seconds that each way takes for each question; all ask the same ones."""
    seconds: dict[str, list[float]] = {who: [] for who in ways}

    def block(who: str, start: int) -> None:
        with plain.shared() if who == "shared" else nullcontext():
            seconds[who] += [_timed(partial(ways[who], at)) for at in range(start, start + BLOCK)]

    for start in range(0, asked, BLOCK):
        turn = start // BLOCK % len(ways)
        for who in [*list(ways)[turn:], *list(ways)[:turn]]:  # who goes first changes
            block(who, start)
    return seconds


def _in_batches(
    store: Filled, searcher: Searcher, plain: Plain, goals: list[Goal], *, quick: bool
) -> dict[str, Any]:
    xq = queries(store, 50 if quick else BATCH)
    ways: dict[str, Callable[[], float]] = {
        "plain": lambda: _timed(lambda: plain.search(xq)),
        "lookalike": lambda: _timed(lambda: searcher.search_vectors(xq, K)),
    }
    in_turns(ways, 1, say=False)
    seconds = in_turns(ways, 2 if quick else BATCHES, say=False)
    goals.append(
        Goal(
            f"{BATCH:,} queries at once, {store.images:,}",
            "at most 1.5 times FAISS's batch and rescoring",
            median_ratio(seconds["lookalike"], seconds["plain"]),
            1.5,
            higher_is_better=False,
            note=f"{_ms(seconds['lookalike'])} ms against {_ms(seconds['plain'])} ms",
        )
    )
    return {f"batch_{who}_ms": _ms(values) for who, values in seconds.items()}


def _by_folder(
    store: Filled, searcher: Searcher, plain: Plain, goals: list[Goal], *, quick: bool
) -> dict[str, Any]:
    """Ask below folders: the share found of what comparison with all of the folder finds."""
    xq = queries(store, 5 if quick else FILTERED)
    products = plain.products(xq)
    figures: dict[str, Any] = {}
    recalls: dict[bool, list[float]] = {True: [], False: []}
    for kind in ("chance", "cluster"):
        for percent in FOLDERS:
            under = store.folder(kind, percent)
            with searcher.catalog.read() as conn:
                allowed = rows_at(conn, searcher.space.id, under)
            exact = nearest(products, allowed)
            shares, seconds = [], []
            for q, truth in zip(xq, exact, strict=True):
                started = time.perf_counter()
                [hits] = searcher.search_vectors(q[None], K, under=under)
                seconds.append(time.perf_counter() - started)
                shares.append(len(truth & {hit.row for hit in hits}) / K)
            recall = statistics.mean(shares)
            figures[f"{kind}_{percent}"] = {"recall": recall, "ms": _ms(seconds)}
            recalls[int(percent) < NARROW].append(recall)
            print(f"  {kind} {percent} %: recall {recall:.4f}, {_ms(seconds)} ms", flush=True)
    for narrow, least, words in ((True, 1.0, "exact below 5 %"), (False, 0.95, "0.95 above 5 %")):
        name = f"recall@10 by folder, {words}, {store.images:,}"
        goals.append(Goal(name, "the least of the folders", min(recalls[narrow]), least, True))
    return {"by_folder": figures}


def _ms(seconds: list[float]) -> float:
    return round(1000 * statistics.median(seconds), 3)


if __name__ == "__main__":
    sys.exit(main())
