"""From what was asked for to a space: which one, and what it is called."""

from collections.abc import Iterator

import pytest

from extractor import graph, layers, torchvision_networks, weights
from extractor.models import ModelRequest, open_model
from flows.job.parameters import options_for
from flows.job.spaces import (
    SpaceChoice,
    disk_needed_bytes,
    find_spaces,
    make_space,
    new_space_dim,
    new_space_name,
    vectors_need_bytes,
)
from storage.catalog import Catalog
from storage.errors import SpaceError
from storage.home import Home
from storage.spaces import use_space

TINY = SpaceChoice(model="squeezenet1_1", weights="random:0")


@pytest.fixture
def catalog(home: Home) -> Iterator[Catalog]:
    with Catalog.open(home, write=True) as opened:
        yield opened


def names(catalog: Catalog, **asked: object) -> list[str]:
    return [space.name for space in find_spaces(catalog, SpaceChoice(**asked))]


@pytest.mark.parametrize(
    ("model", "default"),
    [
        ("alexnet", "fc7"),
        ("vgg16", "fc7"),
        ("resnet18", "avgpool"),
        ("squeezenet1_1", "avgpool"),
        ("mobilenet_v2", "avgpool"),
        ("densenet121", "avgpool"),
        ("vit_b_16", "pool"),
    ],
)
def test_a_layers_name_for_people_leads_back_to_it(model: str, default: str) -> None:
    preset = weights.parse("random", model).preset
    network = graph.skeleton(torchvision_networks.maker(model, preset))
    traced = graph.trace(network, preset.transforms().crop_size[0])
    asked = [None, *layers.named_layers(traced), *list(traced.nodes)[-40:]]
    found = []
    for name in asked:
        try:
            found.append(layers.resolve(traced, name))
        except layers.UnknownLayer:  # no vector can be made of that node
            assert name in traced.nodes
    assert found[0].name == default
    assert [layers.resolve(traced, layer.name) for layer in found] == found


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({"model": "SqueezeNet1_1"}, "squeezenet1_1-avgpool"),
        ({"model": "squeezenet1_1", "layer": "features.12.cat"}, "squeezenet1_1-avgpool"),
        ({"model": "squeezenet1_1", "layer": "features.3"}, "squeezenet1_1-features.3.cat"),
    ],
)
def test_a_space_is_called_by_its_layers_name_and_opens_again(
    catalog: Catalog, asked: dict[str, str], name: str
) -> None:
    choice = SpaceChoice(weights="random:0", **asked)
    space, model = make_space(catalog, choice)
    assert space.name == name
    assert open_model(ModelRequest(**space.request)).spec == model.spec
    assert find_spaces(catalog, choice) == [space]  # by what was typed
    again, _ = make_space(catalog, TINY if name.endswith("avgpool") else choice)
    assert again.name == name


def test_the_first_space_takes_the_name_that_was_asked_for(catalog: Catalog) -> None:
    asked = SpaceChoice(space="photos", otherwise=TINY)
    assert find_spaces(catalog, asked) == []
    assert new_space_name(asked) == "photos"
    space, _ = make_space(catalog, asked)
    assert (space.name, space.request["model"]) == ("photos", "squeezenet1_1")
    assert find_spaces(catalog, asked) == [space]
    assert names(catalog, space="photos", otherwise=SpaceChoice(model="vgg16")) == ["photos"]
    with pytest.raises(SpaceError, match="there is no space 'none'; there are: photos"):
        names(catalog, space="none")
    with pytest.raises(SpaceError, match="already the space 'photos', not 'phots'"):
        names(catalog, space="phots", otherwise=TINY)
    assert names(catalog, space="others", otherwise=SpaceChoice(model="vgg16")) == []


def test_all_is_never_a_name(catalog: Catalog) -> None:
    everything = SpaceChoice(space="all", otherwise=TINY)
    assert find_spaces(catalog, everything) == []
    space, _ = make_space(catalog, everything)
    assert space.name == "squeezenet1_1-avgpool"
    logits = SpaceChoice(model="squeezenet1_1", layer="logits", weights="random:0")
    choice = SpaceChoice(space="all", otherwise=logits)
    assert new_space_name(choice) == "squeezenet1_1-logits"
    assert make_space(catalog, choice)[0].name == "squeezenet1_1-logits"
    assert names(catalog, space="all") == ["squeezenet1_1-avgpool", "squeezenet1_1-logits"]
    with pytest.raises(SpaceError, match="there is no space 'all'"):
        use_space(catalog, "all")


@pytest.mark.parametrize("recipe", [{"model": "vgg16"}, {"layer": "fc7"}, {"dtype": "float16"}])
def test_all_spaces_and_a_recipe_are_refused_together(recipe: dict[str, str]) -> None:
    with pytest.raises(SpaceError, match="leave out") as caught:
        options_for({"space": "all", **recipe})
    assert (caught.value.exit_code, str(caught.value).count("\n")) == (2, 0)


def test_disk_is_told_where_another_space_knows_the_dimension(catalog: Catalog) -> None:
    named = SpaceChoice(model="squeezenet1_1", layer="avgpool", weights="random:0", dtype="float16")
    assert new_space_dim(catalog, named) is None
    space, _ = make_space(catalog, TINY)
    assert dict(space.request) == ModelRequest("squeezenet1_1", "avgpool", "random:0").to_json()
    assert new_space_dim(catalog, named) == space.dim == 512
    assert new_space_dim(catalog, SpaceChoice(model="resnet18")) is None
    assert disk_needed_bytes(space, 10) == 10 * (4 * 512 + 32 + 512 + 8)
    assert vectors_need_bytes(512, "float16", 10) == 10 * (2 * 512 + 32 + 512 + 8)
