"""Networks by name: what the user asks for, what exactly that is, and the network itself.

Importing this module loads no torch: ``request_key`` serves runs that need no forward pass.
"""

import importlib.metadata
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from extractor import networks, weights, whitening
from extractor.decode import DECODE_VERSION
from extractor.errors import WhiteningError
from extractor.networks import ModelInfo, described, list_models
from extractor.preprocess import Preprocess

__all__ = [
    "Model",
    "ModelInfo",
    "ModelRequest",
    "ModelSpec",
    "described",
    "list_models",
    "open_model",
    "request_key",
]

if TYPE_CHECKING:
    from torch import nn

    from extractor.layers import Layer


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """What the user typed.

    Attributes
    ----------
    model
        A classification network of torchvision, a name of the field's, ``timm:NAME``,
        ``clip:NAME``, or ``package.module:function``.
    layer
        A layer by the field's name, a graph node or a module; None is the penultimate layer.
    weights
        ``DEFAULT``, another published name, a file, or ``random[:SEED]``.
    input_size
        Side of the input in pixels; None is the network's own.
    pool
        How maps become a vector: ``avg``, ``max`` or ``gem``; None is as the layer has it.
    scales
        Sizes of the input, as parts of its own, whose vectors are averaged; none is one alone.
    relu
        Whether a ReLU's layer is taken behind it, or before.
    whitening
        Path of a file that `extractor.whitening.read` takes; None is no whitening.
    """

    model: str = "resnet50"
    layer: str | None = None
    weights: str = "DEFAULT"
    input_size: int | None = None
    pool: str | None = None
    scales: tuple[float, ...] = ()
    relu: bool = True
    whitening: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(map(float, self.scales)))  # JSON knows lists

    def to_json(self) -> dict[str, Any]:
        """Return the values as JSON knows them; ``ModelRequest(**values)`` takes them back.

        Model, layer and weights, and of the others those that differ from what is usual.
        """
        values = {"model": self.model, "layer": self.layer, "weights": self.weights}
        return values | self.unusual()

    def unusual(self) -> dict[str, Any]:
        """Return what differs from the usual, besides model, layer and weights."""
        found: dict[str, Any] = {
            "input_size": self.input_size,
            "pool": self.pool,
            "scales": list(self.scales) or None,
            "relu": None if self.relu else False,
            "whitening": self.whitening,
        }
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything that a vector's numbers depend on; two equal specs give comparable vectors.

    Attributes
    ----------
    architecture
        The network's name: torchvision's, ``timm:NAME``, ``clip:NAME`` (then the digest is that of
        both towers), or ``package.module:function``.
    weights_digest
        SHA-256 of the values of the state dict (``weights.digest``).
    node
        The layer's graph node, or the place in a network that is hooked.
    pooling
        ``none``, ``average``, ``max``, ``gem`` (each also with ``-last``) or ``token``.
    relu
        Whether the layer's values come right out of a ReLU.
    dim
        Size of a vector.
    scales
        The sizes of the input whose vectors are averaged; none where there is one alone.
    code
        SHA-256 of the file that makes a network of one's own.
    whitening
        SHA-256 of the file of the whitening; empty without one.
    """

    architecture: str
    weights_digest: str
    node: str
    pooling: str
    relu: bool
    preprocess: Preprocess
    dim: int
    normalize: str = "l2"
    decode_version: int = DECODE_VERSION
    scales: tuple[float, ...] = ()
    code: str = ""
    whitening: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the values as JSON knows them.

        ``scales``, ``code`` and ``whitening`` are left out where they are empty: a space is known
        by these values, and spaces are older than they.
        """
        values: dict[str, Any] = {
            "architecture": self.architecture,
            "weights_digest": self.weights_digest,
            "node": self.node,
            "pooling": self.pooling,
            "relu": self.relu,
            "normalize": self.normalize,
            "preprocess": self.preprocess.to_json(),
            "decode_version": self.decode_version,
            "dim": self.dim,
        }
        if self.scales:
            values["scales"] = list(self.scales)
        if self.code:
            values["code"] = self.code
        if self.whitening:
            values["whitening"] = self.whitening
        return values


@dataclass(frozen=True, slots=True)
class Model:
    """A network that is ready to run.

    Attributes
    ----------
    specs
        One for each layer, which differ in that alone.
    module
        Normalised pixels (N, 3, H, W), float32, to features (N, D), not yet of unit length: the
        layers side by side, D the sum of their dims.
    layer_names
        The layers as people call them: ``avgpool``, ``fc7``, else their nodes.
    """

    specs: "tuple[ModelSpec, ...]"
    module: "nn.Module"
    layer_names: tuple[str, ...]

    @property
    def spec(self) -> ModelSpec:
        """What the first layer's vectors depend on; often there is no other."""
        return self.specs[0]

    @property
    def layer_name(self) -> str:
        """What people call the first layer."""
        return self.layer_names[0]

    @property
    def preprocess(self) -> Preprocess:
        """How a picture becomes the network's input, the same for all layers."""
        return self.spec.preprocess


def request_key(request: ModelRequest) -> str:
    """Return what a request stands for as text, without torch.

    Equal keys give equal specs: it holds the typed values, the signatures of the weights file and
    of the file that makes a network of one's own, and the versions of the decoder and of
    torchvision, timm and open_clip, which say what ``DEFAULT`` is.
    """
    values: list[Any] = [request.weights]
    path = weights.weights_file(request.weights)
    if path is not None:
        values = [path, None]
        if os.path.exists(path):
            stat = os.stat(path)
            values = [path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    key = {
        "model": networks.typed(request.model),
        "layer": request.layer,
        "weights": values,
        "torchvision": importlib.metadata.version("torchvision"),
        "decode_version": DECODE_VERSION,
        **networks.versions(request.model),
        **request.unusual(),
    }
    return json.dumps(key, sort_keys=True)


def open_model(request: ModelRequest, layers: Sequence[str] | None = None) -> Model:
    """Build the network that a request names, cut off behind its layer.

    Parameters
    ----------
    layers
        Several layers in one pass; then the request says none.

    Raises
    ------
    UnknownModel, UnknownLayer, WeightsError, InputSizeError, WhiteningError
        With what there is instead.
    """
    if layers and request.layer is not None:
        raise ValueError(f"the layer is {request.layer!r} and is {', '.join(layers)}")
    wanted = tuple(layers) if layers else (request.layer,)
    white = _whitening(request.whitening, len(wanted))
    sketch = networks.sketch(request.model, request.weights, request.input_size)
    # Before any weights: a wrong layer must not wait for a download.
    found = _find(sketch, wanted, request)
    if white is not None:
        _refuse_other_vectors(white, found[0])
    if request.scales:
        sketch.try_scales(found, request.scales)
    network = sketch.loaded()
    found = _find(network, wanted, request)
    digest = weights.digest(network.network)
    specs = tuple(
        ModelSpec(
            architecture=network.name,
            weights_digest=digest,
            node=layer.node,
            pooling=layer.pooling,
            relu=layer.relu,
            preprocess=network.preprocess,
            dim=white.dims[1] if white else layer.dim,
            scales=request.scales,
            code=network.code,
            whitening=white.digest if white else "",
        )
        for layer in found
    )
    module = network.cut(found, request.scales)
    if white is not None:
        module = whitening.apply(module, white)
    return Model(specs, module, tuple(layer.name for layer in found))


def _find(
    network: networks.Network, names: Sequence[str | None], request: ModelRequest
) -> "list[Layer]":
    return [network.layer(name, relu=request.relu, pool=request.pool) for name in names]


def _whitening(path: str | None, layers: int) -> whitening.Whitening | None:
    """Read the whitening that a request names, if any."""
    if path is None:
        return None
    if layers > 1:
        raise WhiteningError(f"a whitening is for one layer, and {layers} are asked for")
    return whitening.read(path)


def _refuse_other_vectors(white: whitening.Whitening, layer: "Layer") -> None:
    if white.dims[0] != layer.dim:
        raise WhiteningError(
            f"the whitening is for vectors of {white.dims[0]:,} numbers, and layer {layer.name!r} "
            f"gives {layer.dim:,}"
        )
