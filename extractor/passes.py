"""The forward pass itself: pixels on the device in, features on the device out."""

from collections.abc import Callable

import torch
from torch import nn

from extractor.preprocess import Preprocess

Pass = Callable[[torch.Tensor], torch.Tensor]
"""Takes uint8 pixels (N, 3, H, W) that lie on the device, for any N up to the batch size; returns
float32 features (N, D) there, not yet of unit length, which no later call overwrites."""


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
