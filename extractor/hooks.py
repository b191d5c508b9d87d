"""Forward hooks in a network that is not traced: what its modules give, and catching that."""

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from extractor.graph import BATCH

MAPS, PRE_LOGITS, LOGITS = "forward_features", "pre_logits", "logits"
"""Places that are no modules: timm's two, and what the network returns."""
INPUT = ":input"
"""What the name of a place ends with that is the input of a module."""

_caught: ContextVar[dict[str, torch.Tensor] | None] = ContextVar("caught", default=None)


def dry_run(network: nn.Module, size: tuple[int, int]) -> tuple[dict[str, tuple[int, ...]], str]:
    """Run a network dry and note what there is.

    On the meta device, where that takes neither time nor memory; a network of one's own that can't
    run there runs for real.

    Parameters
    ----------
    size
        Height and width of the input, pixels.

    Returns
    -------
    shapes
        Output shape of each place for ``BATCH`` images, in the order of execution.
    usual
        The place that the classifier reads.
    """
    try:
        return _noted(copy.deepcopy(network).to("meta").eval(), size)
    except Exception:  # noqa: BLE001 - foreign code may want real numbers, or fail once more
        return _noted(network, size)


def run(network: nn.Module, pixels: torch.Tensor) -> Any:
    """Return what a network makes of pixels (N, 3, H, W); of an encoder of timm's, its maps."""
    try:
        return network(pixels)
    except NotImplementedError:  # timm raises it in the forward pass of what is an encoder alone
        features = getattr(network, MAPS, None)
        if features is None:
            raise
        return features(pixels)


def module_at(network: nn.Module, place: str) -> nn.Module | None:
    """Return the module whose output a place is, if it is one."""
    if place in (MAPS, PRE_LOGITS, LOGITS) or place.endswith(INPUT):
        return None
    return network.get_submodule(place)


class Body(nn.Module):
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
            caught[LOGITS] = run(network, x)


def _catch(place: str, value: torch.Tensor) -> None:
    caught = _caught.get()
    if caught is not None:
        caught[place] = value.clone()  # a ReLU behind may work in place


def _as_maps(tokens: torch.Tensor, prefix: int) -> torch.Tensor:
    patches = tokens[:, prefix:].transpose(1, 2)  # (N, T, D) -> (N, D, h * w)
    side = math.isqrt(patches.shape[2])
    return patches.reshape(*patches.shape[:2], side, side)


def _noted(network: nn.Module, size: tuple[int, int]) -> tuple[dict[str, tuple[int, ...]], str]:
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    pixels = torch.zeros(BATCH, 3, *size, device=device)
    shapes: dict[str, tuple[int, ...]] = {}
    results: dict[str, Any] = {}

    def note(place: str, value: Any) -> None:
        shapes.pop(place, None)  # the last call of a module counts
        if isinstance(value, torch.Tensor) and value.shape[:1] == (BATCH,):
            shapes[place] = tuple(value.shape)
            results[place] = value

    with torch.inference_mode():
        with _watched(network, _places(network), note):
            returned = run(network, pixels)
        # A classifier: what a linear module gives is what the network returns.
        giving = [p for p in shapes if results[p] is returned and p + INPUT in shapes]
        note(LOGITS, returned)
        usual = _standard(network, pixels, note)
    return shapes, usual or (giving[-1] + INPUT if giving else LOGITS)


def _standard(network: nn.Module, pixels: torch.Tensor, note: Callable[[str, Any], None]) -> str:
    """Note the two places that every network of timm has; return the usual one, if it is there."""
    features, head = (getattr(network, n, None) for n in ("forward_features", "forward_head"))
    if features is None or head is None:
        return ""
    maps = features(pixels)
    note(MAPS, maps)
    if "pre_logits" not in inspect.signature(head).parameters:  # an encoder
        return ""
    read = head(maps, pre_logits=True)
    note(PRE_LOGITS, read)
    return PRE_LOGITS if isinstance(read, torch.Tensor) and read.ndim == 2 else ""


def _places(network: nn.Module) -> Iterator[str]:
    """Yield the modules by name, and the inputs of those whose input has a use."""
    for name, module in network.named_modules():
        if name:
            yield name
            if isinstance(module, nn.Linear | nn.ReLU | nn.ReLU6):
                yield name + INPUT


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
    module = network.get_submodule(place.removesuffix(INPUT))
    if place.endswith(INPUT):
        return module.register_forward_pre_hook(
            lambda _module, inputs: note(place, inputs[0]) if inputs else None
        )
    return module.register_forward_hook(lambda _module, _inputs, out: note(place, out))
