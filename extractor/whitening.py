"""PCA whitening: vectors turned so that no two numbers correlate and each varies as the others do.

Learnt from vectors of unit length and followed by scaling to unit length again, as in H. Jégou and
O. Chum, "Negative evidences and co-occurrences in image retrieval: the benefit of PCA and
whitening", ECCV 2012.  All of it is computed in float64.  Importing this module loads no torch.
"""

import hashlib
import io
import os
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from extractor.errors import WhiteningError

if TYPE_CHECKING:
    from torch import nn

Floats = NDArray[np.float64]

_RANK_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Whitening:
    """What whitens vectors.

    Attributes
    ----------
    mean
        Shape (d,), float64, of the vectors that it was learnt from.
    projection
        Shape (D, d), float64: the D strongest principal directions, each divided by the standard
        deviation along it.
    n
        Number of vectors that it was learnt from.
    digest
        SHA-256 of the file, hexadecimal; empty for one that is in no file.
    """

    mean: Floats
    projection: Floats
    n: int
    digest: str = ""

    @property
    def dims(self) -> tuple[int, int]:
        """Numbers of a vector that goes in, and of one that comes out."""
        return self.projection.shape[1], self.projection.shape[0]

    def project(self, x: NDArray[np.floating]) -> Floats:
        """Return whitened vectors that are not of unit length yet.

        Parameters
        ----------
        x
            Shape (n, d), unit length.

        Returns
        -------
        array
            Shape (n, D), float64.
        """
        return np.asarray((x.astype(np.float64) - self.mean) @ self.projection.T)

    def transform(self, x: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return whitened vectors of unit length.

        Parameters
        ----------
        x
            Shape (n, d), unit length.

        Returns
        -------
        array
            Shape (n, D), float32; NaN in the rows that are the mean itself and have no direction.
        """
        out = self.project(x)
        norms = np.sqrt(np.einsum("nd,nd->n", out, out))
        norms[norms == 0] = np.nan
        vectors: NDArray[np.float32] = (out / norms[:, None]).astype(np.float32)
        return vectors

    def to_bytes(self) -> bytes:
        """Return the file; equal whitenings give equal bytes."""
        file = io.BytesIO()
        np.savez(file, mean=self.mean, projection=self.projection, n=np.int64(self.n))
        return file.getvalue()


class Moments:
    """Mean and covariance of vectors that come in blocks: memory for one block and (d, d).

    Blocks are joined as T. F. Chan, G. H. Golub and R. J. LeVeque do it (1979), which keeps the
    digits that a difference of sums would lose.

    Parameters
    ----------
    dim
        Numbers of a vector.
    """

    def __init__(self, dim: int) -> None:
        self.n = 0
        self.mean = np.zeros(dim)
        self._scatter = np.zeros((dim, dim))

    def add(self, x: NDArray[np.floating]) -> None:
        """Add vectors, shape (n, d)."""
        if not len(x):
            return
        block = x.astype(np.float64)
        mean = block.mean(axis=0)
        block -= mean
        apart, n = mean - self.mean, self.n + len(block)
        self._scatter += block.T @ block
        self._scatter += np.outer(apart, apart) * (self.n * len(block) / n)
        self.mean = self.mean + apart * (len(block) / n)
        self.n = n

    @property
    def covariance(self) -> Floats:
        """Shape (d, d), of the sample: divided by n - 1."""
        return self._scatter / (self.n - 1)

    def whitening(self, dim: int, stored: str = "float32") -> Whitening:
        """Return the whitening to the ``dim`` strongest directions.

        Parameters
        ----------
        dim
            Numbers of a whitened vector.
        stored
            Type that the vectors were rounded to: what varies less than its rounding is no
            direction of theirs.

        Raises
        ------
        WhiteningError
            There are too few vectors for so many directions, or they span fewer.
        """
        refuse_few(self.n, dim)
        values, vectors = np.linalg.eigh(self.covariance)
        values, vectors = values[::-1], vectors[:, ::-1]
        smallest = max(len(values) * _RANK_EPS, float(np.finfo(stored).eps) ** 2)
        rank = int(np.count_nonzero(values > values[0] * smallest)) if values[0] > 0 else 0
        if dim > rank:
            raise WhiteningError(
                f"{self.n:,} vectors span {rank:,} dimensions, and {dim:,} are asked for: "
                + (f"use --dim {rank} or less" if rank else "they are all the same")
            )
        directions = vectors[:, :dim].T
        # A direction and its opposite are one: take that whose largest number is positive.
        largest = np.take_along_axis(directions, abs(directions).argmax(axis=1)[:, None], axis=1)
        scale = np.sign(largest) / np.sqrt(values[:dim, None])
        return Whitening(self.mean.copy(), np.ascontiguousarray(directions * scale), self.n)


def refuse_few(n: int, dim: int) -> None:
    """Refuse to learn ``dim`` directions from no more than as many vectors.

    Raises
    ------
    WhiteningError
        Names both numbers.
    """
    if n > dim:
        return
    what = f"use a --dim below {n:,}, or index more images" if n > 1 else "index more images"
    raise WhiteningError(
        f"{n:,} vectors are too few to whiten to {dim:,} dimensions, which takes more than "
        f"{dim:,}: {what} first"
    )


def digest(path: str) -> str:
    """Return the SHA-256 of a whitening's file, hexadecimal.

    Raises
    ------
    WhiteningError
        The file can't be read.
    """
    return hashlib.sha256(_bytes(path)).hexdigest()


def read(path: str) -> Whitening:
    """Read a whitening.

    Raises
    ------
    WhiteningError
        The file is missing, or holds none.
    """
    data = _bytes(path)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            mean, projection, n = (arrays[name] for name in ("mean", "projection", "n"))
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise _broken(path, str(error)) from error
    shapes_fit = projection.ndim == 2 and mean.shape == projection.shape[1:] and n.shape == ()
    if not shapes_fit or mean.dtype != np.float64 or projection.dtype != np.float64:
        raise _broken(path, f"mean {mean.dtype} {mean.shape}, projection {projection.shape}")
    return Whitening(mean, projection, int(n), hashlib.sha256(data).hexdigest())


def apply(module: "nn.Module", whitening: Whitening) -> "nn.Module":
    """Return a module that gives a module's features scaled to unit length, then whitened.

    What it gives is not of unit length yet.  Imports torch.
    """
    from extractor.whitened import Whitened

    return Whitened(module, whitening.mean, whitening.projection).eval()


def _bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        raise WhiteningError(
            f"the whitening {path} is missing; bring back {os.path.basename(path)} from a backup, "
            "or drop its space and learn one again with `lookalike whiten`"
        ) from error
    except OSError as error:
        raise WhiteningError(f"the whitening {path} can't be read: {error.strerror}") from error


def _broken(path: str, why: str) -> WhiteningError:
    return WhiteningError(
        f"{path} is no whitening ({why}); bring it back from a backup, or drop its space and learn "
        "one again with `lookalike whiten`"
    )
