"""Regions of images as one Parquet file, a row for each image.

======================  =====================================================================
``id path label``       text; ``path`` and ``label`` null where there is none
``width height``        int32, pixels of the upright picture
``boxes``               list of four float32: left, top, right, bottom
``classes scores``      lists, int64 and float32
``features``            list of D float32
======================  =====================================================================
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from storage.exports.output import Output
from storage.exports.parquet import require_pyarrow
from storage.exports.stage import Stage

GROUP_BYTES: Final = 64 << 20
"""Features of one row group: what a writer keeps, and what a reader has to take at once."""
_TEXTS: Final = ("id", "path", "label")

Array = npt.NDArray[Any]


class RegionTable:
    """A Parquet file that grows by batches of images.

    Parameters
    ----------
    stage, output
        Where it is made, and what it is called.
    dim
        Numbers of a region's features.
    """

    def __init__(self, stage: Stage, output: Output, dim: int) -> None:
        self._pa = pa = require_pyarrow()
        self._dim = dim
        self._group = max(1, GROUP_BYTES // (4 * dim))  # regions
        self._kept: list[Any] = []
        self._n_kept = 0
        numbers = {
            "width": pa.int32(),
            "height": pa.int32(),
            "boxes": pa.list_(pa.list_(pa.float32(), 4)),
            "classes": pa.list_(pa.int64()),
            "scores": pa.list_(pa.float32()),
            "features": pa.list_(pa.list_(pa.float32(), dim)),
        }
        fields = [pa.field(name, pa.string()) for name in _TEXTS]
        fields += [pa.field(name, kind, nullable=False) for name, kind in numbers.items()]
        self._schema = pa.schema(fields)
        # Neither a dictionary nor statistics are of use for numbers like these.
        self._writer = pa.parquet.ParquetWriter(
            stage.create(output.names[0]),
            self._schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
            write_statistics=list(_TEXTS),
        )
        stage.at_end(self._writer.close)

    def append(
        self, texts: Sequence[tuple[str, str | None, str | None]], arrays: Mapping[str, Array]
    ) -> None:
        """Append images.

        Parameters
        ----------
        texts
            Id, path and label of each of n images.
        arrays
            ``sizes`` (n, 2), width and height; ``counts`` (n,), regions of each image; and of all
            their regions ``boxes`` (m, 4), ``classes`` (m,), ``scores`` (m,), ``features`` (m, D).
        """
        pa = self._pa
        ends = np.concatenate([[0], np.cumsum(arrays["counts"])]).astype(np.int32)
        step = max(1, self._group // max(1, int(arrays["counts"].max(initial=1))))
        for start in range(0, len(texts), step):
            of = slice(start, start + step)
            edges = ends[start : start + step + 1]
            of_regions = slice(int(edges[0]), int(edges[-1]))
            offsets = pa.array(edges - edges[0], pa.int32())

            def listed(name: str, at: slice = of_regions, offsets: Any = offsets) -> Any:
                values = np.ascontiguousarray(arrays[name][at])
                inner = pa.array(values.reshape(-1))
                if values.ndim == 2:
                    inner = pa.FixedSizeListArray.from_arrays(inner, values.shape[1])
                return pa.ListArray.from_arrays(offsets, inner)

            columns = [pa.array(column, pa.string()) for column in zip(*texts[of], strict=True)]
            columns += [pa.array(arrays["sizes"][of, i], pa.int32()) for i in range(2)]
            columns += [listed(name) for name in ("boxes", "classes", "scores", "features")]
            self._keep(pa.RecordBatch.from_arrays(columns, schema=self._schema), of_regions)

    def _keep(self, batch: Any, regions: slice) -> None:
        self._kept.append(batch)
        self._n_kept += regions.stop - regions.start + len(batch)
        if self._n_kept >= self._group:
            self._flush()

    def _flush(self) -> None:
        if self._kept:
            table = self._pa.Table.from_batches(self._kept, self._schema)
            self._writer.write_table(table, row_group_size=len(table))
        self._kept, self._n_kept = [], 0

    def finish(self) -> None:
        """Write what is left, and the footer."""
        self._flush()
        self._writer.close()
