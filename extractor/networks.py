"""Networks by name: torchvision's, timm's, open_clip's, one's own, and names that people use."""

import difflib
import fnmatch
import importlib.metadata
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

from extractor import (
    clip_catalog,
    clip_networks,
    own_networks,
    timm_catalog,
    timm_networks,
    torchvision_networks,
)
from extractor.errors import UnknownModel
from extractor.preprocess import Preprocess

if TYPE_CHECKING:
    from torch import nn

    from extractor.layers import Layer

TIMM = "timm:"
"""What the names of timm's networks begin with."""
CLIP = "clip:"
"""What the names of open_clip's networks of images and text begin with."""

# Names that papers and other tools use, small and without hyphens and underscores, for networks
# that torchvision does not have.
_ALIASES = {
    "xception": "timm:legacy_xception",
    "inceptionresnetv2": "timm:inception_resnet_v2",
    "inceptionv4": "timm:inception_v4",
    "mobilenet": "timm:mobilenetv1_100",
    "mobilenetv1": "timm:mobilenetv1_100",
    "nasnetlarge": "timm:nasnetalarge",
}


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One line of ``lookalike models``.

    Attributes
    ----------
    dim
        Size of a vector at the default layer.
    input_size
        Side of the square input, pixels.
    parameters
        Number of weights.
    gflop
        Work for one image, as torchvision counts it (multiply-adds).
    weights
        Names of the published weights.
    source
        Where network and weights come from: ``torchvision``, the network of timm, ``open_clip``.
    """

    name: str
    dim: int
    input_size: int
    parameters: int
    gflop: float
    weights: tuple[str, ...]
    source: str


class Network(Protocol):
    """A network as its source gives it: a sketch without weights, whole after ``loaded``."""

    @property
    def name(self) -> str:
        """What the network is called, the same however it was typed."""

    @property
    def code(self) -> str:
        """SHA-256 of the file that makes a network of one's own, else nothing."""

    @property
    def preprocess(self) -> Preprocess:
        """How a picture becomes the network's input."""

    @property
    def network(self) -> "nn.Module":
        """The network itself, on the meta device before ``loaded``."""

    def layer(self, name: str | None, *, relu: bool, pool: str | None) -> "Layer":
        """Find a layer by its name; None is the penultimate one."""

    def loaded(self) -> Self:
        """Return the network with its weights, in inference mode."""

    def try_scales(self, chosen: "Sequence[Layer]", scales: Sequence[float]) -> None:
        """Raise ``UnknownLayer`` where a sketch shows that there can't be these scales."""

    def cut(self, chosen: "Sequence[Layer]", scales: Sequence[float]) -> "nn.Module":
        """Return a module that gives the layers' features side by side."""


def sketch(model: str, weights: str, side: int | None) -> Network:
    """Find a network by its name and say what it is, without its weights.

    Parameters
    ----------
    model
        A name of torchvision's, one that people use, ``timm:NAME``, ``clip:NAME`` or
        ``package.module:function``.
    weights
        As it is typed.
    side
        Side of the input, pixels; None is the network's own.

    Raises
    ------
    UnknownModel, WeightsError, InputSizeError
        With what there is instead.
    """
    if own_networks.is_own(model):
        return own_networks.sketch(model, weights, side)
    name = known(model)
    if name.startswith(TIMM):
        return timm_networks.sketch(name.removeprefix(TIMM), weights, side)
    if name.startswith(CLIP):
        return clip_networks.sketch(name.removeprefix(CLIP), weights, side)
    return torchvision_networks.sketch(name, weights, side)


def typed(model: str) -> str:
    """Return a name as a key holds it: in small letters where they do not matter."""
    return model if own_networks.is_own(model) else model.lower()


def versions(model: str) -> dict[str, Any]:
    """Return what, besides torchvision, says what a typed name stands for.  Needs no torch."""
    if own_networks.is_own(model):
        return {"code": own_networks.signature(model)}
    if model.lower().startswith(CLIP):
        return _version("open_clip_torch")
    if model.lower().startswith(TIMM) or _plain(model) in _ALIASES:
        return _version("timm")
    return {}


def _version(package: str) -> dict[str, str | None]:
    try:
        return {package: importlib.metadata.version(package)}
    except importlib.metadata.PackageNotFoundError:
        return {package: None}


def known(model: str) -> str:
    """Return a network's name as torchvision writes it, or ``timm:NAME`` or ``clip:NAME``.

    Raises
    ------
    UnknownModel
        There is none; lists the nearest ones.
    """
    if model.lower().startswith(TIMM):
        return TIMM + timm_catalog.known(model[len(TIMM) :])
    if model.lower().startswith(CLIP):
        return CLIP + clip_catalog.known(model[len(CLIP) :])
    name, there = model.lower(), torchvision_networks.names()
    if name in there:
        return name
    alias = {_plain(n): n for n in there}.get(_plain(name)) or _ALIASES.get(_plain(name))
    if alias is not None:
        return alias
    near = difflib.get_close_matches(name, [*there, *_ALIASES], n=5, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    raise UnknownModel(f"there is no network {model!r}: {hint}`lookalike models` lists them")


def list_models(pattern: str | None = None) -> list[ModelInfo]:
    """Describe the networks whose name holds ``pattern``, or matches it as a glob; or all.

    timm's and open_clip's are listed for a pattern that begins with ``timm:`` or ``clip:`` alone.
    """
    return list(described(pattern))


def described(pattern: str | None = None) -> Iterator[ModelInfo]:
    """Describe the networks of `list_models` one by one, as they are found."""
    wanted = (pattern or "").lower()
    if wanted.startswith(TIMM):
        yield from timm_networks.described(wanted.removeprefix(TIMM))
        return
    if wanted.startswith(CLIP):
        yield from clip_networks.described(wanted.removeprefix(CLIP))
        return
    yield from torchvision_networks.described(lambda name: matches(name, wanted))
    if timm_catalog.installed():
        for alias, name in _ALIASES.items():
            if matches(alias, wanted):
                yield timm_networks.describe(name.removeprefix(TIMM), called=alias)


def matches(name: str, pattern: str) -> bool:
    """Whether a name holds ``pattern``, or matches it as a glob."""
    return not pattern or pattern in name or fnmatch.fnmatch(name, pattern)


def _plain(name: str) -> str:
    return re.sub(r"[-_]", "", name.lower())
