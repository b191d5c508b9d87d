"""Pictures that end a process, in the commands without a store, and sent to the server."""

import csv
import http.client
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import numpy as np
import pytest

from search.decoders import MOST
from storage.begun import NOTE
from storage.home import Home
from tests.extractor.detectors import ASKED, CLASSES, write_weights
from tests.reliability.children import children
from tests.reliability.poisoned.decoder import poison
from tests.reliability.test_poison import GOOD, NETWORK, index, poisoned, settle, tree

__all__ = ["tree"]

REGIONS = f"""
model: {ASKED["model"]}
weights: seeing.pth
num_classes: {CLASSES}
min_score: {ASKED["min_score"]}
num_boxes: {ASKED["num_boxes"]}
min_size: {ASKED["options"]["min_size"]}
max_size: {ASKED["options"]["max_size"]}
rpn_pre_nms_top_n_test: {ASKED["options"]["rpn_pre_nms_top_n_test"]}
"""
SIZES = ["--workers", "2", "--batch-size", "2", "--chunk-size", "5", "--device", "cpu"]


def start(words, out, time_s=60.0):
    child = children.Process(target=poisoned, args=([*words], out, time_s))
    child.start()
    return child


def go(words, out, time_s=60.0):
    """Run to the end; return the exit code and, where the run lived, its report."""
    child = start(words, out, time_s)
    child.join(timeout=300)
    if child.exitcode is None:
        child.kill()
        pytest.fail("the run hangs")
    if child.exitcode < 0:
        return child.exitcode, None
    with open(out) as file:
        return child.exitcode, json.load(file)


def extracting(source, out):
    return ["extract", str(source), str(out), *NETWORK, *SIZES, "--json"]


@pytest.fixture
def detector(tmp_path):
    write_weights(tmp_path / "seeing.pth")
    (tmp_path / "detector.yaml").write_text(REGIONS)
    return str(tmp_path / "detector.yaml")


def finding(source, out, detector):
    return ["regions", str(source), str(out), "--config-file", detector, *SIZES, "--json"]


def failed(out):
    """Return (name, stage, class) of each line of the list of failures."""
    with open(f"{out}.failures.tsv", newline="") as file:
        lines = list(csv.DictReader(file, delimiter="\t"))
    return [(os.path.basename(line["path"]), line["stage"], line["class"]) for line in lines]


def same(out, other):
    """Hold names, order and vectors of two TSVs against each other, up to a batch's rounding."""
    rows = [[line.split("\t") for line in path.read_text().splitlines()] for path in (out, other)]
    ours, theirs = ([id for id, _ in each] for each in rows)
    assert ours == theirs
    ours, theirs = (np.array([json.loads(values) for _, values in each]) for each in rows)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def notes(folder):
    try:
        return [name for name in os.listdir(folder) if NOTE.fullmatch(name)]
    except FileNotFoundError:
        return []


@pytest.mark.parametrize(("what", "failure_class"), [("crash", "crashed"), ("memory", "memory")])
def test_extract_gets_past_what_ended_it(tree, tmp_path, what, failure_class):
    out, said = tmp_path / "v.tsv", str(tmp_path / "said")
    words = extracting(tree, out)
    assert go(words, said)[0] == 0
    whole = out.rename(tmp_path / "whole.tsv")
    (tree / "06.jpg").write_bytes(poison(what))
    (tree / "11.jpg").write_bytes(poison(what, 2))
    runs = 0
    while (code := go(words, said)[0]) < 0:
        runs += 1
        assert notes(f"{out}.partial")
        assert runs <= 2, "there are two poisoned pictures"
    assert (code, runs >= 1) == (3, True)
    same(out, whole)
    wanted = [(name, "decode", failure_class) for name in ("06.jpg", "11.jpg")]
    assert failed(out) == wanted
    assert not os.path.exists(f"{out}.partial")


def test_extract_names_what_hangs_in_the_same_run(tree, tmp_path):
    (tree / "05.jpg").write_bytes(poison("hang"))
    code, report = go(extracting(tree, tmp_path / "v.tsv"), str(tmp_path / "said"), time_s=1.5)
    assert (code, report["written"], report["failures"]) == (3, GOOD, {"timeout": 1})


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_only_a_death_leaves_a_note_and_no_death_from_outside_blames_a_picture(tree, tmp_path, how):
    for n in range(GOOD):
        (tree / f"slow-{n}.jpg").write_bytes(poison("nap", n))
    out, said = tmp_path / "v.tsv", str(tmp_path / "said")
    child = start(extracting(tree, out), said)
    end = time.monotonic() + 60
    while not notes(f"{out}.partial") and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.5)  # some are finished, some are decoded
    os.kill(child.pid, how)
    child.join(timeout=60)
    assert child.exitcode == (130 if how == signal.SIGINT else -signal.SIGKILL)
    assert bool(notes(f"{out}.partial")) == (how == signal.SIGKILL)
    code, report = go(extracting(tree, out), said)
    assert (code, report["written"], report["failed"]) == (0, 2 * GOOD, 0)
    go(extracting(tree, tmp_path / "whole.tsv"), said)
    same(out, tmp_path / "whole.tsv")


def test_a_new_beginning_does_not_forget_what_ended_the_last_one(tree, tmp_path):
    (tree / "06.jpg").write_bytes(poison("crash"))
    words = [*extracting(tree, tmp_path / "v.tsv"), "--restart"]
    assert go(words, str(tmp_path / "said"))[0] < 0
    assert go(words, str(tmp_path / "said"))[0] == 3


@pytest.mark.parametrize("name", ["out", "out.parquet"])
def test_regions_get_past_what_ended_them(tree, tmp_path, detector, name):
    (tree / "06.jpg").write_bytes(poison("crash"))
    out, said = tmp_path / name, str(tmp_path / "said")
    words = finding(tree, out, detector)
    assert go(words, said)[0] < 0
    code, report = go(words, said)
    assert (code, report["written"], report["failures"]) == (3, GOOD, {"crashed": 1})
    assert failed(out) == [("06.jpg", "decode", "crashed")]
    if name == "out":  # has no other record of failures, and tries them in every run
        assert go(words, said)[1]["failures"] == {"crashed": 1}
        assert len(notes(out / ".lookalike-tmp")) == 1
        (tree / "06.jpg").write_bytes(poison("fine"))
        assert go(words, said)[0] == 0
        assert not (out / ".lookalike-tmp").exists()
    else:
        assert not os.path.exists(f"{out}.partial")


@pytest.mark.parametrize("name", ["out", "out.parquet"])
def test_regions_name_what_hangs_in_the_same_run(tree, tmp_path, detector, name):
    (tree / "05.jpg").write_bytes(poison("hang"))
    words = finding(tree, tmp_path / name, detector)
    code, report = go(words, str(tmp_path / "said"), time_s=1.5)
    assert (code, report["written"], report["failures"]) == (3, GOOD, {"timeout": 1})


@pytest.fixture
def home(tree, tmp_path):
    """Return a store of the good pictures."""
    settle()
    made = Home(str(tmp_path / "home"))
    assert index(made, tree)[0] == 0
    return made


@contextmanager
def serving(home, tmp_path, time_s):
    """Yield the server's process and its address."""
    out = tmp_path / "url"
    server = start(["--home", home.path, "serve", "--port", "0"], str(out), time_s)
    try:
        end = time.monotonic() + 60
        while "\n" not in (out.read_text() if out.exists() else "") and time.monotonic() < end:
            time.sleep(0.05)
        yield server, out.read_text().strip().removeprefix("http://")
    finally:
        server.kill()
        server.join()


def ask(address, body):
    """Return status, code of the error or None, and the seconds that it took."""
    kind = "image/jpeg" if isinstance(body, bytes) else "application/json"
    data = body if isinstance(body, bytes) else json.dumps(body)
    started = time.monotonic()
    with closing(http.client.HTTPConnection(address, timeout=60)) as conn:
        conn.request("POST", "/api/search", data, {"Content-Type": kind})
        response = conn.getresponse()
        said = json.loads(response.read())
    seconds = time.monotonic() - started
    if response.status == 200:
        return 200, None, seconds
    assert list(said) == ["error"]
    assert sorted(said["error"]) == ["code", "message"]
    return response.status, said["error"]["code"], seconds


def descendants(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        found = [int(child) for child in file.read().split()]
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children") as file:
            found += [int(child) for child in file.read().split()]
    return set(found)


def test_no_upload_ends_the_server_or_holds_it(home, tmp_path):
    with serving(home, tmp_path, time_s=1.5) as (server, address):
        assert ask(address, poison("fine"))[:2] == (200, None)
        for what in ("crash", "abort", "exit", "memory", "hang"):
            assert ask(address, poison(what))[:2] == (400, "unusable_picture"), what
        assert ask(address, poison("die"))[:2] == (503, "no_memory")
        with ThreadPoolExecutor(24) as pool:
            hanging = [pool.submit(ask, address, poison("hang", n)) for n in range(2 * MOST)]
            time.sleep(0.3)
            status, _, seconds = ask(address, {"image_id": 1, "k": 1})
            assert (status, seconds < 1.0) == (200, True), "another question waits for pictures"
            assert {one.result()[:2] for one in hanging} == {(400, "unusable_picture")}
            fine = [pool.submit(ask, address, poison("fine", n)) for n in range(16)]
            assert {one.result()[:2] for one in fine} == {(200, None)}
        assert server.is_alive()
        if os.path.exists("/proc/self/task"):
            assert 1 <= len(descendants(server.pid)) <= MOST


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="no /proc here")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_an_end_of_the_server_leaves_no_decoder(home, tmp_path, how):
    with serving(home, tmp_path, time_s=3.0) as (server, address), ThreadPoolExecutor(2) as pool:
        assert ask(address, poison("fine"))[0] == 200
        hanging = pool.submit(ask, address, poison("hang"))
        time.sleep(1.0)
        left = descendants(server.pid)
        assert left
        os.kill(server.pid, how)
        server.join(timeout=30)
        assert server.exitcode == (0 if how == signal.SIGTERM else -how)
        assert hanging.exception(timeout=30) is not None or hanging.result()[0] >= 400
        end = time.monotonic() + 30
        while any(os.path.exists(f"/proc/{pid}") for pid in left):
            assert time.monotonic() < end, "a decoder outlives its server"
            time.sleep(0.1)


def test_a_search_names_the_picture_that_crashes(home, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(poison("crash"))
    out = str(tmp_path / "said")
    child = start(["--home", home.path, "search", str(bad)], out)
    child.join(timeout=120)
    assert child.exitcode == 2
