"""From a layer's output to one vector an image: pooled maps, several layers, several scales."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as tf
from torch import nn

from extractor.errors import UnknownLayer

KINDS = {"avg": "average", "max": "max", "gem": "gem"}
"""Ways to pool feature maps, as they are asked for and as a layer's pooling calls them."""
GEM_P = 3.0
GEM_EPS = 1e-6
_MAPS = {"": (2, 3), "-last": (1, 2)}  # (N, D, H, W) and (N, H, W, D)


def word(
    shape: Sequence[int], tokens: tuple[int, int] | None = None, pool: str | None = None
) -> str | None:
    """Say how a layer's output becomes (N, D).

    Parameters
    ----------
    shape
        Of the output for one image, without N.  Inputs are square: equal sides tell (D, H, W) from
        (H, W, D).
    tokens
        (T, D) of the token sequences whose first token stands for the image, if there are any.
    pool
        ``avg``, ``max`` or ``gem`` for maps; None is ``avg``.

    Returns
    -------
    str or None
        ``none`` (it is so already), ``average``, ``max``, ``gem`` (NCHW), the same with ``-last``
        (NHWC), ``token`` (the class token); None where no vector an image can be made of it.
    """
    kind = KINDS[pool or "avg"]
    match tuple(shape):
        case (_,):
            return "none"
        case (_, height, width) if height == width:
            return kind
        case (height, width, _) if height == width:
            return f"{kind}-last"
        case sequence if sequence == tokens:
            return "token"
    return None


def of_maps(pooling: str) -> bool:
    """Whether a pooling's word is one of feature maps, which can be of any size."""
    return pooling.removesuffix("-last") in KINDS.values()


class Features(nn.Module):
    """A network that ends at its layers: normalised pixels (N, 3, H, W) to features (N, D).

    Parameters
    ----------
    body
        Pixels to the output of a layer, or to a tuple of one output a layer.
    poolings
        How each output becomes (N, D), in the words of `word`; D of the result is their sum.
    scales
        The picture is also looked at in these sizes, 1 being its own; empty is (1,) without any
        normalisation.  Each scale's vector is scaled to unit length and their mean taken, layer by
        layer (Radenović, Tolias, Chum: Fine-tuning CNN image retrieval with no human annotation,
        2018).

    Raises
    ------
    UnknownLayer
        There are scales, and a layer is no pooling of maps.
    """

    def __init__(
        self, body: nn.Module, poolings: Sequence[str], scales: Sequence[float] = ()
    ) -> None:
        super().__init__()
        if scales and not all(of_maps(pooling) for pooling in poolings):
            raise UnknownLayer(
                "several scales need a layer of feature maps, which can be of any size: add --pool "
                "avg, max or gem without --layer, or name such a layer"
            )
        self.body = body
        self.poolings = tuple(poolings)
        self.scales = tuple(scales)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Give the layers' features side by side, shape (N, D), not yet of unit length."""
        if not self.scales:
            return _side_by_side(self._pooled(x))
        seen = [
            _side_by_side([tf.normalize(f.float(), dim=1) for f in self._pooled(_resized(x, s))])
            for s in self.scales
        ]
        return torch.stack(seen).mean(dim=0)

    def _pooled(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return each layer's features, (N, its D)."""
        out = self.body(x)
        outputs = (out,) if isinstance(out, torch.Tensor) else out
        return [pooled(f, how) for f, how in zip(outputs, self.poolings, strict=True)]


def pooled(out: torch.Tensor, pooling: str) -> torch.Tensor:
    """Return features (N, D) of a layer's output.

    Parameters
    ----------
    out
        What the layer gives, of the shape that ``pooling`` is about.
    pooling
        A word of `word`.
    """
    if pooling == "none":
        return out
    if pooling == "token":
        return out[:, 0]  # (N, T, D) -> (N, D)
    dims = _MAPS["-last" if pooling.endswith("-last") else ""]
    match pooling.removesuffix("-last"):
        case "max":
            return out.amax(dim=dims)
        case "gem":
            return gem(out, dims)
    return out.mean(dim=dims)


def gem(maps: torch.Tensor, dims: tuple[int, int]) -> torch.Tensor:
    """Return the generalised mean of feature maps over two dimensions (Radenović et al. 2018)."""
    # In half precision the cube of 41 overflows, and the smallest value vanishes.
    cubes = maps.float().clamp(min=GEM_EPS).pow(GEM_P)
    return cubes.mean(dim=dims).pow(1 / GEM_P)


def try_out(features: nn.Module, image_size: int) -> None:
    """Run ``features``, made of a skeleton, on the meta device at each of its scales.

    Raises
    ------
    UnknownLayer
        The network takes pictures of its own size alone, or not so small ones.
    """
    x = torch.empty(2, 3, image_size, image_size, device="meta")
    for scale in getattr(features, "scales", ()):
        try:
            with torch.inference_mode():
                features.get_submodule("body")(_resized(x, scale))
        except Exception as error:  # each network breaks in its own way
            side = math.floor(image_size * scale)
            raise UnknownLayer(
                f"the network takes no picture of {side} x {side}, which is scale {scale:g} of "
                f"{image_size}: leave that scale out, or use a convolutional network"
            ) from error


def _side_by_side(features: Sequence[torch.Tensor]) -> torch.Tensor:
    return features[0] if len(features) == 1 else torch.cat(list(features), dim=1)


def _resized(x: torch.Tensor, scale: float) -> torch.Tensor:
    if scale == 1:
        return x
    return tf.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
