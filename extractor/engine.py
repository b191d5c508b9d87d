"""The forward pass: uint8 pixels in, vectors out, on whatever device there is.

Trouble with one picture stays with that picture: a batch that fails is split until the culprit is
alone.  Trouble with the device or the network (nothing at all goes through) is raised.
"""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from extractor import engines
from extractor.choosing import Choosing, offers_for
from extractor.cuda import Download, Upload, cuda_pass
from extractor.device import choose_device, first_line, is_memory
from extractor.device_decoder import DeviceDecoder
from extractor.gate import passing
from extractor.loader import Failure
from extractor.models import Model
from extractor.passes import EagerPass
from extractor.unit import checked, normalise

_CPU_BATCH = 16  # larger batches gain nothing on a CPU and make an interrupt wait
_GPU_BATCH = 256
_PRECISE = 8  # pictures at once in float32, where half precision did not do
_GPU_SHARE = 0.6  # of the free memory: cuDNN wants room for its workspaces


Pixels = NDArray[np.uint8] | torch.Tensor
"""Shape (N, 3, H, W), uint8; a tensor lies on the engine's device."""


@dataclass(frozen=True)
class Vectors:
    """What a batch gave.

    Attributes
    ----------
    vectors
        Shape (N, D), float32; of unit length, each layer's part for itself, unless the engine
        leaves features as they are; a row of NaN where there is a fault.
    faults
        Why a row has no vector, by its number.
    """

    vectors: NDArray[np.float32]
    faults: Mapping[int, Failure]


class Engine:
    """Runs a network over batches of pixels.

    Parameters
    ----------
    model
        The network; it is moved to the device.
    device
        ``auto`` (CUDA, else Apple's GPU, else the CPU), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    batch_size
        Images in a forward pass; None chooses by the device and its memory.
    normalize
        Scale each layer's features to unit length; else they stay as the network gives them, and
        all may be zero.
    engine
        ``torch``, ``compile`` or ``onnx``, the last two on a CPU alone; or ``auto``: torch, until
        what is still to come (see `expect`) is so much that another one pays for itself.

    Attributes
    ----------
    spans
        Where each layer's features lie in a row, in the order of the model's layers.
    decoder
        Makes batches of pixels on the device; None where the cores decode everything.
    used
        How many images each engine has taken since the last `expect`, by its name and version.

    Raises
    ------
    DeviceError
        The device is unknown, or this machine has none of its kind.
    EngineError
        The engine is unknown, not here, not for that device, or does not take the network.
    """

    def __init__(
        self,
        model: Model,
        device: str = "auto",
        batch_size: int | None = None,
        normalize: bool = True,
        engine: str = "torch",
    ) -> None:
        self.spec = model.spec
        self.normalize = normalize
        ends = list(itertools.accumulate(spec.dim for spec in model.specs))
        self.spans = tuple(map(slice, [0, *ends[:-1]], ends))
        self.device = choose_device(device)
        self.half = self.device.type == "cuda"
        self.module = model.module.eval().to(self.device)
        self.module.to(memory_format=torch.channels_last)
        self._side = model.preprocess.crop_size
        self._exact = EagerPass(self.module, model.preprocess, self.device)
        self._upload = Upload(self.device)
        self.used: Counter[str] = Counter()
        self._choosing = self._choose(model, engine, batch_size or _CPU_BATCH)
        self.decoder: DeviceDecoder | None = None
        if self.device.type == "cuda":  # pragma: no cover - needs CUDA
            self.decoder = DeviceDecoder(self.device, model.preprocess, self.forward)
        self.batch_size = batch_size or self._fitting_batch()

    @property
    def facts(self) -> dict[str, str | int]:
        """How the vectors are made now: ``device``, ``engine``, ``precision``, ``batch_size``.

        And ``decode``, where there is a choice.
        """
        name = self.device.type
        if self.device.type == "cuda":  # pragma: no cover - needs CUDA
            name = torch.cuda.get_device_name(self.device)
        return {
            "device": name,
            "engine": " and ".join(self.used) or self._choosing.run.name,
            "precision": "float16" if self.half else "float32",
            "batch_size": self.batch_size,
            **({"decode": self.decoder.fact} if self.decoder else {}),
        }

    @property
    def notes(self) -> list[str]:
        """What was said since `expect` against engines that ``auto`` has tried, a line each."""
        return self._choosing.notes

    @property
    def making_s(self) -> float:
        """Seconds that ``auto`` has spent since `expect` on making engines ready."""
        return self._choosing.seconds

    def expect(self, left: Callable[[], float]) -> None:
        """Take in how much is to come, by which ``auto`` goes, and tell of what comes from now on.

        Parameters
        ----------
        left
            Returns how many images there are to come from now on, as far as is known.
        """
        self._choosing.expect(left)
        self.used = Counter()

    def forward(self, pixels: Pixels) -> NDArray[np.float32]:
        """Return one vector a picture; see `run`, whose faults are rows of NaN here.

        Parameters
        ----------
        pixels
            Shape (N, 3, H, W), uint8, for any N.
        """
        return self.run(pixels).vectors

    def run(self, pixels: Pixels) -> Vectors:
        """Make vectors in batches of at most ``batch_size``, which memory trouble halves for good.

        Parameters
        ----------
        pixels
            Shape (N, 3, H, W), uint8, for any N.

        Raises
        ------
        ValueError
            The pixels are not of that shape and type.
        RuntimeError
            The network fails whatever it is given.
        """
        return self.submit(pixels).result()

    def submit(self, pixels: Pixels) -> "Pending":
        """Start a batch.  On a GPU this returns while it runs, so that the next can be filled.

        Raises
        ------
        ValueError
            The pixels are not of shape (N, 3, H, W) and uint8.
        """
        right = pixels.dtype in (np.uint8, torch.uint8) and pixels.ndim == 4
        if not right or tuple(pixels.shape[1:]) != (3, *self._side):
            raise ValueError(
                f"the network takes uint8 (N, 3, {self._side[0]}, {self._side[1]}), "
                f"these pixels are {pixels.dtype} {pixels.shape}"
            )
        pending = Pending(self, pixels)
        started = time.perf_counter()
        spans = [(0, len(pixels))] if len(pixels) else []
        while spans:
            start, end = spans.pop()
            size = self.batch_size
            if end - start <= size:
                failure = self._try(pending, start, end)
                if failure is None:
                    continue
                if end - start == 1:
                    pending.faults[start] = failure
                    continue
                size = (end - start) // 2
                if failure.failure_class == "memory":
                    self.batch_size = size
            spans += [(start + size, end), (start, start + size)]
        self._choosing.saw(len(pixels), time.perf_counter() - started)
        return pending

    def _try(self, pending: "Pending", start: int, end: int) -> Failure | None:
        """Start one forward pass; return why it failed.  Raise if the network never works."""
        try:
            features = self.features(pending.pixels[start:end])
            pending.features.append((start, Download(features)))
            self.used[self._choosing.run.name] += end - start
            return None
        except Exception as error:  # noqa: BLE001 - one picture must not stop the others
            trouble = error
        if is_memory(trouble):
            text = first_line(trouble)
            del trouble  # it holds the tensors of the failed pass
            if self.device.type == "cuda":  # pragma: no cover - needs CUDA
                torch.cuda.empty_cache()
            return Failure("forward", "memory", text, transient=True)
        if end - start == 1:
            self._probe(trouble)
        return Failure("forward", "error", first_line(trouble), transient=False)

    def _probe(self, trouble: Exception) -> None:
        """Raise ``trouble`` if a grey picture fails too: then the picture is not at fault."""
        try:
            self.features(np.full((1, 3, *self._side), 128, np.uint8))
        except Exception:  # noqa: BLE001 - whatever it is, the first trouble says more
            raise trouble from None

    def features(self, pixels: Pixels, precise: bool = False) -> torch.Tensor:
        """Run one forward pass.

        Parameters
        ----------
        pixels
            Shape (N, 3, H, W), uint8; a tensor is on the device.
        precise
            Compute in float32 even where half precision is the rule.

        Returns
        -------
        Tensor
            Features (N, D) on the device, float32, not yet of unit length.
        """
        x = pixels if isinstance(pixels, torch.Tensor) else self._upload(pixels)
        run = self._exact if precise else self._choosing.run
        try:
            with passing():
                return run(x)
        except Exception as error:
            if is_memory(error) or not self._choosing.drops(error):
                raise
        return self.features(pixels)

    def _choose(self, model: Model, engine: str, batch_size: int) -> Choosing:
        """Return what knows the pass to use, made ready where an engine was asked for."""
        engines.check(engine, self.device)
        if self.half:  # pragma: no cover - needs CUDA
            first = cuda_pass(
                self.module, model.preprocess, self.device, compiled=engine == "compile"
            )
            return Choosing(first)

        def make(name: str) -> engines.Made:
            return engines.make(name, model, self.spans, batch_size, self._exact)

        if engine in ("compile", "onnx"):
            return Choosing(make(engine).run)
        auto = engine == "auto" and self.device.type == "cpu"
        return Choosing(self._exact, make, offers_for(self.module) if auto else {})

    def _fitting_batch(self) -> int:
        if self.device.type != "cuda":
            return _CPU_BATCH
        return self._fitting_gpu_batch()  # pragma: no cover - needs CUDA

    def _fitting_gpu_batch(self) -> int:  # pragma: no cover - needs CUDA
        """Measure the memory of a small batch and return the power of two that fits."""
        n = 8
        self.features(np.zeros((n, 3, *self._side), np.uint8))
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        self.features(np.zeros((n, 3, *self._side), np.uint8))
        torch.cuda.synchronize(self.device)
        each = max(1, (torch.cuda.max_memory_allocated(self.device) - before) // n)
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self.device)
        fitting = min(_GPU_BATCH, max(1, int(free * _GPU_SHARE) // each))
        return 1 << (int(fitting).bit_length() - 1)


class Pending:
    """A batch on its way through the device."""

    def __init__(self, engine: Engine, pixels: Pixels) -> None:
        self.engine = engine
        self.pixels = pixels
        self.features: list[tuple[int, Download]] = []
        self.faults: dict[int, Failure] = {}

    def result(self) -> Vectors:
        """Wait for the batch and return its vectors."""
        engine = self.engine
        raw = np.full((len(self.pixels), engine.spans[-1].stop), np.nan, np.float32)
        for start, features in self.features:
            raw[start : start + len(features)] = features.numpy()
        if engine.half:  # pragma: no cover - needs CUDA
            self._again_in_float32(raw)
        vectors, faults = normalise(raw, engine.spans) if engine.normalize else checked(raw)
        return Vectors(vectors, faults | self.faults)

    def _again_in_float32(self, raw: NDArray[np.float32]) -> None:  # pragma: no cover - needs CUDA
        """Recompute what half precision overflowed or swallowed."""
        bad = np.asarray(~np.isfinite(raw).all(axis=1))
        for span in self.engine.spans:
            bad |= ~raw[:, span].any(axis=1)
        bad[list(self.faults)] = False
        all_rows = np.flatnonzero(bad)
        for start in range(0, len(all_rows), _PRECISE):
            rows = all_rows[start : start + _PRECISE]
            found = self.engine.features(self.pixels[rows], precise=True)
            raw[rows] = found.cpu().numpy()
