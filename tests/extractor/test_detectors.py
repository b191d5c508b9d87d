from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import get_model
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FasterRCNN

from extractor.detectors import DETECTORS, DetectorRequest, open_detector
from extractor.errors import UnknownModel, WeightsError
from tests.extractor.detectors import CLASSES, MOBILE, small_detector, write_weights

RANDOM = DetectorRequest(MOBILE, "random:5")


def plain(name: str, seed: int) -> Any:
    """Return what torchvision builds after ``torch.manual_seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name in ("fasterrcnn_resnet101_fpn", "fasterrcnn_resnet152_fpn"):
            backbone = resnet_fpn_backbone(
                backbone_name=name.split("_")[1], weights=None, trainable_layers=5
            )
            return FasterRCNN(backbone, num_classes=91)
        return get_model(name, weights=None, weights_backbone=None)


@pytest.mark.parametrize("name", DETECTORS)
def test_random_weights_are_those_that_torchvision_draws(name: str) -> None:
    detector = open_detector(DetectorRequest(name, "random:7"))
    theirs = {k: v for k, v in plain(name, 7).state_dict().items() if "num_batches" not in k}
    ours = {k: v for k, v in detector.network.state_dict().items() if "num_batches" not in k}
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, ours[key]) for key, value in theirs.items())
    assert detector.spec.dim == 1024
    assert detector.spec.num_classes == 91
    assert not detector.network.training


@pytest.mark.parametrize("name", [name for name in DETECTORS if "mobile" in name])
def test_settings_are_torchvision_s_own(name: str) -> None:
    network = open_detector(DetectorRequest(name, "random")).network
    theirs = get_model(name, weights=None, weights_backbone=None)
    for of in ("min_size", "max_size", "image_mean", "image_std", "size_divisible"):
        assert getattr(network.transform, of) == getattr(theirs.transform, of)
    for of in ("_pre_nms_top_n", "_post_nms_top_n", "nms_thresh", "score_thresh", "min_size"):
        assert getattr(network.rpn, of) == getattr(theirs.rpn, of)
    for of in ("score_thresh", "nms_thresh", "detections_per_img"):
        assert getattr(network.roi_heads, of) == getattr(theirs.roi_heads, of)
    ours, theirs = network.rpn.anchor_generator, theirs.rpn.anchor_generator
    assert (ours.sizes, ours.aspect_ratios) == (theirs.sizes, theirs.aspect_ratios)


def test_thresholds_reach_the_network() -> None:
    network = open_detector(
        DetectorRequest(MOBILE, "random", num_boxes=7, min_score=0.3, nms=0.4)
    ).network
    heads = network.roi_heads
    assert (heads.detections_per_img, heads.score_thresh, heads.nms_thresh) == (7, 0.3, 0.4)


def test_a_file_says_how_many_classes_there_are(tmp_path: Path) -> None:
    detector = open_detector(DetectorRequest(MOBILE, write_weights(tmp_path / "own.pth")))
    assert detector.spec.num_classes == CLASSES
    assert detector.class_names == ()


def test_names_of_classes() -> None:
    names = ("background", "cat", "dog", "cow")
    assert small_detector(class_names=names).class_names == names
    with pytest.raises(WeightsError, match="2 names, the weights have 4 classes"):
        small_detector(class_names=("cat", "dog"))


def test_published_weights_under_their_name(tmp_path: Path) -> None:
    """A copy of COCO_V1 takes torchvision's epsilon and names; the same bytes elsewhere don't."""
    name = "fasterrcnn_resnet50_fpn"
    network = plain(name, 1)
    specs = []
    for file in ("fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", "own.pth"):
        torch.save(network.state_dict(), tmp_path / file)
        detector = open_detector(DetectorRequest(name, str(tmp_path / file)))
        specs.append(detector.spec)
        if file == "own.pth":
            assert detector.class_names == ()
            assert detector.network.backbone.body.bn1.eps == 1e-5
        else:
            assert detector.class_names[1] == "person"
            assert detector.network.backbone.body.bn1.eps == 0
    assert specs[0].weights_digest == specs[1].weights_digest
    assert specs[0].fingerprint != specs[1].fingerprint


def test_anchors_of_one_s_own() -> None:
    sizes = ((16, 32), (64, 128), (256, 512))
    detector = open_detector(
        DetectorRequest(MOBILE, "random", anchor_sizes=sizes, aspect_ratios=(1.0, 3.0))
    )
    assert detector.network.rpn.anchor_generator.sizes == sizes
    assert detector.network.rpn.head.cls_logits.out_channels == 4
    detector = open_detector(
        DetectorRequest("fasterrcnn_resnet50_fpn_v2", "random", anchor_sizes=((32,),) * 5)
    )
    assert len(detector.network.rpn.head.conv) == 2


def test_fingerprints() -> None:
    first = open_detector(RANDOM)
    assert open_detector(RANDOM).spec.fingerprint == first.spec.fingerprint
    others = [
        DetectorRequest(MOBILE, "random:6"),
        DetectorRequest(MOBILE, "random:5", num_boxes=99),
        DetectorRequest(MOBILE, "random:5", min_score=0.1),
        DetectorRequest(MOBILE, "random:5", nms=0.4),
        DetectorRequest(MOBILE, "random:5", options={"min_size": 400}),
        DetectorRequest(MOBILE, "random:5", anchor_sizes=((32, 64, 128, 256, 511),) * 3),
    ]
    found = {open_detector(other).spec.fingerprint for other in others}
    assert len(found) == len(others)
    assert first.spec.fingerprint not in found


@pytest.mark.parametrize(
    ("request_", "error", "said"),
    [
        (DetectorRequest("fasterrcnn_resnet50"), UnknownModel, "did you mean fasterrcnn_resnet50"),
        (DetectorRequest("xyz"), UnknownModel, "there are fasterrcnn_resnet50_fpn,"),
        (DetectorRequest(weights="COCO_V7"), WeightsError, "use COCO_V1, DEFAULT, a .pth"),
        (DetectorRequest("fasterrcnn_resnet101_fpn"), WeightsError, "has no weights 'DEFAULT'"),
        (DetectorRequest(weights="/nowhere/x.pth"), WeightsError, "there is no such weights file"),
    ],
)
def test_what_can_not_be_had(request_: DetectorRequest, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        open_detector(request_)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "own.pth")
    with pytest.raises(WeightsError, match=r"is for 4 classes .* num_classes says 9"):
        open_detector(DetectorRequest(MOBILE, path, num_classes=9))
    with pytest.raises(WeightsError, match="do not fit fasterrcnn_resnet50_fpn: missing"):
        open_detector(DetectorRequest(weights=path))
    torch.save({"fc.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="no weights of a Faster R-CNN"):
        open_detector(DetectorRequest(weights=str(tmp_path / "other.pth")))
