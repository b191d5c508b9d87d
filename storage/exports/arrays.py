"""npy files whose number of rows is only known at the end, and npz files of them."""

import io
import shutil
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from storage.exports.errors import ExportError
from storage.exports.output import Output
from storage.exports.records import FloatArray, Records
from storage.exports.stage import Stage
from storage.slices import sliced

RESERVED = ("ids", "labels", "paths")
"""Arrays of an npz file beside the layers'."""

_AT_ONCE = 4096
_LENGTH = struct.Struct("<I")


class NumberFile:
    """An npy file of vectors, shape ``(n, dim)``, that grows by batches.

    Parameters
    ----------
    file
        New and empty.
    dim
        Length of a vector.
    dtype
        ``<f4`` or ``<f2``.
    """

    def __init__(self, file: BinaryIO, dim: int, dtype: str = "<f4") -> None:
        self.file = file
        self.n = 0
        self._dim = dim
        self._dtype = np.dtype(dtype)
        file.write(self._header())

    def append(self, x: FloatArray) -> None:
        """Append vectors, shape ``(m, dim)``."""
        self.file.write(np.ascontiguousarray(x, dtype=self._dtype).view(np.uint8).data)
        self.n += len(x)

    def finish(self) -> None:
        """Write the number of rows into the header, which has room for any."""
        self.file.seek(0)
        self.file.write(self._header())
        self.file.flush()

    def _header(self) -> bytes:
        return _header((self.n, self._dim), self._dtype)


class TextColumn:
    """Texts that become an npy file of ``<U<longest>`` at the end.

    Bytes that are not UTF-8 stand as what ``os.fsdecode`` makes of them, so that ``os.fsencode``
    gives them back.

    Parameters
    ----------
    spool
        New and empty; holds the texts until the longest is known.
    """

    def __init__(self, spool: BinaryIO) -> None:
        self._spool = spool
        self._longest = 1
        self.n = 0

    def extend(self, texts: Sequence[bytes]) -> None:
        """Append texts, UTF-8."""
        for text in texts:
            self._longest = max(self._longest, len(_decoded(text)))
            self._spool.write(_LENGTH.pack(len(text)) + text)
        self.n += len(texts)

    def write_npy(self, file: BinaryIO) -> None:
        """Write all texts as one npy file, shape ``(n,)``."""
        dtype = np.dtype(f"<U{self._longest}")
        file.write(_header((self.n,), dtype))
        for some in sliced(self._texts(), _AT_ONCE):
            file.write(np.array(some, dtype).view(np.uint8).data)
        file.flush()

    def _texts(self) -> Iterator[str]:
        self._spool.seek(0)
        for _ in range(self.n):
            (length,) = _LENGTH.unpack(self._spool.read(_LENGTH.size))
            yield _decoded(self._spool.read(length))


class NpyBody:
    """``NAME_data.npy``, or one a layer, ``NAME_labels.npy`` and ``NAME_ids.npy``."""

    def __init__(self, stage: Stage, output: Output, dims: Mapping[str, int]) -> None:
        ids, labels, *data = output.names
        self._texts = {
            "ids": (stage.create(ids), TextColumn(stage.spool())),
            "labels": (stage.create(labels), TextColumn(stage.spool())),
        }
        self._data = {
            layer: NumberFile(stage.create(name), dims[layer])
            for layer, name in zip(dims, data, strict=True)
        }

    def write(self, records: Records) -> None:
        """Append a batch to all files."""
        for layer, file in self._data.items():
            file.append(records.vectors[layer])
        for name, (_, column) in self._texts.items():
            column.extend(_texts_of(records, name))

    def finish(self) -> None:
        """Write the headers and the texts."""
        for numbers in self._data.values():
            numbers.finish()
        for file, column in self._texts.values():
            column.write_npy(file)


class NpzBody:
    """One npz file: ``data``, or an array a layer, and ``labels``, ``ids`` and ``paths``.

    A zip file takes one member at a time, so that the arrays lie beside it until they are whole.
    """

    def __init__(self, stage: Stage, output: Output, dims: Mapping[str, int]) -> None:
        taken = [layer for layer in dims if layer in RESERVED]
        if taken and len(dims) > 1:
            raise ExportError(f"a layer can't be called {taken[0]} in npz: use --format npy")
        self._file = stage.create(output.names[0])
        self._stage = stage
        self._data = {layer: NumberFile(stage.spool(), dims[layer]) for layer in dims}
        self._texts = {name: TextColumn(stage.spool()) for name in RESERVED}

    def write(self, records: Records) -> None:
        """Append a batch to all arrays."""
        for layer, file in self._data.items():
            file.append(records.vectors[layer])
        for name, column in self._texts.items():
            column.extend(_texts_of(records, name))

    def finish(self) -> None:
        """Put the arrays into the zip file, uncompressed as ``numpy.savez`` does it."""
        with zipfile.ZipFile(self._file, "w") as archive:
            for layer, numbers in self._data.items():
                numbers.finish()
                numbers.file.seek(0)
                name = layer if len(self._data) > 1 else "data"
                with _member(archive, name) as member:
                    shutil.copyfileobj(numbers.file, member, 1 << 20)
                numbers.file.truncate(0)  # what is in the archive need not be there twice
            for name, column in self._texts.items():
                with _member(archive, name) as member:
                    column.write_npy(member)


def _member(archive: zipfile.ZipFile, name: str) -> BinaryIO:
    info = zipfile.ZipInfo(f"{name}.npy")  # of 1980: the same vectors are the same bytes
    member: BinaryIO = archive.open(info, "w", force_zip64=True)  # type: ignore[assignment]
    return member


def _texts_of(records: Records, name: str) -> Sequence[bytes]:
    if name == "labels":
        return [(label or "").encode("utf-8", "surrogateescape") for label in records.labels]
    return records.ids if name == "ids" else records.paths


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


def _header(shape: tuple[int, ...], dtype: npt.DTypeLike) -> bytes:
    """Return the header of an npy file of version 1.0; its length is that for any first number."""
    header = io.BytesIO()
    facts = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, facts)
    return header.getvalue()
