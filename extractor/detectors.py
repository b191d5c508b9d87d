"""Detectors of regions: torchvision's Faster R-CNN family, with any weights that fit.

Importing this module loads no torch.
"""

import difflib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from extractor import hub, weights
from extractor.decode import DECODE_VERSION
from extractor.errors import UnknownModel, WeightsError

if TYPE_CHECKING:
    import torch
    from torch import nn

_RESNETS: Final = {
    "fasterrcnn_resnet50_fpn": "resnet50",
    "fasterrcnn_resnet101_fpn": "resnet101",
    "fasterrcnn_resnet152_fpn": "resnet152",
}
_MOBILE: Final = {"rpn_score_thresh": 0.05}
_MOBILE_320: Final = {
    **_MOBILE,
    "min_size": 320,
    "max_size": 640,
    "rpn_pre_nms_top_n_test": 150,
    "rpn_post_nms_top_n_test": 150,
}
_MOBILES: Final = {
    "fasterrcnn_mobilenet_v3_large_fpn": _MOBILE,
    "fasterrcnn_mobilenet_v3_large_320_fpn": _MOBILE_320,
}
_V2: Final = "fasterrcnn_resnet50_fpn_v2"
DETECTORS: Final = (*_RESNETS, _V2, *_MOBILES)
"""The networks by torchvision's names; it has no function for those of ResNet-101 and -152."""

_CLASSES: Final = 91  # COCO's, the background among them
_PREDICTOR: Final = "roi_heads.box_predictor.cls_score.weight"


@dataclass(frozen=True, slots=True)
class DetectorRequest:
    """What the user asked for.

    Attributes
    ----------
    model
        One of ``DETECTORS``.
    weights
        ``DEFAULT``, another published name, a file, or ``random[:SEED]``.
    num_boxes
        Most regions of a picture, those with the highest scores.
    min_score
        Regions up to this score are left out.
    nms
        Of two regions of one class that overlap by more (intersection over union), the one with
        the lower score is left out.
    num_classes
        Number of classes, the background among them; None is what the weights have.
    class_names
        Their names, the background's first; empty is what published weights say.
    options
        Arguments of torchvision's ``FasterRCNN``: ``min_size``, ``max_size``, ``image_mean``,
        ``image_std``, ``rpn_...``.
    anchor_sizes
        Sides of the anchors for each feature map, where they are not torchvision's.
    aspect_ratios
        Height by width of the anchors, for all maps.
    """

    model: str = DETECTORS[0]
    weights: str = "DEFAULT"
    num_boxes: int = 100
    min_score: float = 0.05
    nms: float = 0.5
    num_classes: int | None = None
    class_names: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    anchor_sizes: tuple[tuple[int, ...], ...] = ()
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class DetectorSpec:
    """Everything that the numbers of a region depend on.

    Attributes
    ----------
    weights_digest
        SHA-256 of the values of the state dict (``weights.digest``).
    norm_eps
        What is added to the variances: 0 for weights of torchvision before 0.8.2.
    options
        Sizes of the picture and settings of the proposals, torchvision's words.
    dim
        Numbers of a region's features.
    """

    architecture: str
    weights_digest: str
    norm_eps: float
    num_classes: int
    num_boxes: int
    min_score: float
    nms: float
    options: Mapping[str, Any]
    anchor_sizes: tuple[tuple[int, ...], ...]
    aspect_ratios: tuple[float, ...]
    dim: int
    decode_version: int = DECODE_VERSION

    def to_json(self) -> dict[str, Any]:
        """Return the values as JSON knows them."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the values, 64 hex digits."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Detector:
    """A detector that is ready to run.

    Attributes
    ----------
    network
        torchvision's ``FasterRCNN``, in inference mode.
    class_names
        Names of the classes, by number; empty where nobody has said them.
    """

    network: "nn.Module"
    spec: DetectorSpec
    class_names: tuple[str, ...]


def open_detector(request: DetectorRequest) -> Detector:
    """Build the detector that a request names.

    Raises
    ------
    UnknownModel
        There is no detector of that name.
    WeightsError
        The weights can't be had, or don't fit the network or the classes.
    """
    name = _known(request.model)
    origin = _origin(request.weights, name)
    if origin.seed is not None:
        classes = request.num_classes or len(request.class_names) or _CLASSES
        network = weights.build(_maker(name, request, classes), origin.seed)
    else:
        state = weights.read(origin)
        classes = _classes(state, request, origin.path or request.weights)
        network = weights.build(_maker(name, request, classes), 0)
        weights.assign(network, state, name)
    eps = _set_eps(network, name, origin)
    spec = DetectorSpec(
        architecture=name,
        weights_digest=weights.digest(network),
        norm_eps=eps,
        num_classes=classes,
        num_boxes=request.num_boxes,
        min_score=request.min_score,
        nms=request.nms,
        options=_options(name, request),
        anchor_sizes=request.anchor_sizes,
        aspect_ratios=request.aspect_ratios,
        dim=_dim(network),
    )
    return Detector(network.eval(), spec, _names(request, origin, classes))


def _dim(network: Any) -> int:
    return int(network.roi_heads.box_predictor.cls_score.in_features)


def _known(model: str) -> str:
    name = model.lower()
    if name not in DETECTORS:
        near = difflib.get_close_matches(name, DETECTORS, n=2, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UnknownModel(
            f"there is no detector {model!r}: {hint}there are {', '.join(DETECTORS)}"
        )
    return name


def _origin(text: str, name: str) -> weights.Origin:
    """Understand ``DEFAULT | COCO_V1 | FILE | random[:SEED]``.

    A file that bears the name of published weights counts as a copy of them.
    """
    from torchvision.models import get_model_weights, list_models

    published: dict[str, Any] = {}
    if name in list_models():
        published = dict(get_model_weights(name).__members__)
    path = weights.weights_file(text)
    if path is not None:
        named = {hub.file_name(member.url): member for member in published.values()}
        return weights.Origin(named.get(os.path.basename(path)), path=path)
    kind, _, seed = text.partition(":")
    if kind.lower() == "random" and (not seed or seed.isdecimal()):
        return weights.Origin(None, seed=int(seed or 0))
    member = published.get(text.rpartition(".")[2].upper())
    if member is None:
        names = ", ".join([*published, "a .pth, .pt or .safetensors file"])
        raise WeightsError(f"{name} has no weights {text!r}: use {names}, or random[:SEED]")
    return weights.Origin(member)


def _classes(state: "Mapping[str, torch.Tensor]", request: DetectorRequest, source: str) -> int:
    """Return the number of classes of a file, which a number that was asked for must be."""
    if _PREDICTOR not in state:
        raise WeightsError(f"{source}: no weights of a Faster R-CNN ({_PREDICTOR} is missing)")
    classes = int(state[_PREDICTOR].shape[0])
    if request.num_classes not in (None, classes):
        raise WeightsError(
            f"{source}: is for {classes} classes (with the background), "
            f"num_classes says {request.num_classes}"
        )
    return classes


def _names(request: DetectorRequest, origin: weights.Origin, classes: int) -> tuple[str, ...]:
    names = request.class_names
    if not names and origin.preset is not None:
        names = tuple(origin.preset.meta["categories"])
    if names and len(names) != classes:
        raise WeightsError(
            f"class_names has {len(names)} names, the weights have {classes} classes: "
            "name them all, the background first"
        )
    return names


def _options(name: str, request: DetectorRequest) -> dict[str, Any]:
    return {**_MOBILES.get(name, {}), **request.options}


def _maker(name: str, request: DetectorRequest, classes: int) -> "Callable[[], nn.Module]":
    """Return a function that builds the network as torchvision does for trained weights."""
    from torchvision.models import detection
    from torchvision.models.detection import backbone_utils, faster_rcnn

    options = {
        **_options(name, request),
        "num_classes": classes,
        "box_score_thresh": request.min_score,
        "box_nms_thresh": request.nms,
        "box_detections_per_img": request.num_boxes,
    }

    def make() -> "nn.Module":
        if name == _V2:
            network = detection.fasterrcnn_resnet50_fpn_v2(weights_backbone=None, **options)
        elif name in _RESNETS:
            backbone = backbone_utils.resnet_fpn_backbone(
                backbone_name=_RESNETS[name], weights=None, trainable_layers=5
            )
            network = faster_rcnn.FasterRCNN(backbone, **options)
        else:
            backbone = backbone_utils.mobilenet_backbone(
                backbone_name="mobilenet_v3_large", weights=None, fpn=True, trainable_layers=6
            )
            anchors = _anchors(((32, 64, 128, 256, 512),) * 3, (0.5, 1.0, 2.0))
            network = faster_rcnn.FasterRCNN(backbone, rpn_anchor_generator=anchors, **options)
        if request.anchor_sizes:
            _give_anchors(network, request, depth=2 if name == _V2 else 1)
        found: nn.Module = network
        return found

    return make


def _anchors(sizes: tuple[tuple[int, ...], ...], ratios: tuple[float, ...]) -> Any:
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    return AnchorGenerator(sizes, (ratios,) * len(sizes))


def _give_anchors(network: Any, request: DetectorRequest, *, depth: int) -> None:
    """Replace the anchors, and the head that tells them apart."""
    from torchvision.models.detection.rpn import RPNHead

    anchors = _anchors(request.anchor_sizes, request.aspect_ratios)
    network.rpn.anchor_generator = anchors
    per_place = anchors.num_anchors_per_location()[0]
    network.rpn.head = RPNHead(network.backbone.out_channels, per_place, conv_depth=depth)


def _set_eps(network: "nn.Module", name: str, origin: weights.Origin) -> float:
    """Give the batch norms of the backbone the epsilon that the weights were trained with."""
    from torchvision.ops import FrozenBatchNorm2d

    eps = 1e-5
    if name == DETECTORS[0] and origin.preset is not None:
        eps = 0.0  # as torchvision does for COCO_V1, which is older than its epsilon
        for module in network.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.eps = eps
    return eps
