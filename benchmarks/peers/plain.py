"""The plain script: torchvision's network as it comes, PIL, torchvision's transform, a DataLoader.

What someone writes who needs vectors once: no engine, no scaled decode, float32.

    python benchmarks/peers/plain.py --photos DIR [--network resnet50] [--weights FILE]
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rounds import Vectors, Work, headless, preset, run
from torch.utils.data import DataLoader, Dataset


class Photos(Dataset[torch.Tensor]):
    """Photos as the network takes them."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.transform = preset()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))


def prepare(work: Work) -> Callable[[], Vectors]:
    """Load the network."""
    module = headless(work.network, work.weights)
    photos = Photos(work.photos)

    @torch.inference_mode()
    def once() -> Vectors:
        loader = DataLoader(photos, batch_size=work.batch, num_workers=work.workers)
        return np.concatenate([module(batch).numpy() for batch in loader])

    return once


if __name__ == "__main__":
    run(__doc__, prepare)
