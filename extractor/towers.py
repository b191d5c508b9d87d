"""The two halves of a network of images and text, each for itself."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from extractor.clip_making import Tokenizer


class ImageTower(nn.Module):
    """Normalised pixels (N, 3, H, W) to what is compared with text, (N, D), not of unit length."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the tower with its projection."""
        found = self.visual(x)
        # A captioner's (CoCa) gives its patches as well.
        features: torch.Tensor = found[0] if isinstance(found, tuple) else found
        return features


class TextTower(nn.Module):
    """Texts to what is compared with pictures, (N, D), not of unit length.

    Parameters
    ----------
    network
        One of open_clip's; its image tower is taken off it.
    tokenize
        Makes numbers of texts as the tower reads them.
    """

    def __init__(self, network: nn.Module, tokenize: Tokenizer) -> None:
        super().__init__()
        del network.visual
        self.network = network
        self.tokenize = tokenize

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        """Run the tower with its projection."""
        device = next(self.network.parameters()).device
        encode: Any = self.network.encode_text
        features: torch.Tensor = encode(self.tokenize(list(texts)).to(device), normalize=False)
        return features
