"""What a plain script with torchvision and Pillow gives for the same photos and weights."""

import csv
import json
import os

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from flows.batch.extracting import extract_to
from flows.batch.options import extract_options
from flows.job.progress import Progress

PHOTOS = 30


@pytest.fixture(scope="module")
def listed(data_dir, tmp_path_factory):
    """Return a TSV of 30 photos: corel-1k's of every class, and imagenet-sample's."""
    corel = sorted((data_dir / "photos" / "corel-1k").rglob("*.jpg"))[::50]
    others = sorted((data_dir / "photos" / "imagenet-sample").rglob("*.*"))[::10]
    paths = [*corel, *others][:PHOTOS]
    assert len(paths) == PHOTOS
    file = tmp_path_factory.mktemp("list") / "photos.tsv"
    file.write_text("".join(f"photo{n}\t{path}\n" for n, path in enumerate(paths)))
    return file


def plain(listed, architecture, modules):
    """Return id -> vectors by module, as people's own scripts make them."""
    torch.manual_seed(0)
    network = getattr(torchvision.models, architecture)(weights=None).eval()
    weights = torchvision.models.get_model_weights(architecture).DEFAULT
    transform = weights.transforms()
    found, seen = {}, {}
    for name in modules:
        network.get_submodule(name).register_forward_hook(
            # the ReLU behind it may write into what it is given
            lambda module, given, out, name=name: seen.__setitem__(name, out.clone())
        )
    for line in listed.read_text().splitlines():
        key, path = line.split("\t")
        with Image.open(path) as image, torch.inference_mode():
            network(transform(image.convert("RGB"))[None])
        found[key] = [seen[name][0].numpy() for name in modules]
    return found


def go(**asked):
    asked = {"weights": "random:0", "device": "cpu", **asked}
    return extract_to(extract_options(asked), Progress("silent"))


@pytest.mark.data
def test_vgg19_fc7_as_tsv_is_what_the_plain_script_gives(tmp_path, listed):
    out = tmp_path / "vgg.tsv"
    go(source=str(listed), out=str(out), model="vgg19", layers=("fc7",))
    expected = plain(listed, "vgg19", ["classifier.4"])
    with open(out) as file:
        found = {line.split("\t")[0]: np.array(json.loads(line.split("\t")[1])) for line in file}
    assert list(found) == list(expected)
    for key, (x,) in expected.items():
        assert found[key].shape == (4096,)
        np.testing.assert_allclose(found[key], x / np.linalg.norm(x), rtol=0, atol=1e-4)


@pytest.mark.data
def test_alexnet_layers_as_csv_are_what_the_plain_script_gives(tmp_path, listed):
    out = tmp_path / "alexnet"
    layers = ("fc6", "fc7", "fc8")
    go(
        source=str(listed),
        out=str(out),
        model="alexnet",
        layers=layers,
        format="csv",
        normalize=False,
    )
    expected = plain(listed, "alexnet", ["classifier.2", "classifier.5", "classifier.6"])
    assert sorted(os.listdir(out)) == ["fc6.csv", "fc7.csv", "fc8.csv"]
    for n, (layer, dim) in enumerate(zip(layers, (4096, 4096, 1000), strict=True)):
        with open(out / f"{layer}.csv", newline="") as file:
            found = {row[0]: np.array(row[1:], float) for row in csv.reader(file)}
        assert list(found) == list(expected)
        for key, vectors in expected.items():
            assert found[key].shape == (dim,)
            np.testing.assert_allclose(found[key], vectors[n], rtol=0, atol=1e-4)
