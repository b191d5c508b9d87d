"""Which planted copies are found, and how much else is: by kind, beside imagededup's hashes.

Photos of corel-1k lie in one folder; some of them have copies beside them: the same bytes,
re-encoded, resized, cropped, rotated, flipped, and of another brightness.  The folder is indexed
with each network, and `lookalike duplicates` makes groups of it.  imagededup's hashes get the same
folder, with the distance that is their default.

A copy is found where it is in one group with its original; a hash finds it where it tells the two
as a pair.  Of the pairs that are told and have a copy of some kind in them, precision is the share
that is of one photo.  What the photos have of real near-duplicates counts as wrong for all.

    python benchmarks/duplicates.py [--networks resnet18 resnet50] [--originals 100] [--json OUT]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from peers import VENV
from photos import drawn, weights
from PIL import Image, ImageEnhance
from report import DATA, Goal, finish, parser
from turns import PEERS

from search.duplicates import NEAR, Near
from storage.catalog import Catalog
from storage.home import Home
from storage.spaces import get_space

COREL = DATA / "photos" / "corel-1k"
THRESHOLDS = (0.80, 0.85, 0.90, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)
ORIGINAL = "original"
Pairs = set[tuple[str, str]]


def _saved(suffix: str, **options: Any) -> Callable[[Image.Image, Path], None]:
    return lambda image, path: image.save(path.with_suffix(f".{suffix}"), **options)


def _changed(
    change: Callable[[Image.Image], Image.Image],
) -> Callable[[Image.Image, Path], None]:
    return lambda image, path: change(image).save(path.with_suffix(".jpg"), quality=90)


def _cropped(share: float) -> Callable[[Image.Image], Image.Image]:
    """Return what cuts out a share of both sides, not quite from the middle."""

    def crop(image: Image.Image) -> Image.Image:
        width, height = (round(side * share) for side in image.size)
        left, top = (image.width - width) // 3, (image.height - height) // 3
        return image.crop((left, top, left + width, top + height))

    return crop


def _scaled(factor: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.resize((round(image.width * factor), round(image.height * factor)))


def _brightness(factor: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: ImageEnhance.Brightness(image).enhance(factor)


KINDS: dict[str, Callable[[Image.Image, Path], None]] = {
    "jpeg 60": _saved("jpg", quality=60),
    "jpeg 30": _saved("jpg", quality=30),
    "png": _saved("png"),
    "webp": _saved("webp", quality=75),
    "half": _changed(_scaled(0.5)),
    "double": _changed(_scaled(2)),
    "crop 90": _changed(_cropped(0.9)),
    "crop 75": _changed(_cropped(0.75)),
    "rotate 3": _changed(lambda image: image.rotate(3, Image.Resampling.BICUBIC)),
    "rotate 90": _changed(lambda image: image.transpose(Image.Transpose.ROTATE_90)),
    "flip": _changed(lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "dark": _changed(_brightness(0.7)),
    "bright": _changed(_brightness(1.3)),
}
"""Each kind of copy but one: ``exact`` has the original's bytes."""
ALL_KINDS = ("exact", *KINDS)


def main() -> None:
    """Plant the copies, let all find them, print the tables."""
    args = _arguments()
    figures: dict[str, Any] = {"absent": {}}
    found: dict[str, Pairs] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        figures["photos"] = planted(folder / "photos", args.originals, args.others)
        print(figures["photos"], flush=True)
        for network in args.networks:
            found |= _ours(network, folder, figures)
        found |= _hashes(folder, figures)
        names = sorted(os.listdir(folder / "photos"))
    rows = {who: judged(pairs, names) for who, pairs in found.items()}
    figures["rows"] = rows
    print(f"\nrecall by kind\n{_table(rows, 'recall')}\n\nprecision by kind")
    print(_table(rows, "precision"), flush=True)
    finish("duplicates", _goals(rows, args.networks), figures, args.json)


def planted(folder: Path, originals: int, others: int) -> str:
    """Fill a new folder with photos, copies of the first of them; return what they are."""
    folder.mkdir()
    photos = sorted(COREL.glob("*/*.jpg"))
    photos = [photos[i] for i in np.random.default_rng(0).permutation(len(photos))]
    real = len(photos) >= originals + others
    for number in range(originals + others):
        path = folder / f"{number:04}-{ORIGINAL}.jpg"
        if real:
            path.write_bytes(photos[number].read_bytes())
        else:
            drawn(np.random.default_rng(number)).save(path, quality=90)
        if number < originals:
            _copy(path, number)
    whole = len(os.listdir(folder))
    return (
        f"{originals} {'photos of corel-1k' if real else 'drawn pictures'} with "
        f"{len(ALL_KINDS)} copies each among {others} others: {whole:,} files"
    )


def _copy(path: Path, number: int) -> None:
    (path.parent / f"{number:04}-exact.jpg").write_bytes(path.read_bytes())
    with Image.open(path) as image:
        image.load()
    for kind, save in KINDS.items():
        save(image.convert("RGB"), path.parent / f"{number:04}-{kind}.x")


def _ours(network: str, folder: Path, figures: dict[str, Any]) -> Iterator[tuple[str, Pairs]]:
    """Index the photos, and make groups with each threshold; those of the default are returned."""
    home = folder / f"home-{network}"
    state, of = weights(network, folder)
    words = ["index", "--no-prefect", "--model", network, "--weights", str(state)]
    command = [sys.executable, "-m", "flows.cli", "--home", str(home), *words]
    subprocess.run([*command, str(folder / "photos")], check=True, capture_output=True)
    names = sorted(os.listdir(folder / "photos"))
    sweep: dict[str, Any] = {}
    with Catalog.open(Home(str(home)), write=False) as catalog:
        space = get_space(catalog, None)
        for least in sorted({*THRESHOLDS, NEAR}):
            started = time.perf_counter()
            pairs = told(Near(catalog, space, least).groups())
            took = time.perf_counter() - started
            row = judged(pairs, names)["all"]
            sweep[f"{least:g}"] = {**row, "seconds": took}
            print(
                f"{network} ({of}), least score {least:.2f}: precision {row['precision']:.3f}, "
                f"recall {row['recall']:.3f}, f1 {row['f1']:.3f}, {took:.1f} s",
                flush=True,
            )
            if least == NEAR:
                yield f"{network}, {least:g}", pairs
    figures[network] = sweep


def told(groups: Iterable[Any]) -> Pairs:
    """Return the pairs of names that lie in one group."""
    members: dict[int, list[str]] = {}
    for group in groups:
        held = [each.held for each in (*(() if group.before else (group.keep,)), *group.others)]
        members.setdefault(group.number, []).extend(
            os.path.basename(os.fsdecode(file.path)) for file in held
        )
    return {pair for some in members.values() for pair in combinations(sorted(some), 2)}


def _hashes(folder: Path, figures: dict[str, Any]) -> dict[str, Pairs]:
    """Return what imagededup's hashes tell, where it is installed."""
    python, out = VENV / "bin" / "python", folder / "pairs.json"
    if not python.exists():
        figures["absent"]["imagededup"] = reason = "not installed: see benchmarks/peers/README.md"
        print(f"imagededup: {reason}", flush=True)
        return {}
    script = PEERS / "imagededup_hashes.py"
    words = [python, script, f"--photos={folder / 'photos'}", f"--pairs={out}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        figures["absent"]["imagededup"] = reason = (done.stderr.splitlines() or ["it failed"])[-1]
        print(f"imagededup: {reason}", flush=True)
        return {}
    answers = json.loads(out.read_text())
    figures["hash_seconds"] = {name: each["seconds"] for name, each in answers.items()}
    return {name: {(a, b) for a, b in each["pairs"]} for name, each in answers.items()}


def judged(pairs: Pairs, names: list[str]) -> dict[str, dict[str, float]]:
    """Return precision and recall, by kind of copy and of ``all``."""
    planted_of = Counter(_kind(name) for name in names)
    found, right, wrong = Counter[str](), Counter[str](), Counter[str]()
    for pair in pairs:
        kinds = {_kind(name) for name in pair}
        same = len({_photo(name) for name in pair}) == 1
        (right if same else wrong).update({*kinds, "all"})
        if same and ORIGINAL in kinds:
            found.update(kinds - {ORIGINAL})
    rows = {}
    for kind in ALL_KINDS:
        told_ = right[kind] + wrong[kind]
        rows[kind] = {
            "recall": found[kind] / planted_of[kind],
        }
        if told_:
            rows[kind]["precision"] = right[kind] / told_
    told_ = right["all"] + wrong["all"]
    precision = right["all"] / told_ if told_ else 1.0
    recall = sum(found.values()) / sum(planted_of[kind] for kind in ALL_KINDS)
    both = precision + recall
    rows["all"] = {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / both if both else 0.0,
        "wrong_pairs": wrong["all"],
    }
    return rows


def _photo(name: str) -> str:
    return name.partition("-")[0]


def _kind(name: str) -> str:
    return Path(name).stem.partition("-")[2]


def _table(rows: dict[str, dict[str, dict[str, float]]], what: str) -> str:
    lines = ["  ".join([f"{'kind':10}", *(f"{who:>16}" for who in rows)])]
    for kind in (*ALL_KINDS, "all"):
        values = (row[kind].get(what) for row in rows.values())
        cells = (f"{'none told' if value is None else f'{value:.3f}':>16}" for value in values)
        lines.append("  ".join([f"{kind:10}", *cells]))
    return "\n".join(lines)


def _goals(rows: dict[str, dict[str, dict[str, float]]], networks: list[str]) -> list[Goal]:
    goals = []
    hashes = {who: row for who, row in rows.items() if who.partition(",")[0] not in networks}
    for who in rows.keys() - hashes.keys():
        row = rows[who]
        goals.append(
            Goal(
                f"exact copies, {who}",
                "each is found",
                row["exact"]["recall"],
                1.0,
                higher_is_better=True,
            )
        )
        if hashes:
            best, other = max(hashes.items(), key=lambda each: each[1]["all"]["f1"])
            goals.append(
                Goal(
                    f"f1 of all copies, {who}",
                    "at least that of the best hash",
                    row["all"]["f1"],
                    other["all"]["f1"],
                    higher_is_better=True,
                    note=f"the best is {best}",
                )
            )
    return goals


def _arguments() -> argparse.Namespace:
    options = parser(__doc__ or "")
    options.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"])
    options.add_argument("--originals", type=int, default=100, help="photos that have copies")
    options.add_argument("--others", type=int, default=900, help="photos that have none")
    args = options.parse_args()
    if args.quick:
        args.networks, args.originals, args.others = ["resnet18"], 3, 5
    return args


if __name__ == "__main__":
    main()
