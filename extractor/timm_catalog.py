"""What timm knows of its networks: names, tags of published weights, preprocessing."""

import difflib
import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from extractor import weights
from extractor.errors import UnknownModel, WeightsError
from extractor.preprocess import Preprocess

if TYPE_CHECKING:
    from torch import nn


def installed() -> bool:
    """Whether timm is here."""
    return importlib.util.find_spec("timm") is not None


def package() -> Any:
    """Return timm.

    Raises
    ------
    UnknownModel
        It is not here; says how to get it.
    """
    if not installed():
        raise UnknownModel("networks of timm need timm: pip install 'lookalike[timm]'")
    import timm

    return timm


def known(name: str) -> str:
    """Return the architecture's name, with the tag if one was said.

    Raises
    ------
    UnknownModel
        timm is not here or has no such network; lists the nearest ones.
    """
    timm = package()
    from timm.models import get_deprecated_models

    name = name.lower()
    name = get_deprecated_models().get(name) or name
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=5, cutoff=0.5)
        hint = f"did you mean {', '.join(f'timm:{n}' for n in near)}? " if near else ""
        raise UnknownModel(
            f"timm has no network {architecture!r}: {hint}`lookalike models 'timm:*'` lists them"
        )
    tags = tags_of(architecture)
    if tag and tag not in tags:
        raise UnknownModel(f"timm:{architecture} has no weights {tag!r}: use {', '.join(tags)}")
    return name


def tagged(name: str, weights_text: str) -> str:
    """Return the name with the tag that name and ``--weights`` say, or the default one."""
    architecture, _, tag = name.partition(".")
    tags = tags_of(architecture)
    typed = weights_text.upper() == "DEFAULT" or weights.random_seed(weights_text) is not None
    if not typed and weights.weights_file(weights_text) is None:
        if weights_text not in tags:
            raise WeightsError(
                f"timm:{architecture} has no weights {weights_text!r}: use "
                f"{', '.join([*tags, 'a .pth, .pt or .safetensors file', 'or random[:SEED]'])}"
            )
        tag = weights_text
    if not tag and not tags and weights_text.upper() == "DEFAULT":
        raise WeightsError(
            f"timm:{architecture} has no published weights: use a .pth, .pt or .safetensors file, "
            "or random[:SEED]"
        )
    tag = tag or (tags[0] if tags else "")
    return f"{architecture}.{tag}" if tag else architecture


def tags_of(architecture: str) -> list[str]:
    """Return the tags of an architecture's published weights, the default first."""
    from timm.models import get_arch_pretrained_cfgs

    cfgs = get_arch_pretrained_cfgs(architecture)
    tags = [name.partition(".")[2] for name, cfg in cfgs.items() if cfg.has_weights]
    return [tag for tag in tags if tag]


def config_of(full_name: str) -> dict[str, Any]:
    """Return what timm knows of weights: input, normalisation, classes, where they are."""
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(full_name)
    return asdict(config) if config else {}


def preprocess(config: Mapping[str, Any], side: int | None = None) -> Preprocess:
    """Return timm's evaluation transform (``timm.data.create_transform``) as values.

    Parameters
    ----------
    side
        Side of the input in pixels; None is the network's own.
    """
    from timm.data import config as timm_config

    resolve: Any = timm_config.resolve_data_config  # without types
    asked = {"input_size": (3, side, side)} if side else {}
    values = resolve(asked, pretrained_cfg=dict(config) or {"tag": ""})
    height, width = values["input_size"][1:]
    scaled = (math.floor(height / values["crop_pct"]), math.floor(width / values["crop_pct"]))
    resize: int | tuple[int, int] = scaled
    fit = {"squash": "", "border": "contain"}.get(values["crop_mode"], "cover")
    if fit == "cover" and scaled[0] == scaled[1]:
        resize, fit = scaled[0], ""
    return Preprocess(
        resize=resize,
        crop=height if height == width else (height, width),
        interpolation=values["interpolation"],
        mean=tuple(values["mean"]),
        std=tuple(values["std"]),
        fit=fit,
    )


def maker(name: str, side: int | None, **options: Any) -> "Callable[[], nn.Module]":
    """Return a function that builds the architecture, for another input size if asked."""
    if side is not None and config_of(name).get("fixed_input_size"):
        options["img_size"] = side

    def make() -> "nn.Module":
        network: nn.Module = package().create_model(name, **options)
        return network

    return make
