"""Networks of one's own: a function in a file of the current folder."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from extractor.errors import InputSizeError, UnknownLayer, UnknownModel, WeightsError
from extractor.models import ModelRequest, open_model, request_key

SOURCE = """\
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2)
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(width, 5)

    def forward(self, x):
        if x.shape[-1] < 9:
            raise ValueError("too small")
        maps = self.act(self.stem(x))
        return self.fc(maps.mean((2, 3)))

def net():
    return Net(8)

def with_preprocess():
    return Net(8), {"resize": 40, "crop": 32, "mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]}

def real():
    if torch.zeros(1).sum().item() > 0 or torch.get_default_device().type == "meta":
        raise ValueError("no")
    class Choosy(Net):
        def forward(self, x):
            if x.sum().item() > 1e9:
                return x
            return super().forward(x)
    return Choosy(8)

def text():
    return "a network"

def broken():
    raise RuntimeError("first line\\nsecond line")

def wrong():
    return Net(8), {"resize": -1}

def leaves():
    raise SystemExit(3)

class Named(Net):
    def forward(self, x):
        if x.sum().item() > 1e9:
            return x
        return {"scores": super().forward(x)}

def named():
    return Named(8)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Return the name of a module in the current folder, another one for each test."""
    monkeypatch.chdir(tmp_path)
    name = f"mine_{abs(hash(request.node.name))}"
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "__init__.py").write_text("")
    (tmp_path / f"{name}.py").write_text(SOURCE)
    return name


def test_an_own_network(own: str) -> None:
    model = open_model(ModelRequest(f"{own}:with_preprocess"))
    assert (model.spec.node, model.spec.dim, model.spec.pooling) == ("fc:input", 8, "none")
    assert model.spec.architecture == f"{own}:with_preprocess"
    assert (model.preprocess.resize, model.preprocess.crop) == (40, 32)
    assert model.preprocess.mean == (0.5, 0.5, 0.5)
    # What the function draws by chance is the same each time.
    assert open_model(ModelRequest(f"{own}:with_preprocess")).spec == model.spec
    other = open_model(ModelRequest(f"{own}:with_preprocess", weights="random:1"))
    assert other.spec.weights_digest != model.spec.weights_digest
    again = open_model(ModelRequest(model.spec.architecture, model.layer_name))
    assert again.spec == model.spec


def test_its_layers_equal_its_own_forward_pass(own: str, tmp_path: Path) -> None:
    layers = ["act", "stem", "logits", "fc:input"]
    model = open_model(ModelRequest(f"{own}:net"), layers=layers)
    import importlib
    import sys

    sys.path.insert(0, str(tmp_path))
    network: nn.Module = importlib.import_module(own).Net(8)
    sys.path.remove(str(tmp_path))
    body = model.module.get_submodule("body.network")
    network.load_state_dict(body.state_dict())
    x = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        act, stem, logits, read = model.module(x).split([8, 8, 5, 8], dim=1)
        convolved = network.get_submodule("stem")(x)
        torch.testing.assert_close(stem, convolved.mean((2, 3)))
        torch.testing.assert_close(act, convolved.relu().mean((2, 3)))
        torch.testing.assert_close(read, act)
        torch.testing.assert_close(logits, network(x))
    assert [spec.relu for spec in model.specs] == [True, False, False, False]


def test_maps_of_an_own_network(own: str) -> None:
    request = ModelRequest(f"{own}:net", pool="max", scales=(1, 0.5))
    model = open_model(request)
    assert (model.spec.node, model.spec.pooling) == ("act", "max")
    with pytest.raises(UnknownLayer, match=r"scale 0\.03"):
        open_model(ModelRequest(f"{own}:net", pool="max", scales=(1, 0.03)))


def test_a_file_of_weights_for_an_own_network(own: str, tmp_path: Path) -> None:
    model = open_model(ModelRequest(f"{own}:net", weights="random:9"))
    state = model.module.get_submodule("body.network").state_dict()
    torch.save(state, tmp_path / "w.pth")
    by_file = open_model(ModelRequest(f"{own}:net", weights=str(tmp_path / "w.pth")))
    assert by_file.spec == model.spec
    torch.save({k: v for k, v in state.items() if k != "fc.bias"}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r":net: missing: fc\.bias"):
        open_model(ModelRequest(f"{own}:net", weights=str(tmp_path / "w.pth")))
    with pytest.raises(WeightsError, match="use DEFAULT"):
        open_model(ModelRequest(f"{own}:net", weights="IMAGENET1K_V1"))


def test_another_input_size(own: str) -> None:
    model = open_model(ModelRequest(f"{own}:with_preprocess", input_size=16))
    assert (model.preprocess.resize, model.preprocess.crop) == (20, 16)
    with pytest.raises(InputSizeError, match="9 pixels a side or more, not 8"):
        open_model(ModelRequest(f"{own}:with_preprocess", input_size=8))


def test_one_that_wants_real_numbers_is_run_for_real(own: str) -> None:
    assert open_model(ModelRequest(f"{own}:real")).spec.dim == 8


def test_one_whose_output_is_no_tensor_needs_a_layer(own: str) -> None:
    with pytest.raises(UnknownLayer, match=r"^the network has no usual layer, name one: use .*fc"):
        open_model(ModelRequest(f"{own}:named"))
    assert open_model(ModelRequest(f"{own}:named", "fc")).spec.dim == 5


def test_a_change_of_its_file_is_another_network(own: str, tmp_path: Path) -> None:
    name = f"{own}:net"
    before, spec = request_key(ModelRequest(name)), open_model(ModelRequest(name)).spec
    assert request_key(ModelRequest(name)) == before
    assert len(spec.code) == 64
    assert spec.to_json()["code"] == spec.code
    path = tmp_path / f"{own}.py"
    path.write_text(SOURCE.replace("Net(8)", "Net(12)"))
    assert request_key(ModelRequest(name)) != before
    changed = open_model(ModelRequest(name)).spec
    assert changed.code != spec.code
    assert changed.dim == 12  # read again in this very process


def test_one_in_a_package_has_a_key_before_it_is_imported(own: str, tmp_path: Path) -> None:
    (tmp_path / "nets" / "deep.py").write_text(SOURCE)
    before = request_key(ModelRequest("nets.deep:net"))
    os.utime(tmp_path / "nets" / "deep.py", ns=(1, 1))
    assert request_key(ModelRequest("nets.deep:net")) != before
    assert request_key(ModelRequest("nowhere.deep:net")) == request_key(
        ModelRequest("nowhere.deep:net")
    )


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("none", "has no function 'none'"),
        ("text", "returns str: it has to return a torch.nn.Module"),
        ("broken", "RuntimeError: first line$"),
        ("leaves", "SystemExit: 3$"),
        ("wrong", "ValueError: resize is -1"),
    ],
)
def test_a_wrong_function_is_said_in_one_line(own: str, function: str, message: str) -> None:
    with pytest.raises(UnknownModel, match=message) as error:
        open_model(ModelRequest(f"{own}:{function}"))
    assert "\n" not in str(error.value)


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(UnknownModel, match=r"nosuch\.mod:net: ModuleNotFoundError: No module"):
        open_model(ModelRequest("nosuch.mod:net"))
