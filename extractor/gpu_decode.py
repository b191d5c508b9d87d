"""Decode a batch of plain JPEGs on a device, with the geometry of the canonical decode.

A GPU has a decoder beside its processors, which torchvision reaches through nvJPEG.  Turning,
resizing and cropping are two matrix products for the whole batch: the rows of one matrix are the
weights of Pillow's filter, in the order that the turned picture asks for.  The same runs on a CPU,
where it is tested.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from io import BytesIO
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.io.image import ImageReadMode

from extractor import preprocess as canonical
from extractor.jpeg import Jpeg
from extractor.preprocess import Preprocess

_STEP: Final = 256
"""Pictures whose sides are equal in these units share a canvas."""
_CANVAS: Final = 2**29
"""Values of a canvas, at most."""
_MIRRORED: Final = frozenset({2, 3, 6, 7})  # after the transposition of 5 to 8
_UPSIDE_DOWN: Final = frozenset({3, 4, 7, 8})


def can_resize(p: Preprocess) -> bool:
    """Whether pictures are prepared in a way that is known here."""
    return p.fit != "contain" and p.interpolation in _FILTERS


def decoded(jpegs: Sequence[Jpeg], p: Preprocess, device: torch.device) -> torch.Tensor:
    """Decode, turn, resize and crop.

    Parameters
    ----------
    jpegs
        At least one.
    p
        What `can_resize` takes.
    device
        Where that happens; waiting for it is the caller's.

    Returns
    -------
    Tensor
        Shape (N, 3, H, W), uint8, on the device.

    Raises
    ------
    RuntimeError
        The device's decoder refuses one of them.
    """
    pictures = _raw(jpegs, device)
    out = torch.empty((len(jpegs), 3, *p.crop_size), dtype=torch.uint8, device=device)
    for (height, width), members in _alike(jpegs).items():
        most = max(1, _CANVAS // (3 * height * width))
        for start in range(0, len(members), most):
            rows = members[start : start + most]
            canvas = _canvas([(jpegs[i], pictures[i]) for i in rows], (height, width))
            out[rows] = _resized(canvas, [jpegs[i] for i in rows], p)
    return out


def _raw(jpegs: Sequence[Jpeg], device: torch.device) -> list[torch.Tensor]:
    """Decode to (3, height, width), uint8, as they are stored."""
    encoded = [torch.frombuffer(bytearray(jpeg.data), dtype=torch.uint8) for jpeg in jpegs]
    mode = ImageReadMode.RGB.value
    # torchvision's own function in front of these warns at each call from 0.29 on.
    if device.type == "cuda":  # pragma: no cover - needs CUDA
        found: list[torch.Tensor] = torch.ops.image.decode_jpegs_cuda(encoded, mode, device)
        return found
    return [torch.ops.image.decode_jpeg(data, mode, False) for data in encoded]


def _alike(jpegs: Sequence[Jpeg]) -> dict[tuple[int, int], list[int]]:
    """Return the numbers of the pictures by height and width of the canvas that they fit on."""
    groups = defaultdict(list)
    for i, jpeg in enumerate(jpegs):
        width, height = _upright(jpeg)
        groups[-(-height // _STEP) * _STEP, -(-width // _STEP) * _STEP].append(i)
    return groups


def _upright(jpeg: Jpeg) -> tuple[int, int]:
    """Return width and height once it is turned."""
    size = jpeg.width, jpeg.height
    return size if jpeg.orientation < 5 else size[::-1]


def _canvas(pictures: Sequence[tuple[Jpeg, torch.Tensor]], size: tuple[int, int]) -> torch.Tensor:
    """Lay pictures, transposed where they are to be, on black ones of one size."""
    device = pictures[0][1].device
    # In half precision 0 to 255 are exact; the matrix units work with it.
    kind = torch.float16 if device.type == "cuda" else torch.float32
    canvas = torch.zeros((len(pictures), 3, *size), dtype=kind, device=device)
    sources, places = [], []
    for place, (jpeg, picture) in zip(canvas, pictures, strict=True):
        source = picture if jpeg.orientation < 5 else picture.transpose(1, 2)
        sources.append(source)
        places.append(place[:, : source.shape[1], : source.shape[2]])
    torch._foreach_copy_(places, sources)
    return canvas


def _resized(canvas: torch.Tensor, jpegs: Sequence[Jpeg], p: Preprocess) -> torch.Tensor:
    """Return crops (N, 3, H, W), uint8: along the rows first, rounded, then along the columns."""
    sizes = np.array([_upright(jpeg) for jpeg in jpegs])
    goals = np.array([canonical.resized_size((int(w), int(h)), p) for w, h in sizes])
    turns = [jpeg.orientation for jpeg in jpegs]
    height, width = p.crop_size
    mirrored = np.array([turn in _MIRRORED for turn in turns])
    upside_down = np.array([turn in _UPSIDE_DOWN for turn in turns])
    across = _weights(canvas, 3, np.stack([sizes[:, 0], goals[:, 0], mirrored]), width, p)
    down = _weights(canvas, 2, np.stack([sizes[:, 1], goals[:, 1], upside_down]), height, p)
    if not leaves_blocks(canvas.device):
        return _levels(_product(down, _levels(_product(canvas, across)))).to(torch.uint8)
    coarse = np.array([jpeg.coarse[:: 1 if jpeg.orientation < 5 else -1] for jpeg in jpegs])
    return _levels(_smoothed(canvas, (across, down), coarse, sizes)).to(torch.uint8)


def _smoothed(
    canvas: torch.Tensor,
    weights: tuple[torch.Tensor, torch.Tensor],
    coarse: NDArray[np.bool_],
    sizes: NDArray[np.int64],
) -> torch.Tensor:
    """Resize pictures whose colours lie in blocks as if they had been interpolated.

    The brightness is resized by the weights, what remains of the colours by those of the blocks.
    """
    across, down = weights
    red, green, blue = canvas.unbind(1)
    bright = (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]
    fine = _product(down, _product(bright, across))
    across = _of_blocks(across, coarse[:, 0], sizes[:, 0])
    down = _of_blocks(down, coarse[:, 1], sizes[:, 1])
    return _product(down, _product(canvas - bright, across)).add_(fine)


def _of_blocks(
    weights: torch.Tensor, coarse: NDArray[np.bool_], lengths: NDArray[np.int64]
) -> torch.Tensor:
    """Return the weights of the first pixel of each block of two, whose colours are one.

    A colour counts three quarters for its own pixels and a quarter for the nearest two beside them,
    as libjpeg has it; at the border also for what would lie beyond.
    """
    first, second = weights[..., 0::2], weights[..., 1::2]
    own = 0.75 * (first + second)
    own[..., :-1] += 0.25 * first[..., 1:]
    own[..., 1:] += 0.25 * second[..., :-1]
    own[..., 0] += 0.25 * first[..., 0]
    last = torch.from_numpy((lengths + 1) // 2 - 1).to(weights.device)[:, None, None]
    last = last.expand(-1, weights.shape[1], 1)
    own.scatter_add_(2, last, 0.25 * second.gather(2, last))
    beyond = torch.arange(own.shape[2], device=own.device) > last
    own.masked_fill_(beyond, 0)
    blocks = torch.zeros_like(weights)
    blocks[..., 0::2] = own
    chosen = torch.from_numpy(coarse).to(weights.device)[:, None, None]
    return torch.where(chosen, blocks, weights)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Multiply planes (N, C, h, w) by weights (N, crop, length): from the right, or the left."""
    if a.ndim == 4:
        return (a.flatten(1, 2) @ b.mT).view(*a.shape[:3], -1)
    return a[:, None] @ b


@cache
def leaves_blocks(device: torch.device) -> bool:
    """Whether a device's decoder repeats colours of half the size instead of interpolating them.

    Then blue less red, which brightness has no part in, is one within a block of two by two.
    """
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    picture = np.stack([np.broadcast_to(ramp, (64, 64)), np.full((64, 64), 128)], axis=2)
    picture = np.dstack([picture, 255 - picture[..., :1]]).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=95, subsampling=2)
    red, _green, blue = _raw([Jpeg(file.getvalue(), 64, 64)], device)[0].int()
    within = (blue - red)[:, 0::2] - (blue - red)[:, 1::2]
    return bool((within.abs() <= 1).float().mean() > 0.9)


def _weights(
    canvas: torch.Tensor, dim: int, lengths: NDArray[np.int64], crop: int, p: Preprocess
) -> torch.Tensor:
    """Return Pillow's weights of every pixel along one side for every pixel of the crop.

    Parameters
    ----------
    dim
        The side's dimension in ``canvas``.
    lengths
        For each picture its length, that which it is resized to, and whether it is reversed.

    Returns
    -------
    Tensor
        Shape (N, crop, length of the canvas); a row of zeros where the crop is beyond the picture.
    """
    curve = _FILTERS[p.interpolation]
    device = canvas.device
    starts = np.array([canonical.crop_start(int(goal), crop) for goal in lengths[1]])
    values = torch.from_numpy(np.stack([*lengths, starts]).astype(np.float64)).to(device)
    length, goal, reverse, start = values[:, :, None]  # (N, 1) each
    place = start + torch.arange(crop, device=device)  # (N, crop)
    scale = length / goal
    wide = scale.clamp(min=1)
    pixel = torch.arange(canvas.shape[dim], device=device)
    pixel = torch.where(reverse > 0, length - 1 - pixel, pixel)  # (N, length of the canvas)
    centre = ((place + 0.5) * scale - 0.5) / wide
    far = (pixel / wide)[:, None].float() - centre[..., None].float()
    weights = curve(far).mul_(((pixel >= 0) & (pixel < length))[:, None])
    there = (place >= 0) & (place < goal)
    weights *= (there / weights.sum(dim=2).clamp(min=1e-9))[..., None]
    return weights.to(canvas.dtype)


def _triangle(x: torch.Tensor) -> torch.Tensor:
    return x.abs_().neg_().add_(1).clamp_(min=0)


def _cubic(x: torch.Tensor) -> torch.Tensor:
    """Return Keys's cubic with a = -0.5."""
    x = x.abs_()
    near = (1.5 * x - 2.5) * x * x + 1
    return torch.where(x < 1, near, torch.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0.0))


_FILTERS: Final[dict[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "bilinear": _triangle,
    "bicubic": _cubic,
}
"""Curves of Pillow's filters; beyond their reach they are zero."""


def _levels(x: torch.Tensor) -> torch.Tensor:
    return x.add_(0.5).floor_().clamp_(0, 255)  # a half goes up, as in Pillow
