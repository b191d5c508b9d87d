"""Reading, hashing and decoding ahead, with real files."""

import contextlib
import errno
import hashlib
import os
import socket
import threading
import time

import numpy as np
import pytest
from PIL import Image

from extractor.decode import decode
from extractor.loader import Failure, Source, load
from extractor.preprocess import Preprocess, pixels
from extractor.reading import Unread, opened
from extractor.threads import Room, Stopped, in_order
from tests.extractor.pictures import saved, scene

pytestmark = pytest.mark.usefixtures("no_thread_left")
P = Preprocess(resize=40, crop=32)


def everything(_digest):
    return True


def write(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return os.fsencode(path)


def pictures(folder, n):
    """Sources of ``n`` different pictures."""
    return [
        Source(100 + i, write(folder, f"{i}.jpg", saved(scene(60 + i, 50), "JPEG")))
        for i in range(n)
    ]


def one(path, **options):
    (loaded,) = load([Source(1, path)], **{"wants": everything, "preprocess": P, **options})
    return loaded


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
@pytest.mark.parametrize("ahead", [1, 7, 100])
def test_every_source_comes_back_in_order_with_its_own_pixels(tmp_path, workers, ahead):
    sources = pictures(tmp_path, 23)
    got = list(load(sources, wants=everything, preprocess=P, workers=workers, ahead=ahead))
    assert [loaded.key for loaded in got] == [source.key for source in sources]
    for source, loaded in zip(sources, got, strict=True):
        with open(source.path, "rb") as file:
            data = file.read()
        found = os.stat(source.path)
        assert loaded.failure is None
        assert loaded.digest == hashlib.sha256(data).digest()
        assert loaded.sig == (
            found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
        )  # fmt: skip
        assert loaded.read_at_ns <= time.time_ns()
        assert loaded.read_at_ns > time.time_ns() - 60 * 10**9
        np.testing.assert_array_equal(loaded.pixels, pixels(decode(data, target=40), P))


def test_seconds_are_told_by_step(tmp_path):
    path = write(tmp_path, "large.png", saved(Image.effect_noise((900, 900), 90), "PNG"))
    seconds = one(path).seconds
    assert 0 < seconds.hash < seconds.decode
    assert seconds.read > 0
    assert one(path, wants=lambda _: False).seconds.decode == 0


def test_only_what_is_wanted_is_decoded(tmp_path):
    sources = pictures(tmp_path, 6)
    sources.append(Source(7, write(tmp_path, "no picture.jpg", b"text")))
    asked = []

    def wants(digest):
        asked.append(digest)
        return len(asked) % 2 == 0

    got = list(load(sources, wants=wants, preprocess=P, workers=1))
    assert asked == [loaded.digest for loaded in got]
    assert [loaded.pixels is not None for loaded in got] == [False, True] * 3 + [False]
    assert all(loaded.failure is None for loaded in got)  # a picture nobody wants can't be bad


def test_a_bad_picture_is_a_failure_and_disturbs_no_other(tmp_path):
    sources = pictures(tmp_path, 9)
    half = saved(scene(300, 300), "JPEG")[:3000]
    write(tmp_path, "4.jpg", half)
    write(tmp_path, "6.jpg", b"")
    got = list(load(sources, wants=everything, preprocess=P))
    assert [i for i, loaded in enumerate(got) if loaded.pixels is None] == [4, 6]
    assert got[4].failure is not None
    assert (got[4].failure.stage, got[4].failure.failure_class) == ("decode", "truncated")
    assert got[4].digest == hashlib.sha256(half).digest()
    assert got[6].failure == Failure("decode", "empty", "the file has no bytes", transient=False)
    np.testing.assert_array_equal(got[5].pixels, one(sources[5].path).pixels)


# Reading


def test_a_file_that_vanished(tmp_path):
    path = os.fsencode(tmp_path / "gone.jpg")
    for missing in (path, write(tmp_path, "file", b"") + b"/below.jpg"):
        loaded = one(missing)
        assert loaded.failure is not None
        assert (loaded.failure.stage, loaded.failure.failure_class) == ("read", "vanished")
        assert loaded.failure.transient
        assert (loaded.digest, loaded.sig, loaded.pixels) == (None, None, None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = write(tmp_path, "secret.jpg", b"x")
    os.chmod(path, 0)
    assert one(path).failure == Failure("read", "permission", "Permission denied", transient=True)


@pytest.mark.parametrize(
    ("number", "name", "transient"),
    [
        (errno.EACCES, "permission", True),
        (errno.EIO, "io", True),
        (errno.ESTALE, "io", True),
        (errno.ENXIO, "not_a_file", False),
    ],
)
def test_what_the_system_says_has_its_class(tmp_path, monkeypatch, number, name, transient):
    path = write(tmp_path, "a.jpg", b"x")

    def broken(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("extractor.reading.os.read", broken)
    assert one(path).failure == Failure("read", name, os.strerror(number), transient)


def test_what_is_no_regular_file_neither_blocks_nor_is_tried_again(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)  # the path of a socket must be short
        listening.bind("socket.jpg")
        for name in ("fifo.jpg", "folder.jpg", "socket.jpg"):
            failure = one(os.fsencode(tmp_path / name)).failure
            assert failure is not None
            assert (failure.failure_class, failure.transient) == ("not_a_file", False)
    assert one(b"a\0b").failure == Failure(
        "read", "not_a_file", "the path holds a zero byte", transient=False
    )


def test_a_symbolic_link_is_followed(tmp_path):
    write(tmp_path, "real.jpg", saved(scene(), "JPEG"))
    (tmp_path / "link.jpg").symlink_to("real.jpg")
    assert one(os.fsencode(tmp_path / "link.jpg")).pixels is not None


def test_a_file_too_large_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "huge.jpg"
    with open(path, "wb") as file:
        file.truncate(256 * 2**20 + 1)  # sparse

    def never(*_):
        raise AssertionError("it was read")

    monkeypatch.setattr("extractor.reading.os.read", never)
    loaded = one(os.fsencode(path))
    message = "268,435,457 bytes, limit 268,435,456"
    assert loaded.failure == Failure("read", "too_large", message, transient=False)
    assert loaded.sig is not None
    assert loaded.sig[0] == 256 * 2**20 + 1


def grow(path):
    with open(path, "ab") as file:
        file.write(b"more")


def cut(path):
    os.truncate(path, 10)


def rewrite(path):
    with open(path, "r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(0, 0))


@pytest.mark.parametrize("change", [grow, cut, rewrite])
def test_a_file_that_changes_while_it_is_read_is_busy(tmp_path, change):
    path = write(tmp_path, "a.jpg", b"x" * 1000)
    before = os.stat(path)
    with opened(path, 10**6) as file:
        change(path)
        with pytest.raises(Unread) as caught:
            file.read()
    assert caught.value.failure.failure_class == "busy"
    assert caught.value.failure.transient
    assert caught.value.sig is not None
    assert caught.value.sig[:2] == (before.st_size, before.st_mtime_ns)


def test_the_loader_reports_busy_as_a_failure(tmp_path, monkeypatch):
    path = write(tmp_path, "a.jpg", b"x" * 1000)
    real = os.read

    def read(descriptor, n):
        grow(path)
        return real(descriptor, n)

    monkeypatch.setattr("extractor.reading.os.read", read)
    loaded = one(path)
    assert loaded.failure is not None
    assert loaded.failure.failure_class == "busy"
    assert loaded.digest is None


def test_a_read_in_pieces_is_put_together(tmp_path, monkeypatch):
    data = saved(scene(), "PNG")
    path = write(tmp_path, "a.png", data)
    real = os.read
    monkeypatch.setattr("extractor.reading.os.read", lambda fd, n: real(fd, min(n, 1000)))
    assert one(path).digest == hashlib.sha256(data).digest()


@pytest.mark.parametrize("step", ["extractor.reading.os.read", "extractor.loader.pixels"])
def test_want_of_memory_is_transient_at_every_step(tmp_path, monkeypatch, step):
    path = write(tmp_path, "a.png", saved(scene(), "PNG"))

    def short(*_):
        raise MemoryError

    monkeypatch.setattr(step, short)
    failure = one(path).failure
    assert failure is not None
    assert (failure.failure_class, failure.transient) == ("memory", True)
    assert failure.stage == ("read" if "os" in step else "decode")


def test_what_nobody_expected_of_a_picture_is_a_failure_too(tmp_path, monkeypatch):
    path = write(tmp_path, "a.png", saved(scene(), "PNG"))

    def wrong(*_):
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr("extractor.loader.pixels", wrong)
    assert one(path).failure == Failure(
        "decode", "error", "ZeroDivisionError('of all things')", transient=False
    )


def test_no_file_stays_open(tmp_path):
    sources = [*pictures(tmp_path, 5), Source(1, os.fsencode(tmp_path))]
    before = len(os.listdir("/proc/self/fd"))
    list(load(sources, wants=everything, preprocess=P))
    assert len(os.listdir("/proc/self/fd")) == before


# Threads


@contextlib.contextmanager
def later(act):
    """Call ``act`` on another thread in a moment."""
    timer = threading.Timer(0.05, act)
    timer.start()
    yield
    timer.join()


def loaders():
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader-")]


def test_no_more_is_read_ahead_than_allowed(tmp_path):
    sources = pictures(tmp_path, 30)
    taken = []

    def counted():
        for source in sources:
            taken.append(source.key)
            yield source

    results = load(counted(), wants=everything, preprocess=P, workers=2, ahead=5)
    for number in range(1, 10):
        next(results)
        time.sleep(0.02)
        assert len(taken) == number + 4
    results.close()


def test_closing_ends_the_threads(tmp_path):
    results = load(pictures(tmp_path, 30), wants=everything, preprocess=P, workers=3, ahead=9)
    next(results)
    assert len(loaders()) == 3
    results.close()
    assert loaders() == []


def test_stop_ends_it_though_a_thread_is_busy(tmp_path):
    stop, going = threading.Event(), threading.Event()
    seen = []

    def wants(_digest):
        seen.append(1)
        if len(seen) > 4:
            going.set()
            stop.wait(60)
        return True

    results = load(pictures(tmp_path, 30), wants=wants, preprocess=P, workers=2, stop=stop)
    started = time.monotonic()
    with later(lambda: going.wait(60) and stop.set()):
        got = list(results)
    assert len(got) <= 4
    assert time.monotonic() - started < 20
    assert loaders() == []
    assert len(seen) <= 6  # nothing was begun after the stop


def test_stop_that_is_set_before_yields_nothing(tmp_path):
    stop = threading.Event()
    stop.set()
    assert list(load(pictures(tmp_path, 3), wants=everything, preprocess=P, stop=stop)) == []


@pytest.mark.parametrize("error", [KeyError("catalog"), KeyboardInterrupt()])
def test_what_wants_raises_comes_out_and_ends_the_threads(tmp_path, error):
    asked = []

    def wants(_digest):
        asked.append(1)
        if len(asked) == 7:
            raise error
        return True

    with pytest.raises(type(error)):
        list(load(pictures(tmp_path, 30), wants=wants, preprocess=P, workers=2))
    assert loaders() == []
    assert len(asked) < 12


def test_an_error_in_the_consumer_ends_the_threads(tmp_path):
    def consume():
        for _ in load(pictures(tmp_path, 20), wants=everything, preprocess=P):
            raise RuntimeError("elsewhere")

    with pytest.raises(RuntimeError, match="elsewhere"):
        consume()
    assert loaders() == []


def test_room_is_never_overdrawn_and_lets_the_oversized_in_alone():
    room, held, most = Room(100), [], []
    lock = threading.Lock()

    def work(n, stopped):
        with room.hold(n, stopped):
            with lock:
                held.append(min(n, 100))
                most.append(sum(held))
            time.sleep(0.002)
            with lock:
                held.remove(min(n, 100))
        return n

    sizes = [30, 60, 90, 1, 500, 45] * 8
    stop = threading.Event()
    assert list(in_order(work, sizes, workers=6, ahead=20, stop=stop)) == sizes
    assert max(most) == 100


def test_who_waits_for_room_is_woken_by_a_stop():
    room, stop = Room(10), threading.Event()
    with room.hold(10, stop.is_set), later(stop.set), pytest.raises(Stopped):  # noqa: SIM117
        with room.hold(1, stop.is_set):
            pass


def test_a_thread_that_waits_for_room_ends_when_the_iterator_is_closed():
    room = Room(10)
    inside = threading.Event()

    def work(n, stopped):
        if n == 0:
            return n
        inside.set()
        with room.hold(10, stopped):
            return n

    with room.hold(10, inside.is_set):
        results = in_order(work, [0, 1, 2], workers=2, ahead=3, stop=threading.Event())
        assert next(results) == 0
        assert inside.wait(20)
        results.close()
    assert loaders() == []


def test_a_picture_that_waits_for_room_is_given_up_on_a_stop(tmp_path, monkeypatch):
    monkeypatch.setattr("extractor.loader.Room", lambda size: full if size == 2**30 else Room(size))
    full, stop = Room(10), threading.Event()
    with full.hold(10, stop.is_set), later(stop.set):
        got = list(load(pictures(tmp_path, 2), wants=everything, preprocess=P, stop=stop))
    assert got == []


def array(seed, shape=(50, 60, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_pictures_from_memory_come_like_those_of_files_with_the_same_pixels(tmp_path):
    sources, expected = [], []
    for key in range(9):
        image = Image.fromarray(array(key))
        file = write(tmp_path, f"{key}.png", saved(image, "PNG"))
        sources += [Source(2 * key, file), Source(2 * key + 1, b"", lambda key=key: array(key))]
        expected += [pixels(image, P)] * 2
    got = list(load(sources, wants=everything, preprocess=P, workers=3))
    assert [loaded.key for loaded in got] == list(range(18))
    assert all(loaded.failure is None for loaded in got)
    for loaded, want in zip(got, expected, strict=True):
        np.testing.assert_array_equal(loaded.pixels, want)


def test_the_digest_of_a_picture_is_that_of_its_shape_and_pixels():
    def digest(values):
        (loaded,) = load([Source(1, b"", lambda: values)], wants=everything, preprocess=P)
        assert loaded.sig[0] == values.nbytes
        return loaded.digest

    black = np.zeros((4, 6, 3), np.uint8)
    assert digest(black) == digest(black.copy()) == digest(black.transpose(0, 1, 2)[:, :])
    assert digest(black) != digest(black.reshape(6, 4, 3))
    assert digest(array(1)) != digest(array(2))
    assert digest(np.asfortranarray(array(1))) == digest(array(1))


def test_a_picture_that_can_not_be_made_fails_alone():
    why = Failure("read", "range", "1.5 is above 1", transient=False)

    def refuse():
        raise Unread(why)

    makers = [lambda: array(0), refuse, lambda: array(1)]
    got = list(
        load([Source(i, b"", m) for i, m in enumerate(makers)], wants=everything, preprocess=P)
    )
    assert [loaded.failure for loaded in got] == [None, why, None]
    assert got[1].digest is None
    assert got[1].sig is None


def test_a_picture_nobody_wants_is_not_resized():
    (loaded,) = load([Source(1, b"", lambda: array(0))], wants=lambda _: False, preprocess=P)
    assert loaded.pixels is None
    assert loaded.failure is None
    assert loaded.seconds.decode == 0


def test_a_picture_of_the_wrong_kind_is_a_failure_of_its_own():
    odd = np.zeros((4, 4, 2), np.uint16)
    (loaded,) = load([Source(1, b"", lambda: odd)], wants=everything, preprocess=P)
    assert (loaded.failure.stage, loaded.failure.failure_class) == ("decode", "error")
