"""How much of the nearest a search finds, by the number of vectors: the choice of kinds, held.

Spaces of clustered vectors are filled, indexed with the kind that is chosen for their size, and
searched as a command searches, for vectors that are not in them; exact search says what there was
to find.  Then the photos of LOOKALIKE_DATA, cropped, flipped and recoloured to 20,000 pictures,
with the kind that is chosen and with those of larger spaces.

    python benchmarks/recall.py [--json OUT] [--quick] [--sizes 1000,50000] [--dim 512]
"""

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from bulk import BLOCK, clustered, fill
from report import DATA, Goal, finish, parser

from storage.catalog import Catalog
from storage.exact import search_exact
from storage.home import Home
from storage.kinds import FLAT_BELOW
from storage.leases import finish_run, start_run
from storage.lookup import Lookup
from storage.publish import publish
from storage.reading import Rows, open_store, snapshot

FloatArray = npt.NDArray[np.float32]

K = 10
QUERIES = 200
LEAST = 0.98
TIE = 1e-6
SIZES = (1_000, 3_000, 10_000, 30_000, FLAT_BELOW - 1, FLAT_BELOW, 100_000, 300_000, 1_000_000)
WIDE = ((FLAT_BELOW, 2048),)
"""Sizes with another dimension: as resnet50 has."""
QUICK = (5_000, 12_000)
REAL = 20_000
REAL_KINDS = (None, "HNSW32,SQ8", "IVF512,SQ8")
NETWORK, SIDE = "resnet18", 96
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lookalike-benchmarks"
HEAD = ("vectors", "n", "d", "kind", "build s", "MB", "recall@10", "ms/query")


def main() -> None:
    """Measure every size, print a table, hold each recall against the goal."""
    wanted = parser(__doc__ or "")
    sizes = ",".join(map(str, SIZES))
    wanted.add_argument("--sizes", default=sizes, help="numbers of clustered vectors")
    wanted.add_argument("--dim", type=int, default=512, help="their dimension")
    options = wanted.parse_args()
    print("  ".join(f"{word:>12}" for word in HEAD), flush=True)
    if options.quick:
        rows = [of_clustered(n, 64, factory) for n in QUICK for factory in (None, "IVF64,SQ8")]
    else:
        rows = [of_clustered(int(n), options.dim) for n in options.sizes.split(",")]
        if options.sizes == sizes:
            rows += [of_clustered(n, d) for n, d in WIDE]
        rows += of_photos()
    goals = [
        Goal(
            f"recall@{K}, {row['vectors']}, n {row['n']:,}, d {row['d']}, {row['asked']}",
            f"at least {LEAST} with {row['kind']}",
            row["recall@10"],
            LEAST,
            higher_is_better=True,
        )
        for row in rows
    ]
    finish("recall", goals, {"rows": rows, "queries": QUERIES, "k": K}, options.json)


def of_clustered(n: int, d: int, factory: str | None = None) -> dict[str, Any]:
    """Measure the search of n vectors around 100 centres."""
    xq = next(clustered(QUERIES, d, seed=1))
    return measured("clustered", clustered(n, d), xq, factory)


def of_photos() -> list[dict[str, Any]]:
    """Measure the search of what a network makes of photos; nothing where there are none."""
    x = photo_vectors()
    if x is None:
        print(f"no photos: {DATA} is missing, set LOOKALIKE_DATA", file=sys.stderr)
        return []
    # Every 100th is searched for and is not in the space; its siblings are.
    out = np.arange(len(x)) % (len(x) // QUERIES) == 0
    inside, xq = x[~out], x[out]
    return [measured("photos", _blocks(inside), xq, factory) for factory in REAL_KINDS]


def measured(
    vectors: str, blocks: Iterable[FloatArray], xq: FloatArray, factory: str | None
) -> dict[str, Any]:
    """Fill a space, publish its index, and search it; one row of the table.

    A kind that was asked for is searched where the search would compare all otherwise.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        Catalog.open(Home(os.path.join(folder, "home")), write=True) as catalog,
    ):
        space = fill(catalog, xq.shape[1], blocks)
        lease = start_run(catalog, "benchmark")
        started = time.perf_counter()
        made = publish(catalog, lease, space, factory)
        build_s = time.perf_counter() - started
        bound = {} if factory is None else {"exact_below": 0}
        lookup = Lookup(catalog, space, **bound)
        lookup.nearest(xq[:1], K)
        found, seconds = [], []
        for query in xq:
            started = time.perf_counter()
            hits = lookup.nearest(query[None], K).neighbours[0]
            seconds.append(time.perf_counter() - started)
            found.append([hit.score for hit in hits])
        view = snapshot(catalog, space)
        everything = Rows(open_store(catalog, space), view.parts).blocks()
        truth = search_exact(everything, xq, K)[0]
        finish_run(catalog, lease, "done")
    row = {
        "vectors": vectors,
        "n": made.n,
        "d": xq.shape[1],
        "kind": made.factory if factory or made.n >= FLAT_BELOW else f"exact ({made.factory})",
        "build s": round(build_s, 1),
        "MB": round(made.size_bytes / 1e6, 1),
        "recall@10": float(np.mean(np.array(found) >= truth[:, -1:] - TIE)),
        "ms/query": round(1e3 * float(np.median(seconds)), 2),
    }
    print("  ".join(f"{row[word]!s:>12}" for word in HEAD), flush=True)
    return row | {"asked": factory or "default", "parameters": dict(made.parameters)}


def _blocks(x: FloatArray) -> Iterator[FloatArray]:
    for start in range(0, len(x), BLOCK):
        yield x[start : start + BLOCK]


def photo_vectors() -> FloatArray | None:
    """Return unit vectors of cropped, flipped and recoloured photos, some 20,000, float32.

    They are kept in a cache, so that only the first run extracts them, in some minutes.
    """
    weights = DATA / "weights" / f"{NETWORK}.pth"
    photos = sorted(path for path in (DATA / "photos").rglob("*.jpg") if path.is_file())
    if not photos or not weights.is_file():
        return None
    about = f"{NETWORK} {SIDE} {REAL} {[path.name for path in photos]} {weights.stat().st_size}"
    kept = CACHE / f"photos-{hashlib.sha256(about.encode()).hexdigest()[:16]}.npy"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        print(f"extracting {REAL:,} pictures of {len(photos):,} photos once ...", flush=True)
        draft = kept.with_suffix(f".{os.getpid()}.npy")
        np.save(draft, _extracted(photos, weights).astype(np.float16))
        draft.replace(kept)
    x = np.load(kept).astype(np.float32)
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)


def _extracted(photos: list[Path], weights: Path) -> FloatArray:
    import torch
    from torchvision.models import get_model

    model = get_model(NETWORK, weights=None)
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.fc = torch.nn.Identity()
    model = model.eval().to(memory_format=torch.channels_last)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    made = []
    with torch.inference_mode():
        for pixels in _pictures(photos):
            batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255)
            made.append(model((batch - mean) / std).numpy())
    return np.concatenate(made)[:REAL]


def _pictures(photos: list[Path]) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield each photo's variants: crops of half its area and more, half of them mirrored."""
    from PIL import Image, ImageEnhance, ImageOps

    rng = np.random.default_rng(3)
    variants = -(-REAL // len(photos))
    for path in photos:
        with Image.open(path) as opened:
            opened.draft("RGB", (4 * SIDE, 4 * SIDE))
            photo = opened.convert("RGB")
        made = []
        for _ in range(variants):
            share = np.sqrt(rng.uniform(0.5, 1.0))
            w, h = (max(8, int(side * share)) for side in photo.size)
            left, top = (
                int(rng.integers(side - cut + 1))
                for side, cut in zip(photo.size, (w, h), strict=True)
            )
            one = photo.resize((SIDE, SIDE), box=(left, top, left + w, top + h))
            if rng.random() < 0.5:
                one = ImageOps.mirror(one)
            for change in (ImageEnhance.Color, ImageEnhance.Brightness, ImageEnhance.Contrast):
                one = change(one).enhance(rng.uniform(0.7, 1.3))
            made.append(np.asarray(one))
        yield np.stack(made)


if __name__ == "__main__":
    main()
