"""What is written: images with their vectors, a batch at a time."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Records:
    """One batch of n images.

    Parameters
    ----------
    ids
        What tells each image from the others; need not be UTF-8.
    paths
        Absolute paths; ``b""`` for an image that has none, e.g. a row of an array.
    labels
        Class of each image, None where it has none.
    vectors
        By the layer's name, in the order in which they are written: shape ``(n, D)``, float32,
        finite.

    Raises
    ------
    ValueError
        The lengths differ, or the vectors are not what is said above.
    """

    ids: list[bytes]
    paths: list[bytes]
    labels: list[str | None]
    vectors: Mapping[str, FloatArray]

    def __post_init__(self) -> None:
        n = len(self.ids)
        if len(self.paths) != n or len(self.labels) != n:
            raise ValueError(
                f"{n} ids, {len(self.paths)} paths and {len(self.labels)} labels don't belong "
                "together"
            )
        for name, x in self.vectors.items():
            if x.dtype != np.float32 or x.ndim != 2 or len(x) != n:
                raise ValueError(
                    f"{n} ids ask for vectors float32 ({n}, D); {name} gives {x.dtype} {x.shape}"
                )
            if not np.isfinite(x).all():
                raise ValueError(f"the vectors of {name} are not all finite")

    def __len__(self) -> int:
        return len(self.ids)

    def dims(self) -> dict[str, int]:
        """Return the length of a vector by the layer's name."""
        return {name: x.shape[1] for name, x in self.vectors.items()}
