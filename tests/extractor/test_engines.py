"""Other engines against torch's own pass: the same vectors, or a line that says why not."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from extractor import choosing, engines
from extractor.choosing import Choosing, Offer, Rate, best, offers_for
from extractor.engine import Engine
from extractor.errors import EngineError
from extractor.gate import passing, translating
from extractor.models import Model, ModelRequest, open_model
from extractor.passes import EagerPass
from tests.extractor.small import random_pixels, small_model
from tests.extractor.test_own import SOURCE

TINY = "shufflenet_v2_x0_5"


class Inner(nn.Module):
    """The small network, on which the others here stand."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small_model().module


class Looks(Inner):
    """Looks at its numbers on the way, which no translation follows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x if x.sum().item() > -1e30 else -x)
        return out


class Differs(Inner):
    """Gives something else when it is translated."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x)
        return out.flip(1) if torch.compiler.is_compiling() else out


class Longer(Inner):
    """Gives longer features when it is translated, in the same direction."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x)
        return 1.01 * out if torch.compiler.is_compiling() else out


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    found: np.ndarray = (a * b).sum(axis=1) / lengths
    return found


@pytest.mark.parametrize("name", ["onnx", "compile"])
def test_an_engine_gives_what_torch_gives(name: str) -> None:
    pixels = random_pixels(21)
    expected = Engine(small_model(), "cpu", 8).forward(pixels)
    engine = Engine(small_model(), "cpu", 8, engine=name)
    assert 1 - cosines(engine.forward(pixels), expected).min() <= 1e-9
    assert 1 - cosines(engine.forward(pixels[:1]), expected[:1]).min() <= 1e-9
    assert engine.notes == []
    (said,) = engine.used
    assert engine.used[said] == 22
    assert engine.facts["engine"] == said
    assert said.startswith("onnxruntime ") if name == "onnx" else said.endswith(" compiled")


def test_two_networks_are_compiled_side_by_side() -> None:
    wide = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    pixels = random_pixels(4)
    for module in (None, wide):
        model = small_model(module, dim=12 if module is None else 4)
        expected = Engine(model, "cpu", 4).forward(pixels)
        found = Engine(model, "cpu", 4, engine="compile").forward(pixels)
        assert 1 - cosines(found, expected).min() <= 1e-9


@pytest.mark.parametrize(
    ("request_", "layers"),
    [
        (ModelRequest(TINY, weights="random:0", input_size=64), ("stage3", "avgpool", "logits")),
        (ModelRequest("timm:test_vit", weights="random:0"), None),
        (ModelRequest("myown_exported:net", weights="random:1"), ("stem", "fc")),
        (ModelRequest("myown_exported:net", "stem", "random:1", pool="gem", scales=(1, 0.5)), None),
    ],
)
def test_layers_pooling_scales_and_networks_of_ones_own_are_exported(
    request_: ModelRequest,
    layers: tuple[str, ...] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if request_.model.startswith("timm:"):
        pytest.importorskip("timm")
    (tmp_path / "myown_exported.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    model = open_model(request_, layers)
    pixels = random_pixels(3, side=model.preprocess.crop_size[0])
    expected = Engine(model, "cpu", normalize=False).forward(pixels)
    found = Engine(model, "cpu", normalize=False, engine="onnx").forward(pixels)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Looks(), "does not take small: "),
        (Differs(), "changes the vectors of small (1 - cosine "),
        (Longer(), "changes the vectors of small (1 - cosine 1.0e-02"),
    ],
)
def test_what_can_not_be_translated_is_refused_or_left_to_torch(
    module: nn.Module, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EngineError) as caught:
        Engine(small_model(module), "cpu", engine="onnx")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)

    monkeypatch.setattr("extractor.engine.offers_for", lambda _module: {"onnx": Offer(1e-6, 1.4)})
    pixels = random_pixels(24)
    expected = Engine(small_model(module), "cpu", 4).forward(pixels)
    engine = Engine(small_model(module), "cpu", 4, engine="auto")
    engine.expect(lambda: 1e9)
    batches = [engine.forward(pixels[start : start + 4]) for start in range(0, 24, 4)]
    assert np.array_equal(np.concatenate(batches), expected)
    (note,) = engine.notes
    assert said in note
    assert note.endswith("; torch went on")
    assert engine.making_s > 0
    engine.expect(lambda: 1e9)
    for _ in range(4):
        engine.forward(pixels[:4])
    assert (engine.notes, engine.making_s) == ([], 0.0)  # once is enough


def _auto(model: Model, left: float, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(choosing, "LEAST_GAIN", 0.0)  # small networks gain little
    monkeypatch.setattr("extractor.engine.offers_for", lambda _module: {"onnx": Offer(1.0, 2.0)})
    engine = Engine(model, "cpu", 4, engine="auto")
    engine.expect(lambda: left)
    return engine


def test_auto_changes_in_the_midst_where_much_is_left_and_only_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = random_pixels(24)
    expected = Engine(small_model(), "cpu", 4).forward(pixels)
    few = _auto(small_model(), 100, monkeypatch)
    assert np.array_equal(few.forward(pixels), expected)
    assert [name.partition(" ")[0] for name in few.used] == ["torch"]
    many = _auto(small_model(), 1e9, monkeypatch)
    for start in range(0, 24, 4):
        found = many.forward(pixels[start : start + 4])
        assert 1 - cosines(found, expected[start : start + 4]).min() <= 1e-9
    assert {name.partition(" ")[0]: n for name, n in many.used.items()} == {
        "torch": 12,  # one batch warms up, two are measured
        "onnxruntime": 12,
    }
    assert many.facts["engine"] == " and ".join(many.used)


def test_a_chosen_engine_that_fails_later_gives_way_to_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = random_pixels(4)
    engine = _auto(small_model(), 1e9, monkeypatch)
    for _ in range(3):
        expected = engine.forward(pixels)

    class Fails:
        name = "onnxruntime 0"

        def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
            raise ValueError("node 7\nand more")

    engine._choosing.run = Fails()
    assert np.array_equal(engine.forward(pixels), expected)
    assert engine.notes == ["onnxruntime 0 failed: ValueError: node 7; torch went on"]
    engine._choosing = Choosing(Fails())  # asked for by name
    with pytest.raises(ValueError, match="node 7"):
        engine.forward(pixels)


def test_auto_keeps_torch_where_the_other_engine_turns_out_slower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = _auto(small_model(), 1e9, monkeypatch)
    monkeypatch.setattr(choosing, "LEAST_GAIN", 1e9)
    for _ in range(4):
        engine.forward(random_pixels(4))
    assert [name.partition(" ")[0] for name in engine.used] == ["torch"]
    assert engine.making_s > 0
    assert engine.notes == []


@pytest.mark.parametrize(
    ("left", "rate", "offers", "chosen"),
    [
        (100, 10, {"onnx": Offer(5, 1.4)}, None),  # 10 s of work
        (300, 10, {"onnx": Offer(5, 1.4)}, None),  # saves 8.6 s, which is not twice 5
        (400, 10, {"onnx": Offer(5, 1.4)}, "onnx"),  # saves 11.4 s
        (400, 10, {"onnx": Offer(5, 1.4), "compile": Offer(30, 1.2)}, "onnx"),
        (400, 10, {"compile": Offer(30, 1.2)}, None),
        (1e6, 10, {"onnx": Offer(5, 1.4), "compile": Offer(30, 1.6)}, "compile"),
        (1e6, 10, {"onnx": Offer(5, 1.0), "compile": Offer(5, 0.9)}, None),
        (-5, 10, {"onnx": Offer(5, 1.4)}, None),
        (400, 10, {"onnx": Offer(5, 1.4, 6)}, "onnx"),
        (400, 10, {"onnx": Offer(5, 1.4, 8)}, None),  # 0.8 s more
        (1e6, 1e5, {"onnx": Offer(5, 1.4)}, None),  # 10 s of work again
        (1e6, 10, {}, None),
    ],
)
def test_an_engine_is_chosen_where_it_saves_twice_what_it_costs(
    left: float, rate: float, offers: dict[str, Offer], chosen: str | None
) -> None:
    assert best(left, rate, offers) == chosen


def test_the_first_batch_does_not_count_for_the_rate() -> None:
    rate = Rate()
    for seconds in (9.0, 2.0):
        rate.saw(16, seconds)
        assert rate.value is None
    for seconds in (1.0, 2.0, 50.0, 2.0):  # another program had the cores once
        rate.saw(16, seconds)
    assert rate.value == 8.0


def test_a_larger_network_is_expected_to_take_longer() -> None:
    small, large = (
        offers_for(nn.Sequential(*[nn.Linear(9, 9) for _ in range(n)])) for n in (1, 50)
    )
    assert small.keys() == set(engines.ENGINES) - {"auto", "torch"}
    assert all(offer.seconds < large[name].seconds for name, offer in small.items())
    assert all(offer.gain > choosing.LEAST_GAIN for offer in small.values())


def test_what_is_missing_for_an_engine_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for name in ("auto", "torch", "onnx", "compile"):
        engines.check(name, cpu)
    with pytest.raises(EngineError, match="there is no engine 'tensorrt': use auto, torch, comp"):
        engines.check("tensorrt", cpu)
    with pytest.raises(EngineError, match="the engine onnx is not for the device cuda"):
        engines.check("onnx", torch.device("cuda:1"))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(EngineError, match=r"pip install 'lookalike\[onnx\]'"):
        Engine(small_model(), "cpu", engine="onnx")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EngineError, match="a C\\+\\+ compiler, and 'no-such-compiler' is not the"):
        Engine(small_model(), "cpu", engine="compile")
    offers = offers_for(small_model().module)
    assert offers == {}  # nothing of it is chosen then
    monkeypatch.delenv("CXX")
    monkeypatch.setattr("sysconfig.get_path", lambda _name: "/nowhere")
    with pytest.raises(EngineError, match=r"Python's headers, and /nowhere/Python\.h is not there"):
        engines.check("compile", cpu)


def test_the_pictures_that_engines_are_compared_on_are_of_all_kinds() -> None:
    pixels = engines.sample((16, 24))
    assert (pixels.shape, pixels.dtype) == ((engines.SAMPLE, 3, 16, 24), torch.uint8)
    assert torch.equal(pixels, engines.sample((16, 24)))
    flat = pixels.reshape(engines.SAMPLE, -1)
    assert len({bytes(row.tolist()) for row in flat}) == engines.SAMPLE
    assert (flat.amin(), flat.amax()) == (0, 255)


@pytest.mark.parametrize(
    ("change", "apart"),
    [
        (lambda x: x, 0.0),
        (lambda x: x * torch.tensor([1.0, 1.0, 1.0, -1.0]), 1.0),
        (lambda x: x * 1.001, 1e-3),
        (lambda x: x * torch.tensor([1.0, float("nan"), 1.0, 1.0]), float("inf")),
        (lambda x: x * torch.tensor([0.0, 0.0, 1.0, 1.0]), float("inf")),
        (lambda x: x[:, :3], float("inf")),
    ],
)
def test_features_are_compared_layer_by_layer(
    change: Callable[[torch.Tensor], torch.Tensor], apart: float
) -> None:
    features = torch.tensor([[1.0, 2.0, 3.0, 3.0], [0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]])
    spans = [slice(0, 2), slice(2, 4)]
    expected = features[[0]]
    if apart == 0:
        assert engines.furthest(change(features), features, spans) < 1e-12  # zeros are alike
    assert engines.furthest(change(expected), expected, spans) == pytest.approx(apart, rel=1e-3)


def test_passes_wait_for_a_translation_and_it_for_them() -> None:
    order: list[str] = []
    inside, go_on = threading.Event(), threading.Event()

    def pass_slowly() -> None:
        with passing():
            inside.set()
            go_on.wait(30)
            order.append("pass")

    def translate() -> None:
        with translating():
            order.append("translation")

    slow = threading.Thread(target=pass_slowly)
    slow.start()
    assert inside.wait(30)
    with passing():
        order.append("beside")  # passes do not wait for each other
    translator = threading.Thread(target=translate)
    translator.start()
    translator.join(0.2)
    assert translator.is_alive()
    late = threading.Thread(target=pass_slowly)
    late.start()
    late.join(0.1)
    go_on.set()
    for thread in (slow, translator, late):
        thread.join(30)
        assert not thread.is_alive()
    assert order == ["beside", "pass", "translation", "pass"]


def test_the_name_of_an_engine_has_its_version() -> None:
    model = small_model()
    run = EagerPass(model.module, model.preprocess, torch.device("cpu"))
    assert run.name == f"torch {torch.__version__}"
