"""torchvision's classification networks: their names, how each is built, what its presets say."""

import difflib
import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from extractor.errors import UnknownModel
from extractor.preprocess import Preprocess

if TYPE_CHECKING:
    import torch
    from torch import nn


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
    """

    name: str
    dim: int
    input_size: int
    parameters: int
    gflop: float
    weights: tuple[str, ...]


def list_models(pattern: str | None = None) -> list[ModelInfo]:
    """Describe the networks whose name holds ``pattern``, or matches it as a glob; or all."""
    from torchvision.models import get_model_weights

    from extractor import graph, layers

    found = []
    for name in names():
        if pattern and pattern not in name and not fnmatch.fnmatch(name, pattern):
            continue
        enum = get_model_weights(name)
        preset = enum.DEFAULT
        info = ModelInfo(
            name=name,
            dim=layers.classifier_inputs(graph.skeleton(maker(name, preset))),
            input_size=preset.transforms().crop_size[0],
            parameters=preset.meta["num_params"],
            gflop=preset.meta["_ops"],
            weights=tuple(enum.__members__),
        )
        found.append(info)
    return found


def names() -> list[str]:
    """Return the names of torchvision's classification networks, sorted."""
    import torchvision.models

    found: list[str] = torchvision.models.list_models(module=torchvision.models)
    return found


def known(model: str) -> str:
    """Return the network's name as torchvision writes it.

    Raises
    ------
    UnknownModel
        There is none; lists the nearest ones.
    """
    name, there = model.lower(), names()
    if name not in there:
        near = difflib.get_close_matches(name, there, n=5, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise UnknownModel(f"there is no network {model!r}: {hint}`lookalike models` lists them")
    return name


def maker(name: str, preset: Any, classes: int | None = None) -> "Callable[[], nn.Module]":
    """Return a function that builds the bare architecture for inference."""
    options: dict[str, Any] = {"weights": None}
    if name in ("inception_v3", "googlenet"):
        # The published weights expect inputs normalised their own way, which the network does
        # itself; any other weights are taken to be their kin.  The auxiliary heads only train.
        options |= {"aux_logits": False, "transform_input": True, "init_weights": True}
    if name.startswith("vit_"):
        options["image_size"] = preset.meta["min_size"][0]
    if classes is not None:
        options["num_classes"] = classes

    def make() -> "nn.Module":
        from torchvision.models import get_model

        network: nn.Module = get_model(name, **options)
        return network

    return make


def preset_of(state: "Mapping[str, torch.Tensor]", preset: Any) -> Any:
    """Return the preset whose input size fits a vision transformer's position embedding."""
    position, patches = state.get("encoder.pos_embedding"), state.get("conv_proj.weight")
    if position is None or patches is None:
        return preset
    candidates = [preset, *type(preset).__members__.values()]
    tokens, patch = position.shape[1], patches.shape[-1]
    fits = (p for p in candidates if (p.meta["min_size"][0] // patch) ** 2 + 1 == tokens)
    return next(fits, preset)


def preprocess(preset: Any) -> Preprocess:
    """Read the preprocessing out of published weights."""
    values = preset.transforms()
    return Preprocess(
        resize=values.resize_size[0],
        crop=values.crop_size[0],
        interpolation=values.interpolation.value,
        mean=tuple(values.mean),
        std=tuple(values.std),
    )
