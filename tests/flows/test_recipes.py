"""Spaces of unusual recipes: input size, pooling, scales, and layers before their ReLU."""

import json
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as tf
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from sqlalchemy import func, select
from torchvision.models import resnet18
from torchvision.transforms.functional import center_crop, normalize, pil_to_tensor, resize

from extractor.decode import DECODE_VERSION, decode
from flows.cli import cli
from flows.errors import SettingsError
from flows.job.loop import IndexOptions, run_index
from flows.job.parameters import options_for, parameters_of
from flows.job.progress import Progress
from flows.job.report import Report
from flows.job.spaces import SpaceChoice, find_spaces, make_space, new_space_name, request_of
from flows.job.steps import PlainSteps
from flows.job.worker import clear_bench
from flows.samples import draw_families
from flows.settings import load_settings
from search.engine import Searcher
from storage.catalog import Catalog
from storage.home import Home
from storage.space_names import recipe_name, recipe_text
from storage.spaces import list_spaces, use_space
from storage.tables import SpaceKey, Vector
from tests.flows.contents import age

TINY = {"model": "resnet18", "weights": "random:0"}
SCALES = (1.0, 0.7071, 0.5)
GEM = {**TINY, "input_size": 96, "pool": "gem", "scales": "1,0.7071,0.5"}


def choice(**asked: object) -> SpaceChoice:
    return options_for(asked)[0].choice


@pytest.mark.parametrize(
    "typed",
    ["1,0.7071,0.5", " 0.5, 1, 0.7071,1.0 ", [0.5, 0.7071, 1], (1, 0.7071, 0.5)],
)
def test_scales_are_typed_as_text_or_as_a_list_in_any_order(typed: object) -> None:
    assert choice(scales=typed) == SpaceChoice(scales=SCALES)


def test_one_scale_is_none() -> None:
    usual = request_of(SpaceChoice())
    assert request_of(choice(scales="1", relu=True)) == usual
    assert choice(scales="1").names_a_model


@pytest.mark.parametrize("typed", ["1,x", "", "0", "1,-1", "5", "nan", "inf", "1,,2"])
def test_wrong_scales_are_one_line(typed: str) -> None:
    if not typed:
        assert choice(scales=typed) == SpaceChoice()
        return
    with pytest.raises(SettingsError, match=r"^scales = .* \(flag\): Input should be .*") as caught:
        choice(scales=typed)
    assert "\n" not in str(caught.value)


def test_a_recipe_is_set_by_the_file_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "settings.toml").write_text(
        'pool = "gem"\nscales = [1, 0.5]\nrelu = false\ninput_size = 448\n'
    )
    assert choice() == SpaceChoice(pool="gem", scales=(1.0, 0.5), relu=False, input_size=448)
    monkeypatch.setenv("LOOKALIKE_SCALES", "1,0.25")
    monkeypatch.setenv("LOOKALIKE_RELU", "true")
    settings = load_settings().settings
    assert request_of(settings).unusual() == {
        "input_size": 448,
        "pool": "gem",
        "scales": [1.0, 0.25],
    }
    assert choice(model="vgg16") == SpaceChoice(model="vgg16")  # does not mix
    assert choice(space="mine").otherwise == choice()


def test_what_prefect_shows_leads_to_the_same_choice() -> None:
    asked, _ = options_for({**GEM, "relu": False})
    shown = parameters_of(asked)
    assert (shown["scales"], shown["relu"], shown["pool"]) == (list(SCALES), False, "gem")
    assert options_for(shown)[0].choice == asked.choice
    usual = parameters_of(options_for({})[0])
    assert {usual[name] for name in ("scales", "relu", "pool", "input_size")} == {None}


@pytest.mark.parametrize(
    ("asked", "name", "text"),
    [
        ({"model": "resnet50"}, "resnet50", "DEFAULT"),
        ({"model": "vgg16", "layer": "fc7", "relu": False}, "vgg16-fc7-norelu", None),
        ({"model": "vgg16", "layer": "fc7", "relu": True}, "vgg16-fc7", "DEFAULT"),
        ({**GEM, "layer": None}, "resnet18-gem-96px-3scales", None),
        ({"model": "a", "weights": "/data/w.pth", "input_size": 32}, "a-32px", "w.pth, 32 px"),
    ],
)
def test_names_tell_recipes_apart(asked: dict[str, object], name: str, text: str | None) -> None:
    assert new_space_name(choice(**asked)) == name
    request = request_of(choice(**asked)).to_json()
    assert recipe_name(request) == name
    told = recipe_text(request)
    assert told == {
        "vgg16-fc7-norelu": "DEFAULT, before the ReLU",
        "resnet18-gem-96px-3scales": "random:0, pool gem, 96 px, scales 1 0.7071 0.5",
    }.get(name, text)


@pytest.fixture
def catalog(home: Home) -> Iterator[Catalog]:
    with Catalog.open(home, write=True) as opened:
        yield opened


def test_a_usual_recipe_is_kept_and_found_as_it_always_was(catalog: Catalog) -> None:
    space, _ = make_space(catalog, SpaceChoice(**TINY))
    with catalog.read() as conn:
        keys = conn.execute(select(SpaceKey.key)).scalars().all()
    assert keys == [
        f'{{"decode_version": {DECODE_VERSION}, "layer": null, "model": "resnet18", '
        f'"torchvision": "{version("torchvision")}", "weights": ["random:0"]}} dtype=float32'
    ]
    assert space.request == {"model": "resnet18", "layer": "avgpool", "weights": "random:0"}
    assert set(space.spec) == {
        "architecture",
        "weights_digest",
        "node",
        "pooling",
        "relu",
        "normalize",
        "preprocess",
        "decode_version",
        "dim",
        "dtype",
    }


def test_spaces_that_differ_in_one_thing_are_several(catalog: Catalog) -> None:
    recipes = [
        {},
        {"pool": "gem"},
        {"pool": "max"},
        {"pool": "gem", "scales": "1,0.5"},
        {"pool": "gem", "scales": "1,0.25"},
        {"pool": "gem", "relu": False},
        {"input_size": 96},
        {"input_size": 96, "dtype": "float16"},
    ]
    made = [make_space(catalog, choice(**TINY, **recipe))[0] for recipe in recipes]
    assert [space.name for space in made] == [
        "resnet18-avgpool",
        "resnet18-maps-gem",
        "resnet18-maps-max",
        "resnet18-maps-gem-2scales",
        "resnet18-maps-gem-2scales-2",
        "resnet18-maps-gem-norelu",
        "resnet18-avgpool-96px",
        "resnet18-avgpool-96px-2",
    ]
    assert len({space.fingerprint for space in made}) == len(recipes)
    for space, recipe in zip(made, recipes, strict=True):
        assert find_spaces(catalog, choice(**TINY, **recipe)) == [space]


def shown(home: Home, *args: str) -> str:
    done = CliRunner().invoke(cli, ["--home", home.path, "spaces", *args])
    assert (done.exit_code, done.exception) == (0, None)
    return done.stdout


def test_the_commands_tell_what_vectors_depend_on(home: Home) -> None:
    with Catalog.open(home, write=True) as catalog:
        usual, _ = make_space(catalog, choice(**TINY))
        unusual, _ = make_space(catalog, choice(**GEM, relu=False))
    head, *rows = [line.split("  ") for line in shown(home).splitlines()]
    assert head[0] == "space"
    told = [[cell.strip() for cell in row if cell][:2] for row in rows]
    assert told == [
        ["resnet18-avgpool *", "random:0"],
        [unusual.name, "random:0, pool gem, 96 px, scales 1 0.7071 0.5, before the ReLU"],
    ]
    lines = dict(line.split("  ", 1) for line in shown(home, "show", unusual.name).splitlines())
    lines = {key: value.strip() for key, value in lines.items()}
    assert lines["pooling"] == "gem"
    assert lines["scales"] == lines["asked scales"] == "1 0.7071 0.5"
    assert lines["node"] == "layer4.1.add"
    assert lines["relu"] == "no"
    assert lines["preprocess"].startswith("resize 110, crop 96, interpolation bilinear, mean 0.485")
    assert json.loads(shown(home, "show", "--json"))["spec"] == usual.spec
    assert shown(home, "show").splitlines()[0].endswith("resnet18-avgpool *")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    draw_families(str(folder), 2, seed=3)
    age(folder)
    return folder


def go(home: Home, *roots: Path, **asked: object) -> Report:
    """Run and forget what the process holds, as a command does."""
    found = options_for({**asked, "home": home.path})[0]
    options = IndexOptions(
        **{**vars(found), "catalog_url": home.catalog_url, "roots": tuple(map(str, roots))}
    )
    try:
        with PlainSteps() as steps:
            return run_index(options, steps=steps, progress=Progress("silent"))
    finally:
        clear_bench(options.home, options.catalog_url)


def plain(path: Path) -> NDArray[np.float32]:
    """Return the vector of GEM by plain torchvision: multi-scale GeM of the last maps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = resnet18(weights=None).eval()
    caught: list[torch.Tensor] = []
    network.layer4.register_forward_hook(lambda _m, _i, out: caught.append(out))
    picture = center_crop(resize(decode(path.read_bytes()), [110]), [96])
    pixels = pil_to_tensor(picture).float().div(255)
    x = normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])[None]
    with torch.inference_mode():
        for scale in SCALES:
            network(tf.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False))
    pooled = [maps.clamp(min=1e-6).pow(3).mean(dim=(2, 3)).pow(1 / 3) for maps in caught]
    mean = torch.stack([tf.normalize(one) for one in pooled]).mean(dim=0)
    vector: NDArray[np.float32] = tf.normalize(mean)[0].numpy()
    return vector


def test_a_space_of_an_unusual_recipe_is_indexed_kept_up_and_searched(
    catalog_home: Home, pictures: Path, tmp_path: Path
) -> None:
    paths = sorted(path for path in pictures.rglob("*") if path.is_file())
    first = go(catalog_home, pictures, **GEM)
    assert (first.space, first.extracted) == ("resnet18-maps-gem-96px-3scales", len(paths))

    again = go(catalog_home, pictures, **{**GEM, "scales": "0.5,1,0.7071"})
    assert (again.scanned, again.extracted, again.space) == (len(paths), 0, first.space)
    with Image.open(paths[0]) as picture:
        picture.convert("RGB").rotate(3).save(pictures / "new.png")
    age(pictures)
    night = go(catalog_home)  # as the schedule runs it: the catalog knows what to do
    assert (night.extracted, night.failed, night.space) == (1, 0, first.space)
    with Catalog.open(catalog_home, write=False) as opened, opened.read() as conn:
        assert conn.execute(select(func.count()).select_from(Vector)).scalar() == len(paths) + 1

    query = tmp_path / "query.png"
    with Image.open(paths[0]) as picture:
        picture.convert("RGB").rotate(6).save(query)
    wanted = plain(query)
    with Searcher(catalog_home, device="cpu") as searcher:
        [answer] = searcher.search_paths([os.fsencode(query)], 3)
        exact = searcher.search_vectors(wanted[None], 3)[0]
    hits = answer.hits
    assert [hit.paths for hit in hits] == [hit.paths for hit in exact]
    scores = [float(plain(Path(os.fsdecode(hit.paths[0]))) @ wanted) for hit in hits]
    np.testing.assert_allclose([hit.score for hit in hits], scores, atol=1e-4)
    np.testing.assert_allclose([hit.score for hit in exact], scores, atol=1e-4)


def test_a_back_fill_makes_such_a_space_beside_the_current_one(
    catalog_home: Home, pictures: Path
) -> None:
    n = go(catalog_home, pictures, **TINY).extracted
    asked, _ = options_for({"home": catalog_home.path, **GEM, "relu": False}, "backfill")
    options = IndexOptions(**{**vars(asked), "catalog_url": catalog_home.catalog_url})
    try:
        with PlainSteps() as steps:
            report = run_index(options, steps=steps, progress=Progress("silent"))
    finally:
        clear_bench(options.home, options.catalog_url)
    name = "resnet18-maps-gem-96px-3scales-norelu"
    assert (report.space, report.extracted) == (name, n)
    with Catalog.open(catalog_home, write=True) as opened:
        assert [space.current for space in list_spaces(opened)] == [True, False]
        use_space(opened, name)
    assert go(catalog_home).extracted == 0
