"""The forward pass on CUDA: half precision throughout, replayed as a graph, copies beside it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from extractor.device import is_memory
from extractor.passes import EagerPass, Pass
from extractor.pooling import Features
from extractor.preprocess import Preprocess

_LEAST: Final = 16
"""Pictures that a graph is worth recording for."""


class InHalf(nn.Module):
    """A module in half precision whose results are float32.

    Parameters
    ----------
    body
        Takes a tensor; gives one, or a tuple of them.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body.half()

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Return the body's results."""
        out = self.body(x.half())
        return out.float() if isinstance(out, torch.Tensor) else tuple(o.float() for o in out)


def halved(module: nn.Module) -> nn.Module:
    """Return a copy of which the network is in half precision.

    Pooling, the mean over scales and whitening stay as they are: what they add up can overflow,
    and costs nothing.
    """
    module = copy.deepcopy(module)
    ends = [each for each in module.modules() if isinstance(each, Features)]
    for each in ends:
        each.body = InHalf(each.body)
    return module if ends else InHalf(module)


def cuda_pass(
    module: nn.Module, preprocess: Preprocess, device: torch.device, compiled: bool = False
) -> Pass:  # pragma: no cover - needs CUDA
    """Return the fastest way through a network that it allows.

    Parameters
    ----------
    module
        The network on its device, which is left as it is.
    compiled
        Have the operations fused by torch's compiler first, which takes a minute or so.
    """
    autocast = EagerPass(module, preprocess, device, half=True)
    grey = torch.full((1, 3, *preprocess.crop_size), 128, dtype=torch.uint8, device=device)
    try:
        half = halved(module).to(memory_format=torch.channels_last)
        CudaPass(half, preprocess, device)(grey)
    except Exception as error:
        if is_memory(error):
            raise
        return autocast  # it makes float32 tensors on the way, say
    return CudaPass(half, preprocess, device, compiled)


class CudaPass:  # pragma: no cover - needs CUDA
    """Runs a network in half precision; from the second batch of a size on as a recorded graph.

    Parameters
    ----------
    module
        What `halved` gives, on its device.
    preprocess
        Whose mean and standard deviation are applied, in float32.
    device
        Where pixels and network lie.
    compiled
        As `cuda_pass` takes it.
    """

    def __init__(
        self,
        module: nn.Module,
        preprocess: Preprocess,
        device: torch.device,
        compiled: bool = False,
    ) -> None:
        self._eager = EagerPass(module, preprocess, device)
        fused: Any = torch.compile(module, dynamic=False) if compiled else module
        self._recorded = EagerPass(fused, preprocess, device)
        self._device = device
        self._last = 0
        self._graph: _Graph | None = None
        self._can_record = True
        self.name = f"torch {torch.__version__}, CUDA graph" + (", compiled" * compiled)

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return features; see `Pass`."""
        n = len(pixels)
        with torch.cuda.device(self._device):
            if self._graph is not None and self._graph.size == n:
                return self._graph(pixels)
            again, self._last = n == self._last, n
            if n < _LEAST or not again or not self._can_record:
                return self._eager(pixels)
            self._graph = None  # a device has room for one
            torch.cuda.empty_cache()
            self._graph = self._record(pixels)
            return self._eager(pixels) if self._graph is None else self._graph(pixels)

    def _record(self, pixels: torch.Tensor) -> "_Graph | None":
        try:
            return _Graph(self._recorded, pixels)
        except Exception as error:
            if is_memory(error):
                raise
            self._can_record = False  # it looks at its numbers on the way
            self.name = f"torch {torch.__version__}"
            return None


class _Graph:  # pragma: no cover - needs CUDA
    """A pass over one number of pictures, recorded once: a replay launches it whole."""

    def __init__(self, run: Pass, pixels: torch.Tensor) -> None:
        self.size = len(pixels)
        self._pixels = pixels.clone()
        aside = _stream()
        aside.wait_stream(torch.cuda.current_stream())
        with _tried_out():
            with torch.cuda.stream(aside):
                for _ in range(2):  # what is made at the first call must not be recorded
                    run(self._pixels)
            torch.cuda.current_stream().wait_stream(aside)
            self._graph = torch.cuda.CUDAGraph()
            # Other threads may go on with their copies meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._features = run(self._pixels)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self._pixels.copy_(pixels)
        self._graph.replay()
        return self._features.clone()


@contextmanager
def _tried_out() -> Iterator[None]:
    """Let cuDNN try which of its ways is the fastest: the sizes stay the same."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class Upload:
    """Takes pixels to a device; to CUDA on a stream of its own, while another batch computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _stream(device) if device.type == "cuda" else None

    def __call__(self, pixels: NDArray[np.uint8] | torch.Tensor) -> torch.Tensor:
        """Return uint8 pixels on the device, for the current stream."""
        x = (
            pixels
            if isinstance(pixels, torch.Tensor)
            else torch.from_numpy(np.ascontiguousarray(pixels))
        )
        return x.to(self._device) if self._stream is None else self._beside(x, self._stream)

    def _beside(
        self, x: torch.Tensor, stream: torch.cuda.Stream
    ) -> torch.Tensor:  # pragma: no cover - needs CUDA
        """Copy from pinned memory, which torch keeps and reuses once the copy is over."""
        pinned = x.pin_memory()
        now = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(stream):
            there = pinned.to(self._device, non_blocking=True)
        now.wait_stream(stream)
        there.record_stream(now)
        return there


class Download:
    """Features on their way back: the copy follows the computation, and nobody waits for it yet."""

    def __init__(self, features: torch.Tensor) -> None:
        self._features = features
        self._over: torch.cuda.Event | None = None
        if features.device.type == "cuda":  # pragma: no cover - needs CUDA
            self._features = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
            self._features.copy_(features, non_blocking=True)
            self._over = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._over.record(torch.cuda.current_stream(features.device))

    def __len__(self) -> int:
        return len(self._features)

    def numpy(self) -> NDArray[np.float32]:
        """Wait for the features and return them, shape (N, D)."""
        if self._over is not None:  # pragma: no cover - needs CUDA
            self._over.synchronize()
        found: NDArray[np.float32] = self._features.cpu().numpy()
        return found


def decoding_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Return a stream whose small steps go before a forward pass's large ones; None off CUDA."""
    return _stream(device, -1) if device.type == "cuda" else None


def _stream(
    device: torch.device | None = None, priority: int = 0
) -> torch.cuda.Stream:  # pragma: no cover - needs CUDA
    return torch.cuda.Stream(device, priority)  # type: ignore[no-untyped-call]
