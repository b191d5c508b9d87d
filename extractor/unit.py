"""From features to vectors of unit length."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from extractor.loader import Failure


def normalise(
    raw: NDArray[np.float32], spans: Sequence[slice] = (slice(None),)
) -> tuple[NDArray[np.float32], dict[int, Failure]]:
    """Scale features to unit length.

    Parameters
    ----------
    raw
        Shape (N, D), float32.
    spans
        Parts of a row that are scaled each for itself; together they are the row.

    Returns
    -------
    vectors
        Shape (N, D), float32; NaN in the rows where a part has no direction.
    faults
        For each of those rows a failure of class ``nan`` (a number is not finite) or ``zero``.
    """
    vectors, faults = checked(raw)
    for span in spans:
        exact = vectors[:, span].astype(
            np.float64
        )  # the square of a float32 can overflow or vanish
        norms = np.sqrt(np.einsum("nd,nd->n", exact, exact))
        for i in np.flatnonzero(norms == 0):
            text = "all features are zero"
            faults.setdefault(int(i), Failure("forward", "zero", text, transient=False))
            norms[i] = np.nan
        vectors[:, span] = exact / norms[:, None]
    vectors[list(faults)] = np.nan
    return vectors, faults


def checked(raw: NDArray[np.float32]) -> tuple[NDArray[np.float32], dict[int, Failure]]:
    """Return features as they are, but NaN in a whole row of which one is not finite.

    Parameters
    ----------
    raw
        Shape (N, D), float32.

    Returns
    -------
    vectors
        Shape (N, D), float32.
    faults
        For each such row a failure of class ``nan``.
    """
    text = "a feature is not a finite number"
    bad = np.flatnonzero(~np.isfinite(raw).all(axis=1))
    vectors = raw.copy()
    vectors[bad] = np.nan
    return vectors, {int(i): Failure("forward", "nan", text, transient=False) for i in bad}
