"""Layers by name: which node of a network gives the vector, and how its output becomes one."""

import difflib
import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as tf
from torch import fx, nn

from extractor import pooling
from extractor.errors import UnknownLayer
from extractor.graph import BATCH, Traced

_RELU: tuple[Any, ...] = (torch.relu, tf.relu, tf.relu6)
_PASS_ON: tuple[Any, ...] = (torch.flatten, "flatten", tf.dropout)
_GLOBAL: tuple[Any, ...] = (tf.adaptive_avg_pool2d, tf.adaptive_max_pool2d, torch.mean, "mean")


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
        How its output becomes (N, D): a word of ``extractor.pooling.word``.
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


def resolve(
    traced: Traced, name: str | None, *, relu: bool = True, pool: str | None = None
) -> Layer:
    """Find a layer by the field's name, a node's name, or a module's name (its last node).

    Parameters
    ----------
    traced
        The network's graph.
    name
        The layer; None is the input of the final classifier, before dropout and flattening, or
        with ``pool`` the last feature maps before that.
    relu
        False takes the values that go into the layer's ReLU.
    pool
        How feature maps become a vector: ``avg``, ``max`` or ``gem``; None is their average.

    Raises
    ------
    UnknownLayer
        No such layer, one whose output is no vector an image, or one that has no maps to pool or
        no ReLU to leave out; lists the right ones.
    """
    layer = _layer(traced, _find(traced, name, pool), pool)
    if pool is not None:
        _check_maps(traced, layer, pool)
    return layer if relu else _before_relu(traced, layer, pool)


def _find(traced: Traced, name: str | None, pool: str | None) -> str:
    if name is None and pool is None:
        return _penultimate(traced)
    known = named_layers(traced)
    if name is None:
        if "maps" not in known:
            raise UnknownLayer(
                "this network has no feature maps before its classifier: leave out --pool, or name "
                "a layer that has some"
            )
        return known["maps"]
    if name in known:
        return known[name]
    if name in traced.nodes:
        return name
    inside = [node for node in traced.nodes if node.startswith(f"{name}.")]
    if not inside:
        raise UnknownLayer(f"there is no layer {name!r}: {_right_ones(traced, name)}")
    return inside[-1]


def named_layers(traced: Traced) -> dict[str, str]:
    """Map the field's names to nodes.

    ``fc6 fc7 fc8`` (AlexNet and VGG), ``avgpool`` (the network's own, else as ``pool``), ``pool``
    (the last feature maps before the classifier, averaged; of a vision transformer its class
    token), ``logits``, ``maps`` (the last feature maps as they are before the network pools them;
    a vision transformer has none).
    """
    node = traced.nodes[_penultimate(traced)]
    if len(traced.shapes[node]) == 2:
        node = next(n for n in _upwards(node) if len(traced.shapes[n]) == 4)
    pool = _name_of(traced, node)
    named = _fully_connected(traced)
    if traced.tokens is None:
        named["avgpool"] = "avgpool" if "avgpool" in traced.nodes else pool
    named |= {"pool": pool, "logits": _name_of(traced, traced.output)}
    maps = _last_maps(traced)
    return named if maps is None else named | {"maps": maps}


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
    return _name_of(traced, node)


def _last_maps(traced: Traced) -> str | None:
    """Return the last maps before the classifier and before the pooling that the network does.

    They are found by what pools them, not by their size, which the input's size decides.
    """
    if traced.tokens is not None:
        return None
    ahead = list(_upwards(_classifier(traced).all_input_nodes[0]))
    pools = [i for i, node in enumerate(ahead) if _pools_all(traced, node)]
    after = ahead[pools[0] + 1 :] if pools else ahead
    maps = (_name_of(traced, node) for node in after if len(traced.shapes.get(node, ())) == 4)
    return next(maps, None)


def _pools_all(traced: Traced, node: fx.Node) -> bool:
    """Whether a node is the average (or the greatest) of whole maps, or of a fixed raster."""
    kinds = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
    return isinstance(traced.module(node), kinds) or node.target in _GLOBAL


def _name_of(traced: Traced, node: fx.Node) -> str:
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


def _layer(traced: Traced, node: str, pool: str | None) -> Layer:
    shape = traced.shapes.get(traced.nodes[node], ())
    how = pooling.word(shape[1:], traced.tokens, pool) if shape[:1] == (BATCH,) else None
    if how is None:
        raise UnknownLayer(
            f"layer {node!r} gives {list(shape) or 'no tensor'} for {BATCH} images, and no vector "
            f"an image can be made of that: {_right_ones(traced, node)}"
        )
    return Layer(
        node=node,
        name=_called(traced, node, pool),
        pooling=how,
        relu=_is_relu(traced, node),
        dim=shape[-1] if how == "token" or how.endswith("-last") else shape[1],
    )


def _called(traced: Traced, node: str, pool: str | None) -> str:
    """Return the field's name of a node, else its own; ``maps`` is one where they are pooled."""
    named = named_layers(traced)
    maps = named.pop("maps", None)
    if pool and node == maps:
        return "maps"
    return next((name for name, n in named.items() if n == node), node)


def _is_relu(traced: Traced, node: str) -> bool:
    kinds = _is(traced, node, nn.ReLU) or _is(traced, node, nn.ReLU6)
    return kinds or traced.nodes[node].target in _RELU


def _check_maps(traced: Traced, layer: Layer, pool: str) -> None:
    """Refuse to pool what is no map, or what the network has pooled already."""
    node = traced.nodes[layer.node]
    shape = traced.shapes[node]
    left = pool == "avg" or shape[2:] != (1, 1) or not _pools_all(traced, node)
    if pooling.of_maps(layer.pooling) and left:
        return
    maps = named_layers(traced).get("maps")
    use = f"leave out --layer for {maps}, or --pool" if maps else "leave out --pool"
    raise UnknownLayer(
        f"layer {layer.name!r} gives {list(shape[1:])} an image, no feature maps that {pool!r} "
        f"could pool: {use}"
    )


def _before_relu(traced: Traced, layer: Layer, pool: str | None) -> Layer:
    """Return the layer with the values that go into its ReLU, under its own name."""
    if layer.relu:
        before = traced.nodes[layer.node].all_input_nodes[0]
        return replace(_layer(traced, _name_of(traced, before), pool), name=layer.name)
    if _is(traced, layer.node, nn.Linear) or _is(traced, layer.node, nn.Conv2d):
        return layer  # no ReLU has touched it
    with_relu = [name for name, node in named_layers(traced).items() if _is_relu(traced, node)]
    with_relu += [name for name in reversed(traced.nodes) if _is_relu(traced, name)]
    use = f"leave out --no-relu, or use {', '.join(with_relu[:3])}" if with_relu else "leave it out"
    raise UnknownLayer(
        f"layer {layer.name!r} does not come right out of a ReLU that --no-relu could take away: "
        f"{use}"
    )


def _right_ones(traced: Traced, name: str) -> str:
    """List the field's names, the network's top modules and the nearest nodes."""
    names = dict.fromkeys(named_layers(traced))
    tops = (node.split(".")[0] for node in traced.nodes)
    names |= dict.fromkeys(top for top in tops if top in traced.modules)
    near = difflib.get_close_matches(name, traced.nodes, n=5, cutoff=0.5)
    nodes = f"a node such as {', '.join(near)}" if near else "any node of the graph"
    return f"use {', '.join(names)}, or {nodes}"
