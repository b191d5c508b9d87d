"""Networks by name: what the user asks for, what exactly that is, and the network itself.

Importing this module loads no torch: ``request_key`` serves runs that need no forward pass.
"""

import importlib.metadata
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from extractor import networks, weights
from extractor.decode import DECODE_VERSION
from extractor.networks import list_models
from extractor.preprocess import Preprocess

__all__ = ["Model", "ModelRequest", "ModelSpec", "list_models", "open_model", "request_key"]

if TYPE_CHECKING:
    import torch
    from torch import nn

    from extractor.graph import Traced


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """What the user typed.

    Attributes
    ----------
    model
        Name of a torchvision classification network.
    layer
        A layer by the field's name, a graph node or a module; None is the penultimate layer.
    weights
        ``DEFAULT``, another published name, a file, or ``random[:SEED]``.
    """

    model: str = "resnet50"
    layer: str | None = None
    weights: str = "DEFAULT"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything that a vector's numbers depend on; two equal specs give comparable vectors.

    Attributes
    ----------
    weights_digest
        SHA-256 of the values of the state dict (``weights.digest``).
    node
        The layer's graph node.
    pooling
        ``none``, ``average``, ``average-last`` or ``token``.
    relu
        Whether the layer's values come right out of a ReLU.
    dim
        Size of a vector.
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

    def to_json(self) -> dict[str, Any]:
        """Return the values as JSON knows them."""
        return {
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


@dataclass(frozen=True, slots=True)
class Model:
    """A network that is ready to run.

    Attributes
    ----------
    module
        Normalised pixels (N, 3, H, W), float32, to features (N, D), not yet of unit length.
    layer_name
        The layer as people call it: ``avgpool``, ``fc7``, else its node.
    """

    spec: ModelSpec
    module: "nn.Module"
    layer_name: str

    @property
    def preprocess(self) -> Preprocess:
        """How a picture becomes the network's input."""
        return self.spec.preprocess


def request_key(request: ModelRequest) -> str:
    """Return what a request stands for as text, without torch.

    Equal keys give equal specs: it holds the typed values, the signature of the weights file, and
    the versions of torchvision (which says what ``DEFAULT`` is) and of the decoder.
    """
    values: list[Any] = [request.weights]
    path = weights.weights_file(request.weights)
    if path is not None:
        values = [path, None]
        if os.path.exists(path):
            stat = os.stat(path)
            values = [path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    key = {
        "model": request.model.lower(),
        "layer": request.layer,
        "weights": values,
        "torchvision": importlib.metadata.version("torchvision"),
        "decode_version": DECODE_VERSION,
    }
    return json.dumps(key, sort_keys=True)


def open_model(request: ModelRequest) -> Model:
    """Build the network that a request names, cut off behind its layer.

    Raises
    ------
    UnknownModel, UnknownLayer, WeightsError
        With what there is instead.
    """
    from extractor import graph, layers

    name = networks.known(request.model)
    origin = weights.parse(request.weights, name)
    preset = origin.preset
    # Before any weights: a wrong layer must not wait for a download.
    network, traced = _skeleton(name, preset)
    layer = layers.resolve(traced, request.layer)
    if origin.seed is not None:
        network = weights.build(networks.maker(name, preset), origin.seed)
    else:
        state = weights.read(origin)
        preset = networks.preset_of(state, preset)
        network, traced = _skeleton(name, preset, _classes(state, traced))
        layer = layers.resolve(traced, request.layer)
        weights.assign(network, state, name)
    spec = ModelSpec(
        architecture=name,
        weights_digest=weights.digest(network),
        node=layer.node,
        pooling=layer.pooling,
        relu=layer.relu,
        preprocess=networks.preprocess(preset),
        dim=layer.dim,
    )
    module = graph.cut(network.eval(), traced, layer.node, layer.pooling)
    return Model(spec, module, layer.name)


def _skeleton(name: str, preset: Any, classes: int | None = None) -> "tuple[nn.Module, Traced]":
    from extractor import graph

    network = graph.skeleton(networks.maker(name, preset, classes))
    return network, graph.trace(network, preset.transforms().crop_size[0])


def _classes(state: "dict[str, torch.Tensor]", traced: "Traced") -> int | None:
    """Return the number of classes that a file was trained for: a fine-tuned one has its own."""
    from extractor import layers

    parameter = layers.final_parameter(traced)
    return int(state[parameter].shape[0]) if parameter in state else None
