"""The two directions in which vectors differ most: principal components, with numpy alone."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

EXTRA = 14
"""Directions that are followed besides the two: what they catch does not blur these."""
ROUNDS = 8


@dataclass(frozen=True, eq=False)
class Plane:
    """A plane through the middle of some vectors.

    Parameters
    ----------
    mean
        Their middle, shape ``(d,)``, float32.
    axes
        Two directions, shape ``(d, 2)``, float32, unit length, at right angles; zeros where the
        vectors do not differ so many ways.
    shares
        What share of all variance lies along each, 0 to 1.
    """

    mean: FloatArray
    axes: FloatArray
    shares: tuple[float, float]

    def project(self, x: FloatArray) -> FloatArray:
        """Return where vectors, shape ``(n, d)``, lie on the plane: shape ``(n, 2)``, float32."""
        return np.asarray(x @ self.axes - self.mean @ self.axes, dtype=np.float32)


def principal_plane(x: FloatArray, seed: int = 0) -> Plane:
    """Return the plane of largest variance.

    By subspace iteration from a random start (Halko, Martinsson and Tropp 2011, algorithm 4.4, with
    the shorter of the two sides made orthogonal): what it costs grows with n times d and not with d
    squared.  Each axis points to where its largest number is positive, so that equal vectors give
    an equal plane.

    Parameters
    ----------
    x
        Vectors, shape ``(n, d)``, float32, ``n > 0``.
    seed
        Of the start.
    """
    n, d = x.shape
    mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = x - mean
    total = float(np.einsum("nd,nd->", centred, centred, dtype=np.float64))
    width = min(2 + EXTRA, n, d)
    basis = np.random.default_rng(seed).normal(size=(d, width)).astype(np.float32)
    for _ in range(ROUNDS):
        basis, _ = np.linalg.qr(centred.T @ (centred @ basis))  # (d, width)
    seen = (centred @ basis).astype(np.float64)  # (n, width)
    squares, turn = np.linalg.eigh(seen.T @ seen)  # ascending
    found = (basis @ turn[:, ::-1])[:, :2]
    axes = np.zeros((d, 2), np.float32)
    shares = [0.0, 0.0]
    for at in range(found.shape[1]):
        share = float(squares[-1 - at]) / total if total > 0 else 0.0
        if share > _NOTHING:
            shares[at] = share
            axes[:, at] = found[:, at] * np.sign(found[np.abs(found[:, at]).argmax(), at])
    return Plane(mean, axes, (shares[0], shares[1]))


_NOTHING = 1e-10
"""A share that is rounding: float32 keeps seven digits of a length, its square twice as many."""
