"""Networks that are not traced: their layers are their modules, caught by forward hooks."""

import copy
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from torch import nn

from extractor import hooks, pooling
from extractor.errors import UnknownLayer
from extractor.graph import BATCH
from extractor.hooks import LOGITS, MAPS, PRE_LOGITS
from extractor.layers import Layer

_MAPS_WORDS = ("maps", "pool", "avgpool")


@dataclass(frozen=True)
class Hooked:
    """A network and the places in it where a vector can be taken.

    Attributes
    ----------
    shapes
        Output shape of each place for ``BATCH`` images, in the order of execution.
    usual
        The place that a vector is taken from where nothing is said: what the classifier reads.
    size
        Height and width of the input, pixels.
    """

    network: nn.Module
    shapes: Mapping[str, tuple[int, ...]]
    usual: str
    size: tuple[int, int]

    def on(self, network: nn.Module) -> Self:
        """Return the same of a network of the same architecture."""
        return replace(self, network=network)

    def layer(self, name: str | None, *, relu: bool, pool: str | None) -> Layer:
        """Find a layer by the field's name or a module's.

        Parameters
        ----------
        name
            ``pre_logits`` (timm), ``pool`` and ``avgpool`` (the last maps), ``logits`` (what the
            network returns), a module's name, or that with ``:input``; None is what the
            classifier reads, or with ``pool`` the last maps.
        relu
            Whether a ReLU's output is taken, or its input.
        pool
            ``avg``, ``max`` or ``gem`` over the maps.

        Raises
        ------
        UnknownLayer
            There is none, or no vector an image can be made of what it gives.
        """
        place = self._place(name, pool)
        if place not in self.shapes:
            no = "the network has no usual layer, name one"
            if name is not None:
                no = f"there is no layer {name!r}"
            raise UnknownLayer(f"{no}: {self._right_ones(name)}")
        node = place if relu else self._before_relu(place)
        word = self._pooling(node, pool)
        shape = self.shapes[node]
        first = len(shape) == 4 and pooling.of_maps(word) and not word.endswith("-last")
        dim = shape[1] if first else shape[-1]
        return Layer(node=node, name=place, pooling=word, relu=self._is_relu(node), dim=dim)

    def cut(self, chosen: Sequence[Layer], scales: Sequence[float]) -> nn.Module:
        """Return a module that gives the layers' features side by side."""
        prefixes = [self._prefix_to_drop(layer) for layer in chosen]
        places, words = zip(*((layer.node, layer.pooling) for layer in chosen), strict=True)
        return pooling.Features(hooks.Body(self.network, places, prefixes), words, scales).eval()

    def try_scales(self, chosen: Sequence[Layer], scales: Sequence[float]) -> None:
        """Run the network dry at each scale.

        Raises
        ------
        UnknownLayer
            It takes no pictures of that size, or a layer gives no maps.
        """
        dry = self.on(copy.deepcopy(self.network).to("meta"))
        pooling.try_out(dry.cut(chosen, scales), self.size[0])

    def _place(self, name: str | None, pool: str | None) -> str:
        """Return the place that a name means."""
        if name in _MAPS_WORDS and name not in self.shapes:
            return self._last_maps()
        if name is None:
            return self._last_maps() if pool else self.usual
        return name

    def _last_maps(self) -> str:
        """Return the last place before the classifier that gives maps larger than one pixel."""
        if MAPS in self.shapes and self._kind(MAPS) is not None:
            return MAPS
        places = [p for p in self.shapes if self._kind(p) is not None]
        return next((p for p in reversed(places) if self._sides(p) > 1), self.usual)

    def _sides(self, place: str) -> int:
        shape = self.shapes[place]
        return {"first": shape[-1], "last": shape[1], "tokens": shape[1]}[str(self._kind(place))]

    def _kind(self, place: str) -> str | None:
        """Say how maps lie in a place: channels ``first`` or ``last``, as ``tokens``, or not."""
        shape = self.shapes[place]
        if len(shape) == 3:
            return None if self._tokens(shape) is None else "tokens"
        if len(shape) != 4:
            return None
        if self._in_proportion(shape[2:]):
            return "first"
        return "last" if self._in_proportion(shape[1:3]) else None

    def _in_proportion(self, sides: Sequence[int]) -> bool:
        """Whether maps have the proportions of the input, but for rounding."""
        height, width = self.size
        off = abs(sides[0] * width - sides[1] * height)
        return off == 0 if height == width else off <= max(self.size)

    def _tokens(self, shape: Sequence[int]) -> tuple[int, int] | None:
        """Return how many tokens precede those of the patches, and the side of their square."""
        said = getattr(self.network, "num_prefix_tokens", None)
        for prefix in dict.fromkeys([said, 0, 1]):
            if prefix is not None and shape[1] > prefix:
                side = math.isqrt(shape[1] - prefix)
                if side**2 + prefix == shape[1]:
                    return prefix, side
        return None

    def _pooling(self, node: str, pool: str | None) -> str:
        """Say how what a place gives becomes (N, D)."""
        shape, kind = self.shapes[node], self._kind(node)
        if len(shape) == 2:
            if pool is None:
                return "none"
            raise UnknownLayer(
                f"layer {node!r} gives vectors, which --pool {pool} has nothing to do with: use "
                "--layer pool, or leave out --pool"
            )
        if kind is None:
            raise UnknownLayer(
                f"layer {node!r} gives {list(shape)} for {BATCH} images, and no vector an image "
                f"can be made of that: {self._right_ones(node)}"
            )
        if kind == "tokens" and pool is None and self._has_class_token(shape):
            return "token"
        return pooling.KINDS[pool or "avg"] + ("-last" if kind == "last" else "")

    def _has_class_token(self, shape: Sequence[int]) -> bool:
        prefix, _ = self._tokens(shape) or (0, 0)
        return prefix > 0 and getattr(self.network, "cls_token", True) is not None

    def _prefix_to_drop(self, layer: Layer) -> int | None:
        """Return how many tokens to drop to make maps of the others; None where none are made."""
        if self._kind(layer.node) != "tokens" or layer.pooling == "token":
            return None
        return (self._tokens(self.shapes[layer.node]) or (0, 0))[0]

    def _before_relu(self, node: str) -> str:
        """Return the place whose values go into a ReLU; what none has touched stays."""
        if self._is_relu(node):
            return node + hooks.INPUT
        if isinstance(hooks.module_at(self.network, node), nn.Linear | nn.Conv2d):
            return node
        raise UnknownLayer(
            f"layer {node!r} is no ReLU that --no-relu could take away: leave it out, or name the "
            "ReLU's module"
        )

    def _is_relu(self, node: str) -> bool:
        return isinstance(hooks.module_at(self.network, node), nn.ReLU | nn.ReLU6)

    def _right_ones(self, name: str | None) -> str:
        """List the field's names, the network's top modules and the nearest ones."""
        names = [p for p in (PRE_LOGITS, LOGITS) if p in self.shapes]
        tops = [name for name, _ in self.network.named_children() if name in self.shapes]
        near = difflib.get_close_matches(name or "", self.shapes, n=5, cutoff=0.5)
        modules = f"a module such as {', '.join(near)}" if near else "any module by its name"
        return f"use {', '.join(['pool', *names, *tops])}, or {modules}"


def probe(network: nn.Module, size: tuple[int, int]) -> Hooked:
    """Run a network dry, with pictures of a height and width, and say what there is."""
    shapes, usual = hooks.dry_run(network, size)
    return Hooked(network, shapes, usual, size)
