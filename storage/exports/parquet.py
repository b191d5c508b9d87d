"""Parquet files, and the folders of clip-retrieval."""

import os
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from storage.exports.arrays import NumberFile
from storage.exports.errors import ExportError
from storage.exports.output import Output
from storage.exports.records import FloatArray, Records
from storage.exports.stage import Stage
from storage.roots import display

GROUP_BYTES = 64 << 20
"""Vectors of one row group: what a writer keeps, and what a reader has to take at once."""
GROUP_ROWS = 65_536
FILE_ROWS = 1_000_000
"""Vectors of one file of clip-retrieval, as its own writer has it."""
_RESERVED = ("id", "path", "label")


def require_pyarrow() -> Any:
    """Return pyarrow.

    Raises
    ------
    ExportError
        It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ExportError(
            "Parquet files are written by pyarrow: pip install 'lookalike[parquet]'"
        ) from None
    return pyarrow


class Table:
    """A Parquet file that grows by batches, in row groups of bounded size.

    Parameters
    ----------
    stage, file
        A new file of the stage.
    texts
        Names of the text columns.
    vectors
        Lengths of the vector columns by name, shape ``(n, length)``, float32.
    """

    def __init__(
        self, stage: Stage, file: BinaryIO, texts: tuple[str, ...], vectors: Mapping[str, int]
    ) -> None:
        self._pa = pa = require_pyarrow()
        self._vectors = dict(vectors)
        columns = [pa.field(name, pa.string()) for name in texts]
        for name, dim in vectors.items():
            columns.append(pa.field(name, pa.list_(pa.float32(), dim), nullable=False))
        self._schema = pa.schema(columns)
        width = 4 * sum(vectors.values())
        self._group = max(1, min(GROUP_ROWS, GROUP_BYTES // max(1, width)))
        self._kept: list[Any] = []
        self._n_kept = 0
        # Neither a dictionary nor zstd makes the numbers smaller; they only cost time.
        compression = dict.fromkeys(texts, "zstd")
        compression |= {f"{name}.list.element": "none" for name in vectors}
        self._writer = pa.parquet.ParquetWriter(
            file,
            self._schema,
            compression=compression,
            use_dictionary=[name for name in texts if name == "label"],
            write_statistics=list(texts),
        )
        stage.at_end(self._writer.close)

    def append(self, texts: list[list[str | None]], vectors: Mapping[str, FloatArray]) -> None:
        """Append rows; they are on their way to the file once a row group is full."""
        pa = self._pa
        n = len(texts[0])
        for start in range(0, n, self._group):
            at = slice(start, start + self._group)
            arrays = [pa.array(column[at], pa.string()) for column in texts]
            for name, dim in self._vectors.items():
                numbers = pa.array(np.array(vectors[name][at], order="C").reshape(-1))
                arrays.append(pa.FixedSizeListArray.from_arrays(numbers, dim))
            self._keep(pa.RecordBatch.from_arrays(arrays, schema=self._schema))

    def _keep(self, batch: Any) -> None:
        self._kept.append(batch)
        self._n_kept += len(batch)
        while self._n_kept >= self._group:
            self._flush(self._group)

    def _flush(self, n: int) -> None:
        table = self._pa.Table.from_batches(self._kept, self._schema)
        if n:
            self._writer.write_table(table.slice(0, n), row_group_size=n)
        self._kept = table.slice(n).to_batches()
        self._n_kept -= n

    def finish(self) -> None:
        """Write what is left, and the footer."""
        self._flush(self._n_kept)
        self._writer.close()


class ParquetBody:
    r"""Columns ``id``, ``path``, ``label``, and ``vector`` or one a layer.

    ``path`` and ``label`` are null where an image has none.  Parquet's text is UTF-8: other bytes
    of a name stand there as ``\xe9``.
    """

    def __init__(self, stage: Stage, output: Output, dims: Mapping[str, int]) -> None:
        require_pyarrow()
        if len(dims) > 1 and (taken := [layer for layer in dims if layer in _RESERVED]):
            raise ExportError(f"a layer can't be called {taken[0]} in Parquet: use --format npy")
        self._columns = {layer: layer if len(dims) > 1 else "vector" for layer in dims}
        vectors = {self._columns[layer]: dim for layer, dim in dims.items()}
        self._table = Table(stage, stage.create(output.names[0]), _RESERVED, vectors)

    def write(self, records: Records) -> None:
        """Append a batch."""
        vectors = {name: records.vectors[layer] for layer, name in self._columns.items()}
        self._table.append([_ids(records), _paths(records), _labels(records)], vectors)

    def finish(self) -> None:
        """Write the footer."""
        self._table.finish()


class ClipBody:
    """Folders ``img_emb`` and ``metadata`` with files of up to a million images, numbered from 0.

    The metadata have the columns ``image_path``, ``id`` and ``label``; an image without a path has
    its id for one.  clip-retrieval pairs the files in the order of their names, so that all numbers
    are written with as many digits as the last one.
    """

    def __init__(self, stage: Stage, output: Output, dims: Mapping[str, int]) -> None:
        require_pyarrow()
        self._stage = stage
        (self._layer,) = dims
        self._dim = dims[self._layer]
        self._count = 0
        self._begin()

    def write(self, records: Records) -> None:
        """Append a batch, and begin new files where they are full."""
        paths = [path or id for path, id in zip(_paths(records), _ids(records), strict=True)]
        texts = [paths, _ids(records), _labels(records)]
        x = _halves(records.vectors[self._layer])
        start = 0
        while start < len(x):
            if self._numbers.n == FILE_ROWS:
                self._end()
                self._begin()
            at = slice(start, start + FILE_ROWS - self._numbers.n)
            self._numbers.append(x[at])
            self._table.append([column[at] for column in texts], {})
            start = at.stop

    def finish(self) -> None:
        """End the last files, and number all of them."""
        self._end()
        width = len(str(self._count - 1))
        for number in range(self._count):
            for name in (_IMAGES, _METADATA):
                if width > 1:
                    self._stage.rename(name % str(number), name % str(number).zfill(width))

    def _begin(self) -> None:
        number = str(self._count)
        self._files = [self._stage.create(name % number) for name in (_IMAGES, _METADATA)]
        self._numbers = NumberFile(self._files[0], self._dim, "<f2")
        self._table = Table(self._stage, self._files[1], ("image_path", "id", "label"), {})
        self._count += 1

    def _end(self) -> None:
        self._numbers.finish()
        self._table.finish()
        for file in self._files:
            self._stage.settle(file)


_IMAGES = os.path.join("img_emb", "img_emb_%s.npy")
_METADATA = os.path.join("metadata", "metadata_%s.parquet")


def _halves(x: FloatArray) -> Any:
    with np.errstate(over="ignore"):
        halves = x.astype(np.float16)
    far = np.flatnonzero(~np.isfinite(halves).all(axis=1))
    if len(far):
        raise ExportError(
            f"clip-retrieval holds float16, up to 65504; a vector holds {np.abs(x[far[0]]).max():g}"
            ": use --format parquet, or unit-length vectors"
        )
    return halves


def _ids(records: Records) -> list[str | None]:
    return [display(id) for id in records.ids]


def _paths(records: Records) -> list[str | None]:
    return [display(path) if path else None for path in records.paths]


def _labels(records: Records) -> list[str | None]:
    return [
        None if label is None else display(label.encode("utf-8", "surrogateescape"))
        for label in records.labels
    ]
