"""open_clip's networks against open_clip itself: its transforms, and its own forward pass."""

import functools
import json
import logging
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from extractor import clip_catalog, clip_making, own_networks, weights
from extractor.cuda import halved
from extractor.engine import Engine
from extractor.errors import InputSizeError, UnknownLayer, UnknownModel, WeightsError
from extractor.models import ModelRequest, list_models, open_model, request_key
from extractor.networks import known
from extractor.preprocess import Preprocess, pixels
from extractor.quiet import hushed
from tests.flows.terminal import python

open_clip: Any = pytest.importorskip("open_clip")
from open_clip.transform import PreprocessCfg, image_transform_v2  # noqa: E402

SMALL = "ViT-S-32-alt"
"""The one that takes the least work: 43 M weights in both towers."""
RANDOM = "random:3"


def plain(name: str = SMALL, **options: Any) -> Any:
    """Build both towers as a script of open_clip's users would."""
    with hushed("open_clip"):
        return weights.build(lambda: open_clip.create_model(name, **options), 3).eval()


@pytest.fixture(scope="module")
def network() -> Any:
    return plain()


@pytest.fixture(scope="module")
def state_file(network: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    torch.save(network.state_dict(), path)
    return str(path)


@functools.cache
def drawn() -> list[Image.Image]:
    """Return pictures of several proportions, one of them smaller than any input."""
    sizes = [(640, 480), (300, 500), (900, 31), (40, 640), (60, 50), (256, 256)]
    chance = np.random.default_rng(5)
    small = [chance.integers(0, 256, (9, 7, 3), dtype=np.uint8) for _ in sizes]
    return [
        Image.fromarray(part).resize(size, Image.Resampling.BICUBIC)
        for part, size in zip(small, sizes, strict=True)
    ]


def assert_same_transform(config: PreprocessCfg, ours: Preprocess) -> None:
    transform = image_transform_v2(config, is_train=False)
    mean, std = (torch.tensor(v)[:, None, None] for v in (ours.mean, ours.std))
    for picture in drawn():
        mine, theirs = pixels(picture, ours), transform(picture)
        normalised = (torch.from_numpy(mine) / 255 - mean) / std
        torch.testing.assert_close(normalised, theirs, rtol=0, atol=1e-5)  # a step is 0.013
    assert Preprocess.from_json(json.loads(json.dumps(ours.to_json()))) == ours


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        (SMALL, ""),
        ("RN50x4-quickgelu", "openai"),  # 288 pixels
        ("ViT-L-14", "laion2b_s32b_b82k"),  # normalised another way
        ("ViT-B-32-SigLIP2-256", "webli"),  # squashed
        ("MobileCLIP2-S0", "dfndr2b"),  # not normalised
        ("ViT-L-14-CLIPA", "datacomp1b"),  # squashed, bilinear
    ],
)
def test_preprocessing_equals_open_clips(name: str, tag: str) -> None:
    size = open_clip.get_model_config(name)["vision_cfg"]["image_size"]
    published = open_clip.get_pretrained_cfg(name, tag)
    values = {k: v for k, v in published.items() if k in PreprocessCfg.__dataclass_fields__}
    full_name = f"{name}.{tag}" if tag else name
    ours = clip_catalog.preprocess(full_name)
    assert ours.crop_size == (size, size)
    assert_same_transform(PreprocessCfg(size=size, **values), ours)


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "random"])
@pytest.mark.parametrize("size", [(160, 160), (160, 240)])
def test_every_transform_equals_open_clips(
    mode: str, interpolation: str, size: tuple[int, int]
) -> None:
    values: dict[str, Any] = {
        "mean": (0.2, 0.5, 0.7),
        "std": (0.1, 0.2, 0.3),
        "interpolation": interpolation,
        "resize_mode": mode,
    }
    config = PreprocessCfg(size=size, **values)
    assert_same_transform(config, clip_catalog.from_config(values, size))


def test_all_published_weights_have_a_preprocessing_that_is_known() -> None:
    for name, tag in open_clip.list_pretrained():
        config = open_clip.get_pretrained_cfg(name, tag)
        ours = clip_catalog.preprocess(f"{name}.{tag}")
        assert (ours.mean, ours.std) == (tuple(config["mean"]), tuple(config["std"]))
        assert isinstance(ours.resize, int) == (config["resize_mode"] == "shortest")
    with pytest.raises(UnknownModel, match="'longest'"):
        clip_catalog.from_config({"resize_mode": "longest"}, 224)


def test_a_picture_gives_what_open_clip_makes_of_it(network: Any) -> None:
    model = open_model(ModelRequest(f"clip:{SMALL.lower()}", weights=RANDOM))
    spec = model.spec
    assert (spec.architecture, spec.node, spec.pooling) == (f"clip:{SMALL}", "logits", "none")
    assert (spec.dim, spec.relu, model.layer_name) == (256, False, "logits")
    assert spec.weights_digest == weights.digest(network)
    transform = image_transform_v2(PreprocessCfg(**network.visual.preprocess_cfg), is_train=False)
    with torch.inference_mode():
        batch = torch.stack([transform(picture) for picture in drawn()])
        wanted = network.encode_image(batch, normalize=True).numpy()
    found = Engine(model, "cpu").forward(
        np.stack([pixels(picture, model.preprocess) for picture in drawn()])
    )
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    # The text tower is not carried along: 22.59 M weights, says open_clip's model_profile.csv.
    assert sum(p.numel() for p in model.module.parameters()) == pytest.approx(22.59e6, rel=1e-3)


@pytest.mark.parametrize("name", ["RN50", "convnext_tiny", "coca_ViT-B-32"])
def test_other_towers_give_what_open_clips_do(name: str) -> None:
    model = open_model(ModelRequest(f"clip:{name}", weights=RANDOM))
    x = torch.rand(2, 3, *model.preprocess.crop_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = plain(name).encode_image(x, normalize=False)
        torch.testing.assert_close(model.module(x), wanted)


def test_a_layer_inside_is_a_hooks(network: Any) -> None:
    layer = "visual.transformer.resblocks.5"
    model = open_model(ModelRequest(f"clip:{SMALL}", layer, RANDOM, pool="avg"))
    caught: list[torch.Tensor] = []
    handle = network.get_submodule(layer).register_forward_hook(
        lambda _module, _inputs, out: caught.append(out.clone())
    )
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        network.encode_image(x)
        torch.testing.assert_close(model.module(x), caught[0][:, 1:].mean(1))  # the patches
    handle.remove()
    with pytest.raises(UnknownLayer, match=r"no layer 'zzz': use pool, logits, visual"):
        open_model(ModelRequest(f"clip:{SMALL}", "zzz", RANDOM))


def test_a_file_in_any_form_is_the_same_weights(
    network: Any, state_file: str, tmp_path: Path
) -> None:
    wanted = open_model(ModelRequest(f"clip:{SMALL}", weights=RANDOM)).spec
    state = network.state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "t.pt")
    # A form that open_clip's own code brings into its own: the scale as a list of one number.
    old = {**state, "logit_scale": state["logit_scale"].reshape(1)}
    torch.save(old, tmp_path / "old.pth")
    for name in (state_file, "w.safetensors", "t.pt", "old.pth"):
        request = ModelRequest(f"clip:{SMALL}", weights=str(tmp_path / name))
        assert open_model(request).spec == wanted


def test_weights_of_another_network_are_refused(network: Any, tmp_path: Path) -> None:
    torch.save(network.visual.state_dict(), tmp_path / "half.pth")
    with pytest.raises(WeightsError, match=rf"do not fit clip:{SMALL}: missing: ") as caught:
        open_model(ModelRequest(f"clip:{SMALL}", weights=str(tmp_path / "half.pth")))
    assert "\n" not in str(caught.value)


def test_a_vision_transformer_takes_another_size_as_open_clip_does(state_file: str) -> None:
    request = ModelRequest(f"clip:{SMALL}", weights=state_file, input_size=96)
    model = open_model(request)
    assert (model.preprocess.crop_size, model.preprocess.resize) == ((96, 96), 96)
    theirs = plain(pretrained=state_file, force_image_size=96)
    x = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(model.module(x), theirs.encode_image(x))
    with pytest.raises(InputSizeError, match="not 5"):
        open_model(ModelRequest(f"clip:{SMALL}", weights=RANDOM, input_size=5))


def test_published_weights_come_from_hugging_faces_cache(
    network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    tags = {"mine": {"hf_hub": "someone/small/", "mean": (0.5,) * 3, "std": (0.5,) * 3}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, SMALL, tags)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(WeightsError) as caught:
        open_model(ModelRequest(f"clip:{SMALL}"))
    message = str(caught.value)
    assert "open_clip_model.safetensors from https://huggingface.co/someone/small" in message
    assert "\n" not in message
    folder = tmp_path / "models--someone--small"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    state = {k: v.contiguous() for k, v in network.state_dict().items()}
    save_file(state, snapshot / "open_clip_model.safetensors")
    by_tag = open_model(ModelRequest(f"clip:{SMALL}", weights="mine")).spec
    assert by_tag == open_model(ModelRequest(f"clip:{SMALL}.mine")).spec
    assert by_tag == open_model(ModelRequest(f"clip:{SMALL}.mine", weights=RANDOM)).spec
    assert by_tag.architecture == f"clip:{SMALL}.mine"
    assert by_tag.preprocess.mean == (0.5, 0.5, 0.5)


def test_the_usual_weights_find_pictures_by_words_best() -> None:
    usual = {
        "ViT-B-32": "laion2b_s34b_b79k",
        "ViT-B-16": "laion2b_s34b_b88k",
        "ViT-H-14": "laion2b_s32b_b79k",
        "RN50-quickgelu": "openai",
        "ViT-B-16-SigLIP": "webli",
    }
    for name, tag in usual.items():
        assert clip_catalog.tagged(name, "DEFAULT") == f"{name}.{tag}"
        assert clip_catalog.tagged(name, "random:1") == f"{name}.{tag}"
    assert clip_catalog.tagged("ViT-B-32", "datacomp_xl_s13b_b90k").endswith("xl_s13b_b90k")
    assert clip_catalog.tagged(SMALL, "random") == SMALL


@pytest.mark.parametrize(
    ("name", "typed", "said"),
    [
        ("RN50", "DEFAULT", "'openai' are for clip:RN50-quickgelu"),
        ("ViT-B-32", "openai", "use --model clip:ViT-B-32-quickgelu"),
        ("ViT-B-32", "zzz", "clip:ViT-B-32 has no weights 'zzz': use laion2b_e16, laion2b_s34b"),
        ("ViT-B-32-quickgelu", "laion2b_e16", "has no weights 'laion2b_e16': use openai, "),
        ("ViT-B-32.zzz", "random:0", "has no weights 'zzz'"),
        (SMALL, "DEFAULT", "has no published weights: use a .pth, .pt or .safetensors file, or ra"),
    ],
)
def test_weights_that_are_not_there_are_said_in_one_line(name: str, typed: str, said: str) -> None:
    with pytest.raises(WeightsError) as caught:
        open_model(ModelRequest(f"clip:{name}", weights=typed))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_are_found_however_they_are_typed() -> None:
    assert known("CLIP:vit-b-32") == "clip:ViT-B-32"
    assert known("clip:ViT-B/32.openai") == "clip:ViT-B-32.openai"
    assert not own_networks.is_own("clip:RN50")
    with pytest.raises(UnknownModel, match=r"no network 'vitb32': did you mean .*clip:ViT-B-32"):
        known("clip:vitb32")
    keys = [request_key(ModelRequest(f"clip:{n}", weights=RANDOM)) for n in ("RN50", "rn50")]
    assert keys[0] == keys[1]
    assert "open_clip_torch" in json.loads(keys[0])


def test_networks_are_listed() -> None:
    (info,) = list_models("clip:vit-s-32-alt")
    assert (info.name, info.dim, info.input_size) == (f"clip:{SMALL}", 256, 224)
    # Both are those of open_clip's docs/model_profile.csv, whose flops are twice ours.
    assert info.parameters == pytest.approx(22.59e6, rel=1e-3)
    assert info.gflop == pytest.approx(2.29 / 2, abs=0.01)
    # Its text tower needs the network and another package, its image tower neither.
    (siglip,) = list_models("clip:nllb-clip-base")[:1]
    assert (siglip.dim, siglip.weights, siglip.source) == (512, ("v1",), "open_clip")


def test_onnx_runtime_gives_what_torch_gives() -> None:
    model = open_model(ModelRequest(f"clip:{SMALL}", weights=RANDOM))
    x = np.stack([pixels(picture, model.preprocess) for picture in drawn()])
    expected = Engine(model, "cpu", 3).forward(x)
    found = Engine(model, "cpu", 3, engine="onnx").forward(x)
    assert 1 - np.einsum("nd,nd->n", found, expected).min() <= 1e-6


def test_a_half_copy_gives_nearly_the_same() -> None:
    model = open_model(ModelRequest(f"clip:{SMALL}", weights=RANDOM))
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, plain_ones = halved(model.module)(x), model.module(x)
    assert torch.nn.functional.cosine_similarity(found, plain_ones).min() >= 0.9999


def test_what_needs_transformers_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    monkeypatch.setattr(open_clip.hf_model, "transformers", None)
    with pytest.raises(WeightsError, match="pip install transformers") as caught:
        clip_making.tokenizer("ViT-B-32-SigLIP2-256.webli")
    assert "\n" not in str(caught.value)
    with pytest.raises(
        UnknownModel, match=r"open_clip can't build clip:roberta-ViT-B-32 \(.*trans"
    ):
        open_model(ModelRequest("clip:roberta-ViT-B-32", weights=RANDOM))


def test_without_open_clip_it_says_how_to_get_it() -> None:
    blocked = "import sys; sys.modules['open_clip'] = None\nfrom flows.cli import main; main()"
    for words in (["models", "clip:*"], ["index", ".", "--model", "clip:RN50", "--no-prefect"]):
        done = python("-c", blocked, "--home", "/nonexistent/home", *words)
        assert done.returncode == 2, done.stderr
        said = [line for line in done.stderr.splitlines() if line != "loading the model"]
        line = "networks of images and text need open_clip: pip install 'lookalike[clip]'"
        assert said == [f"lookalike: {line}"]


def test_what_open_clip_says_to_the_root_logger_is_dropped_and_nothing_else() -> None:
    program = (
        "import logging, threading\n"
        "from extractor.clip_making import maker\n"
        "from extractor.quiet import hushed\n"
        f"maker({SMALL!r}, None, device='meta')\n"
        "from extractor import graph\n"
        f"graph.skeleton(maker({SMALL!r}, None, device='meta'))\n"
        "with hushed('open_clip'):\n"
        "    logging.getLogger('else').warning('heard')\n"
        "print(logging.getLogger().handlers, logging.getLogger().filters)\n"
    )
    done = python("-c", program)
    assert (done.stdout, done.stderr) == ("[] []\n", "heard\n")


def test_threads_draw_the_same_weights() -> None:
    found: list[str] = []

    def build() -> None:
        network = weights.build(lambda: torch.nn.Linear(2000, 500), 7)
        found.append(weights.digest(network))

    threads = [threading.Thread(target=build) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [weights.digest(weights.build(lambda: torch.nn.Linear(2000, 500), 7))] * 8
    assert logging.getLogger().filters == []
