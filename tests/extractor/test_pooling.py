"""Pooled maps, layers before their ReLU, several layers and several scales.

The oracle is plain torchvision with forward hooks.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as tf
from numpy.typing import NDArray
from torch import nn
from torchvision.models import get_model, get_model_weights

from extractor import graph, pooling, torchvision_networks, weights
from extractor.errors import UnknownLayer
from extractor.graph import Traced
from extractor.layers import Layer, resolve

SCALES = (1.0, 2**-0.5, 0.5)
FAMILIES = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet",
    "inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small",
    "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d",
    "shufflenet_v2_x0_5", "squeezenet1_0", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11",
    "vgg11_bn", "vit_b_16", "wide_resnet50_2",
)  # fmt: skip
"""Networks of each family, the smallest: the larger ones are made of the same blocks."""


def pictures(side: int = 64, n: int = 3) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def built(name: str) -> nn.Module:
    """Return a network with random weights and random batch norms, as torchvision makes it."""
    network = weights.build(lambda: get_model(name, weights=None), 5).eval()
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.running_var):
                assert values is not None
                nn.init.uniform_(values, 0.5, 1.5, generator=generator)
    return network


def traced(name: str, side: int = 64) -> Traced:
    return graph.trace(graph.skeleton(lambda: get_model(name, weights=None)), side)


def hooked(network: nn.Module, modules: list[str], x: torch.Tensor) -> list[torch.Tensor]:
    """Run the whole network and return what each module gave, and the input of the last one."""
    caught: dict[str, torch.Tensor] = {}
    hooks = [
        network.get_submodule(name).register_forward_hook(
            # Copies: the ReLU behind may work in place.
            lambda _module, _inputs, out, name=name: caught.update({name: out.clone()})
        )
        for name in modules
    ]
    with torch.inference_mode():
        network(x)
    for hook in hooks:
        hook.remove()
    return [caught[name] for name in modules]


def run(
    network: nn.Module,
    trace: Traced,
    found: list[Layer],
    x: torch.Tensor,
    scales: tuple[float, ...] = (),
) -> torch.Tensor:
    with torch.inference_mode():
        out: torch.Tensor = graph.cut(network, trace, found, scales)(x)
    return out


def generalised_mean(maps: torch.Tensor, axes: tuple[int, int]) -> NDArray[np.float64]:
    """Return (mean of x^3)^(1/3) of what is at least 1e-6, in numpy and float64."""
    x = np.maximum(maps.numpy().astype(np.float64), 1e-6)
    mean: NDArray[np.float64] = (x**3).mean(axis=axes) ** (1 / 3)
    return mean


@pytest.mark.parametrize("pool", ["avg", "max", "gem"])
@pytest.mark.parametrize(
    ("name", "layer", "module", "axes"),
    [
        ("resnet18", None, "layer4", (2, 3)),
        ("resnet18", "layer2", "layer2", (2, 3)),
        ("resnet18", "layer2.0.bn1", "layer2.0.bn1", (2, 3)),  # has negative values
        ("alexnet", None, "features", (2, 3)),
        ("squeezenet1_1", None, "features", (2, 3)),
        ("mobilenet_v3_small", None, "features", (2, 3)),  # pools inside each block as well
        ("shufflenet_v2_x0_5", None, "conv5", (2, 3)),
        ("mnasnet0_5", None, "layers", (2, 3)),
        ("densenet121", "features", "features", (2, 3)),
        ("swin_t", "features.1", "features.1", (1, 2)),
    ],
)
def test_maps_are_pooled_as_numpy_pools_a_hooked_layer(
    pool: str, name: str, layer: str | None, module: str, axes: tuple[int, int]
) -> None:
    network, x = built(name), pictures(96)
    (maps,) = hooked(network, [module], x)
    found = resolve(traced(name, 96), layer, pool=pool)
    ours = run(network, traced(name, 96), [found], x)
    theirs = {
        "avg": lambda: maps.numpy().mean(axis=axes),
        "max": lambda: maps.numpy().max(axis=axes),
        "gem": lambda: generalised_mean(maps, axes),
    }[pool]()
    assert ours.shape == (3, found.dim)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-5)
    assert found.name == (layer or "maps") or found.name.startswith(f"{layer}.")
    assert found.pooling == pooling.KINDS[pool] + ("-last" if axes == (1, 2) else "")


def family(name: str) -> str:
    return name.partition("_")[0].rstrip("0123456789")


def test_no_family_is_left_out() -> None:
    assert set(map(family, FAMILIES)) == set(map(family, torchvision_networks.names()))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_maps_of_every_family_are_the_same_at_every_size(name: str) -> None:
    preset = get_model_weights(name).DEFAULT
    side = preset.transforms().crop_size[0]
    network = graph.skeleton(torchvision_networks.maker(name, preset))
    trace = graph.trace(network, side)
    if name.startswith("vit_"):
        with pytest.raises(UnknownLayer, match="no feature maps before its classifier"):
            resolve(trace, None, pool="gem")
        return
    found = resolve(trace, None, pool="gem")
    assert found.pooling == "gem"
    assert found == resolve(trace, "maps", pool="gem")
    height, width = trace.shapes[trace.nodes[found.node]][2:]
    assert height == width > 1
    if name != "maxvit_t":  # its windows fit one size
        larger = graph.trace(network, side + 96)
        assert resolve(larger, None, pool="gem") == found


def test_a_large_activation_is_pooled_in_half_precision_too() -> None:
    maps = torch.full((1, 2, 3, 3), 300.0, dtype=torch.float16)
    torch.testing.assert_close(pooling.pooled(maps, "gem"), torch.full((1, 2), 300.0))
    maps[0, 0] = torch.nan
    assert pooling.pooled(maps, "gem").isnan().tolist() == [[True, False]]


@pytest.mark.parametrize(
    ("name", "layer", "module", "node"),
    [
        ("alexnet", "fc6", "classifier.1", "classifier.1"),
        ("alexnet", "fc7", "classifier.4", "classifier.4"),
        ("alexnet", None, "classifier.4", "classifier.4"),
        ("alexnet", "fc8", "classifier.6", "classifier.6"),  # has none
        ("mobilenet_v2", "features.0", "features.0.1", "features.0.1"),
        ("densenet121", "features.norm5", "features.norm5", None),
    ],
)
def test_the_values_before_a_relu_equal_a_hook(
    name: str, layer: str | None, module: str, node: str | None
) -> None:
    network, x, trace = built(name), pictures(), traced(name)
    (before,) = hooked(network, [module], x)
    if node is None:
        with pytest.raises(UnknownLayer, match="does not come right out of a ReLU"):
            resolve(trace, layer, relu=False)
        return
    found = resolve(trace, layer, relu=False)
    assert (found.node, found.relu) == (node, False)
    assert found.name == resolve(trace, layer).name  # still fc7 to people
    assert resolve(trace, found.name, relu=False) == found
    theirs = before.mean(dim=(2, 3)) if before.ndim == 4 else before
    assert (before < 0).any()
    torch.testing.assert_close(run(network, trace, [found], x), theirs, rtol=1e-4, atol=1e-5)


def test_before_the_relu_of_a_residual_block_is_the_sum() -> None:
    network, x, trace = built("resnet18"), pictures(), traced("resnet18")
    inside, identity = hooked(network, ["layer4.1.bn2", "layer4.0"], x)
    found = resolve(trace, "layer4", relu=False)
    theirs = (inside + identity).mean(dim=(2, 3))
    torch.testing.assert_close(run(network, trace, [found], x), theirs, rtol=1e-4, atol=1e-5)
    gem = resolve(trace, None, relu=False, pool="gem")
    assert (gem.node, gem.name, gem.relu) == (found.node, "maps", False)


@pytest.mark.parametrize("name", ["vgg11", "vgg16_bn", "vgg19", "alexnet"])
def test_each_fully_connected_layer_has_its_values_before_the_relu(name: str) -> None:
    trace = traced(name)
    for layer in ("fc6", "fc7"):
        with_relu, without = resolve(trace, layer), resolve(trace, layer, relu=False)
        assert with_relu.relu
        assert isinstance(trace.module(trace.nodes[without.node]), nn.Linear)
        assert (without.name, without.dim) == (layer, 4096)


@pytest.mark.parametrize(
    ("name", "layers", "modules"),
    [
        ("alexnet", ("fc6", "fc7", "fc8"), ("classifier.2", "classifier.5", "classifier.6")),
        ("alexnet", ("fc8", "features", "fc6"), ("classifier.6", "features", "classifier.2")),
        # The ReLU behind each of these works in place; batch norms would be folded into conv1.
        (
            "resnet18",
            ("layer3.0.conv1", "layer3.0.bn1", "layer3", "avgpool", "logits"),
            ("layer3.0.conv1", "layer3.0.bn1", "layer3", "avgpool", "fc"),
        ),
        ("resnet18", ("avgpool", None, "pool"), ("avgpool",) * 3),
        ("swin_t", ("features.1", "logits"), ("features.1", "head")),
    ],
)
def test_several_layers_in_one_pass_equal_one_pass_each(
    name: str, layers: tuple[str | None, ...], modules: tuple[str, ...]
) -> None:
    network, x, trace = built(name), pictures(), traced(name)
    found = [resolve(trace, layer) for layer in layers]
    together = run(network, trace, found, x)
    each = [run(network, trace, [layer], x) for layer in found]
    assert together.shape == (3, sum(layer.dim for layer in found))
    torch.testing.assert_close(together, torch.cat(each, dim=1), rtol=1e-6, atol=1e-6)
    raw = hooked(network, list(modules), x)
    for ours, theirs, layer in zip(
        together.split([layer.dim for layer in found], dim=1), raw, found, strict=True
    ):
        plain = pooling.pooled(theirs, layer.pooling)
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_before_and_behind_one_relu_in_one_pass() -> None:
    network, x, trace = built("alexnet"), pictures(), traced("alexnet")
    found = [resolve(trace, "fc6", relu=False), resolve(trace, "fc6")]
    before, behind = run(network, trace, found, x).split(4096, dim=1)
    assert (before < 0).any()
    torch.testing.assert_close(before.relu(), behind)


@pytest.mark.parametrize(
    ("name", "layer", "pool", "module"),
    [
        ("resnet18", None, "gem", "layer4"),
        ("resnet18", "avgpool", None, "avgpool"),
        ("alexnet", "features", "max", "features"),
        ("swin_t", "features.1", None, "features.1"),
    ],
)
def test_scales_equal_a_plain_loop(
    name: str, layer: str | None, pool: str | None, module: str
) -> None:
    network, x, trace = built(name), pictures(128), traced(name, 128)
    found = resolve(trace, layer, pool=pool)
    total = torch.zeros(3, found.dim)
    for scale in SCALES:
        resized = tf.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
        (maps,) = hooked(network, [module], resized)
        one = pooling.pooled(maps, found.pooling)
        total += one / one.norm(dim=1, keepdim=True)
    ours = run(network, trace, [found], x, SCALES)
    torch.testing.assert_close(ours, total / len(SCALES), rtol=1e-4, atol=1e-5)
    once = run(network, trace, [found], x, (1.0,))
    plain = tf.normalize(run(network, trace, [found], x))
    torch.testing.assert_close(once, plain, rtol=1e-6, atol=1e-6)


def test_several_scales_of_several_layers_are_each_layers_own() -> None:
    network, x, trace = built("resnet18"), pictures(128), traced("resnet18", 128)
    found = [resolve(trace, layer, pool="gem") for layer in (None, "layer2")]
    together = run(network, trace, found, x, SCALES)
    each = [run(network, trace, [layer], x, SCALES) for layer in found]
    torch.testing.assert_close(together, torch.cat(each, dim=1), rtol=1e-6, atol=1e-6)


def test_scales_are_refused_where_no_maps_are_pooled() -> None:
    for name, layer in (("alexnet", "fc7"), ("resnet18", "logits"), ("vit_b_32", None)):
        network = graph.skeleton(lambda name=name: get_model(name, weights=None))
        trace = graph.trace(network, 224)
        with pytest.raises(UnknownLayer, match="need a layer of feature maps"):
            graph.cut(network, trace, [resolve(trace, layer)], SCALES)


def test_a_scale_that_a_network_can_not_take_is_told_before_its_weights() -> None:
    network = graph.skeleton(lambda: get_model("alexnet", weights=None))
    trace = graph.trace(network, 64)
    maps = [resolve(trace, None, pool="gem")]
    pooling.try_out(graph.cut(network, trace, maps, (1, 2)), 64)
    with pytest.raises(UnknownLayer, match=r"no picture of 32 x 32, which is scale 0\.5 of 64"):
        pooling.try_out(graph.cut(network, trace, maps, (1, 0.5)), 64)


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        ("resnet18", "logits", r"'logits' gives \[1000\] an image, no feature maps that 'gem'"),
        ("resnet18", "avgpool", r"gives \[512, 1, 1\].*: leave out --layer for layer4.1.relu_1"),
        ("vgg11", "fc7", "leave out --layer for features.20, or --pool"),
        ("vit_b_32", "encoder.ln", "leave out --pool"),
    ],
)
def test_what_can_not_be_pooled_is_refused(name: str, layer: str, message: str) -> None:
    with pytest.raises(UnknownLayer, match=message):
        resolve(traced(name, 224), layer, pool="gem")


def test_the_average_of_what_is_averaged_is_the_same_layer() -> None:
    trace = traced("resnet18")
    assert resolve(trace, "avgpool", pool="avg") == resolve(trace, "avgpool")
    maps = resolve(traced("vit_b_32", 224), "conv_proj", pool="max")
    assert (maps.pooling, maps.dim) == ("max", 768)


def test_no_relu_tells_where_there_is_one() -> None:
    with pytest.raises(UnknownLayer, match=r"leave out --no-relu, or use maps, layer4\.1.relu_1"):
        resolve(traced("resnet18"), None, relu=False)
    with pytest.raises(UnknownLayer, match="leave out --no-relu, or use fc6, fc7"):
        resolve(traced("vgg11"), "avgpool", relu=False)
