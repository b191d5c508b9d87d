"""Vectors against plain torchvision: its own preset transforms and a forward hook at the layer.

Both start from the same decoded picture.  Seeded random weights make all photos look alike, so the
error is held against the smallest distance between two different photos.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torchvision.models import get_model, get_model_weights

from extractor.decode import decode
from extractor.engine import Engine
from extractor.models import ModelRequest, open_model
from extractor.preprocess import pixels

pytestmark = pytest.mark.data
PHOTOS = 50


@pytest.fixture(scope="module")
def photos(data_dir: Path) -> Callable[[int], list[Image.Image]]:
    """Return a function that gives the photos, decoded for a network's size."""
    files = sorted((data_dir / "photos" / "imagenet-sample").iterdir())[:PHOTOS]
    assert len(files) == PHOTOS
    contents = [path.read_bytes() for path in files]
    return lambda target: [decode(data, target=target) for data in contents]


def plain(name: str, weights: str) -> nn.Module:
    """Build the network as a script would."""
    options = {}
    if name == "inception_v3":
        options = {"aux_logits": False, "init_weights": True, "transform_input": True}
    if weights.startswith("random:"):
        torch.manual_seed(int(weights.removeprefix("random:")))
        network: nn.Module = get_model(name, weights=None, **options)
        return network.eval()
    network = get_model(name, weights=None, **options)
    network.load_state_dict(torch.load(weights, weights_only=True))
    return network.eval()


def hooked(network: nn.Module, modules: list[str], x: torch.Tensor) -> list[torch.Tensor]:
    """Run the whole network and return what each module gave, (n, D)."""
    caught: dict[str, torch.Tensor] = {}

    def catch(name: str) -> Callable[[nn.Module, object, torch.Tensor], None]:
        # A copy: the ReLU behind may work in place.
        return lambda _module, _inputs, out: caught.update({name: out.clone()})

    hooks = [network.get_submodule(m).register_forward_hook(catch(m)) for m in modules]
    with torch.inference_mode():
        network(x)
    for hook in hooks:
        hook.remove()
    return [c.mean(dim=(2, 3)) if c.ndim == 4 else c for c in (caught[m] for m in modules)]


def cosine_distances(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return 1 - cosine of all pairs as half the squared chord, which loses no digits.

    The rows are scaled to unit length in float64 first.
    """
    x, y = (
        v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a.astype(float), b.astype(float))
    )
    return np.stack([((row - y) ** 2).sum(axis=1) / 2 for row in x])


@pytest.mark.parametrize(
    ("name", "layers", "weights"),
    [
        ("resnet18", {"avgpool": "avgpool"}, "resnet18.pth"),
        ("mobilenet_v2", {"avgpool": "features"}, "mobilenet_v2.pth"),
        (
            "vgg16",
            {"fc6": "classifier.1", "fc7": "classifier.4", "fc8": "classifier.6"},
            "random:1",
        ),
        (
            "alexnet",
            {"fc6": "classifier.2", "fc7": "classifier.5", "fc8": "classifier.6"},
            "random:1",
        ),
        ("inception_v3", {"avgpool": "avgpool"}, "random:1"),
    ],
)
def test_vectors_equal_plain_torchvision(
    name: str,
    layers: dict[str, str],
    weights: str,
    photos: Callable[[int], list[Image.Image]],
    data_dir: Path,
) -> None:
    if weights.endswith(".pth"):
        weights = str(data_dir / "weights" / weights)
    transforms = get_model_weights(name).IMAGENET1K_V1.transforms()
    pictures = photos(transforms.resize_size[0])
    network = plain(name, weights)
    batches = [
        hooked(network, list(layers.values()), torch.stack([transforms(p) for p in ten]))
        for ten in (pictures[i : i + 10] for i in range(0, PHOTOS, 10))
    ]
    model = open_model(ModelRequest(name, weights=weights), tuple(layers))
    engine = Engine(model, "cpu")
    found = engine.forward(np.stack([pixels(p, model.preprocess) for p in pictures]))
    for number, (layer, span) in enumerate(zip(layers, engine.spans, strict=True)):
        theirs = torch.cat([batch[number] for batch in batches]).numpy()
        assert_same(found[:, span], theirs, layer)


def assert_same(ours: NDArray[np.float32], theirs: NDArray[np.float32], layer: str) -> None:
    """Hold the error against the smallest distance between two photos."""
    error = np.diag(cosine_distances(ours, theirs)).max()
    between = cosine_distances(theirs, theirs)
    nearest = between[~np.eye(len(theirs), dtype=bool)].min()
    assert 1 - error >= 0.9999, layer
    assert error <= 0.01 * nearest, layer


def test_gem_at_several_scales_equals_plain_torchvision(
    photos: Callable[[int], list[Image.Image]], data_dir: Path
) -> None:
    weights, scales = str(data_dir / "weights" / "resnet18.pth"), (1.0, 0.7071, 0.5)
    model = open_model(ModelRequest("resnet18", weights=weights, pool="gem", scales=scales))
    network, maps = plain("resnet18", weights), list[torch.Tensor]()
    network.get_submodule("layer4").register_forward_hook(lambda _m, _i, out: maps.append(out))
    pictures = photos(256)[:16]
    transforms = get_model_weights("resnet18").IMAGENET1K_V1.transforms()
    x = torch.stack([transforms(p) for p in pictures])
    with torch.inference_mode():
        for s in scales:
            network(nn.functional.interpolate(x, scale_factor=s, mode="bilinear"))
    unit = [nn.functional.normalize(m.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)) for m in maps]
    theirs = torch.stack(unit).mean(dim=0).numpy()
    ours = Engine(model, "cpu").forward(np.stack([pixels(p, model.preprocess) for p in pictures]))
    assert_same(ours, theirs, "maps")
