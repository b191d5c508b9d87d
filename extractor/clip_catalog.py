"""What open_clip knows of its networks: names, published weights, preprocessing."""

import difflib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from extractor import hub, weights
from extractor.errors import UnknownModel, WeightsError
from extractor.preprocess import Preprocess

# Of one architecture these find pictures by words best in most cases, says open_clip's own table
# (docs/openclip_retrieval_results.csv).
_PREFERRED = "laion2b_s"
_TRANSFORM = ("mean", "std", "interpolation", "resize_mode")
_HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def installed() -> bool:
    """Whether open_clip is here."""
    return importlib.util.find_spec("open_clip") is not None


def package() -> Any:
    """Return open_clip.

    Raises
    ------
    UnknownModel
        It is not here; says how to get it.
    """
    if not installed():
        raise UnknownModel(
            "networks of images and text need open_clip: pip install 'lookalike[clip]'"
        )
    from extractor.quiet import hushed

    with hushed("open_clip"):
        import open_clip  # type: ignore[import-untyped]

    return open_clip


def architectures() -> list[str]:
    """Return the names of the architectures, as open_clip writes them."""
    return list(package().list_models())


def known(name: str) -> str:
    """Return the architecture's name as open_clip writes it, with the tag if one was said.

    Raises
    ------
    UnknownModel
        open_clip is not here or has no such network; lists the nearest ones.
    """
    typed, dot, tag = name.partition(".")
    there = {known.lower(): known for known in architectures()}
    architecture = there.get(typed.lower().replace("/", "-"))
    if architecture is None:
        near = difflib.get_close_matches(typed.lower(), there, n=5, cutoff=0.5)
        hint = f"did you mean {', '.join(f'clip:{there[n]}' for n in near)}? " if near else ""
        raise UnknownModel(
            f"open_clip has no network {typed!r}: {hint}`lookalike models 'clip:*'` lists them"
        )
    return architecture + dot + tag.lower()


def tagged(name: str, weights_text: str) -> str:
    """Return the name with the tag that name and ``--weights`` say, or the usual one.

    Raises
    ------
    WeightsError
        There are no such weights for this architecture; says which there are.
    """
    architecture, _, tag = name.partition(".")
    default = weights_text.upper() == "DEFAULT"
    own = weights.random_seed(weights_text) is not None or weights.weights_file(weights_text)
    if not default and not own:
        tag = weights_text.lower()
    if tag:
        check_tag(architecture, tag)
        return f"{architecture}.{tag}"
    usual = usual_tag(architecture)
    if default and usual not in tags_of(architecture):
        raise WeightsError(_no_weights(architecture, ""))
    return f"{architecture}.{usual}" if usual else architecture


def usual_tag(architecture: str) -> str:
    """Return the tag of the weights that are taken where none are named; nothing without any."""
    tags = tags_of(architecture)
    preferred = [tag for tag in tags if tag.startswith(_PREFERRED)]
    published = package().list_pretrained_tags_by_model(architecture)
    return next(iter([*preferred, *tags, *published]), "")


def tags_of(architecture: str) -> list[str]:
    """Return the tags of the published weights that an architecture fits."""
    tags = package().list_pretrained_tags_by_model(architecture)
    return [tag for tag in tags if _fits(architecture, tag)]


def check_tag(architecture: str, tag: str) -> None:
    """Refuse weights that are not published, or were trained for another activation.

    Raises
    ------
    WeightsError
        Says which there are, or for which architecture these are.
    """
    if tag not in tags_of(architecture):
        raise WeightsError(_no_weights(architecture, tag))


def _no_weights(architecture: str, tag: str) -> str:
    sibling = f"{architecture}-quickgelu"
    there = package().list_pretrained_tags_by_model(sibling)
    if there and tag in ("", *there):
        return (
            f"the weights {tag or there[0]!r} are for clip:{sibling}, whose activations are others "
            f"than those of clip:{architecture}: use --model clip:{sibling}"
        )
    words = [*tags_of(architecture), "a .pth, .pt or .safetensors file", "random[:SEED]"]
    what = f"weights {tag!r}" if tag else "published weights"
    return f"clip:{architecture} has no {what}: use {', '.join(words[:-1])}, or {words[-1]}"


def _fits(architecture: str, tag: str) -> bool:
    """Whether weights were trained with the activation that the architecture has."""
    quick = bool(config_of(architecture).get("quick_gelu"))
    return quick == bool(published(architecture, tag).get("quick_gelu"))


def config_of(architecture: str) -> dict[str, Any]:
    """Return open_clip's description of an architecture."""
    config: dict[str, Any] = package().get_model_config(architecture)
    return config


def published(architecture: str, tag: str) -> dict[str, Any]:
    """Return what open_clip knows of published weights: where they are, their preprocessing."""
    config: dict[str, Any] = package().get_pretrained_cfg(architecture, tag)
    return config


def file_of(config: Mapping[str, Any]) -> str:
    """Return the path of published weights, fetched if need be.

    Raises
    ------
    WeightsError
        They are not here and can't be downloaded.
    """
    if config.get("hf_hub"):
        repository, _, name = config["hf_hub"].rpartition("/")
        return hub.from_hugging_face(repository, (name,) if name else _HUB_FILES)
    return hub.published(config["url"])


def preprocess(full_name: str, side: int | None = None) -> Preprocess:
    """Return open_clip's evaluation transform (``open_clip.image_transform``) as values.

    Parameters
    ----------
    full_name
        Architecture and tag.
    side
        Side of the input in pixels; None is the network's own.
    """
    architecture, _, tag = full_name.partition(".")
    size = side or config_of(architecture)["vision_cfg"].get("image_size", 224)
    return from_config(published(architecture, tag) if tag else {}, size)


def from_config(config: Mapping[str, Any], size: int | Sequence[int]) -> Preprocess:
    """Return the transform that open_clip makes of a description.

    Parameters
    ----------
    config
        Its ``mean``, ``std``, ``interpolation`` and ``resize_mode``; what is missing is as OpenAI
        had it.
    size
        Side of the input in pixels, or its height and width.

    Raises
    ------
    UnknownModel
        Pictures are to be put on a ground of a colour, which no published network does.
    """
    from open_clip.transform import PreprocessCfg  # type: ignore[import-untyped]

    values = PreprocessCfg(**{k: v for k, v in config.items() if k in _TRANSFORM})
    height, width = (size, size) if isinstance(size, int) else size
    square = height == width
    mode, interpolation = values.resize_mode, values.interpolation
    if mode == "longest":
        raise UnknownModel("there is no such preprocessing here as open_clip's 'longest'")
    fit = "" if mode == "squash" or square else "cover"
    return Preprocess(
        resize=height if mode == "shortest" and square else (height, width),
        crop=height if square else (height, width),
        # open_clip forgets to hand it on where the input is no square.
        interpolation="bicubic" if fit or interpolation != "bilinear" else interpolation,
        mean=tuple(values.mean),
        std=tuple(values.std),
        fit=fit,
    )
