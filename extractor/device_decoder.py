"""Which pictures a device decodes and which the cores, and batches of both on the device."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from extractor import decode, gpu_decode
from extractor.cuda import Upload, decoding_stream
from extractor.jpeg import Jpeg, plain
from extractor.loader import Loaded
from extractor.preprocess import Preprocess, pixels
from extractor.reading import Failure
from extractor.settling import Decoded, settled

_MEASURED: Final = range(16, 65)
"""How many pictures are decoded both ways to see which is faster, at least and at most."""
_AGREEMENT: Final = 0.999
"""Cosine that every one of them must reach, or else the device decodes nothing."""
_ALONE: Final = 0.9
"""The faster way does everything where it would do so much of it."""

_first: Final[list[int]] = []
"""torchvision keeps one decoder a process, for one device: the first here has it."""


class DeviceDecoder:
    """Makes batches of pixels on a device out of what the loader gives.

    A measurement on the first JPEGs decides how many of them the device decodes from then on, the
    cores decoding the rest meanwhile.  What the device refuses is decoded canonically.

    Parameters
    ----------
    device
        Where the pixels are to lie.
    preprocess
        How a picture becomes pixels.
    vectors
        Pixels on the device to vectors of unit length, shape (N, D).

    Attributes
    ----------
    share
        The part of the plain JPEGs that the device decodes, 0 to 1; None before the measurement,
        when the device is given all of them.
    measured
        What the measurement found.
    """

    def __init__(
        self,
        device: torch.device,
        preprocess: Preprocess,
        vectors: Callable[[torch.Tensor], NDArray[np.float32]],
    ) -> None:
        self.share: float | None = None if gpu_decode.can_resize(preprocess) else 0.0
        self.measured: dict[str, float] = {}
        self._device = device
        self._preprocess = preprocess
        self._vectors = vectors
        self._upload = Upload(device)
        self._stream = decoding_stream(device)
        self._due = 0.0
        if self._stream is not None:  # pragma: no cover - needs CUDA
            _first.append(device.index or 0)
            if _first[0] != _first[-1]:
                self.share = 0.0

    @property
    def fact(self) -> str:
        """Where JPEGs are decoded, in words."""
        if self.share is None:
            return "not measured"
        percent = round(100 * self.share)
        return {0: "cores", 100: "device"}.get(percent, f"device {percent} %, cores the rest")

    def keeps(self, data: bytes) -> Jpeg | None:
        """Return a file's bytes as what the device is to decode; None leaves them to the cores."""
        share = 1.0 if self.share is None else self.share
        if not share:
            return None
        jpeg = plain(data, self._preprocess.target)
        if jpeg is None:
            return None
        self._due += share  # threads may lose some of it, which changes little
        if self._due < 1:
            return None
        self._due -= 1
        return jpeg

    def pixels(self, batch: Sequence[Loaded]) -> tuple[torch.Tensor, dict[int, Failure]]:
        """Return the pictures of a batch on the device.

        Parameters
        ----------
        batch
            Each with pixels or a JPEG.

        Returns
        -------
        Tensor
            Shape (N, 3, H, W), uint8; black where there is a failure.
        dict
            Why a picture could not be decoded, by its number.
        """
        jpegs = {i: loaded.jpeg for i, loaded in enumerate(batch) if loaded.jpeg is not None}
        if self.share is None and len(jpegs) >= _MEASURED[0]:
            self.share = self._measured(list(jpegs.values())[: _MEASURED[-1]])
        ready = {i: loaded.pixels for i, loaded in enumerate(batch) if loaded.pixels is not None}
        parts, failures = self._decoded(jpegs)
        if ready:
            parts[tuple(ready)] = self._uploaded(list(ready.values()))
        if len(parts) == 1 and not failures:
            return next(iter(parts.values())), {}
        shape = (len(batch), 3, *self._preprocess.crop_size)
        out = torch.zeros(shape, dtype=torch.uint8, device=self._device)
        for rows, part in parts.items():
            out[list(rows)] = part
        return out, failures

    def _decoded(
        self, jpegs: dict[int, Jpeg]
    ) -> tuple[dict[tuple[int, ...], torch.Tensor], dict[int, Failure]]:
        """Decode on the device, in halves if it refuses; what is alone then, canonically."""
        parts: dict[tuple[int, ...], torch.Tensor] = {}
        failures: dict[int, Failure] = {}
        spans = [tuple(jpegs)] if jpegs else []
        while spans:
            rows = spans.pop()
            try:
                some = [jpegs[i] for i in rows]
                parts[rows] = self._there(some)
                continue
            except RuntimeError:
                pass
            if len(rows) > 1:  # nvJPEG does not say which of them is at fault
                spans += [rows[len(rows) // 2 :], rows[: len(rows) // 2]]
                continue
            got = self._canonical(jpegs[rows[0]])
            if got.pixels is not None:
                parts[rows] = self._uploaded([got.pixels])
            elif got.failure is not None:
                failures[rows[0]] = got.failure
        return parts, failures

    def _there(self, jpegs: Sequence[Jpeg]) -> torch.Tensor:
        """Decode on the device, beside the forward pass of another batch."""
        if self._stream is None:
            return gpu_decode.decoded(jpegs, self._preprocess, self._device)
        return self._beside(jpegs, self._stream)  # pragma: no cover - needs CUDA

    def _beside(
        self, jpegs: Sequence[Jpeg], stream: torch.cuda.Stream
    ) -> torch.Tensor:  # pragma: no cover - needs CUDA
        now = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(stream):
            found = gpu_decode.decoded(jpegs, self._preprocess, self._device)
        # nvJPEG writes where the pictures before lay, and does not see whether they are read still.
        stream.synchronize()
        found.record_stream(now)
        return found

    def _canonical(self, jpeg: Jpeg) -> Decoded:
        p = self._preprocess
        return settled(lambda: (pixels(decode.decode(jpeg.data, target=p.target), p), 0.0))

    def _uploaded(self, pictures: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        """Copy pictures side by side to where the device reads by itself, and let it begin."""
        shape = (len(pictures), *pictures[0].shape)
        side_by_side = torch.empty(shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        np.stack(pictures, out=side_by_side.numpy())
        return self._upload(side_by_side)

    def _measured(self, jpegs: Sequence[Jpeg]) -> float | None:
        """Decode both ways and return the share of the device; 0 where the vectors disagree.

        None where the device refuses one of them, but not every JPEG.
        """
        try:
            self._there(jpegs)  # the first time takes longer
            started = time.perf_counter()
            here = self._there(jpegs)
            device_s = time.perf_counter() - started
        except RuntimeError:
            return None if self._works() else 0.0
        started = time.perf_counter()
        with ThreadPoolExecutor(_cores()) as pool:
            found = list(pool.map(self._canonical, jpegs))
        cores_s = time.perf_counter() - started
        good = [i for i, got in enumerate(found) if got.pixels is not None]
        if not good:
            return 0.0
        pictures = [got.pixels for got in found if got.pixels is not None]
        # In one pass: a second one of as many would be taken for a size that is to come often.
        both = torch.from_numpy(self._vectors(torch.cat([here[good], self._uploaded(pictures)])))
        ours, theirs = both.chunk(2)
        worst = float(torch.cosine_similarity(ours, theirs).nan_to_num(1).min())
        self.measured = {
            "device, images/s": len(jpegs) / device_s,
            "cores, images/s": len(jpegs) / cores_s,
            "worst cosine": worst,
        }
        return _share(device_s, cores_s) if worst >= _AGREEMENT else 0.0

    def _works(self) -> bool:
        """Whether the device decodes anything; this torchvision may not know how."""
        grey = BytesIO()
        Image.new("RGB", (64, 64), "grey").save(grey, "JPEG")
        try:
            self._there([Jpeg(grey.getvalue(), 64, 64)])
        except RuntimeError:
            return False
        return True


def _share(device_s: float, cores_s: float) -> float:
    """Return what part of the work makes both end together; all or nothing where that is near."""
    share = cores_s / (device_s + cores_s)
    return 1.0 if share >= _ALONE else 0.0 if share <= 1 - _ALONE else share


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
