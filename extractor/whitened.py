"""A network whose features are whitened before they leave it."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

_NO_FLOAT64 = ("mps",)
"""Devices that have no float64; what they give is whitened on the CPU."""


class Whitened(nn.Module):
    """A module's features, scaled to unit length and whitened, in float64.

    Parameters
    ----------
    body
        Gives features, shape (N, d).
    mean
        Shape (d,), float64.
    projection
        Shape (D, d), float64.
    """

    def __init__(
        self, body: nn.Module, mean: NDArray[np.float64], projection: NDArray[np.float64]
    ) -> None:
        super().__init__()
        self.body = body
        # No buffers: those go along to any device, also where there is no float64.
        self._values = torch.from_numpy(mean), torch.from_numpy(projection).T.contiguous()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return whitened features, shape (N, D), float64; zeros where all features are zero."""
        features: torch.Tensor = self.body(x)
        with torch.autocast(features.device.type, enabled=False):
            exact = features.device.type not in _NO_FLOAT64
            return self._whitened(features if exact else features.cpu())

    def _whitened(self, features: torch.Tensor) -> torch.Tensor:
        if self._values[0].device != features.device:
            mean, projection = self._values
            self._values = mean.to(features.device), projection.to(features.device)
        mean, projection = self._values
        exact = features.double()
        norms = exact.norm(dim=1, keepdim=True)
        # Zeros stay, so that the engine says of a picture without features what it always says.
        return torch.where(norms == 0, 0.0, (exact / norms - mean) @ projection)
