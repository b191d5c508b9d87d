"""A small, real, seeded network, and engines made of it."""

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from extractor.engine import Engine
from extractor.models import Model, ModelSpec
from extractor.preprocess import Preprocess

PREPROCESS = Preprocess(resize=24, crop=16)
DIM = 12


def small_model(module: nn.Module | None = None, dim: int = DIM) -> Model:
    """Return a model of two convolutions for pictures of 16 x 16, or of ``module``."""
    if module is None:
        generator = torch.Generator().manual_seed(3)
        module = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, dim, 3, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        for parameter in module.parameters():
            nn.init.normal_(parameter, generator=generator)
    spec = ModelSpec("small", "0" * 64, "4", "none", False, PREPROCESS, dim)
    return Model((spec,), module, ("4",))


def small_engine(module: nn.Module | None = None, batch_size: int | None = None) -> Engine:
    return Engine(small_model(module), "cpu", batch_size)


def random_pixels(n: int, seed: int = 0, side: int = 16) -> NDArray[np.uint8]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (n, 3, side, side), dtype=np.uint8)


def picture(seed: int, side: int = 40) -> bytes:
    """Return a PNG of smooth colours, another for each seed."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()
