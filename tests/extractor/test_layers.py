import pytest
import torch
from torch import nn
from torchvision.models import get_model, get_model_weights

from extractor import graph, layers, torchvision_networks, weights
from extractor.errors import UnknownLayer
from extractor.graph import Traced
from extractor.layers import resolve


def traced(name: str) -> tuple[nn.Module, Traced]:
    preset = get_model_weights(name).DEFAULT
    network = graph.skeleton(torchvision_networks.maker(name, preset))
    return network, graph.trace(network, preset.transforms().crop_size[0])


@pytest.fixture(scope="module")
def resnet() -> Traced:
    return traced("resnet50")[1]


@pytest.mark.parametrize("name", torchvision_networks.names())
def test_every_network_has_its_named_layers(name: str) -> None:
    network, trace = traced(name)
    side = get_model_weights(name).DEFAULT.transforms().crop_size[0]
    penultimate = resolve(trace, None)
    assert penultimate.dim == layers.classifier_inputs(network)
    assert resolve(trace, "logits").dim == 1000
    assert resolve(trace, "pool").dim > 0
    parameter = layers.final_parameter(trace)
    assert network.get_parameter(parameter).shape[:2] == (1000, penultimate.dim)
    features = graph.cut(network, trace, [penultimate])
    with torch.inference_mode():
        out = features(torch.empty(3, 3, side, side, device="meta"))
    assert out.shape == (3, penultimate.dim)


@pytest.mark.parametrize(
    ("model", "layer", "node", "relu", "dim"),
    [
        ("resnet50", None, "avgpool", False, 2048),
        ("resnet50", "avgpool", "avgpool", False, 2048),
        ("resnet50", "layer4", "layer4.2.relu_2", True, 2048),
        ("resnet50", "layer2", "layer2.3.relu_2", True, 512),
        ("resnet50", "logits", "fc", False, 1000),
        ("resnet50", "layer4.0.conv1", "layer4.0.conv1", False, 512),
        ("vgg16", None, "classifier.4", True, 4096),
        ("vgg16", "fc6", "classifier.1", True, 4096),
        ("vgg16", "fc7", "classifier.4", True, 4096),
        ("vgg16", "fc8", "classifier.6", False, 1000),
        ("vgg16", "avgpool", "avgpool", False, 512),
        ("vgg19_bn", "fc6", "classifier.1", True, 4096),
        ("alexnet", None, "classifier.5", True, 4096),
        ("alexnet", "fc6", "classifier.2", True, 4096),
        ("alexnet", "fc7", "classifier.5", True, 4096),
        ("alexnet", "fc8", "classifier.6", False, 1000),
        ("alexnet", "features", "features.12", False, 256),
        ("inception_v3", None, "avgpool", False, 2048),
        ("mobilenet_v2", "avgpool", "adaptive_avg_pool2d", False, 1280),
        ("mobilenet_v2", "features.18", "features.18.2", True, 1280),
        ("mobilenet_v3_small", None, "classifier.1", False, 1024),
        ("mobilenet_v3_small", "pool", "avgpool", False, 576),
        ("squeezenet1_0", None, "features.12.cat", False, 512),
        ("densenet121", "relu", "relu", True, 1024),
        ("vit_b_16", None, "encoder.ln", False, 768),
        ("vit_b_16", "pool", "encoder.ln", False, 768),
        ("maxvit_t", None, "classifier.4", False, 512),
    ],
)
def test_layer_by_name(model: str, layer: str | None, node: str, relu: bool, dim: int) -> None:
    found = resolve(traced(model)[1], layer)
    assert (found.node, found.relu, found.dim) == (node, relu, dim)


def test_layers_are_called_as_the_field_does(resnet: Traced) -> None:
    assert resolve(resnet, None).name == "avgpool"
    assert resolve(resnet, "fc").name == "logits"
    assert resolve(resnet, "layer4").name == "layer4.2.relu_2"
    assert resolve(traced("vgg11")[1], "classifier.4").name == "fc7"


def test_a_wrong_layer_lists_the_right_ones(resnet: Traced) -> None:
    with pytest.raises(UnknownLayer) as error:
        resolve(resnet, "layer4.relu2")
    message = str(error.value)
    assert "'layer4.relu2'" in message
    assert "avgpool, pool, logits, maps, conv1" in message
    assert "layer4" in message.split("or a node such as ")[0]
    assert "layer4.2.relu_2" in message.split("or a node such as ")[1]


def test_a_vgg_layer_of_a_resnet_is_refused(resnet: Traced) -> None:
    with pytest.raises(UnknownLayer, match="there is no layer 'fc7'"):
        resolve(resnet, "fc7")
    with pytest.raises(UnknownLayer, match="any node of the graph"):
        resolve(resnet, "zzzz")
    with pytest.raises(UnknownLayer):
        resolve(resnet, "")


def test_what_has_no_row_an_image_is_refused() -> None:
    trace = traced("swin_t")[1]
    windows = "features.1.0.attn._get_relative_position_bias"
    with pytest.raises(UnknownLayer, match=r"gives \[1, 3, 49, 49\]"):
        resolve(trace, windows)
    vit = traced("vit_b_16")[1]
    with pytest.raises(UnknownLayer, match="no tensor"):
        resolve(vit, "encoder.layers.encoder_layer_0.self_attention")
    with pytest.raises(UnknownLayer, match=r"gives \[5, 196, 768\]"):
        resolve(vit, "permute")  # the patches without their class token


def reference(name: str, layer: str, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output of a module by a hook in plain torchvision, and the cut network's."""
    network = weights.build(lambda: get_model(name, weights=None), 5).eval()
    # Random batch norms, so that forgetting to fold one shows.
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.running_var):
                assert values is not None
                nn.init.uniform_(values, 0.5, 1.5, generator=generator)
    caught: list[torch.Tensor] = []
    hook = network.get_submodule(layer).register_forward_hook(
        lambda _module, _inputs, out: caught.append(out.clone())
    )
    trace = graph.trace(graph.skeleton(lambda: get_model(name, weights=None)), pixels.shape[-1])
    found = resolve(trace, layer)
    with torch.inference_mode():
        network(pixels)
        hook.remove()
        ours = graph.cut(network, trace, [found])(pixels)
    return caught[0], ours


@pytest.mark.parametrize(
    ("name", "layer", "dims"),
    [
        ("resnet18", "layer3", (2, 3)),
        ("resnet18", "layer3.0.conv1", (2, 3)),  # its batch norm must not be folded into it
        ("resnet18", "layer3.0.bn1", (2, 3)),  # the ReLU behind works in place
        ("shufflenet_v2_x0_5", "stage3", (2, 3)),
        ("densenet121", "features.denseblock1", (2, 3)),
        ("mobilenet_v2", "features.5", (2, 3)),
        ("swin_t", "features.1", (1, 2)),
        ("squeezenet1_1", "features.5", (2, 3)),
    ],
)
def test_pooled_maps_equal_a_hook(name: str, layer: str, dims: tuple[int, int]) -> None:
    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    hooked, ours = reference(name, layer, pixels)
    torch.testing.assert_close(ours, hooked.mean(dim=dims), rtol=1e-4, atol=1e-5)


def test_the_class_token_equals_a_hook() -> None:
    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    hooked, ours = reference("vit_b_32", "encoder.ln", pixels)
    torch.testing.assert_close(ours, hooked[:, 0], rtol=1e-4, atol=1e-5)


def test_what_lies_behind_the_layer_is_gone() -> None:
    network, trace = traced("vgg16")
    layer = resolve(trace, "fc6")
    names = dict(graph.cut(network, trace, [layer]).named_modules())
    assert "body.classifier.0" in names
    assert "body.classifier.3" not in names
    assert "body.classifier.6" not in names


def test_batch_norms_are_folded() -> None:
    network, trace = traced("resnet50")
    layer = resolve(trace, None)
    cut = graph.cut(network, trace, [layer])
    assert not any(isinstance(m, nn.BatchNorm2d) for m in cut.modules())
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()) == 53
