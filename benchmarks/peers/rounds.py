"""What all peers share: the photos and the network that they are given, and rounds over them.

As a person runs it, a peer goes through the photos once and prints images/s.  With ``--turns`` it
waits for a line on its standard input, goes through them once, answers with a line of JSON, and so
on until the input ends: so several can be measured in turns, each in a process of its own, without
that their start is measured.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import nn

Vectors = NDArray[np.float32]
EDGE, CROP = 256, 224
"""torchvision's preset: the shorter side after resizing, and the side of the crop."""


@dataclass(frozen=True)
class Work:
    """What a peer is to do.

    Attributes
    ----------
    photos
        Files, sorted; all lie in ``folder``, which holds nothing else.
    network
        A name of torchvision's.
    weights
        A state dict of that network; None is the peer's own network, with random weights.
    """

    folder: Path
    photos: list[Path]
    network: str
    weights: Path | None
    batch: int
    workers: int


def run(doc: str, prepare: Callable[[Work], Callable[[], Vectors]]) -> None:
    """Make a script of a peer.

    Parameters
    ----------
    doc
        The script's docstring.
    prepare
        Loads the network; returns what makes vectors of all photos, in their order, once a call.
    """
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--photos", type=Path, required=True, help="a folder of photos alone")
    parser.add_argument("--network", default="resnet50", help="a name of torchvision's")
    parser.add_argument("--weights", type=Path, help="a state dict of that network")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2, help="processes that decode")
    parser.add_argument("--vectors", type=Path, metavar="NPY", help="write them there")
    parser.add_argument("--turns", action="store_true", help="one round a line of the input")
    options = parser.parse_args()
    photos = sorted(path for path in options.photos.iterdir() if path.is_file())
    once = prepare(
        Work(
            options.photos,
            photos,
            options.network,
            options.weights,
            options.batch,
            options.workers,
        )
    )
    for _ in sys.stdin if options.turns else (None,):
        started = time.perf_counter()
        vectors = once()
        seconds = time.perf_counter() - started
        if len(vectors) != len(photos):
            sys.exit(f"{len(vectors)} vectors of {len(photos)} photos")
        if options.vectors:
            np.save(options.vectors, vectors)
        if options.turns:
            print(json.dumps({"images": len(photos), "seconds": seconds}), flush=True)
        else:
            print(f"{len(photos)} images, {len(photos) / seconds:.2f} images/s")


def headless(network: str, weights: Path | None) -> nn.Module:
    """Return a network of torchvision's without its last layer, so that it gives features."""
    torch.manual_seed(0)
    module = torchvision.models.get_model(network, weights=None)
    if weights is not None:
        module.load_state_dict(torch.load(weights, weights_only=True))
    name, last = [*module.named_modules()][-1]
    if not isinstance(last, nn.Linear):
        sys.exit(f"{network} ends in {name}, which is no Linear")
    parent, _, own = name.rpartition(".")
    setattr(module.get_submodule(parent), own, nn.Identity())
    return module.eval()


def preset() -> Callable[..., torch.Tensor]:
    """Return torchvision's own transform for classification."""
    from torchvision.transforms._presets import ImageClassification

    return ImageClassification(crop_size=CROP, resize_size=EDGE)
