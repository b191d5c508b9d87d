import argparse
import hashlib
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_model

from extractor import graph, hub, torchvision_networks, weights
from extractor.errors import WeightsError

State = dict[str, torch.Tensor]


def build(name: str = "squeezenet1_1", seed: int = 1, classes: int | None = None) -> nn.Module:
    preset = weights.parse("random", name).preset
    return weights.build(torchvision_networks.maker(name, preset, classes), seed)


@pytest.fixture(scope="module")
def state() -> State:
    return build().state_dict()


def read(path: Path) -> State:
    return weights.read(weights.parse(str(path), "squeezenet1_1"))


def assert_same(found: State, wanted: State) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=0)


def test_names_of_published_weights() -> None:
    origin = weights.parse("DEFAULT", "resnet50")
    assert origin.preset.name == "IMAGENET1K_V2"
    assert origin.path is None
    assert origin.seed is None
    for text in ("IMAGENET1K_V1", "imagenet1k_v1", "ResNet50_Weights.IMAGENET1K_V1"):
        assert weights.parse(text, "resnet50").preset.name == "IMAGENET1K_V1"


def test_random_takes_the_standard_preset() -> None:
    assert weights.parse("random", "resnet50").seed == 0
    origin = weights.parse("random:7", "resnet50")
    assert (origin.seed, origin.preset.name) == (7, "IMAGENET1K_V1")
    # There is no IMAGENET1K_V1 for this one.
    assert weights.parse("random", "vit_h_14").preset.name == "IMAGENET1K_SWAG_E2E_V1"


def test_a_file_takes_the_preset_that_its_name_says() -> None:
    assert weights.parse("mine.pth", "resnet50").preset.name == "IMAGENET1K_V1"
    published = weights.parse("IMAGENET1K_V2", "resnet50").preset
    again = weights.parse("folder/" + hub.file_name(published.url), "resnet50")
    assert again.preset is published


@pytest.mark.parametrize("text", ["IMAGENET1K_V9", "random:x", "random:-1", "imagenet", ""])
def test_unknown_weights_are_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(WeightsError, match=r"use IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"):
        weights.parse(text, "resnet50")


def test_what_counts_as_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights.weights_file("DEFAULT") is None
    assert weights.weights_file("random:1") is None
    assert weights.weights_file("a.safetensors") == str(tmp_path / "a.safetensors")
    assert weights.weights_file("~/b.PTH") == str(tmp_path / "b.PTH")
    (tmp_path / "plain").touch()
    assert weights.weights_file("plain") == str(tmp_path / "plain")


def test_random_weights_are_those_of_the_seed_and_disturb_no_generator() -> None:
    torch.manual_seed(5)
    before = torch.rand(3)
    torch.manual_seed(5)
    first = build(seed=1)
    assert torch.equal(torch.rand(3), before)
    assert weights.digest(first) == weights.digest(build(seed=1))
    assert weights.digest(first) != weights.digest(build(seed=2))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s, "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {}}},
        lambda s: {"model_state_dict": s},
        lambda s: {"net": {"state_dict": s}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"model": {f"_orig_mod.module.{k}": v for k, v in s.items()}},
        lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}, "hyper": "x"},
        lambda s: {k: nn.Parameter(v) for k, v in s.items()},
    ],
)
def test_files_of_training_scripts(wrap: object, state: State, tmp_path: Path) -> None:
    assert callable(wrap)
    torch.save(wrap(state), tmp_path / "w.pth")
    network = graph.skeleton(lambda: get_model("squeezenet1_1", weights=None))
    weights.assign(network, read(tmp_path / "w.pth"), "squeezenet1_1")
    assert_same(network.state_dict(), state)


def test_safetensors_and_the_old_format(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "w.safetensors")
    assert_same(read(tmp_path / "w.safetensors"), state)
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same(read(tmp_path / "old.pth"), state)


def test_a_file_can_be_gone_once_it_is_read(state: State, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(state, path)
    network = graph.skeleton(lambda: get_model("squeezenet1_1", weights=None))
    weights.assign(network, read(path), "squeezenet1_1")
    path.write_bytes(bytes(path.stat().st_size))
    assert_same(network.state_dict(), state)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("ran"),))


def test_a_file_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Evil()}, "evil.pth")
    with pytest.raises(WeightsError, match=r"no readable weights file.*other objects than weights"):
        read(tmp_path / "evil.pth")
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
def test_a_broken_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\0garbage" * 100)
    with pytest.raises(WeightsError, match=r"broken\.\w+: this is no readable weights file"):
        read(tmp_path / name)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there is no such weights file"):
        read(tmp_path / "none.pth")


@pytest.mark.parametrize(
    "content", [[1, 2], {}, {"state_dict": {}}, {"epoch": 3, "lr": 0.1}, torch.zeros(3)]
)
def test_no_state_dict(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="holds no state dict"):
        read(tmp_path / "w.pth")


def test_a_mismatch_names_the_keys(state: State) -> None:
    other = dict(state)
    gone = [other.pop(k) for k in list(other)[:7]]
    assert len(gone) == 7
    other["surplus.weight"] = torch.zeros(1)
    other["classifier.1.bias"] = torch.zeros(3)
    network = graph.skeleton(lambda: get_model("squeezenet1_1", weights=None))
    with pytest.raises(WeightsError) as error:
        weights.assign(network, other, "squeezenet1_1")
    message = str(error.value)
    assert "do not fit squeezenet1_1" in message
    assert "missing: features.0.weight, features.0.bias" in message
    assert "and 2 more" in message
    assert "unexpected: surplus.weight" in message
    assert "of another shape: classifier.1.bias is [3], not [1000]" in message


def test_what_only_training_needs_may_be_there_or_not() -> None:
    state = build("googlenet").state_dict()
    without = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    network = graph.skeleton(torchvision_networks.maker("googlenet", None))
    weights.assign(network, without | {"aux1.fc2.bias": torch.zeros(1000)}, "googlenet")
    assert int(network.get_buffer("conv1.bn.num_batches_tracked")) == 0
    assert_same(network.state_dict(), state)


def test_published_densenet_keys_are_understood(tmp_path: Path) -> None:
    state = build("densenet121").state_dict()
    old = {k.replace("norm1", "norm.1").replace("conv2", "conv.2"): v for k, v in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "w.pth")
    assert_same(weights.read(weights.parse(str(tmp_path / "w.pth"), "densenet121")), state)


def test_the_digest_is_of_the_values(state: State, tmp_path: Path) -> None:
    half = {k: v.half() for k, v in state.items()}
    full = {k: v.float() for k, v in half.items()}
    torch.save(half, tmp_path / "half.pth")
    torch.save(dict(reversed(full.items())), tmp_path / "full.pth")
    changed = {k: v.clone() for k, v in full.items()}
    changed["features.0.bias"][0] += 1e-3
    torch.save(changed, tmp_path / "changed.pth")
    found = []
    for name in ("half", "full", "changed"):
        network = graph.skeleton(lambda: get_model("squeezenet1_1", weights=None))
        weights.assign(network, read(tmp_path / f"{name}.pth"), "squeezenet1_1")
        assert all(v.dtype == torch.float32 for v in network.state_dict().values())
        found.append(weights.digest(network))
    assert found[0] == found[1] != found[2]


def test_the_digest_by_hand() -> None:
    network = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(2)
    text = b""
    for key, shape, values in (
        ("0.bias", [1], [2]),
        ("0.weight", [1, 2], [2, 2]),
        ("1.bias", [1], [2]),
        ("1.running_mean", [1], [0]),
        ("1.running_var", [1], [1]),
        ("1.weight", [1], [2]),
    ):
        text += f"{key}\0<f4\0{shape}\0".encode()
        text += torch.tensor(values, dtype=torch.float32).numpy().tobytes()
    assert weights.digest(network) == hashlib.sha256(text).hexdigest()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve ``tmp_path``/there."""
    folder = tmp_path / "there"
    folder.mkdir()
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def handler(*args: object) -> Quiet:
        return Quiet(*args, directory=str(folder))  # type: ignore[arg-type]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_download_checks_the_hash_in_the_name(server: str, tmp_path: Path) -> None:
    content = b"weights" * 300_000
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (tmp_path / "there" / name).write_bytes(content)
    (tmp_path / "there" / "net-0123abcd.pth").write_bytes(content)
    (tmp_path / "there" / "plain.pth").write_bytes(content)
    here = tmp_path / "here"
    hub.download(f"{server}/{name}", str(here / name))
    hub.download(f"{server}/plain.pth", str(here / "plain.pth"))
    assert (here / name).read_bytes() == content
    with pytest.raises(ValueError, match="hash in its name"):
        hub.download(f"{server}/net-0123abcd.pth", str(here / "net-0123abcd.pth"))
    with pytest.raises(OSError, match="404"):
        hub.download(f"{server}/absent.pth", str(here / "absent.pth"))
    assert {p.name for p in here.iterdir()} == {name, "plain.pth"}


def test_a_download_can_be_followed_and_ended(server: str, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "there" / "net.pth").write_bytes(content)
    target = tmp_path / "here" / "net.pth"
    told: list[tuple[str, int, int | None]] = []

    def enough(name: str, done: int, size: int | None) -> None:
        told.append((name, done, size))
        if done > 1_000_000:
            raise ZeroDivisionError

    with hub.watched(enough), pytest.raises(ZeroDivisionError):
        hub.download(f"{server}/net.pth", str(target))
    assert told[0] == ("net.pth", 0, 3_000_000)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert 1_000_000 < told[-1][1] < 2_000_000
    assert list(target.parent.iterdir()) == []
    told.clear()
    with hub.watched(lambda *word: told.append(word)):
        hub.download(f"{server}/net.pth", str(target))
    assert told[-1] == ("net.pth", 3_000_000, 3_000_000)
    assert target.read_bytes() == content


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give torch an empty cache and no way out; return the folder of the cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    return tmp_path / "torch" / "hub" / "checkpoints"


def test_without_a_network_it_says_what_to_fetch_and_where_to(offline: Path) -> None:
    origin = weights.parse("DEFAULT", "resnet50")
    with pytest.raises(WeightsError) as error:
        weights.read(origin)
    message = str(error.value)
    assert origin.preset.url in message
    assert str(offline) in message
    assert "--weights FILE" in message
    assert "--weights random" in message
    assert "\n" not in message
    assert list(offline.iterdir()) == []


def test_weights_in_the_cache_need_no_network(offline: Path, state: State) -> None:
    origin = weights.parse("DEFAULT", "squeezenet1_1")
    offline.mkdir(parents=True)
    torch.save(state, offline / hub.file_name(origin.preset.url))
    assert_same(weights.read(origin), state)
