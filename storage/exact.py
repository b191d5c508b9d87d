"""Exact search: every vector compared, with numpy alone."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from storage.errors import PartError

FloatArray = npt.NDArray[np.float32]
RowArray = npt.NDArray[np.int64]

_SCORES_BYTES = 256 << 20


def search_exact(
    blocks: Iterable[tuple[RowArray, FloatArray]], xq: FloatArray, k: int
) -> tuple[FloatArray, RowArray]:
    """Return the k rows of largest inner product for each query.

    Parameters
    ----------
    blocks
        Pairs of rows, shape ``(m,)``, int64, and their vectors, shape ``(m, d)``, float32.
    xq
        Queries, shape ``(nq, d)``, float32.
    k
        How many, at least 1.

    Returns
    -------
    D, I
        Shapes ``(nq, k)``: inner products, float32, largest first, and rows, int64.  Equal
        products stand in the order of their rows.  Where fewer than k rows are there, row -1
        with product -inf fills up.

    Raises
    ------
    PartError
        A vector is damaged: it is not finite.
    """
    best_d = np.full((len(xq), k), -np.inf, np.float32)
    best_i = np.full((len(xq), k), -1, np.int64)
    for rows, x in blocks:
        if not len(rows):
            continue
        step = max(1, _SCORES_BYTES // (4 * len(rows)))
        for start in range(0, len(xq), step):
            scores = xq[start : start + step] @ x.T  # (nq, m)
            _merge(best_d[start : start + step], best_i[start : start + step], scores, rows)
    return best_d, best_i


def is_in(rows: RowArray, among: RowArray) -> npt.NDArray[np.bool_]:
    """Return which ``rows`` are ``among``, ascending: a mask of shape ``(n,)``."""
    if not len(among):
        return np.zeros(len(rows), np.bool_)
    places = np.minimum(np.searchsorted(among, rows), len(among) - 1)
    return np.asarray(among[places] == rows)


def _merge(best_d: FloatArray, best_i: RowArray, scores: FloatArray, rows: RowArray) -> None:
    """Merge a block's scores, shape ``(nq, m)``, into the k best so far, in place."""
    k = best_d.shape[1]
    m = len(rows)
    tops = scores.max(axis=1)
    if np.isnan(tops).any():  # no comparison with it is true: the whole block would be left out
        row = rows[np.isnan(scores).any(axis=0)][0]
        raise PartError(
            f"the vector of row {row} is damaged; `lookalike check --deep --repair` sorts it out"
        )
    floors = np.partition(scores, max(m - k, 0), axis=1)[:, max(m - k, 0)]
    for query in np.flatnonzero(tops >= best_d[:, -1]):
        # All that equal the k-th best, so that the lower row wins and not the partition's whim.
        at = np.flatnonzero(scores[query] >= floors[query])
        d = np.concatenate([best_d[query], scores[query, at]])
        i = np.concatenate([best_i[query], rows[at]])
        order = np.lexsort((i, -d))[:k]
        best_d[query], best_i[query] = d[order], i[order]
