"""The forward pass compiled by torch's inductor, with the weights frozen into it."""

import os
import shutil
import sys
import sysconfig
from typing import Any, Final

import torch
from torch import nn

from extractor.errors import EngineError
from extractor.passes import EagerPass, Whole
from extractor.preprocess import Preprocess
from extractor.quiet import quieten_translators

_OPTIONS: Final[dict[str, Any]] = {
    "freezing": True,
    "compile_threads": 1,  # one call needs no pool of processes that would outlive it
}
_MOST_NETWORKS: Final = 64


def check() -> None:
    """Raise ``EngineError`` where there is nothing to compile with."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise EngineError(
            f"the engine compile needs a C++ compiler, and {compiler!r} is not there: install one, "
            "or use --engine torch"
        )
    header = os.path.join(sysconfig.get_path("include"), "Python.h")
    if not os.path.exists(header):
        raise EngineError(
            f"the engine compile needs Python's headers, and {header} is not there: install "
            "python3-dev, or use --engine torch"
        )


class CompilePass:
    """Runs a network as compiled code, on the CPU; pictures that fill no batch go eagerly.

    Parameters
    ----------
    module
        The network, on the CPU.
    preprocess
        How its input is made; mean and standard deviation become part of the code.
    batch_size
        How many pictures the code is made for.
    rest
        What takes fewer of them.

    Attributes
    ----------
    least
        How many pictures the code computes, however few there are.

    Raises
    ------
    Exception
        Whatever the compiler has against the network.
    """

    def __init__(
        self, module: nn.Module, preprocess: Preprocess, batch_size: int, rest: EagerPass
    ) -> None:
        import torch._dynamo
        import torch._inductor.config

        quieten_translators()
        self.name = f"torch {torch.__version__} compiled"
        self.least = batch_size
        self._rest = rest
        # All networks share one piece of code in torch's eyes, which it compiles 8 times at most.
        torch._dynamo.config.recompile_limit = _MOST_NETWORKS
        whole = Whole(module, preprocess).eval()
        self._compiled = torch.compile(whole, dynamic=False, options=_OPTIONS)
        self.whatever(torch.zeros(1, 3, *preprocess.crop_size, dtype=torch.uint8))

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return features; see `extractor.passes.Pass`."""
        if len(pixels) < self.least:
            return self._rest(pixels)
        return self.whatever(pixels)

    @torch.no_grad()
    def whatever(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the features of at most a batch of pictures, filled up by black."""
        n = len(pixels)
        batch = pixels.new_zeros(self.least, *pixels.shape[1:])
        batch[:n] = pixels
        out: torch.Tensor = self._compiled(batch)
        return out[:n].clone()
