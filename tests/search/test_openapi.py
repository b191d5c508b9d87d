"""The API's document says the truth: schemathesis tries it on a server, and finds nothing."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from extractor.models import ModelRequest, open_model
from search.bodies import Limits
from search.following import Follower
from storage.spaces import SpaceInfo, ensure_space
from tests.search.serving import Running, running
from tests.search.stores import Store, digest_of, draw

EXAMPLES = 10
"""Questions to each address in each phase but the one that goes through all boundaries."""

HOOKS = '''
import schemathesis

UNFIT = {"unusable_picture", "wrong_vector", "no_words"}


@schemathesis.check
def only_what_no_schema_can_tell_is_refused(ctx, response, case):
    """A question that the document allows may hold a picture or a vector that is none."""
    if response.status_code == 400 and case.meta.generation.mode.is_positive:
        code = response.json()["error"]["code"]
        assert code in UNFIT, f"refused as {code}, though the document allows it"
'''

CONFIG = """
[[operations]]
include-path = "/api/search"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "404"]
"""

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def real_space(store: Store, tree: Path) -> SpaceInfo:
    """Return a space whose network can be run, with vectors of its own for the tree's images."""
    request = {"model": "shufflenet_v2_x0_5", "layer": None, "weights": "random:0"}
    model = open_model(ModelRequest(**request))
    spec = {**model.spec.to_json(), "dtype": "float32"}
    space = ensure_space(store.catalog, name="real", spec=spec, request=request, key="real")
    rng = np.random.default_rng(0)
    vectors = {}
    for digest in sorted({digest_of(path) for path in tree.rglob("*.png")}):
        x = rng.normal(size=space.dim)
        vectors[digest] = (x / np.linalg.norm(x)).astype(np.float32)
    store.index(tree, space, vectors=vectors)
    return space


@pytest.fixture
def server(store: Store, tree: Path, tmp_path: Path) -> Iterator[Running]:
    real_space(store, tree)
    limits = Limits(picture_bytes=1_000_000, json_bytes=100_000)
    with (
        Follower(store.catalog.home, device="cpu", cache=str(tmp_path / "cache")) as follower,
        running(follower, limits=limits) as made,
    ):
        yield made


def tried(server: Running, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Let schemathesis try the server by its document."""
    (folder / "hooks.py").write_text(HOOKS)
    (folder / "schemathesis.toml").write_text(CONFIG)
    command = [os.path.join(os.path.dirname(sys.executable), "schemathesis"), "run"]
    options = [f"--max-examples={EXAMPLES}", "--generation-deterministic", "--no-color"]
    options.append("--request-timeout=60")
    return subprocess.run(
        [*command, f"{server.url}/api/openapi.json", *options, *args],
        cwd=folder,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "hooks.py"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_schemathesis_finds_nothing(server: Running, tmp_path: Path) -> None:
    folder = tmp_path / "tries"
    folder.mkdir()
    sent = draw(tmp_path / "sent.png", 500).read_bytes()
    assert server.ask(sent)[0] == 200  # and the network is open
    done = tried(server, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Tested: 9" in done.stdout
    assert server.said == []
    assert server.ask({"image_id": 1})[0] == 200


def test_every_address_of_the_api_is_in_the_document(server: Running) -> None:
    document = server.ask(path="/api/openapi.json")[1]
    told = {
        (method.upper(), path)
        for path, methods in document["paths"].items()
        for method in methods
        if path != "/healthz"
    }
    assert told == {
        ("POST", "/api/search"),
        ("GET", "/api/images/{image_id}"),
        ("GET", "/api/thumbnails/{image_id}"),
        ("GET", "/api/status"),
        ("GET", "/api/folders"),
        ("GET", "/api/folders/{place}"),
        ("GET", "/api/map"),
        ("POST", "/api/retry"),
    }
    for methods in document["paths"].values():
        for operation in methods.values():
            refusals = {int(status) for status in operation["responses"] if int(status) >= 400}
            assert refusals >= {400, 401, 403, 405, 408, 413, 421, 431, 500, 503}
            for status in refusals:
                [schema] = operation["responses"][str(status)]["content"].values()
                assert schema["schema"] == {"$ref": "#/components/schemas/Failure"}


def test_the_token_is_in_the_document_where_there_is_one(store: Store, tree: Path) -> None:
    store.index(tree, store.space())
    with Follower(store.catalog.home) as follower, running(follower, "secret") as server:
        assert server.refused(path="/api/openapi.json")[0] == 401
        document = server.ask(path="/api/openapi.json", Authorization="Bearer secret")[1]
        assert document["security"] == [{"token": []}]
        assert document["paths"]["/healthz"]["get"]["security"] == []


def test_the_page_of_the_document_names_every_address(server: Running) -> None:
    page = server.send("GET", "/api/docs", Accept="text/html")
    assert page.status == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    text = page.body.decode()
    for path in server.ask(path="/api/openapi.json")[1]["paths"]:
        assert path in text
    for foreign in ("http://", "https://", "//cdn", "<script>", "style="):
        assert foreign not in text.replace("http://www.w3.org", "")
