"""The forward pass itself: pixels on the device in, features on the device out."""

from typing import Protocol

import torch
from torch import nn

from extractor.preprocess import Preprocess


class Pass(Protocol):
    """Takes uint8 pixels (N, 3, H, W) that lie on the device, for any N up to the batch size.

    Returns float32 features (N, D) there, not yet of unit length, which no later call overwrites.
    """

    @property
    def name(self) -> str:
        """What runs, with its version."""

    def __call__(self, pixels: torch.Tensor, /) -> torch.Tensor:
        """Return the features of ``pixels``."""


class EagerPass:
    """Runs a network as it is, operation by operation.

    Parameters
    ----------
    module
        The network on its device.
    preprocess
        Whose mean and standard deviation are applied.
    device
        Where pixels and network lie.
    half
        Compute in half precision, which CUDA alone can.
    """

    name = f"torch {torch.__version__}"

    def __init__(
        self,
        module: nn.Module,
        preprocess: Preprocess,
        device: torch.device,
        half: bool = False,
    ) -> None:
        self._module = module
        self._mean = torch.tensor(preprocess.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(preprocess.std, device=device).view(1, 3, 1, 1)
        self._half = half

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return features; see `Pass`."""
        x = pixels.to(torch.float32, memory_format=torch.channels_last)
        x = x.div_(255).sub_(self._mean).div_(self._std)  # as torchvision's preset does it
        if self._half:  # pragma: no cover - needs CUDA
            with torch.autocast("cuda", torch.float16):
                out: torch.Tensor = self._module(x)
        else:
            out = self._module(x)
        return out.float()


class Whole(nn.Module):
    """A network with what comes before it: uint8 pixels to float32 features, for a translation.

    Parameters
    ----------
    module
        The network.
    preprocess
        Whose mean and standard deviation are applied.
    """

    lookalike_mean: torch.Tensor
    lookalike_scale: torch.Tensor

    def __init__(self, module: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.network = module
        # Names that no network's own values have: exporters put all of them into one drawer.
        shape = (1, 3, 1, 1)
        mean, std = (torch.tensor(v).view(shape) for v in (preprocess.mean, preprocess.std))
        self.register_buffer("lookalike_mean", 255 * mean, persistent=False)
        self.register_buffer("lookalike_scale", 1 / (255 * std), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return features (N, D) of pixels (N, 3, H, W)."""
        x = pixels.to(torch.float32, memory_format=torch.channels_last)
        out: torch.Tensor = self.network((x - self.lookalike_mean) * self.lookalike_scale)
        return out.float()
