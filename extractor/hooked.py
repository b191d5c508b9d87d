"""Networks that are not traced: their layers are their modules, caught by forward hooks."""

import copy
import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import nn

from extractor import pooling
from extractor.errors import UnknownLayer
from extractor.graph import BATCH
from extractor.layers import Layer

MAPS, PRE_LOGITS, LOGITS = "forward_features", "pre_logits", "logits"
"""Places that are no modules: timm's two, and what the network returns."""

_INPUT = ":input"
_MAPS_WORDS = ("maps", "pool", "avgpool")

_caught: ContextVar[dict[str, torch.Tensor] | None] = ContextVar("caught", default=None)


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
            raise UnknownLayer(f"there is no layer {name!r}: {self._right_ones(name)}")
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
        return pooling.Features(_Body(self.network, places, prefixes), words, scales).eval()

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
            return node + _INPUT
        if isinstance(_module(self.network, node), nn.Linear | nn.Conv2d):
            return node
        raise UnknownLayer(
            f"layer {node!r} is no ReLU that --no-relu could take away: leave it out, or name the "
            "ReLU's module"
        )

    def _is_relu(self, node: str) -> bool:
        return isinstance(_module(self.network, node), nn.ReLU | nn.ReLU6)

    def _right_ones(self, name: str | None) -> str:
        """List the field's names, the network's top modules and the nearest ones."""
        names = [p for p in (PRE_LOGITS, LOGITS) if p in self.shapes]
        tops = [name for name, _ in self.network.named_children() if name in self.shapes]
        near = difflib.get_close_matches(name or "", self.shapes, n=5, cutoff=0.5)
        modules = f"a module such as {', '.join(near)}" if near else "any module by its name"
        return f"use {', '.join(['pool', *names, *tops])}, or {modules}"


def probe(network: nn.Module, size: tuple[int, int]) -> Hooked:
    """Run a network dry and note what there is.

    On the meta device, where that takes neither time nor memory; a network of one's own that can't
    run there runs for real.

    Parameters
    ----------
    size
        Height and width of the input, pixels.
    """
    try:
        return _probed(network, copy.deepcopy(network).to("meta"), size)
    except Exception:  # noqa: BLE001 - foreign code may want real numbers; if not that, it fails again
        return _probed(network, network, size)


def _probed(network: nn.Module, running: nn.Module, size: tuple[int, int]) -> Hooked:
    device = next((p.device for p in running.parameters()), torch.device("cpu"))
    pixels = torch.zeros(BATCH, 3, *size, device=device)
    shapes: dict[str, tuple[int, ...]] = {}
    results: dict[str, Any] = {}

    def note(place: str, value: Any) -> None:
        shapes.pop(place, None)  # the last call of a module counts
        if isinstance(value, torch.Tensor) and value.shape[:1] == (BATCH,):
            shapes[place] = tuple(value.shape)
            results[place] = value

    with torch.inference_mode(), _watched(running, _places(running), note):
        returned = running.eval()(pixels)
    last = next(
        (p for p in reversed(shapes) if results[p] is returned and p + _INPUT in shapes), ""
    )
    note(LOGITS, returned)
    usual = last + _INPUT if last else LOGITS
    with torch.inference_mode():
        usual = _standard(running, pixels, note) or usual
    return Hooked(network, shapes, usual, size)


def _standard(network: nn.Module, pixels: torch.Tensor, note: Callable[[str, Any], None]) -> str:
    """Note the two places that every network of timm has; return the usual one, if it is there."""
    features, head = (getattr(network, n, None) for n in ("forward_features", "forward_head"))
    if features is None or head is None:
        return ""
    maps = features(pixels)
    note(MAPS, maps)
    read = head(maps, pre_logits=True)
    note(PRE_LOGITS, read)
    return PRE_LOGITS if isinstance(read, torch.Tensor) and read.ndim == 2 else ""


def _places(network: nn.Module) -> Iterator[str]:
    """Yield the modules by name, and the inputs of those whose input has a use."""
    for name, module in network.named_modules():
        if name:
            yield name
            if isinstance(module, nn.Linear | nn.ReLU | nn.ReLU6):
                yield name + _INPUT


def _module(network: nn.Module, place: str) -> nn.Module | None:
    if place in (MAPS, PRE_LOGITS, LOGITS) or place.endswith(_INPUT):
        return None
    return network.get_submodule(place)


@contextmanager
def _watched(
    network: nn.Module, places: Iterator[str], note: Callable[[str, Any], None]
) -> Iterator[None]:
    """Call ``note`` with what goes into or comes out of the places."""
    handles = [_hook(network, place, note) for place in places]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(network: nn.Module, place: str, note: Callable[[str, Any], None]) -> Any:
    module = network.get_submodule(place.removesuffix(_INPUT))
    if place.endswith(_INPUT):
        return module.register_forward_pre_hook(
            lambda _module, inputs: note(place, inputs[0]) if inputs else None
        )
    return module.register_forward_hook(lambda _module, _inputs, out: note(place, out))


class _Body(nn.Module):
    """Normalised pixels (N, 3, H, W) to what the places give, one tensor each.

    Patches are made maps (N, D, h, w) where the tokens before them are to be dropped.
    """

    def __init__(
        self, network: nn.Module, places: Sequence[str], prefixes: Sequence[int | None]
    ) -> None:
        super().__init__()
        self.network = network
        self.places = tuple(places)
        self.prefixes = tuple(prefixes)
        for place in dict.fromkeys(places):
            if place not in (MAPS, PRE_LOGITS, LOGITS):
                _hook(network, place, _catch)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the network as far as the places need."""
        caught: dict[str, torch.Tensor] = {}
        before = _caught.set(caught)
        try:
            self._run(x, caught)
        finally:
            _caught.reset(before)
        found = zip(self.places, self.prefixes, strict=True)
        return tuple(
            caught[place] if prefix is None else _as_maps(caught[place], prefix)
            for place, prefix in found
        )

    def _run(self, x: torch.Tensor, caught: dict[str, torch.Tensor]) -> None:
        network: Any = self.network
        if MAPS in self.places or PRE_LOGITS in self.places:
            maps = network.forward_features(x)
            caught[MAPS] = maps.clone() if MAPS in self.places else maps
            if PRE_LOGITS in self.places:
                caught[PRE_LOGITS] = network.forward_head(maps, pre_logits=True)
        if any(place not in caught for place in self.places):
            caught[LOGITS] = network(x)


def _catch(place: str, value: torch.Tensor) -> None:
    caught = _caught.get()
    if caught is not None:
        caught[place] = value.clone()  # a ReLU behind may work in place


def _as_maps(tokens: torch.Tensor, prefix: int) -> torch.Tensor:
    patches = tokens[:, prefix:].transpose(1, 2)  # (N, T, D) -> (N, D, h * w)
    side = math.isqrt(patches.shape[2])
    return patches.reshape(*patches.shape[:2], side, side)
