"""The files of a published index: ``<name>.faiss`` and ``<name>.rowmap.npy``."""

from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

from storage.durable import file_checksum
from storage.errors import IndexFileError, PartError
from storage.index import load_index, write_index
from storage.npy import map_npy, write_npy
from storage.reading import GenerationInfo, generation_paths
from storage.vectors import ascending

RowArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Loaded:
    """An index that is ready to be searched; position -> row by the rowmap, int64, ``(n,)``."""

    generation: GenerationInfo
    index: faiss.Index
    rowmap: RowArray


@dataclass(frozen=True, slots=True)
class Written:
    """Size and checksums of a generation's files."""

    size_bytes: int
    checksum: str
    rowmap_checksum: str


def write_generation(folder: str, name: str, index: faiss.Index, rowmap: RowArray) -> Written:
    """Write both files durably, the rowmap first: where the index is, the rowmap is.

    Raises
    ------
    DiskFull
        There is no space left.
    """
    index_path, rowmap_path = generation_paths(folder, name)
    rows_file = write_npy(rowmap_path, rowmap.astype("<i8", copy=False))
    size_bytes, checksum = write_index(index, index_path)
    return Written(size_bytes, checksum, rows_file.checksum)


def load_generation(folder: str, generation: GenerationInfo, d: int) -> Loaded:
    """Check every byte of both files and map them.

    Raises
    ------
    IndexFileError
        A file is missing or not what the catalog says.
    """
    index_path, rowmap_path = generation_paths(folder, generation.name)
    try:
        rowmap = map_npy(rowmap_path, "<i8", (generation.n,))
    except PartError as error:
        raise IndexFileError(str(error)) from error.__cause__
    if file_checksum(rowmap_path) != generation.rowmap_checksum:
        raise IndexFileError(f"{rowmap_path} does not have the checksum that the catalog holds")
    if not ascending(rowmap) or rowmap[-1] >= generation.row_end:
        raise IndexFileError(f"{rowmap_path} does not ascend below row {generation.row_end}")
    index = load_index(
        index_path,
        size_bytes=generation.size_bytes,
        checksum=generation.checksum,
        d=d,
        n=generation.n,
    )
    return Loaded(generation, index, np.asarray(rowmap))
