"""open_clip's networks of images and text: ``clip:NAME`` or ``clip:NAME.TAG``.

Their image tower makes vectors of pictures; what it gives behind its projection can be compared
with what the text tower of the same weights makes of words.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from extractor import clip_catalog, sizes, weights
from extractor.clip_making import image_maker, maker, tokenizer
from extractor.errors import UnknownModel, WeightsError
from extractor.preprocess import Preprocess

if TYPE_CHECKING:
    from torch import nn

    from extractor.hooked import Hooked
    from extractor.layers import Layer
    from extractor.networks import ModelInfo
    from extractor.towers import TextTower


@dataclass(frozen=True, slots=True)
class ClipNetwork:
    """A network of open_clip: a skeleton first, with its weights after ``loaded``.

    Attributes
    ----------
    full_name
        Architecture and tag, which says whose weights and preprocessing:
        ``ViT-B-32.laion2b_s34b_b79k``.
    weights_text
        As it is typed.
    side
        Side of the input in pixels, where it was asked for.
    network
        Both towers: their values together tell weights from others, so that words are never
        compared with pictures of another training.
    hooked
        The image tower.
    """

    full_name: str
    weights_text: str
    side: int | None
    network: "nn.Module"
    hooked: "Hooked"
    code: str = ""

    @property
    def name(self) -> str:
        """What the network is called: with its tag, however it was typed."""
        return f"clip:{self.full_name}"

    @property
    def preprocess(self) -> Preprocess:
        """How a picture becomes the network's input."""
        return clip_catalog.preprocess(self.full_name, self.side)

    def layer(self, name: str | None, *, relu: bool, pool: str | None) -> "Layer":
        """Find a layer by its name; None is what is compared with text."""
        return self.hooked.layer(name, relu=relu, pool=pool)

    def loaded(self) -> Self:
        """Return the network with its weights."""
        from extractor.towers import ImageTower

        network: Any = self._whole().eval()
        hooked = self.hooked.on(ImageTower(network.visual).eval())
        return replace(self, network=network, hooked=hooked)

    def try_scales(self, chosen: "Sequence[Layer]", scales: Sequence[float]) -> None:
        """Raise ``UnknownLayer`` where the network takes no pictures of these scales."""
        self.hooked.try_scales(chosen, scales)

    def cut(self, chosen: "Sequence[Layer]", scales: Sequence[float]) -> "nn.Module":
        """Return a module that gives the layers' features side by side; it has no text tower."""
        return self.hooked.cut(chosen, scales)

    def text_tower(self) -> "TextTower":
        """Return the other tower, in inference mode; the image tower is gone then.

        Raises
        ------
        WeightsError
            What makes numbers of words is not here.
        """
        from extractor.towers import TextTower

        return TextTower(self.network, tokenizer(self.full_name)).eval()

    def _whole(self) -> "nn.Module":
        seed = weights.random_seed(self.weights_text)
        if seed is not None:
            return weights.build(maker(self.full_name, self.side), seed)
        architecture, _, tag = self.full_name.partition(".")
        path = weights.weights_file(self.weights_text)
        if path is None:
            path = clip_catalog.file_of(clip_catalog.published(architecture, tag))
        return _from_file(self.full_name, self.side, path)


def sketch(name: str, weights_text: str, side: int | None) -> ClipNetwork:
    """Return a network before its weights.

    Raises
    ------
    UnknownModel, WeightsError, InputSizeError
        open_clip is not here, there are no such weights, or the network can't take such pictures.
    """
    full_name = clip_catalog.tagged(clip_catalog.known(name), weights_text)
    usual = clip_catalog.preprocess(full_name).crop_size
    if (side, side) == usual:
        side = None
    if side is not None:
        sizes.check(f"clip:{full_name}", side, usual[0], lambda asked: _probed(full_name, asked))
    network, hooked = _probed(full_name, side)
    return ClipNetwork(full_name, weights_text, side, network, hooked)


def described(pattern: str) -> "Iterator[ModelInfo]":
    """Describe the networks that match, one by one.

    What open_clip can't build, for want of some other package, is left out.
    """
    from extractor.networks import matches

    for name in clip_catalog.architectures():
        if matches(name.lower(), pattern):
            with suppress(UnknownModel):
                yield describe(name)


def describe(name: str) -> "ModelInfo":
    """Return what ``lookalike models`` says of a network's image tower, without any weights."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from extractor import graph
    from extractor.networks import ModelInfo

    values = clip_catalog.preprocess(name)
    hooked = _tower(graph.skeleton(image_maker(name)), values)
    tower = hooked.network.requires_grad_(False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tower(torch.empty(1, 3, *values.crop_size, device="meta"))
    return ModelInfo(
        name=f"clip:{name}",
        dim=hooked.layer(None, relu=True, pool=None).dim,
        input_size=values.crop_size[0],
        parameters=sum(p.numel() for p in tower.parameters()),
        gflop=counter.get_total_flops() / 2e9,
        weights=tuple(clip_catalog.tags_of(name)),
        source="open_clip",
    )


def _probed(name: str, side: int | None) -> "tuple[nn.Module, Hooked]":
    from extractor import graph

    network = graph.skeleton(maker(name, side, device="meta"))
    return network, _tower(network, clip_catalog.preprocess(name, side))


def _tower(network: "nn.Module", values: Preprocess) -> "Hooked":
    """Return the image tower; its usual layer is what it gives behind the projection."""
    from extractor import hooked, hooks
    from extractor.towers import ImageTower

    visual: Any = network.visual
    return replace(hooked.probe(ImageTower(visual), values.crop_size), usual=hooks.LOGITS)


def _from_file(name: str, side: int | None, path: str) -> "nn.Module":
    """Build the network with a file's weights, which may be in another form that open_clip knows.

    It may be for another size of pictures, too.
    """
    state = weights.read_file(path)
    # Not a skeleton: its buffers that no file holds would have no values.
    network = weights.build(maker(name, side), 0)
    try:
        weights.assign(network, state, f"clip:{name.partition('.')[0]}")
    except WeightsError:
        try:
            return weights.build(maker(name, side, pretrained=path), 0)
        except UnknownModel:
            pass  # what does not fit is said in our own words
        raise
    return network
