"""torchvision's classification networks: how each is built, what its presets say, its weights."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from extractor import sizes, weights
from extractor.preprocess import Preprocess
from extractor.weights import Origin

if TYPE_CHECKING:
    import torch
    from torch import nn

    from extractor.graph import Traced
    from extractor.layers import Layer
    from extractor.networks import ModelInfo


def names() -> list[str]:
    """Return the names of torchvision's classification networks, sorted."""
    import torchvision.models

    found: list[str] = torchvision.models.list_models(module=torchvision.models)
    return found


def describe(name: str) -> "ModelInfo":
    """Return what ``lookalike models`` says of a network, without any weights."""
    from torchvision.models import get_model_weights

    from extractor import graph, layers
    from extractor.networks import ModelInfo

    enum = get_model_weights(name)
    preset = enum.DEFAULT
    return ModelInfo(
        name=name,
        dim=layers.classifier_inputs(graph.skeleton(maker(name, preset))),
        input_size=preset.transforms().crop_size[0],
        parameters=preset.meta["num_params"],
        gflop=preset.meta["_ops"],
        weights=tuple(enum.__members__),
        source="torchvision",
    )


def maker(
    name: str, preset: Any, classes: int | None = None, side: int | None = None
) -> "Callable[[], nn.Module]":
    """Return a function that builds the bare architecture for inference.

    Parameters
    ----------
    side
        Side of the input in pixels; None is the preset's.
    """
    options: dict[str, Any] = {"weights": None}
    if name in ("inception_v3", "googlenet"):
        # The published weights expect inputs normalised their own way, which the network does
        # itself; any other weights are taken to be their kin.  The auxiliary heads only train.
        options |= {"aux_logits": False, "transform_input": True, "init_weights": True}
    if name.startswith("vit_"):
        options["image_size"] = side or preset.meta["min_size"][0]
    if name == "maxvit_t" and side:
        options["input_size"] = (side, side)
    if classes is not None:
        options["num_classes"] = classes

    def make() -> "nn.Module":
        from torchvision.models import get_model

        network: nn.Module = get_model(name, **options)
        return network

    return make


def preset_of(state: "Mapping[str, torch.Tensor]", preset: Any) -> Any:
    """Return the preset whose input size fits a vision transformer's position embedding."""
    side = embedded_side(state)
    if side is None:
        return preset
    candidates = [preset, *type(preset).__members__.values()]
    return next((p for p in candidates if p.meta["min_size"][0] == side), preset)


def embedded_side(state: "Mapping[str, torch.Tensor]") -> int | None:
    """Return the side of the pictures that a vision transformer's weights are for, in pixels."""
    position, patches = state.get("encoder.pos_embedding"), state.get("conv_proj.weight")
    if position is None or patches is None:
        return None
    grid = math.isqrt(position.shape[1] - 1)
    return grid * int(patches.shape[-1]) if grid**2 + 1 == position.shape[1] else None


def preprocess(preset: Any, side: int | None = None) -> Preprocess:
    """Read the preprocessing out of published weights, for another input size if asked."""
    values = preset.transforms()
    resize, crop = values.resize_size[0], values.crop_size[0]
    if side is not None:
        resize, crop = round(side * resize / crop), side
    return Preprocess(
        resize=resize,
        crop=crop,
        interpolation=values.interpolation.value,
        mean=tuple(values.mean),
        std=tuple(values.std),
    )


@dataclass(frozen=True, slots=True)
class TorchvisionNetwork:
    """A network of torchvision: a skeleton first, with its weights after ``loaded``.

    Attributes
    ----------
    side
        Side of the input in pixels, where it was asked for.
    """

    name: str
    origin: Origin
    preset: Any
    side: int | None
    network: "nn.Module"
    traced: "Traced"
    code: str = ""

    @property
    def preprocess(self) -> Preprocess:
        """How a picture becomes the network's input."""
        return preprocess(self.preset, self.side)

    def layer(self, name: str | None, *, relu: bool, pool: str | None) -> "Layer":
        """Find a layer by its name; None is the input of the classifier."""
        from extractor import layers

        return layers.resolve(self.traced, name, relu=relu, pool=pool)

    def loaded(self) -> Self:
        """Return the network with its weights."""
        if self.origin.seed is not None:
            make = maker(self.name, self.preset, side=self.side)
            return replace(self, network=weights.build(make, self.origin.seed).eval())
        state = weights.read(self.origin)
        preset = preset_of(state, self.preset)
        side = self.side or embedded_side(state)
        if side != embedded_side(state) and embedded_side(state) is not None:
            raise sizes.other(self.name, self.side, embedded_side(state))
        classes = _classes(state, self.traced)
        if side == preset.transforms().crop_size[0]:
            side = None
        network, traced = _skeleton(self.name, preset, side, classes)
        weights.assign(network, state, self.name)
        return replace(self, preset=preset, side=side, network=network.eval(), traced=traced)

    def try_scales(self, chosen: "Sequence[Layer]", scales: Sequence[float]) -> None:
        """Raise ``UnknownLayer`` where the network takes no pictures of these scales."""
        from extractor import graph, pooling

        features = graph.cut(self.network, self.traced, chosen, scales)
        pooling.try_out(features, self.preprocess.crop_size[0])

    def cut(self, chosen: "Sequence[Layer]", scales: Sequence[float]) -> "nn.Module":
        """Return the network cut off behind its layers."""
        from extractor import graph

        return graph.cut(self.network, self.traced, chosen, scales)


def sketch(name: str, weights_text: str, side: int | None) -> TorchvisionNetwork:
    """Return a network before its weights.

    Raises
    ------
    WeightsError, InputSizeError
        There are no such weights, or the network can't take pictures of that size.
    """
    origin = weights.parse(weights_text, name)
    preset = origin.preset
    usual = preset.transforms().crop_size[0]
    if side == usual:
        side = None
    if side is not None and name.startswith("vit_") and origin.published:
        raise sizes.other(name, side, usual)
    if side is not None:
        sizes.check(name, side, usual, lambda asked: _skeleton(name, preset, asked))
    network, traced = _skeleton(name, preset, side)
    return TorchvisionNetwork(name, origin, preset, side, network, traced)


def described(wanted: Callable[[str], bool]) -> "Iterator[ModelInfo]":
    """Describe the networks whose name is wanted."""
    yield from (describe(name) for name in names() if wanted(name))


def _skeleton(
    name: str, preset: Any, side: int | None, classes: int | None = None
) -> "tuple[nn.Module, Traced]":
    from extractor import graph

    network = graph.skeleton(maker(name, preset, classes, side))
    return network, graph.trace(network, side or preset.transforms().crop_size[0])


def _classes(state: "Mapping[str, torch.Tensor]", traced: "Traced") -> int | None:
    """Return the number of classes that a file was trained for: a fine-tuned one has its own."""
    from extractor import layers

    parameter = layers.final_parameter(traced)
    return int(state[parameter].shape[0]) if parameter in state else None
