"""An npy array as a source: a picture a row, mapped and not loaded."""

import itertools
import threading
from collections.abc import Iterator
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from storage.errors import SourceError
from storage.sources.items import BadPixels, Item, Source
from storage.sources.npy import MappedNpy
from storage.sources.shard import Shard
from storage.sources.table import as_text

Values = Literal["unit", "byte"]
Sides = tuple[int | None, int | None, int | None]

_CHANNELS: Final = (1, 3, 4)
_WHITE: Final = {"unit": 1.0, "byte": 255.0}
_FORGET_BYTES: Final = 64 << 20  # rows that are read before their pages are given back


class ArraySource(Source):
    """The pictures of an array ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, H*W*C)``.

    One channel is grey, three are RGB, four are RGBA and laid over white.  The id is the number of
    the row, from 0.  uint8 is taken as it is; of other numbers it must be said where white lies.

    Parameters
    ----------
    path
        The npy file.
    labels
        An npy file with a label for each row: ``(N,)`` or ``(N, 1)``, whole numbers or text.
    sides
        Height, width and channels, which rows of numbers need; ``None`` where it is not said.
    values
        ``unit`` where white is 1, ``byte`` where it is 255.

    Raises
    ------
    SourceError
        A file is unreadable, or the shape or the numbers don't fit what was said.
    """

    def __init__(
        self,
        path: bytes,
        labels: bytes | None = None,
        sides: Sides = (None, None, None),
        values: Values | None = None,
    ) -> None:
        self.npy = MappedNpy(path)
        self.labels = None if labels is None else MappedNpy(labels)
        title, array = self.npy.title, self.npy.array
        self._shape = _picture_shape(title, array.shape, sides)
        self._white = _white(title, array.dtype, values)
        if self.labels is not None:
            _check_labels(self.labels, len(array))
        self._lock = threading.Lock()
        self._row_bytes = int(np.prod(self._shape)) * array.dtype.itemsize
        self._seen_bytes = 0
        height, width, channels = self._shape
        told = f"{len(array):,} pictures of {height}x{width}, {_told(channels)}, {array.dtype}"
        self.description = f"{title}: {told}" + (f" in 0-{self._white:g}" if self._white else "")

    @property
    def identity(self) -> dict[str, Any]:
        """What the two files are, and how their numbers were said to be meant."""
        return {
            "kind": "array",
            **self.npy.identity,
            "picture": list(self._shape),
            "white": self._white,
            "labels": None if self.labels is None else self.labels.identity,
        }

    def count_hint(self) -> int:
        """Return the number of rows."""
        return len(self.npy.array)

    def items(self, shard: Shard | None = None) -> Iterator[Item]:
        """Yield the rows in their order; see `Source.items`."""
        labels = itertools.repeat(None) if self.labels is None else label_texts(self.labels)
        for row, label in zip(range(self.count_hint()), labels, strict=False):
            name = b"%d" % row
            if shard is None or shard.holds(name):
                yield Item(name, b"", label, row)

    def pixels(self, row: int) -> NDArray[np.uint8]:
        """Read one row as a picture; see `Source.pixels`."""
        values = np.array(self.npy.array[row]).reshape(self._shape)
        self._forget()
        if self._white is not None:
            values = _scaled(values, self._white)
        if values.shape[2] == 4:
            return _over_white(values)
        return np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values

    def close(self) -> None:
        """Do nothing: the maps go when nobody reads them any more."""

    def _forget(self) -> None:
        with self._lock:
            self._seen_bytes += self._row_bytes
            due = self._seen_bytes >= _FORGET_BYTES
            if due:
                self._seen_bytes = 0
        if due:
            self.npy.forget()


def _picture_shape(title: str, shape: tuple[int, ...], sides: Sides) -> tuple[int, int, int]:
    """Return height, width and channels of a row of the array.

    Raises
    ------
    SourceError
        They can't be told, or differ from what was said.
    """
    if len(shape) == 2:
        found = _of_numbers(title, shape[1], sides)
    elif len(shape) in (3, 4):
        found = (shape[1], shape[2], shape[3] if len(shape) == 4 else 1)
    else:
        raise SourceError(
            f"{title} has the shape {shape}; pictures are (N, H, W), (N, H, W, C) or (N, H*W*C)"
        )
    if found[2] not in _CHANNELS:
        first = "; channels come last, move axis 1" if shape[1] in _CHANNELS else ""
        raise SourceError(f"{title} has {found[2]} channels, not 1, 3 or 4{first}")
    if any(said not in (None, has) for said, has in zip(sides, found, strict=True)):
        raise SourceError(
            f"{title} has pictures of height, width and channels {found}, which differs from "
            "--height, --width and --channels"
        )
    if 0 in found:
        raise SourceError(f"{title} has pictures of no pixels: shape {shape}")
    return found


def _of_numbers(title: str, numbers: int, sides: Sides) -> tuple[int, int, int]:
    height, width, channels = sides
    if height is None or width is None or channels is None:
        raise SourceError(
            f"{title} has rows of {numbers:,} numbers: say --height, --width and --channels"
        )
    if height * width * channels != numbers:
        raise SourceError(
            f"{title} has rows of {numbers:,} numbers, but height {height} x width {width} x "
            f"channels {channels} are {height * width * channels:,}"
        )
    return height, width, channels


def _white(title: str, dtype: np.dtype[Any], values: Values | None) -> float | None:
    """Return the value of white where the numbers have to be scaled, ``None`` for uint8.

    Raises
    ------
    SourceError
        The numbers are no pixels, or it was not said where white lies.
    """
    if dtype == np.uint8:
        if values == "unit":
            raise SourceError(f"{title} is uint8, whose white is 255: leave out --values unit")
        return None
    if dtype.kind not in "fiu":
        raise SourceError(f"{title} holds {dtype}, which are no pixels")
    if values is None:
        raise SourceError(
            f"{title} holds {dtype}: say --values unit where white is 1, "
            "or --values byte where it is 255"
        )
    return _WHITE[values]


def _scaled(values: NDArray[Any], white: float) -> NDArray[np.uint8]:
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= white):  # NaN is neither
        raise BadPixels("range", f"values from {low:g} to {high:g}, outside of 0 to {white:g}")
    scaled: NDArray[np.uint8] = np.rint(values.astype(np.float64) * (255 / white)).astype(np.uint8)
    return scaled


def _over_white(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay RGBA over white, rounded to nearest."""
    alpha = values[..., 3:].astype(np.uint32)
    mixed = values[..., :3] * alpha + 255 * (255 - alpha)
    laid: NDArray[np.uint8] = ((mixed + 127) // 255).astype(np.uint8)
    return laid


def _check_labels(labels: MappedNpy, n: int) -> None:
    shape, dtype = labels.array.shape, labels.array.dtype
    if shape not in ((n,), (n, 1)):
        raise SourceError(f"{labels.title} has the shape {shape}; {n:,} pictures need ({n},)")
    if dtype.kind not in "iubfUS":
        raise SourceError(f"{labels.title} holds {dtype}; labels are numbers or text")


def label_texts(labels: MappedNpy) -> Iterator[str | None]:
    """Yield the labels as text: numbers as they are written, nothing for an empty text."""
    flat = labels.array.reshape(-1)
    for start in range(0, len(flat), 4096):
        for value in flat[start : start + 4096].tolist():
            yield _label_text(value)


def _label_text(value: str | bytes | float) -> str | None:
    if isinstance(value, bytes):
        value = as_text(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) or None


def _told(channels: int) -> str:
    return {1: "grey", 3: "RGB", 4: "RGBA"}[channels]
