"""A network that ends its process when it sees a white picture."""

import ctypes

import torch
from torch import nn


class Touchy(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.maps = nn.Conv2d(3, 6, 5, stride=4)

    def forward(self, x):
        if bool((x.amin(dim=(1, 2, 3)) > 1.9).any()):
            ctypes.string_at(0)
        return self.maps(x).mean((2, 3))


def net():
    return Touchy()
