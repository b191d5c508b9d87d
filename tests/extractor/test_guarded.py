"""A picture that ends the process that decodes it, and those that share its fate or not."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from extractor import decode, guarded
from extractor.guarded import Bounds, Guarded
from extractor.loader import Failure, Source, load
from extractor.preprocess import Preprocess
from extractor.threads import Stopped
from tests.extractor.pictures import saved, scene
from tests.reliability.poisoned import decoder
from tests.reliability.poisoned.decoder import poison

P = Preprocess(resize=40, crop=32)
QUICK = Bounds(time_s=1.5, memory_bytes=2**30)


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    folder = os.path.dirname(decoder.__file__)
    monkeypatch.setenv("PYTHONPATH", folder)
    monkeypatch.setattr(decode, "_FORMATS", decode._FORMATS)
    decoder.install()
    monkeypatch.setattr(guarded, "BOUNDS", QUICK)
    before = set(threading.enumerate())
    yield
    decoder.released.set()
    for thread in set(threading.enumerate()) - before:  # those that hung end now
        thread.join(20)
        assert not thread.is_alive()
    decoder.released.clear()


@pytest.fixture
def aside():
    with_process = Guarded(QUICK)
    yield with_process
    with_process.close()


def never():
    return False


def here(folder, data, name="a.jpg"):
    """Return what a thread of this process makes of some bytes."""
    path = folder / name
    path.write_bytes(data)
    (got,) = load([Source(0, os.fsencode(path))], wants=lambda _: True, preprocess=P)
    return got.failure if got.pixels is None else got.pixels


def test_pixels_and_failures_are_those_of_a_thread(tmp_path, aside):
    whole = saved(scene(60, 50), "JPEG")
    for data in (whole, saved(scene(50, 60), "PNG"), whole[:300], b"", b"nothing", whole):
        ours, theirs = aside.decode(data, P, never), here(tmp_path, data)
        assert isinstance(ours, Failure) == isinstance(theirs, Failure)
        np.testing.assert_array_equal(ours, theirs)


def test_a_picture_as_it_is(aside):
    data = saved(scene(60, 50), "PNG")
    np.testing.assert_array_equal(aside.decode(data, None, never), np.array(decode.decode(data)))


@pytest.mark.parametrize(
    ("what", "failure_class", "said"),
    [
        ("crash", "crashed", "SIGSEGV"),
        ("abort", "crashed", "SIGABRT"),
        ("exit", "crashed", "exit code 0"),
        ("hang", "timeout", "1.5 s"),
        ("memory", "memory", "1.0 GiB"),
    ],
)
def test_the_culprit_is_named_for_good_and_the_next_picture_is_decoded(
    aside, what, failure_class, said
):
    failure = aside.decode(poison(what), P, never)
    assert (failure.stage, failure.failure_class) == ("decode", failure_class)
    assert said in failure.message
    assert not failure.transient
    assert aside.decode(poison("fine"), P, never).shape == (3, 32, 32)


def test_who_was_killed_by_somebody_else_is_not_blamed(aside):
    failure = aside.decode(poison("die"), P, never)
    assert (failure.failure_class, failure.transient) == ("killed", True)
    assert "SIGKILL" in failure.message


def test_a_crash_that_comes_of_what_was_decoded_before_blames_nobody(aside):
    assert aside.decode(poison("fine"), P, never).shape == (3, 32, 32)
    assert aside.decode(poison("alone"), P, never).shape == (3, 32, 32)


def test_a_process_that_does_not_start_blames_no_picture(aside, monkeypatch):
    monkeypatch.setattr(guarded.sys, "executable", "/bin/false")
    failure = aside.decode(saved(scene(60, 50), "PNG"), P, never)
    assert (failure.failure_class, failure.transient) == ("killed", True)
    monkeypatch.setattr(guarded.sys, "executable", "/nonexistent")
    assert aside.decode(b"", P, never).transient


def test_a_stop_ends_a_decoding_that_hangs(aside):
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    started = time.monotonic()
    with pytest.raises(Stopped):
        aside.decode(poison("hang"), P, stop.is_set)
    assert time.monotonic() - started < QUICK.time_s


def children():
    """Return the processes that this one has started and that are still there."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(pid) for task in tasks for pid in task.read_text().split()}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_process_is_left_after_loading(tmp_path):
    before = children()  # of the suite's own
    (tmp_path / "a.jpg").write_bytes(saved(scene(60, 50), "JPEG"))
    source = Source(0, os.fsencode(tmp_path / "a.jpg"), suspect=True)
    (got,) = load([source], wants=lambda _: True, preprocess=P)
    np.testing.assert_array_equal(got.pixels, here(tmp_path, saved(scene(60, 50), "JPEG")))
    assert children() == before


@pytest.mark.parametrize("workers", [1, 3])
def test_a_thread_that_hangs_is_replaced_and_everything_else_comes_in_order(tmp_path, workers):
    sources = []
    for key in range(12):
        path = tmp_path / f"{key:02}.jpg"
        path.write_bytes(poison("hang" if key in (3, 4) else "fine", key))
        sources.append(Source(key, os.fsencode(path)))
    got = list(load(sources, wants=lambda _: True, preprocess=P, workers=workers, ahead=4))
    assert [loaded.key for loaded in got] == list(range(12))
    for loaded in got:
        if loaded.key in (3, 4):
            assert loaded.failure.failure_class == "timeout"
            assert loaded.digest is not None
        else:
            assert (loaded.pixels[0] == loaded.key).all()  # its own pixels


def test_what_a_slow_thread_has_made_too_late_counts_once(tmp_path, monkeypatch):
    monkeypatch.setattr(guarded, "BOUNDS", Bounds(1.0, 2**30))  # who dozes takes longer
    sources = []
    for key, what in enumerate(["doze", "fine", "nap", "nap"]):
        path = tmp_path / f"{key}.jpg"
        path.write_bytes(poison(what, key))
        sources.append(Source(key, os.fsencode(path)))
    got = list(load(sources, wants=lambda _: True, preprocess=P, workers=1))
    assert [loaded.key for loaded in got] == [0, 1, 2, 3]
    assert [loaded.failure is None for loaded in got] == [False, True, True, True]
    assert got[0].failure.failure_class == "timeout"


def test_a_stop_does_not_wait_for_a_thread_that_hangs(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(poison("hang"))
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    started = time.monotonic()
    found = load([Source(0, os.fsencode(path))], wants=lambda _: True, preprocess=P, stop=stop)
    assert list(found) == []
    assert time.monotonic() - started < 2 * QUICK.time_s


def test_the_room_that_a_hung_thread_holds_is_given_to_others(tmp_path, monkeypatch):
    monkeypatch.setattr("extractor.loader._MOST_PIXEL_BYTES", 40 * 30 * 8)  # one picture
    sources = []
    for key in range(6):
        path = tmp_path / f"{key}.jpg"
        path.write_bytes(poison("fine" if key else "hang", key))
        sources.append(Source(key, os.fsencode(path)))
    got = list(load(sources, wants=lambda _: True, preprocess=P, workers=3))
    assert [loaded.failure is None for loaded in got] == [False, *[True] * 5]


def test_signals_of_the_terminal_do_not_reach_the_process(aside):
    assert aside.decode(poison("fine"), P, never).shape == (3, 32, 32)
    child = aside._child._process.pid
    assert os.getpgid(child) != os.getpgid(0)
    os.kill(child, signal.SIGKILL)  # between two pictures
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert aside.decode(poison("fine"), P, never).shape == (3, 32, 32)
