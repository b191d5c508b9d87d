"""What others do on the same work, in the same run: images/s, and what a second run costs.

Every peer is a script of the folder ``peers`` in a process of its own; all go through the same
photos with the same weights and the same layer, in turns with this program.  None of them knows
what it did before: with nothing changed its second run costs what its first one did, and that is
measured against ``lookalike index``.

    python benchmarks/peers.py [--network resnet50] [--photos 64] [--json OUT]
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import numpy as np
from photos import photos, weights
from report import finish, in_turns, parser
from turns import Ours, Peer, cosines

SCRIPTS = {"plain": 32, "timm_loop": 32, "imagededup_cnn": 64, "clip_retrieval_loop": 32}
"""Each peer and its batch.  With their default of 256 timm and clip-retrieval would make one batch
of these photos, and decode nothing beside the network; imagededup always takes 64."""
VENV = Path(
    os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "lookalike-peers", "imagededup"
)
"""An environment of its own, which sees the torch of this one."""
PACKAGE = "imagededup==0.3.3.post2"
NEEDED = {
    "timm_loop": "timm",
    "imagededup_cnn": "imagededup.methods",
    "clip_retrieval_loop": "pandas, pyarrow",
}
"""What a peer imports that need not be there."""


def main() -> None:
    """Let all run in turns, print a table."""
    args = _arguments()
    absent: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        what = photos(folder / "photos", args.photos)
        state, of = weights(args.network, folder)
        ours = Ours(folder / "photos", args.network, state, args.engine)
        print(f"{args.network} ({of}), {what}; {ours.engine.facts['engine']}", flush=True)
        sides = {"lookalike": ours.end_to_end}
        for script in args.scripts:
            if reason := unusable(script):
                absent[script] = reason
                print(f"{script}: {reason}", flush=True)
                continue
            options = {
                "network": args.network,
                "weights": state,
                "batch": SCRIPTS[script],
                "vectors": folder / f"{script}.npy",
            }
            peer = stack.enter_context(Peer(script, folder / "photos", options, _python(script)))
            sides[script] = peer.rate
        for side in sides.values():
            side()  # loads and warms up
        rates = in_turns(sides, args.rounds)
        rows = {name: _row(name, ours, rates, folder) for name in sides}
        again_s = _again(folder, args.network, state)
    for name, row in rows.items():
        print(
            f"{name:20} {row['images_per_s']:8.2f} images/s, lookalike {row['behind']:.2f} times, "
            f"worst cosine {row['cosine_worst']:.5f}, {args.photos} photos again in "
            f"{again_s if name == 'lookalike' else args.photos / row['images_per_s']:.1f} s"
        )
    figures: dict[str, Any] = {"photos": what, "rows": rows, "absent": absent, "again_s": again_s}
    finish("peers", [], figures, args.json)


def _row(name: str, ours: Ours, rates: dict[str, list[float]], folder: Path) -> dict[str, float]:
    theirs = ours.vectors if name == "lookalike" else np.load(folder / f"{name}.npy")
    return {
        "images_per_s": statistics.median(rates[name]),
        "behind": statistics.median(
            a / b for a, b in zip(rates["lookalike"], rates[name], strict=True)
        ),
        "cosine_worst": float(cosines(ours.vectors, theirs).min()),
    }


def unusable(script: str) -> str | None:
    """Return why a peer can't run here, if need be after an attempt to install it."""
    if script == "imagededup_cnn" and _missing(script):
        try:
            install()
        except (OSError, subprocess.CalledProcessError) as error:
            return f"it can't be installed: {error}"
    return _missing(script)


def install() -> None:
    """Install imagededup into its own environment, as ``peers/README.md`` says."""
    venv.create(VENV, with_pip=True, clear=True)
    words = [str(_python("imagededup_cnn")), "-m", "pip", "install", "--quiet", PACKAGE]
    site = Path(sysconfig.get_path("purelib", vars={"base": str(VENV), "platbase": str(VENV)}))
    (site / "torch-of-lookalike.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run(words, check=True)


def _python(script: str) -> Path:
    return VENV / "bin" / "python" if script == "imagededup_cnn" else Path(sys.executable)


def _missing(script: str) -> str | None:
    """Return the last line of what an import of the peer's modules says, if it fails."""
    words = [_python(script), "-c", f"import {NEEDED.get(script, 'torch')}"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return f"{_python(script)} is missing"
    return None if done.returncode == 0 else (done.stderr.splitlines() or ["no reason given"])[-1]


def _again(folder: Path, network: str, state: Path) -> float:
    """Return seconds of the whole command where nothing has changed since the last time."""
    words = ["index", "--no-prefect", "--model", network, "--weights", str(state)]
    command = [sys.executable, "-m", "flows.cli", "--home", str(folder / "home"), *words]
    for _ in range(2):
        started = time.perf_counter()
        subprocess.run([*command, str(folder / "photos")], check=True, capture_output=True)
        taken = time.perf_counter() - started
    return taken


def _arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--scripts", nargs="+", choices=SCRIPTS, default=list(SCRIPTS))
    options.add_argument("--network", default="resnet50")
    options.add_argument("--photos", type=int, default=64)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--engine", default="auto")
    args = options.parse_args()
    if args.quick:
        args.engine = "torch"
        args.scripts = ["plain", "clip_retrieval_loop"]
        args.network, args.photos, args.rounds = "resnet18", 4, 1
    return args


if __name__ == "__main__":
    main()
