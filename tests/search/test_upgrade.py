"""A new model moves in beside the old one while a real server answers: no gap, nothing mixed."""

import contextlib
import http.client
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from sqlalchemy import select

from extractor.decode import decode
from extractor.engine import Engine
from extractor.models import Model, ModelRequest, open_model
from extractor.preprocess import pixels
from flows.samples import draw_families, draw_scene
from storage.catalog import Catalog
from storage.home import Home
from storage.spaces import get_space
from storage.tables import Image
from tests.flows.contents import age
from tests.flows.terminal import CHECKOUT, lookalike

OLD, NEW = "resnet18-avgpool", "shufflenet_v2_x0_5-mean"
MODELS = {OLD: "resnet18", NEW: "shufflenet_v2_x0_5"}
K = 5
QUERIES = 3
"""Of each kind."""
PAUSE_S = 0.1
SOON_S = 10.0
"""The new space answers within a second or two of the switch; this machine may be busy."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    draw_families(str(folder), 2, seed=7)
    age(str(folder))
    return folder


@pytest.fixture(scope="module")
def unseen() -> list[bytes]:
    """Return pictures that no root has, as the bytes of their files."""
    files = []
    for seed in range(QUERIES):
        out = io.BytesIO()
        draw_scene(random.Random(f"unseen-{seed}")).save(out, "JPEG")
        files.append(out.getvalue())
    return files


class Truth:
    """What a space must answer: every vector of its files compared, with numpy alone."""

    def __init__(self, home: Home, name: str, model: Model, unseen: list[bytes]) -> None:
        with Catalog.open(home, write=False) as catalog:
            space = get_space(catalog, name)
            with catalog.read() as conn:
                images = {digest: i for i, digest in conn.execute(select(Image.id, Image.digest))}
        self.fingerprint = space.fingerprint
        folder = Path(home.parts_dir(space.fingerprint))
        parts = sorted(path for path in folder.glob("*.npy") if path.name.count(".") == 1)
        ids = [np.load(path.with_suffix(".ids.npy")) for path in parts]
        self.ids = [images[row.tobytes()] for row in np.concatenate(ids)]
        self.x = np.concatenate([np.load(path) for path in parts]).astype(np.float64)
        made = [pixels(decode(data, target=256), model.preprocess) for data in unseen]
        by_picture = Engine(model, device="cpu").forward(np.stack(made))
        rng = np.random.default_rng(5)
        drawn = rng.normal(size=(QUERIES, self.x.shape[1]))
        drawn = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
        indexed = np.stack([self.x[self.ids.index(image)] for image in sorted(self.ids)[:QUERIES]])
        self.queries = {"image": indexed, "picture": by_picture, "vector": drawn}

    def best(self, kind: str, number: int) -> list[float]:
        return np.sort(self.x @ self.queries[kind][number])[::-1][:K].tolist()

    def right(self, kind: str, number: int, hits: list[dict[str, Any]]) -> bool:
        """Say whether the hits are the K best, each with its own score."""
        scores = dict(zip(self.ids, self.x @ self.queries[kind][number], strict=True))
        found = [hit["score"] for hit in hits]
        return (
            len({hit["image_id"] for hit in hits}) == K
            and np.allclose(found, [scores[hit["image_id"]] for hit in hits], atol=1e-5)
            and np.allclose(found, self.best(kind, number), atol=1e-5)
        )


@dataclass(frozen=True)
class Reply:
    """One answer, and when it was asked for and came."""

    kind: str
    number: int
    asked_at: float
    came_at: float
    status: int
    value: dict[str, Any]

    @property
    def space(self) -> str | None:
        return self.value.get("space")


@dataclass(eq=False)
class Client(threading.Thread):
    """Asks without end, on one connection, questions of one kind.

    One that asks with vectors has those of both spaces; it goes by the space that it was last told,
    in an answer or, where its vector does not fit any more, in the error.
    """

    url: str
    kind: str
    unseen: list[bytes]
    done: threading.Event
    images: list[int]
    vectors: dict[str, np.ndarray]
    replies: list[Reply] = field(default_factory=list)
    trouble: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def run(self) -> None:
        try:
            connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=60)
            with contextlib.closing(connection):
                self._ask_on(connection)
        except BaseException as error:  # noqa: BLE001 - a gap in the service shows here
            self.trouble.append(error)

    def _ask_on(self, connection: http.client.HTTPConnection) -> None:
        space, number = OLD, 0
        while not self.done.wait(PAUSE_S):
            number = (number + 1) % QUERIES
            asked_at = time.monotonic()
            path, body, kind = self._question(number, space)
            connection.request("POST", path, body, {"Content-Type": kind})
            response = connection.getresponse()
            value = json.loads(response.read())
            reply = Reply(self.kind, number, asked_at, time.monotonic(), response.status, value)
            self.replies.append(reply)
            if reply.status == 400:
                space = NEW
            space = reply.space or space

    def _question(self, number: int, space: str) -> tuple[str, bytes, str]:
        if self.kind == "picture":
            return f"/api/search?k={K}", self.unseen[number], "image/jpeg"
        asked: dict[str, Any] = {"image_id": self.images[number]}
        if self.kind == "vector":
            asked = {"vector": self.vectors[space][number].tolist()}
        return "/api/search", json.dumps({**asked, "k": K}).encode(), "application/json"


class Shop:
    """A home, with its command line."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.args = ["--home", home.path]
        if home.catalog_url:
            self.args += ["--catalog-url", home.catalog_url]

    def run(self, *args: str) -> str:
        return lookalike(*args, *self.args).stdout

    def index(self, space: str, *args: str) -> None:
        choice = ("--model", MODELS[space], "--weights", "random:0", "--no-prefect")
        self.run("index", *args, *choice)

    @contextlib.contextmanager
    def serving(self) -> Iterator[tuple[subprocess.Popen[str], str]]:
        command = [sys.executable, "-m", "flows.cli", "serve", "--port", "0", "--device", "cpu"]
        with subprocess.Popen(
            [*command, *self.args],
            cwd=CHECKOUT,
            env={**os.environ, "LOOKALIKE_TOKEN": ""},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                assert process.stdout is not None
                yield process, process.stdout.readline().strip()
            finally:
                process.kill()


def wait_for(count: int, clients: list[Client]) -> None:
    """Wait until each client has so many more replies, or none comes any more."""
    due = {client: len(client.replies) + count for client in clients}
    deadline = time.monotonic() + 120
    while any(len(client.replies) < due[client] and client.is_alive() for client in clients):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def hold_answers(replies: list[Reply], truth: dict[str, Truth]) -> None:
    """Hold each answer against the truth of the space that it names, and of no other."""
    for number in range(QUERIES):
        for kind in ("image", "picture"):  # else the two could be taken for each other
            best = [truth[name].best(kind, number) for name in (OLD, NEW)]
            assert np.abs(np.subtract(*best)).max() > 1e-4
    for reply in replies:
        if reply.status != 200:
            assert (reply.kind, reply.status) == ("vector", 400)
            message = f"the vector has 512 numbers, the space '{NEW}' has 1024"
            assert reply.value == {"error": {"code": "wrong_vector", "message": message}}
        else:
            assert reply.space is not None
            assert truth[reply.space].right(reply.kind, reply.number, reply.value["hits"])


def hold_order(replies: list[Reply], switching_at: float, switched_at: float) -> None:
    """Hold the moments of the answers against that of the switch."""
    new = [reply for reply in replies if reply.space != OLD]
    first = min(new, key=lambda reply: reply.came_at)
    assert switching_at < first.came_at < switched_at + SOON_S
    assert all(reply.space != OLD for reply in replies if reply.asked_at > first.came_at)
    waits = [reply.came_at - reply.asked_at for reply in replies]
    print(
        f"{len(replies)} answers, {len(new)} from the new space, the first"
        f" {first.came_at - switched_at:+.2f} s after the switch; the longest took"
        f" {max(waits):.2f} s, the median {np.median(waits):.3f} s"
    )


def hold_client(client: Client) -> None:
    """Hold a client's answers: the old space, at most one vector that does not fit, the new one."""
    spaces = [reply.space for reply in client.replies]
    misfits = spaces.count(None)
    assert misfits <= (client.kind == "vector")
    assert spaces == [OLD] * spaces.count(OLD) + [None] * misfits + [NEW] * spaces.count(NEW)
    assert min(spaces.count(OLD), spaces.count(NEW)) >= 10


def test_an_upgrade_has_no_gap(catalog_home: Home, pictures: Path, unseen: list[bytes]) -> None:
    shop = Shop(catalog_home)
    shop.index(OLD, str(pictures))
    models = {name: open_model(ModelRequest(MODELS[name], None, "random:0")) for name in MODELS}
    truth = {OLD: Truth(shop.home, OLD, models[OLD], unseen)}
    rng = np.random.default_rng(5)
    drawn = rng.normal(size=(QUERIES, models[NEW].spec.dim))
    drawn = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    vectors = {OLD: truth[OLD].queries["vector"], NEW: drawn}
    images = sorted(truth[OLD].ids)[:QUERIES]
    done = threading.Event()
    with shop.serving() as (process, url):
        kinds = ["image", "image", "picture", "vector", "vector"]
        clients = [Client(url, kind, unseen, done, images, vectors) for kind in kinds]
        for client in clients:
            client.start()
        try:
            wait_for(5, clients)  # the network is loaded by now
            filling_at = time.monotonic()
            shop.index(NEW)
            truth[NEW] = Truth(shop.home, NEW, models[NEW], unseen)
            wait_for(5, clients)
            switching_at = time.monotonic()
            assert shop.run("spaces", "use", NEW) == f"space {NEW} is the current one\n"
            switched_at = time.monotonic()
            wait_for(20, clients)
            shop.run("spaces", "drop", OLD)
            assert os.listdir(shop.home.spaces_dir) == [truth[NEW].fingerprint[:16]]
            wait_for(20, clients)
        finally:
            done.set()
            for client in clients:
                client.join()
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 0
    assert [client.trouble for client in clients] == [[] for _ in clients]
    replies = [reply for client in clients for reply in client.replies]
    hold_answers(replies, truth)
    hold_order([r for r in replies if r.asked_at > filling_at], switching_at, switched_at)
    for client in clients:
        hold_client(client)
