"""timm's networks, with their own preprocessing and weights: ``timm:NAME`` or ``timm:NAME.TAG``."""

import difflib
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from extractor import sizes, weights
from extractor.errors import UnknownModel, WeightsError
from extractor.preprocess import Preprocess

if TYPE_CHECKING:
    import torch
    from torch import nn

    from extractor.hooked import Hooked
    from extractor.layers import Layer
    from extractor.networks import ModelInfo


@dataclass(frozen=True, slots=True)
class TimmNetwork:
    """A network of timm: a skeleton first, with its weights after ``loaded``.

    Attributes
    ----------
    full_name
        Architecture and tag, which says whose weights and preprocessing: ``resnet50.a1_in1k``.
    weights_text
        As it is typed.
    side
        Side of the input in pixels, where it was asked for.
    """

    full_name: str
    weights_text: str
    side: int | None
    hooked: "Hooked"
    code: str = ""

    @property
    def name(self) -> str:
        """What the network is called: with its tag, however it was typed."""
        return f"timm:{self.full_name}"

    @property
    def preprocess(self) -> Preprocess:
        """How a picture becomes the network's input."""
        return preprocess(config_of(self.full_name), self.side)

    @property
    def network(self) -> "nn.Module":
        """The network, on the meta device before ``loaded``."""
        return self.hooked.network

    def layer(self, name: str | None, *, relu: bool, pool: str | None) -> "Layer":
        """Find a layer by its name; None is what timm gives before the classifier."""
        return self.hooked.layer(name, relu=relu, pool=pool)

    def loaded(self) -> Self:
        """Return the network with its weights."""
        seed = weights.random_seed(self.weights_text)
        path = weights.weights_file(self.weights_text)
        if seed is not None:
            network = weights.build(_maker(self.full_name, self.side), seed)
        elif path is not None:
            return self._with(weights.read_file(path))
        else:
            network = _published(self.full_name, self.side)
        return replace(self, hooked=self.hooked.on(network.eval()))

    def try_scales(self, chosen: "Sequence[Layer]", scales: Sequence[float]) -> None:
        """Raise ``UnknownLayer`` where the network takes no pictures of these scales."""
        self.hooked.try_scales(chosen, scales)

    def cut(self, chosen: "Sequence[Layer]", scales: Sequence[float]) -> "nn.Module":
        """Return a module that gives the layers' features side by side."""
        return self.hooked.cut(chosen, scales)

    def _with(self, state: "dict[str, torch.Tensor]") -> Self:
        """Return the network with a file's weights, which may be in another form that timm knows.

        A fine-tuned file has its own number of classes, or none.
        """
        from extractor import graph, hooked

        classes = _classes(self.full_name, state)
        network = graph.skeleton(_maker(self.full_name, self.side, num_classes=classes))
        try:
            weights.assign(network, state, self.name)
        except WeightsError:
            loaded = _converted(self.full_name, self.side, state, classes)
            if loaded is None:
                raise
            network = loaded
        return replace(self, hooked=hooked.probe(network.eval(), self.preprocess.crop_size))


def installed() -> bool:
    """Whether timm is here."""
    return importlib.util.find_spec("timm") is not None


def known(name: str) -> str:
    """Return the architecture's name, with the tag if one was said.

    Raises
    ------
    UnknownModel
        timm is not here or has no such network; lists the nearest ones.
    """
    timm = _timm()
    name = name.lower()
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


def sketch(name: str, weights_text: str, side: int | None) -> TimmNetwork:
    """Return a network before its weights.

    Raises
    ------
    UnknownModel, WeightsError, InputSizeError
        timm is not here, there are no such weights, or the network can't take such pictures.
    """
    full_name = _tagged(known(name), weights_text)
    usual = preprocess(config_of(full_name)).crop_size
    if (side, side) == usual:
        side = None
    if side is not None:
        sizes.check(f"timm:{full_name}", side, usual[0], lambda asked: _probed(full_name, asked))
    return TimmNetwork(full_name, weights_text, side, _probed(full_name, side))


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


def described(pattern: str) -> "Iterator[ModelInfo]":
    """Describe the networks that match, one by one: a third of a second each."""
    from extractor.networks import matches

    for name in _timm().list_models():
        if matches(name, pattern):
            yield describe(name)


def describe(name: str, called: str | None = None) -> "ModelInfo":
    """Return what ``lookalike models`` says of a network, from a dry run without any weights."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from extractor import graph, hooked
    from extractor.networks import ModelInfo

    network = graph.skeleton(_maker(name, None))
    size = preprocess(config_of(name)).crop_size
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.empty(1, 3, *size, device="meta"))
    return ModelInfo(
        name=called or f"timm:{name}",
        dim=hooked.probe(network, size).layer(None, relu=True, pool=None).dim,
        input_size=size[0],
        parameters=sum(p.numel() for p in network.parameters()),
        gflop=counter.get_total_flops() / 2e9,
        weights=tuple(tags_of(name)),
        source=f"timm:{name}",
    )


def _timm() -> Any:
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


def _tagged(name: str, weights_text: str) -> str:
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


def _maker(name: str, side: int | None, **options: Any) -> "Callable[[], nn.Module]":
    """Return a function that builds the architecture, for another input size if asked."""
    if side is not None and config_of(name).get("fixed_input_size"):
        options["img_size"] = side

    def make() -> "nn.Module":
        network: nn.Module = _timm().create_model(name, **options)
        return network

    return make


def _probed(name: str, side: int | None) -> "Hooked":
    from extractor import graph, hooked

    size = preprocess(config_of(name), side).crop_size
    return hooked.probe(graph.skeleton(_maker(name, side)), size)


def _published(name: str, side: int | None) -> "nn.Module":
    """Build a network with its published weights, by timm's own code, which keeps them."""
    try:
        return _maker(name, side, pretrained=True)()
    except Exception as error:  # the network, the hub and timm raise all kinds
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        config = config_of(name)
        at = f"https://huggingface.co/{config['hf_hub_id']}" if config.get("hf_hub_id") else None
        raise WeightsError(
            f"the weights of timm:{name} are not here and could not be downloaded ({first[:200]}): "
            f"fetch them elsewhere ({at or config.get('url')}) and use --weights FILE, or use "
            "--weights random for a try without real weights"
        ) from error


def _classes(name: str, state: "Mapping[str, torch.Tensor]") -> int:
    """Return the number of classes that a file was trained for; 0 where it has no classifier."""
    heads = config_of(name).get("classifier") or ()
    first = heads if isinstance(heads, str) else next(iter(heads), "")
    weight = state.get(f"{first}.weight")
    return int(weight.shape[0]) if weight is not None else 0


def _converted(
    name: str, side: int | None, state: "dict[str, torch.Tensor]", classes: int
) -> "nn.Module | None":
    """Return the network with weights of a form that timm converts, or None if it can't."""
    overlay = {"state_dict": state, "num_classes": classes}
    make = _maker(name, side, pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay)
    try:
        network = weights.build(make, 0)
    except Exception:  # noqa: BLE001 - what does not fit is said in our own words
        return None
    return network
