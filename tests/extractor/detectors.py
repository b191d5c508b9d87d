"""A small detector that sees something, and the plain torchvision network that it must equal.

Random weights as they are drawn see nothing: all features are the same to eight digits.  Here the
batch norms are adjusted to pictures, as training would.
"""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.models import get_model

from extractor.detectors import Detector, DetectorRequest, open_detector

MOBILE = "fasterrcnn_mobilenet_v3_large_320_fpn"
CLASSES = 4
SMALL = {"min_size": 96, "max_size": 160, "rpn_pre_nms_top_n_test": 60}
ASKED: dict[str, Any] = {"model": MOBILE, "min_score": 0.2, "num_boxes": 12, "options": SMALL}


def photo(seed: int, size: tuple[int, int]) -> Image.Image:
    """A picture of large and small shapes."""
    draw = np.random.default_rng(seed)
    small = draw.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)).copy()
    for _ in range(6):
        x, y = draw.integers(0, size[0]), draw.integers(0, size[1])
        picture[y : y + 25, x : x + 25] = draw.integers(0, 256, 3)
    return Image.fromarray(picture)


@cache
def seeing_state() -> dict[str, torch.Tensor]:
    """Return weights under which regions differ, of torchvision's own network."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        network = get_model(MOBILE, weights=None, weights_backbone=None, num_classes=CLASSES)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                torch.nn.init.kaiming_normal_(parameter)
        network.roi_heads.box_predictor.bbox_pred.weight.mul_(0.2)
        pictures = np.stack([np.asarray(photo(seed, (160, 128))) for seed in range(8)])
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the mean over all that it sees
        network.backbone.train()
        network.backbone((pixels - 0.45) / 0.225)
    return {key: value.clone() for key, value in network.state_dict().items()}


@cache
def _weights_file() -> str:
    """Write the weights once a process."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    return write_weights(Path(folder) / "seeing.pth")


def write_weights(path: Path) -> str:
    torch.save(seeing_state(), path)
    return str(path)


def small_detector(**other: Any) -> Detector:
    """Return a detector for small pictures that finds regions in whatever it sees."""
    return open_detector(DetectorRequest(**{"weights": _weights_file(), **ASKED, **other}))


def plain_network(detector: Detector, **other: Any) -> Any:
    """Return torchvision's own network with the detector's weights and thresholds."""
    spec = detector.spec
    network = get_model(
        spec.architecture,
        weights=None,
        weights_backbone=None,
        num_classes=spec.num_classes,
        box_score_thresh=spec.min_score,
        box_nms_thresh=spec.nms,
        box_detections_per_img=spec.num_boxes,
        **{**spec.options, **other},
    )
    missing, unexpected = network.load_state_dict(detector.network.state_dict(), strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    return network.eval()


@torch.inference_mode()
def plain_regions(network: Any, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Detect as anybody does, then feed the boxes through pool and head once more."""
    found: dict[str, torch.Tensor] = network([image])[0]
    images, targets = network.transform([image], [{"boxes": found["boxes"]}])
    maps = network.backbone(images.tensors)
    boxes = [targets[0]["boxes"]]
    pooled = network.roi_heads.box_roi_pool(maps, boxes, images.image_sizes)
    return {**found, "features": network.roi_heads.box_head(pooled)}
