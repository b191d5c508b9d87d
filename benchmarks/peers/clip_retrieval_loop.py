"""A loop in the manner of ``clip-retrieval inference``, written from its documented design.

Its README and docs describe: a DataLoader whose processes read, decode and resize; pinned memory
and a prefetch of two batches; vectors scaled to unit length and kept as float16 in
memory; at the end one ``img_emb_0.npy`` and beside it the paths as ``metadata_0.parquet``.  None of
its code is here, and the network is the same as everybody's in the comparison instead of CLIP.

    python benchmarks/peers/clip_retrieval_loop.py --photos DIR [--network resnet50]
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rounds import Vectors, Work, headless, preset, run
from torch.utils.data import DataLoader, Dataset, default_collate


class Photos(Dataset[dict[str, Any]]):
    """Photos with their paths; one that can't be read is left out, as the original does."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.transform = preset()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                return {"image": self.transform(image.convert("RGB")), "path": str(path)}
        except OSError:
            return None


def _collate(items: list[dict[str, Any] | None]) -> Any:
    return default_collate([item for item in items if item is not None])


def prepare(work: Work) -> Callable[[], Vectors]:
    """Load the network."""
    module = headless(work.network, work.weights)
    photos = Photos(work.photos)

    @torch.no_grad()
    def once() -> Vectors:
        loader = DataLoader(
            photos,
            batch_size=work.batch,
            num_workers=work.workers,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=2 if work.workers else None,
            collate_fn=_collate,
        )
        vectors, paths = [], []
        for batch in loader:
            features = module(batch["image"])
            features /= features.norm(dim=-1, keepdim=True)
            vectors.append(features.numpy().astype(np.float16))
            paths += batch["path"]
        return _written(np.concatenate(vectors), paths).astype(np.float32)

    return once


def _written(vectors: np.ndarray, paths: list[str]) -> np.ndarray:
    """Write vectors and paths as the original does, then return the vectors."""
    import pandas

    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "img_emb_0.npy"), vectors)
        table = pandas.DataFrame({"image_path": paths})
        table.to_parquet(Path(folder, "metadata_0.parquet"))
    return vectors


if __name__ == "__main__":
    run(__doc__, prepare)
