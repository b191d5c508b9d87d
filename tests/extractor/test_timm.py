"""timm's networks against timm itself: its transforms, and its own forward pass."""

import functools
import http.server
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from extractor import hub, timm_catalog, weights
from extractor.decode import decode
from extractor.engine import Engine
from extractor.errors import InputSizeError, UnknownLayer, UnknownModel, WeightsError
from extractor.models import ModelRequest, list_models, open_model
from extractor.preprocess import Preprocess, pixels

timm: Any = pytest.importorskip("timm")
from timm.data import create_transform, resolve_data_config  # noqa: E402

RANDOM = "random:3"
PHOTOS = 6


@pytest.fixture(scope="module")
def photos(data_dir: Path) -> list[Image.Image]:
    files = sorted((data_dir / "photos" / "imagenet-sample").iterdir())[:PHOTOS]
    return [decode(path.read_bytes(), target=600) for path in files]


def plain(name: str, **options: Any) -> Any:
    """Build a network as a script of timm's users would."""
    return weights.build(lambda: timm.create_model(name, **options), 3).eval()


@pytest.mark.data
@pytest.mark.parametrize(
    "name",
    [
        "legacy_xception.tf_in1k",
        "inception_resnet_v2.tf_in1k",
        "mobilenetv1_100.ra4_e3600_r224_in1k",
        "resnet50.a1_in1k",
        "vit_small_patch14_dinov2.lvd142m",
        "vit_small_patch16_dinov3.lvd1689m",
        "vit_base_patch16_clip_224.openai",
        "vit_base_patch16_siglip_224.webli",
        "eva02_tiny_patch14_336.mim_in22k_ft_in1k",
        "deepseek_vit_412m.deepseek_v4_1_flash",  # with a border
    ],
)
def test_published_preprocessing_equals_timms(name: str, photos: list[Image.Image]) -> None:
    config = timm_catalog.config_of(name)
    assert_same_transform(config, timm_catalog.preprocess(config), photos)


@pytest.mark.data
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(3, 224, 224), (3, 160, 240), (3, 333, 333)])
@pytest.mark.parametrize("share", [1.0, 0.9, 0.875])
def test_every_crop_equals_timms(
    mode: str, size: tuple[int, int, int], share: float, photos: list[Image.Image]
) -> None:
    interpolation = {"center": "bicubic", "squash": "bilinear", "border": "lanczos"}[mode]
    config = {
        "input_size": size,
        "crop_pct": share,
        "crop_mode": mode,
        "interpolation": interpolation,
        "mean": (0.2, 0.5, 0.7),
        "std": (0.1, 0.2, 0.3),
    }
    strips = [photos[0].resize((900, 31)), photos[1].resize((40, 640))]
    assert_same_transform(config, timm_catalog.preprocess(config), [*photos, *strips])


def assert_same_transform(
    config: dict[str, Any], ours: Preprocess, pictures: list[Image.Image]
) -> None:
    values = resolve_data_config({}, pretrained_cfg=config)
    whole, bytes_only = create_transform(**values), create_transform(**values, normalize=False)
    mean, std = (torch.tensor(v)[:, None, None] for v in (ours.mean, ours.std))
    for picture in pictures:
        mine = pixels(picture, ours)
        np.testing.assert_array_equal(mine, bytes_only(picture).numpy())
        normalised = (torch.from_numpy(mine) / 255 - mean) / std
        torch.testing.assert_close(normalised, whole(picture), rtol=0, atol=1e-6)
    assert Preprocess.from_json(ours.to_json()) == ours


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "node", "dim", "side"),
    [
        ("Xception", "pre_logits", 2048, 299),
        ("VGG16", "classifier.4", 4096, 224),
        ("VGG-19", "classifier.4", 4096, 224),
        ("ResNet50", "avgpool", 2048, 224),
        ("InceptionV3", "avgpool", 2048, 299),
        ("InceptionResNetV2", "pre_logits", 1536, 299),
        ("MobileNet", "pre_logits", 1024, 224),
        ("AlexNet", "classifier.5", 4096, 224),
        ("timm:vit_tiny_patch16_224", "pre_logits", 192, 224),
    ],
)
def test_every_network_of_the_field_sees_photos(
    name: str, node: str, dim: int, side: int, photos: list[Image.Image]
) -> None:
    model = open_model(ModelRequest(name, weights=RANDOM))
    assert (model.spec.node, model.spec.dim) == (node, dim)
    assert model.preprocess.crop_size == (side, side)
    vectors = Engine(model, "cpu").forward(
        np.stack([pixels(photo, model.preprocess) for photo in photos])
    )
    assert vectors.shape == (PHOTOS, dim)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert len(np.unique(vectors, axis=0)) == PHOTOS
    again = open_model(ModelRequest(model.spec.architecture, model.layer_name, RANDOM))
    assert again.spec == model.spec


@pytest.mark.parametrize(
    ("name", "dim"),
    [
        ("legacy_xception", 2048),
        ("mobilenetv1_100", 1024),
        ("vit_tiny_patch16_224", 192),
        ("swin_tiny_patch4_window7_224", 768),
    ],
)
def test_vectors_equal_timms_own(name: str, dim: int) -> None:
    network = plain(name)
    side = network.pretrained_cfg["input_size"][1]
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    model = open_model(ModelRequest(f"timm:{name}", weights=RANDOM))
    logits = open_model(ModelRequest(f"timm:{name}", "logits", RANDOM))
    with torch.inference_mode():
        maps = network.forward_features(x)
        wanted = network.forward_head(maps, pre_logits=True)
        torch.testing.assert_close(model.module(x), wanted)
        torch.testing.assert_close(logits.module(x), network(x))
    assert model.spec.dim == dim
    assert model.spec.architecture.startswith(f"timm:{name}.")


def test_a_clip_tower_gives_what_clip_compares() -> None:
    model = open_model(ModelRequest("timm:resnet50_clip", "logits", RANDOM))
    assert model.spec.dim == 1024
    assert model.preprocess.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)


def hooked(network: Any, module: str, x: torch.Tensor) -> torch.Tensor:
    caught: list[torch.Tensor] = []
    handle = network.get_submodule(module).register_forward_hook(
        lambda _module, _inputs, out: caught.append(out.clone())
    )
    with torch.inference_mode():
        network(x)
    handle.remove()
    return caught[-1]


def test_modules_are_pooled_as_a_hook_and_numpy_do() -> None:
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    resnet, vit, swin = (plain(n) for n in ("resnet18", "vit_tiny_patch16_224", SWIN))
    pooled: list[tuple[str, str | None, str | None, Callable[[], np.ndarray]]] = [
        ("resnet18", "layer3", None, lambda: hooked(resnet, "layer3", x).numpy().mean((2, 3))),
        ("resnet18", "layer3", "max", lambda: hooked(resnet, "layer3", x).numpy().max((2, 3))),
        ("resnet18", None, "gem", lambda: gem(hooked(resnet, "layer4", x).numpy(), (2, 3))),
        (VIT, "blocks.5", None, lambda: hooked(vit, "blocks.5", x).numpy()[:, 0]),
        (VIT, None, "avg", lambda: hooked(vit, "norm", x).numpy()[:, 1:].mean(1)),
        (SWIN, "layers.2", None, lambda: hooked(swin, "layers.2", x).numpy().mean((1, 2))),
    ]
    for name, layer, pool, wanted in pooled:
        model = open_model(ModelRequest(f"timm:{name}", layer, RANDOM, pool=pool))
        with torch.inference_mode():
            np.testing.assert_allclose(model.module(x), wanted(), rtol=1e-4, atol=1e-5)


VIT, SWIN = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"


def gem(maps: np.ndarray, axes: tuple[int, int]) -> np.ndarray:
    cubes: np.ndarray = (np.maximum(maps, 1e-6).astype(float) ** 3).mean(axes) ** (1 / 3)
    return cubes


def test_several_layers_in_one_pass_equal_one_by_one() -> None:
    names = ["layer2", "pre_logits", "act1", "logits"]
    request = ModelRequest("timm:resnet18", weights=RANDOM)
    together = open_model(request, layers=names)
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        parts = together.module(x).split([spec.dim for spec in together.specs], dim=1)
        for name, part in zip(names, parts, strict=True):
            alone = open_model(ModelRequest("timm:resnet18", name, RANDOM))
            torch.testing.assert_close(part, alone.module(x))
            assert alone.spec == together.specs[names.index(name)]
    assert together.layer_names == tuple(names)


def test_before_a_relu() -> None:
    model = open_model(ModelRequest("timm:resnet18", "act1", RANDOM, relu=False))
    behind = open_model(ModelRequest("timm:resnet18", "act1", RANDOM))
    network = plain("resnet18")
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = network.bn1(network.conv1(x))
        torch.testing.assert_close(model.module(x), wanted.mean((2, 3)))
        torch.testing.assert_close(behind.module(x), wanted.relu().mean((2, 3)))
    assert (model.spec.relu, behind.spec.relu) == (False, True)
    assert open_model(ModelRequest("timm:resnet18", model.layer_name, RANDOM, relu=False)).spec == (
        model.spec
    )
    with pytest.raises(UnknownLayer, match="no ReLU that --no-relu could take away"):
        open_model(ModelRequest("timm:resnet18", "layer3", RANDOM, relu=False))


def test_scales_are_those_of_a_loop() -> None:
    request = ModelRequest("timm:mobilenetv1_100", None, RANDOM, pool="max", scales=(1, 0.5))
    model = open_model(request)
    network = plain("mobilenetv1_100")
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        seen = [
            torch.nn.functional.normalize(network.forward_features(y).amax((2, 3)))
            for y in (x, torch.nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear"))
        ]
        torch.testing.assert_close(model.module(x), sum(seen) / 2)
    with pytest.raises(UnknownLayer, match=r"scale 0\.5 of 224"):
        open_model(ModelRequest(f"timm:{VIT}", None, RANDOM, pool="max", scales=(1, 0.5)))


def test_a_file_of_timms_is_understood(tmp_path: Path) -> None:
    torch.save(plain("mobilenetv1_100", num_classes=7).state_dict(), tmp_path / "w.pth")
    path = str(tmp_path / "w.pth")
    assert open_model(ModelRequest("MobileNet", "logits", path)).spec.dim == 7
    assert open_model(ModelRequest("MobileNet", None, path)).spec.dim == 1024
    with pytest.raises(WeightsError, match=r"do not fit timm:resnet18\.\w+: missing: "):
        open_model(ModelRequest("timm:resnet18", None, path))
    bare = plain(VIT, num_classes=0).state_dict()
    torch.save(bare, tmp_path / "bare.pth")
    assert open_model(ModelRequest(f"timm:{VIT}", None, str(tmp_path / "bare.pth"))).spec.dim == 192


def test_a_file_fits_a_network_with_buffers_that_no_file_holds(tmp_path: Path) -> None:
    network = plain("efficientformerv2_s0")
    torch.save(network.state_dict(), tmp_path / "w.pth")
    request = ModelRequest("timm:efficientformerv2_s0", "logits", str(tmp_path / "w.pth"))
    x = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(open_model(request).module(x), network(x))


def test_a_vision_transformer_takes_another_size_as_timm_does(tmp_path: Path) -> None:
    state = plain(VIT).state_dict()
    torch.save(state, tmp_path / "w.pth")
    request = ModelRequest(f"timm:{VIT}", None, str(tmp_path / "w.pth"), input_size=96)
    model = open_model(request)
    assert model.preprocess.crop_size == (96, 96)
    assert model.preprocess.resize == int(96 / 0.9)
    theirs = timm.create_model(
        VIT, img_size=96, pretrained=True, pretrained_cfg_overlay={"state_dict": state}
    ).eval()
    x = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
        torch.testing.assert_close(model.module(x), wanted)
    with pytest.raises(InputSizeError, match="not 5"):
        open_model(ModelRequest(f"timm:{VIT}", None, RANDOM, input_size=5))


def test_what_is_not_there_is_said_in_one_line() -> None:
    with pytest.raises(UnknownModel, match="did you mean timm:resnet18"):
        open_model(ModelRequest("timm:resnet1888"))
    with pytest.raises(UnknownModel, match="has no weights 'zzz': use a1_in1k"):
        open_model(ModelRequest("timm:resnet18.zzz"))
    with pytest.raises(WeightsError, match="has no weights 'zzz': use a1_in1k"):
        open_model(ModelRequest("timm:resnet18", weights="zzz"))
    with pytest.raises(UnknownLayer, match="use pool, pre_logits, logits, conv1"):
        open_model(ModelRequest("timm:resnet18", "layer9", RANDOM))
    with pytest.raises(UnknownLayer, match="gives vectors"):
        open_model(ModelRequest("timm:resnet18", "pre_logits", RANDOM, pool="gem"))


def test_without_a_network_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WeightsError) as error:
        open_model(ModelRequest("timm:mobilenetv1_100"))
    message = str(error.value)
    assert "model.safetensors from https://huggingface.co/timm/mobilenetv1_100.ra4" in message
    assert "--weights FILE" in message
    assert "\n" not in message
    with pytest.raises(WeightsError, match=r"fetch https://github.com/\S+xception\S+ elsewhere"):
        open_model(ModelRequest("Xception"))


def test_published_weights_in_torchs_cache_need_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    url = timm_catalog.config_of("legacy_xception.tf_in1k")["url"]
    torch.save(plain("legacy_xception").state_dict(), folder / hub.file_name(url))
    by_name = open_model(ModelRequest("Xception"))
    assert by_name.spec == open_model(ModelRequest("xception", weights=RANDOM)).spec
    assert by_name.spec == open_model(ModelRequest("Xception", weights="tf_in1k")).spec


def test_models_of_timm_are_listed() -> None:
    (info,) = list_models("timm:mobilenetv1_100")[:1]
    assert (info.name, info.dim, info.input_size) == ("timm:mobilenetv1_100", 1024, 224)
    assert info.parameters == sum(p.numel() for p in plain("mobilenetv1_100").parameters())
    assert info.gflop == pytest.approx(0.57, abs=0.01)
    assert info.weights[0] == "ra4_e3600_r224_in1k"
    (alias,) = list_models("mobilenetv1")
    assert (alias.name, alias.source) == ("mobilenetv1", "timm:mobilenetv1_100")


class Hub(http.server.SimpleHTTPRequestHandler):
    """Answers as Hugging Face does for a file of a repository."""

    def end_headers(self) -> None:
        self.send_header("ETag", '"0123456789abcdef"')
        self.send_header("X-Repo-Commit", "0" * 40)
        super().end_headers()

    def log_message(self, *args: object) -> None:
        pass


def test_weights_come_through_hugging_faces_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from safetensors.torch import save_file

    folder = tmp_path / "there" / "timm/mobilenetv1_100.ra4_e3600_r224_in1k/resolve/main"
    folder.mkdir(parents=True)
    save_file(plain("mobilenetv1_100").state_dict(), folder / "model.safetensors")
    size = (folder / "model.safetensors").stat().st_size
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    told: list[tuple[str, int, int | None]] = []
    handler = functools.partial(Hub, directory=str(tmp_path / "there"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        constants = huggingface_hub.constants
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with hub.watched(lambda *word: told.append(word)):
                model = open_model(ModelRequest("MobileNet"))
        finally:
            server.shutdown()
            thread.join()
    assert model.spec == open_model(ModelRequest("MobileNet", weights=RANDOM)).spec
    assert told[-1] == ("model.safetensors", size, size)
    assert open_model(ModelRequest("MobileNet")).spec == model.spec  # nobody answers any more


def test_without_timm_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
    for name in ("timm:resnet18", "Xception"):
        with pytest.raises(UnknownModel, match=r"pip install 'lookalike\[timm\]'"):
            open_model(ModelRequest(name))
    assert list_models("mobilenetv1") == []
    assert [model.name for model in list_models("resnet18")] == ["resnet18"]
