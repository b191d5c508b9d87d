"""A network as a graph: traced without its weights, cut off behind layers, batch norms folded."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torchvision
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode
from torchvision.models.feature_extraction import NodePathTracer

from extractor.pooling import Features

if TYPE_CHECKING:
    from extractor.layers import Layer

BATCH = 5  # images in the dry run; no layer has this as a size by chance


@dataclass(frozen=True)
class Traced:
    """A network's graph in inference mode.

    Attributes
    ----------
    nodes
        The nodes that compute, by qualified name, in the order of execution.
    shapes
        Output shape of each node for ``BATCH`` images; absent where it gives no tensor.
    modules
        The network's modules by name.
    tokens
        (T, D) of the token sequences of a vision transformer, else None.
    """

    graph: fx.Graph
    nodes: dict[str, fx.Node]
    shapes: dict[fx.Node, tuple[int, ...]]
    modules: dict[str, nn.Module]
    tokens: tuple[int, int] | None

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls, or None if it calls a function."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    @property
    def output(self) -> fx.Node:
        """The node that gives the network's result."""
        output: fx.Node = next(n for n in reversed(self.graph.nodes) if n.op == "output")
        return output.all_input_nodes[0]


class _OnMeta(TorchFunctionMode):
    """Makes new weights on the meta device, where they take neither time nor memory.

    ``torch.device("meta")`` would catch the little arithmetic as well by which some networks find
    their widths.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return func(*args, **(kwargs | {"device": "meta"} if func is torch.empty else kwargs))


class _Shapes(fx.Interpreter):
    """A dry run that notes each node's output shape."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.shapes[n] = tuple(result.shape)
        return result


def skeleton(make: Callable[[], nn.Module]) -> nn.Module:
    """Return ``make()`` on the meta device, in inference mode."""
    with _OnMeta():
        network = make()
    return network.to("meta").eval()


def trace(network: nn.Module, image_size: int) -> Traced:
    """Trace a torchvision network on the meta device and run it dry.

    Parameters
    ----------
    network
        What ``skeleton`` gives.
    image_size
        Side of the square input, pixels.
    """
    tracer = NodePathTracer(autowrap_modules=(math, torchvision.ops))
    graph = tracer.trace(network)
    dry = _Shapes(fx.GraphModule(network, graph))
    with torch.inference_mode():
        dry.run(torch.empty(BATCH, 3, image_size, image_size, device="meta"))
    nodes = {
        name: node
        for node, name in tracer.node_to_qualname.items()
        if node.op in ("call_module", "call_function", "call_method")
    }
    tokens = None
    if hasattr(network, "class_token"):
        tokens = (int(network.seq_length), int(network.hidden_dim))  # type: ignore[arg-type]
    return Traced(graph, nodes, dry.shapes, dict(network.named_modules()), tokens)


def cut(
    network: nn.Module, traced: Traced, layers: "Sequence[Layer]", scales: Sequence[float] = ()
) -> Features:
    """Cut ``network`` off behind its last layer and fold batch norms into convolutions.

    ``network`` has its weights by now; ``traced`` may come from a skeleton of the same
    architecture.  What none of the layers needs is gone and never runs.

    Parameters
    ----------
    network
        In inference mode.
    traced
        Its graph.
    layers
        Where vectors are taken, all in one pass.
    scales
        As ``extractor.pooling.Features`` takes them.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    taken: dict[fx.Node, fx.Node] = {}
    chosen = [traced.nodes[layer.node] for layer in layers]
    ancestors = _ancestors(chosen)
    needed = [old for old in traced.graph.nodes if old in ancestors]
    for old in needed:
        copies[old] = taken[old] = graph.node_copy(old, lambda n: copies[n])
        if old in chosen and old is not needed[-1]:
            # What comes behind may work in place.
            taken[old] = graph.call_method("clone", (copies[old],))
    outputs = tuple(taken[node] for node in chosen)
    graph.output(outputs if len(outputs) > 1 else outputs[0])
    body = fx.GraphModule(network, graph)
    _fold(body)
    return Features(body, [layer.pooling for layer in layers], scales).eval()


def _ancestors(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    ahead = list(nodes)
    while ahead:
        node = ahead.pop()
        if node not in found:
            found.add(node)
            ahead.extend(node.all_input_nodes)
    return found


def _fold(body: fx.GraphModule) -> None:
    """Fold each batch norm that follows a convolution, which nothing else reads, into it."""
    modules = dict(body.named_modules())
    for node in list(body.graph.nodes):
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        before = node.all_input_nodes[0]
        conv = modules.get(str(before.target)) if before.op == "call_module" else None
        if isinstance(conv, nn.Conv2d) and len(before.users) == 1:
            parent, _, name = str(before.target).rpartition(".")
            setattr(body.get_submodule(parent), name, fuse_conv_bn_eval(conv, norm))
            node.replace_all_uses_with(before)
            body.graph.erase_node(node)
    body.delete_all_unused_submodules()
    body.recompile()
