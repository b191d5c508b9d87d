import importlib.metadata
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import get_model

from extractor import networks, torchvision_networks, weights
from extractor.decode import DECODE_VERSION
from extractor.errors import InputSizeError, UnknownLayer, UnknownModel, WeightsError
from extractor.models import ModelRequest, ModelSpec, list_models, open_model, request_key
from extractor.preprocess import Preprocess


def random_state(name: str, seed: int = 1, classes: int | None = None) -> dict[str, torch.Tensor]:
    preset = weights.parse("random", name).preset
    network = weights.build(torchvision_networks.maker(name, preset, classes), seed)
    return network.state_dict()


def test_a_model_and_its_spec() -> None:
    model = open_model(ModelRequest("ResNet18", weights="random:3"))
    digest = model.spec.weights_digest
    assert len(digest) == 64
    assert model.spec.to_json() == {
        "architecture": "resnet18",
        "weights_digest": digest,
        "node": "avgpool",
        "pooling": "average",
        "relu": False,
        "normalize": "l2",
        "preprocess": Preprocess().to_json(),
        "decode_version": DECODE_VERSION,
        "dim": 512,
    }
    assert json.loads(json.dumps(model.spec.to_json())) == model.spec.to_json()
    assert model.layer_name == "avgpool"
    assert model.preprocess == Preprocess(resize=256, crop=224)
    with torch.inference_mode():
        assert model.module(torch.zeros(2, 3, 224, 224)).shape == (2, 512)


def test_the_same_request_gives_the_same_spec() -> None:
    one = open_model(ModelRequest("squeezenet1_1", weights="random"))
    assert one.spec == open_model(ModelRequest("squeezenet1_1", weights="random:0")).spec
    assert one.spec != open_model(ModelRequest("squeezenet1_1", weights="random:1")).spec
    assert one.spec != open_model(ModelRequest("squeezenet1_1", "features.3", "random")).spec


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_gives_what_its_network_gives(suffix: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = random_state("resnet18")
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    model = open_model(ModelRequest("resnet18", "logits", str(path)))
    assert model.spec == open_model(ModelRequest("resnet18", "logits", "random:1")).spec
    plain = get_model("resnet18", weights=None).eval()
    plain.load_state_dict(state)
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(model.module(x), plain(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small"])
def test_a_fine_tuned_file_has_its_own_number_of_classes(name: str, tmp_path: Path) -> None:
    torch.save(random_state(name, classes=7), tmp_path / "w.pth")
    path = str(tmp_path / "w.pth")
    assert open_model(ModelRequest(name, "logits", path)).spec.dim == 7
    assert open_model(ModelRequest(name, weights=path)).spec.dim == list_models(name)[0].dim


def test_weights_of_another_network_name_the_keys(tmp_path: Path) -> None:
    torch.save(random_state("resnet18"), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"do not fit squeezenet1_1: missing: features\.0\.w"):
        open_model(ModelRequest("squeezenet1_1", weights=str(tmp_path / "w.pth")))


def test_a_vision_transformer_takes_the_size_its_file_was_made_for(tmp_path: Path) -> None:
    large = weights.parse("IMAGENET1K_SWAG_E2E_V1", "vit_b_16").preset
    network = weights.build(torchvision_networks.maker("vit_b_16", large), 1)
    torch.save({k: v.half() for k, v in network.state_dict().items()}, tmp_path / "w.pth")
    model = open_model(ModelRequest("vit_b_16", weights=str(tmp_path / "w.pth")))
    assert model.preprocess.crop == 384
    assert model.preprocess.interpolation == "bicubic"
    assert model.spec.pooling == "token"
    odd = network.state_dict() | {"encoder.pos_embedding": torch.zeros(1, 11, 768)}
    torch.save(odd, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=r"encoder.pos_embedding is \[1, 11, 768\]"):
        open_model(ModelRequest("vit_b_16", weights=str(tmp_path / "odd.pth")))


def test_preprocessing_comes_with_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(random_state("resnet50"), cache / "resnet50-11ad3fa6.pth")
    by_name = open_model(ModelRequest("resnet50"))
    assert by_name.preprocess == Preprocess(resize=232, crop=224)
    by_file = open_model(ModelRequest("resnet50", weights=str(cache / "resnet50-11ad3fa6.pth")))
    assert by_file.spec == by_name.spec
    other = tmp_path / "mine.pth"
    os.link(cache / "resnet50-11ad3fa6.pth", other)
    assert open_model(ModelRequest("resnet50", weights=str(other))).preprocess == Preprocess()


def test_inception_has_its_own_size() -> None:
    model = open_model(ModelRequest("inception_v3", weights="random"))
    assert model.preprocess == Preprocess(resize=342, crop=299)
    with torch.inference_mode():
        features = model.module(torch.rand(1, 3, 299, 299))
    assert np.isfinite(features.numpy()).all()
    assert features.shape == (1, 2048)


def test_unknown_names_are_refused_with_the_near_ones() -> None:
    with pytest.raises(UnknownModel, match="did you mean resnet50"):
        open_model(ModelRequest("resnet5O"))
    with pytest.raises(UnknownModel, match="'zzz': `lookalike models` lists them"):
        open_model(ModelRequest("zzz"))
    with pytest.raises(UnknownModel):
        open_model(ModelRequest("fcn_resnet50"))  # segmentation
    # The layer is judged before the weights, which are not there.
    with pytest.raises(UnknownLayer, match="fc9"):
        open_model(ModelRequest("alexnet", "fc9", "none.pth"))
    assert UnknownModel.exit_code == 2


def test_the_key_of_a_request_follows_the_file(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    request = ModelRequest("resnet18", "avgpool", str(path))
    absent = request_key(request)
    path.write_bytes(b"1")
    first = request_key(request)
    assert first == request_key(ModelRequest("RESNET18", "avgpool", str(path)))
    stat = path.stat()
    path.write_bytes(b"2")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # only ctime tells
    assert len({absent, first, request_key(request)}) == 3


def test_keys_of_other_requests_differ() -> None:
    requests = [
        ModelRequest(),
        ModelRequest("resnet18"),
        ModelRequest(layer="layer4"),
        ModelRequest(weights="IMAGENET1K_V1"),
        ModelRequest(weights="random:1"),
    ]
    assert len({request_key(r) for r in requests}) == len(requests)
    assert request_key(ModelRequest()) == request_key(ModelRequest("resnet50"))


def test_the_key_needs_no_torch() -> None:
    code = (
        "import sys; from extractor.models import ModelRequest, request_key;"
        "request_key(ModelRequest()); request_key(ModelRequest(weights='w.pth'));"
        "print([m for m in ('torch', 'torchvision', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_models_are_listed_with_their_facts() -> None:
    (info,) = list_models("resnet50")[:1]
    assert (info.name, info.dim, info.input_size) == ("resnet50", 2048, 224)
    assert info.parameters == 25_557_032
    assert info.gflop == pytest.approx(4.1, abs=0.1)
    assert info.weights[:2] == ("IMAGENET1K_V1", "IMAGENET1K_V2")
    assert [m.name for m in list_models("vgg1?_bn")] == [
        "vgg11_bn",
        "vgg13_bn",
        "vgg16_bn",
        "vgg19_bn",
    ]
    assert list_models("nothing") == []


def test_every_network_is_listed() -> None:
    infos = list_models()
    assert len(infos) >= 80
    assert {"alexnet", "vgg16", "vit_h_14", "regnet_y_128gf"} <= {m.name for m in infos}
    assert not any("quantized" in m.name or "deeplab" in m.name for m in infos)
    assert {m.name: m.input_size for m in infos}["vit_h_14"] == 518


def test_keys_and_specs_are_what_they_were() -> None:
    """What older stores recorded: other text would make their spaces unknown."""
    version = importlib.metadata.version("torchvision")
    assert request_key(ModelRequest("ResNet18", "avgpool", "random:3")) == (
        f'{{"decode_version": {DECODE_VERSION}, "layer": "avgpool", "model": "resnet18", '
        f'"torchvision": "{version}", "weights": ["random:3"]}}'
    )
    spec = ModelSpec("resnet18", "0" * 64, "avgpool", "average", False, Preprocess(), 512)
    assert json.dumps(spec.to_json()) == (
        '{"architecture": "resnet18", "weights_digest": "' + "0" * 64 + '", "node": "avgpool", '
        '"pooling": "average", "relu": false, "normalize": "l2", "preprocess": {"resize": 256, '
        '"crop": 224, "interpolation": "bilinear", "mean": [0.485, 0.456, 0.406], '
        f'"std": [0.229, 0.224, 0.225]}}, "decode_version": {DECODE_VERSION}, "dim": 512}}'
    )
    old = {"model": "resnet18", "layer": "avgpool", "weights": "random:3"}
    assert ModelRequest(**old).to_json() == old


def test_a_request_survives_json() -> None:
    request = ModelRequest("vgg16", None, "random", 96, "gem", (1, 0.5), relu=False)
    values = json.loads(json.dumps(request.to_json()))
    assert ModelRequest(**values) == request
    assert set(values) == {"model", "layer", "weights", "input_size", "pool", "scales", "relu"}
    usual = ModelRequest("vgg16", None, "random")
    others = [
        ModelRequest("vgg16", None, "random", input_size=96),
        ModelRequest("vgg16", None, "random", pool="gem"),
        ModelRequest("vgg16", None, "random", scales=(1, 0.5)),
        ModelRequest("vgg16", None, "random", relu=False),
        ModelRequest("xception", None, "random"),
        usual,
    ]
    assert len({request_key(r) for r in others}) == len(others)


def test_layers_side_by_side_equal_each_alone() -> None:
    names = ["fc6", "fc7", "fc8"]
    together = open_model(ModelRequest("alexnet", weights="random:1"), layers=names)
    assert together.layer_names == ("fc6", "fc7", "fc8")
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        parts = together.module(x).split([spec.dim for spec in together.specs], dim=1)
        for name, part, spec in zip(names, parts, together.specs, strict=True):
            alone = open_model(ModelRequest("alexnet", name, "random:1"))
            torch.testing.assert_close(part, alone.module(x))
            assert spec == alone.spec
    with pytest.raises(ValueError, match="the layer is 'fc6'"):
        open_model(ModelRequest("alexnet", "fc6", "random:1"), layers=["fc7"])


def test_another_input_size() -> None:
    model = open_model(ModelRequest("resnet18", weights="random:1", input_size=96))
    assert model.preprocess == Preprocess(resize=110, crop=96)
    plain = weights.build(lambda: get_model("resnet18", weights=None), 1).eval()
    x = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(
            open_model(ModelRequest("resnet18", "logits", "random:1", 96)).module(x),
            plain(x),
            rtol=1e-4,
            atol=1e-4,
        )
    usual = ModelRequest("resnet18", weights="random:1", input_size=224)
    assert open_model(usual).spec == open_model(replace(usual, input_size=None)).spec
    assert open_model(usual).spec != model.spec


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("alexnet", 62, "63 pixels a side or more, not 62"),
        ("vit_b_32", 100, "32 pixels a side or more, in steps of 32, not 100"),
        ("alexnet", 4097, "--input-size 4097 is more than the 4096 pixels a side"),
        ("maxvit_t", 230, "224 pixels a side or more, in steps of 224, not 230"),
    ],
)
def test_a_size_that_a_network_cannot_take(name: str, side: int, message: str) -> None:
    with pytest.raises(InputSizeError, match=message):
        open_model(ModelRequest(name, weights="random", input_size=side))


def test_a_vision_transformer_takes_the_size_of_its_position_embedding(tmp_path: Path) -> None:
    with pytest.raises(InputSizeError, match="take pictures of 224 pixels a side, not 96"):
        open_model(ModelRequest("vit_b_32", input_size=96))  # before any download
    small = open_model(ModelRequest("vit_b_32", weights="random:1", input_size=96))
    assert small.preprocess.crop == 96
    network = weights.build(torchvision_networks.maker("vit_b_32", None, side=96), 1)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    path = str(tmp_path / "w.pth")
    assert open_model(ModelRequest("vit_b_32", weights=path)).spec == small.spec
    with pytest.raises(InputSizeError, match="take pictures of 96 pixels a side, not 128"):
        open_model(ModelRequest("vit_b_32", weights=path, input_size=128))


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("InceptionV3", "inception_v3"),
        ("VGG-16", "vgg16"),
        ("MobileNetV2", "mobilenet_v2"),
        ("EfficientNetB0", "efficientnet_b0"),
        ("DenseNet121", "densenet121"),
        ("Xception", "timm:legacy_xception"),
        ("Inception-ResNet-v2", "timm:inception_resnet_v2"),
        ("MobileNet", "timm:mobilenetv1_100"),
    ],
)
def test_names_that_people_use(typed: str, name: str) -> None:
    assert networks.known(typed) == name
