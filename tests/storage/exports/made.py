"""Records for the tests of all formats: hard numbers, hard names."""

import numpy as np

from storage.exports.formats import open_writer
from storage.exports.records import Records

NAMES = [
    b"a/1.jpg",
    b"a b,c.jpg",
    b'say "cheese".jpg',
    b'"quoted".jpg',
    b"tab\there.jpg",
    b"line\nbreak.jpg",
    b"carriage\rreturn.jpg",
    "grüße/図.png".encode(),
    b"not utf-8 \xe9.jpg",
    b" space at both ends ",
    b"back\\slash.jpg",
    b"#hash.jpg",
]
LABELS = ["cat", None, "dog, big", 'the "cat"', "", "line\nbreak", "größer", "a\tb", "x", None]


def hard_numbers(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Return finite float32 of all magnitudes, shape ``(n, d)``: any bits but NaN and infinity."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 2**32, size=(n, d), dtype=np.uint32).view(np.float32)
    x = np.where(np.isfinite(x), x, np.float32(0.1))
    some = [0.0, -0.0, 1.0, 0.1, 1 / 3, 1e-45, 3.4028235e38, 1.1754944e-38, 16777216.0, 1e-5, 1e16]
    x.reshape(-1)[: len(some)] = np.array(some, np.float32)[: x.size]
    return x


def unit(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Return float32 vectors of unit length, shape ``(n, d)``."""
    x = np.random.default_rng(seed).standard_normal((n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def records(x: np.ndarray | dict[str, np.ndarray], start: int = 0) -> Records:
    """Return records around some vectors, with the hard names first."""
    vectors = x if isinstance(x, dict) else {"pool": x}
    n = len(next(iter(vectors.values())))
    every = [*NAMES, *(b"more/%d.jpg" % i for i in range(len(NAMES), start + n))]
    ids = every[start : start + n]
    return Records(
        ids=ids,
        paths=[b"/photos/" + id for id in ids],
        labels=[LABELS[i % len(LABELS)] for i in range(start, start + n)],
        vectors=vectors,
    )


def write(out, format, some, **options):
    """Write batches to an output; return the writer."""
    some = [some] if isinstance(some, Records) else some
    with open_writer(str(out), format, some[0].dims(), **options) as writer:
        for each in some:
            writer.write(each)
    return writer


def same_bits(one: np.ndarray, other: np.ndarray) -> None:
    """Hold two float32 arrays against each other, bit by bit: -0.0 is not 0.0."""
    assert one.dtype == other.dtype == np.float32
    np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32))
