"""Layers by name: which node of a network gives the vector, and how its output becomes one."""

import difflib
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as tf
from torch import fx, nn

from extractor.errors import UnknownLayer
from extractor.graph import BATCH, Traced

_RELU: tuple[Any, ...] = (torch.relu, tf.relu, tf.relu6)
_PASS_ON: tuple[Any, ...] = (torch.flatten, "flatten", tf.dropout)


@dataclass(frozen=True, slots=True)
class Layer:
    """One place in a network where a vector can be taken.

    Attributes
    ----------
    node
        Qualified name of the graph node, the same for every way of typing the layer.
    name
        What people call it: ``fc7``, ``avgpool``; else its node.
    pooling
        How its output becomes (N, D): ``none`` (it is so already), ``average`` (NCHW),
        ``average-last`` (NHWC), ``token`` (the class token).
    relu
        Whether the values come right out of a ReLU.
    dim
        Size D of the vector.
    """

    node: str
    name: str
    pooling: str
    relu: bool
    dim: int


def resolve(traced: Traced, name: str | None) -> Layer:
    """Find a layer by the field's name, a node's name, or a module's name (its last node).

    Parameters
    ----------
    traced
        The network's graph.
    name
        The layer; None is the input of the final classifier, before dropout and flattening.

    Raises
    ------
    UnknownLayer
        No such layer, or one whose output is no vector an image; lists the right ones.
    """
    if name is None:
        return _layer(traced, _penultimate(traced))
    known = named_layers(traced)
    if name in known:
        return _layer(traced, known[name])
    if name in traced.nodes:
        return _layer(traced, name)
    inside = [node for node in traced.nodes if node.startswith(f"{name}.")]
    if not inside:
        raise UnknownLayer(f"there is no layer {name!r}: {_right_ones(traced, name)}")
    return _layer(traced, inside[-1])


def named_layers(traced: Traced) -> dict[str, str]:
    """Map the field's names to nodes.

    ``fc6 fc7 fc8`` (AlexNet and VGG), ``avgpool`` (the network's own, else as ``pool``), ``pool``
    (the last feature maps before the classifier, averaged; of a vision transformer its class
    token), ``logits``.
    """
    name_of = {node: name for name, node in traced.nodes.items()}
    node = traced.nodes[_penultimate(traced)]
    if len(traced.shapes[node]) == 2:
        node = next(n for n in _upwards(node) if len(traced.shapes[n]) == 4)
    pool = name_of[node]
    named = _fully_connected(traced)
    if traced.tokens is None:
        named["avgpool"] = "avgpool" if "avgpool" in traced.nodes else pool
    return named | {"pool": pool, "logits": name_of[traced.output]}


def final_parameter(traced: Traced) -> str:
    """Return the key of the final classifier's weight, of shape (classes, D, ...)."""
    return f"{_classifier(traced).target}.weight"


def classifier_inputs(network: nn.Module) -> int:
    """Return the size of the final classifier's input, without a trace."""
    linear = [m.in_features for m in network.modules() if isinstance(m, nn.Linear)]
    convolutional = [m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d)]
    return (linear or convolutional)[-1]


def _classifier(traced: Traced) -> fx.Node:
    """Return the last linear or convolutional layer (SqueezeNet classifies by a convolution)."""
    kinds = (nn.Linear, nn.Conv2d)
    return next(n for n in _upwards(traced.output) if isinstance(traced.module(n), kinds))


def _penultimate(traced: Traced) -> str:
    """Return the input of the final classifier, looked up past what changes no number."""
    node = _classifier(traced).all_input_nodes[0]
    while _only_passes_on(traced, node):
        node = node.all_input_nodes[0]
    return next(name for name, n in traced.nodes.items() if n is node)


def _only_passes_on(traced: Traced, node: fx.Node) -> bool:
    """Whether a node is dropout, flattening, or the choice of the class token."""
    if isinstance(traced.module(node), nn.Dropout | nn.Flatten) or node.target in _PASS_ON:
        return True
    return node.target is operator.getitem and traced.tokens is not None


def _upwards(node: fx.Node) -> Iterator[fx.Node]:
    """Yield ``node`` and what leads to it, along the first inputs."""
    while node.all_input_nodes:
        yield node
        node = node.all_input_nodes[0]


def _fully_connected(traced: Traced) -> dict[str, str]:
    """Map ``fc6`` and ``fc7`` to the ReLU behind them, as the field does, and ``fc8``."""
    head = [name for name in traced.nodes if name.startswith("classifier.")]
    linear = [i for i, name in enumerate(head) if _is(traced, name, nn.Linear)]
    if len(linear) != 3:
        return {}
    fc6, fc7, fc8 = linear
    return {"fc6": head[fc6 + 1], "fc7": head[fc7 + 1], "fc8": head[fc8]}


def _is(traced: Traced, name: str, kind: type[nn.Module]) -> bool:
    return isinstance(traced.module(traced.nodes[name]), kind)


def _layer(traced: Traced, node: str) -> Layer:
    shape = traced.shapes.get(traced.nodes[node], ())
    pooling = _pooling(shape, traced.tokens)
    if pooling is None:
        raise UnknownLayer(
            f"layer {node!r} gives {list(shape) or 'no tensor'} for {BATCH} images, and no vector "
            f"an image can be made of that: {_right_ones(traced, node)}"
        )
    relu = _is(traced, node, nn.ReLU) or _is(traced, node, nn.ReLU6)
    return Layer(
        node=node,
        name=next((name for name, n in named_layers(traced).items() if n == node), node),
        pooling=pooling,
        relu=relu or traced.nodes[node].target in _RELU,
        dim=shape[1] if pooling in ("none", "average") else shape[-1],
    )


def _pooling(shape: tuple[int, ...], tokens: tuple[int, int] | None) -> str | None:
    """Say how an output becomes (N, D).  Inputs are square: equal sides tell NCHW from NHWC."""
    if shape[:1] != (BATCH,):
        return None
    match shape[1:]:
        case (_,):
            return "none"
        case (_, height, width) if height == width:
            return "average"
        case (height, width, _) if height == width:
            return "average-last"
        case sequence if sequence == tokens:
            return "token"
    return None


def _right_ones(traced: Traced, name: str) -> str:
    """List the field's names, the network's top modules and the nearest nodes."""
    names = dict.fromkeys(named_layers(traced))
    tops = (node.split(".")[0] for node in traced.nodes)
    names |= dict.fromkeys(top for top in tops if top in traced.modules)
    near = difflib.get_close_matches(name, traced.nodes, n=5, cutoff=0.5)
    nodes = f"a node such as {', '.join(near)}" if near else "any node of the graph"
    return f"use {', '.join(names)}, or {nodes}"
