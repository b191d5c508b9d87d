"""timm's networks, with their own preprocessing and weights: ``timm:NAME`` or ``timm:NAME.TAG``."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from extractor import hub, sizes, weights
from extractor.errors import WeightsError
from extractor.preprocess import Preprocess
from extractor.timm_catalog import config_of, known, maker, package, preprocess, tagged, tags_of

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
            network = weights.build(maker(self.full_name, self.side), seed)
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
        make = maker(self.full_name, self.side, num_classes=classes)
        network = graph.skeleton(make)
        if not network.state_dict().keys() >= {name for name, _ in network.named_buffers()}:
            network = weights.build(make, 0)  # no file holds those buffers: a skeleton's are empty
        try:
            weights.assign(network, state, self.name)
        except WeightsError:
            loaded = _converted(self.full_name, self.side, state, classes)
            if loaded is None:
                raise
            network = loaded
        return replace(self, hooked=hooked.probe(network.eval(), self.preprocess.crop_size))


def sketch(name: str, weights_text: str, side: int | None) -> TimmNetwork:
    """Return a network before its weights.

    Raises
    ------
    UnknownModel, WeightsError, InputSizeError
        timm is not here, there are no such weights, or the network can't take such pictures.
    """
    full_name = tagged(known(name), weights_text)
    usual = preprocess(config_of(full_name)).crop_size
    if (side, side) == usual:
        side = None
    if side is not None:
        sizes.check(f"timm:{full_name}", side, usual[0], lambda asked: _probed(full_name, asked))
    return TimmNetwork(full_name, weights_text, side, _probed(full_name, side))


def described(pattern: str) -> "Iterator[ModelInfo]":
    """Describe the networks that match, one by one: half a second each.

    A few that timm builds for other tasks alone are left out.
    """
    from extractor.networks import matches

    for name in package().list_models():
        if matches(name, pattern):
            with suppress(NotImplementedError):  # raised by timm for those
                yield describe(name)


def describe(name: str, called: str | None = None) -> "ModelInfo":
    """Return what ``lookalike models`` says of a network, from a dry run without any weights."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from extractor import graph, hooked, hooks
    from extractor.networks import ModelInfo

    network = graph.skeleton(maker(name, None)).requires_grad_(False)
    size = preprocess(config_of(name)).crop_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        hooks.run(network, torch.empty(1, 3, *size, device="meta"))
    dim = getattr(network, "head_hidden_size", None)  # what timm gives before the classifier
    return ModelInfo(
        name=called or f"timm:{name}",
        dim=dim or hooked.probe(network, size).layer(None, relu=True, pool=None).dim,
        input_size=size[0],
        parameters=sum(p.numel() for p in network.parameters()),
        gflop=counter.get_total_flops() / 2e9,
        weights=tuple(tags_of(name)),
        source=f"timm:{name}",
    )


def _probed(name: str, side: int | None) -> "Hooked":
    from extractor import graph, hooked

    size = preprocess(config_of(name), side).crop_size
    return hooked.probe(graph.skeleton(maker(name, side)), size)


def _published(name: str, side: int | None) -> "nn.Module":
    """Build a network with its published weights, which timm's own code brings into its form."""
    config = config_of(name)
    overlay = {} if config.get("custom_load") else {"file": _file_of(config)}
    try:
        return maker(name, side, pretrained=True, pretrained_cfg_overlay=overlay)()
    except Exception as error:  # timm, its readers and the hub raise all kinds
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"timm can't load the weights of timm:{name} ({first[:200]}): use --weights FILE, or "
            "--weights random for a try without real weights"
        ) from error


def _file_of(config: Mapping[str, Any]) -> str:
    """Return the path of published weights, fetched if need be."""
    if config.get("hf_hub_id"):
        own = config.get("hf_hub_filename")
        names = (own,) if own else ("model.safetensors", "pytorch_model.bin")
        return hub.from_hugging_face(config["hf_hub_id"], names)
    return hub.published(config["url"])


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
    make = maker(name, side, pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay)
    try:
        network = weights.build(make, 0)
    except Exception:  # noqa: BLE001 - what does not fit is said in our own words
        return None
    return network
