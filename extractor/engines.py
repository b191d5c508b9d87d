"""Which engine runs the forward passes on a CPU: torch as it is, compiled, or ONNX Runtime.

A pass other than torch's own is compared with it before it is used, on pictures of all kinds: an
engine may be faster, and never changes what comes out.
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch.nn import functional as tf

from extractor import compile_pass, onnx_pass
from extractor.device import first_line
from extractor.errors import EngineError
from extractor.gate import translating
from extractor.models import Model
from extractor.passes import EagerPass, Pass

Name = Literal["auto", "torch", "compile", "onnx"]
ENGINES: Final = ("auto", "torch", "compile", "onnx")

MOST_APART: Final = 1e-3
"""Largest 1 - cosine to what torch gives that is still taken; it is about 1e-12 in fact."""
SAMPLE: Final = 6
"""Pictures on which passes are compared."""
_SEED: Final = 5


@dataclass(frozen=True)
class Made:
    """A pass that gives what torch's own gives.

    Attributes
    ----------
    gain
        How many times faster than torch it was, on the few pictures of the comparison.
    """

    run: Pass
    gain: float


def check(name: str, device: torch.device) -> None:
    """Refuse an engine that can't run there at all.  Loads nothing.

    Raises
    ------
    EngineError
        It is unknown, something is missing for it, or it is not for that kind of device.
    """
    if name not in ENGINES:
        raise EngineError(f"there is no engine {name!r}: use {', '.join(ENGINES)}")
    if name in ("auto", "torch"):
        return
    if device.type == "cuda" and name == "compile":  # pragma: no cover - needs CUDA
        return
    if device.type != "cpu":
        raise EngineError(
            f"the engine {name} is not for the device {device.type}: use --engine auto, or "
            "--device cpu"
        )
    {"compile": compile_pass, "onnx": onnx_pass}[name].check()


def make(
    name: str, model: Model, spans: Sequence[slice], batch_size: int, torch_pass: EagerPass
) -> Made:
    """Make the pass of an engine, and hold it against torch's own.

    Parameters
    ----------
    name
        ``compile`` or ``onnx``.
    model
        On the CPU.
    spans
        Where each layer's features lie in a row.
    batch_size
        How many pictures a pass mostly takes.
    torch_pass
        What it must agree with.

    Raises
    ------
    EngineError
        It can't be made of this network, or gives other vectors; says what the trouble is.
    """
    check(name, torch.device("cpu"))
    parts = torch.split(sample(model.preprocess.crop_size), min(SAMPLE, batch_size))
    with translating():
        try:
            run = _translated(name, model, batch_size, torch_pass)
            run.whatever(parts[0])
            found, fast = _timed(run.whatever, parts)
            single = run.whatever(parts[0][:1])
        except Exception as error:
            raise EngineError(
                f"the engine {name} does not take {model.spec.architecture}: {first_line(error)}"
            ) from error
        expected, slow = _timed(torch_pass, parts)
    apart = max(furthest(found, expected, spans), furthest(single, expected[:1], spans))
    if apart > MOST_APART:
        raise EngineError(
            f"the engine {name} changes the vectors of {model.spec.architecture} "
            f"(1 - cosine {apart:.1e}, at most {MOST_APART:g} is allowed)"
        )
    work = sum(math.ceil(len(part) / run.least) * run.least for part in parts)
    return Made(run, slow / fast * work / SAMPLE)


def _translated(
    name: str, model: Model, batch_size: int, torch_pass: EagerPass
) -> onnx_pass.OnnxPass | compile_pass.CompilePass:
    if name == "onnx":
        return onnx_pass.OnnxPass(model.module, model.preprocess, threads())
    return compile_pass.CompilePass(model.module, model.preprocess, batch_size, torch_pass)


def threads() -> int:
    """Return how many threads a pass takes: those of torch in this thread, on usable cores."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1 << 16
    return max(1, min(torch.get_num_threads(), usable))


def sample(side: tuple[int, int]) -> torch.Tensor:
    """Return pictures of all kinds: noise, smooth colours, a ramp, black and white, grey.

    Returns
    -------
    Tensor
        Shape (`SAMPLE`, 3, height, width), uint8, always the same.
    """
    height, width = side
    chance = torch.Generator().manual_seed(_SEED)
    noise = torch.randint(0, 256, (2, 3, height, width), generator=chance)
    coarse = torch.randint(0, 256, (2, 3, 7, 7), generator=chance).float()
    smooth = tf.interpolate(coarse, side, mode="bilinear", align_corners=False)
    ramp = torch.linspace(0, 255, width).expand(1, 3, height, width)
    halves = torch.zeros(1, 3, height, width)
    halves[:, :, : height // 2] = 255
    return torch.cat([noise, smooth, ramp, halves]).to(torch.uint8)


def furthest(found: torch.Tensor, expected: torch.Tensor, spans: Sequence[slice]) -> float:
    """Return how far features are from what they should be, at worst.

    Parameters
    ----------
    found, expected
        Shape (N, D).
    spans
        Parts of a row that are compared each for itself.

    Returns
    -------
    float
        The greatest 1 - cosine, or difference of length as a part of the length; infinite where
        only one of the two has a direction.
    """
    if found.shape != expected.shape:
        return float("inf")
    worst = 0.0
    for span in spans:
        a, b = found[:, span].double(), expected[:, span].double()
        long = b.norm(dim=1)
        usual = torch.isfinite(long) & (long > 0)
        if not torch.equal(usual, torch.isfinite(a.norm(dim=1)) & (a.norm(dim=1) > 0)):
            return float("inf")
        a, b, long = a[usual], b[usual], long[usual]
        if len(a):
            cosine = (a * b).sum(dim=1) / (long * a.norm(dim=1))
            length = (a.norm(dim=1) / long - 1).abs()
            worst = max(worst, float((1 - cosine).max()), float(length.max()))
    return worst


def _timed(
    run: Callable[[torch.Tensor], torch.Tensor], parts: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, float]:
    """Return the features of all parts, and the seconds they took."""
    started = time.perf_counter()
    features = torch.cat([run(part) for part in parts])
    return features, time.perf_counter() - started
