"""Write a part of a list or array in the source's own format, its order kept."""

import io
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from storage.errors import SourceError
from storage.exports.errors import plain_errors
from storage.exports.output import Output, check_output, refuse_nameless, refuse_sources
from storage.exports.stage import Stage
from storage.sources.arrays import ArraySource
from storage.sources.choice import Choice, Chosen, choose
from storage.sources.items import Source
from storage.sources.lists import ListSource
from storage.sources.npy import MappedNpy
from storage.sources.table import Form, as_bytes, find_form, find_header

_BLOCK_BYTES = 8 << 20
_SOME = 1 << 16  # labels that are looked at to see one that repeats


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was written.

    Parameters
    ----------
    chosen
        Which images.
    files
        The files, the one that was asked for last.
    notes
        What a person should know of them, a line each.
    """

    chosen: Chosen
    files: tuple[str, ...]
    notes: tuple[str, ...]


def write_sample(source: Source, out: str, choice: Choice, *, overwrite: bool = False) -> Sampled:
    """Write a sample of a source, complete or not at all.

    Raises
    ------
    SourceError
        The source is neither a list nor an array, has fewer images than are wanted, or none of the
        labels that are asked for; or ``out`` would be read as another format.
    ExportError
        ``out`` is there, or can't be written.
    DiskFull
        The disk is full.
    """
    refuse_nameless(out)
    if isinstance(source, ListSource):
        return _sample_list(source, out, choice, overwrite=overwrite)
    if isinstance(source, ArraySource):
        return _sample_array(source, out, choice, overwrite=overwrite)
    raise SourceError(
        f"{source.description} has neither lines nor rows: write a list first, such as "
        "`find DIRECTORY -name '*.jpg' > list.txt`, or give --shard to the command that reads it"
    )


def _output(
    out: str, names: tuple[str, ...], sources: Sequence[bytes | None], *, overwrite: bool
) -> Output:
    output = Output(os.path.realpath(out), "sample", (), False, names)
    with plain_errors(output.path):
        refuse_sources(output, [None if path is None else os.fsdecode(path) for path in sources])
        check_output(output, overwrite=overwrite)
    return output


# Lists


def _sample_list(source: ListSource, out: str, choice: Choice, *, overwrite: bool) -> Sampled:
    names = (os.path.basename(os.path.realpath(out)),)
    output = _output(out, names, (source.path,), overwrite=overwrite)
    _check_form(source.form, output.path)
    chosen = choose(source.items(), choice)
    folder = os.path.dirname(os.fsencode(output.path))
    moved = not _is_same(folder, source.folder)
    with plain_errors(output.path), Stage(output, overwrite=overwrite) as stage:
        file = stage.create(output.names[0])
        if header := _header_for(source, chosen):
            _write_row(file, header, source.form)
        for cells in _chosen_rows(source, chosen):
            if moved:
                cells[source.columns.path] = _absolute(source.folder, cells[source.columns.path])
            _write_row(file, cells, source.form)
        stage.put_in_place()
    return Sampled(chosen, (output.path,), _notes(source) if moved else ())


def _notes(source: ListSource) -> tuple[str, ...]:
    what = "paths, which are the ids," if source.columns.id is None else "paths"
    return (f"{what} are written in full, because the sample lies in another folder",)


def _check_form(form: Form, path: str) -> None:
    """Refuse a name whose suffix means another form than the source's."""
    if find_form(os.fsencode(path), ["a\tb" if form == "tsv" else "a"]) == form:
        return
    wanted = {"csv": "end with .csv", "tsv": "not end with .csv", "lines": "end with .txt"}[form]
    raise SourceError(f"{path} would not be read as the source is: its name must {wanted}")


def _is_same(folder: bytes, other: bytes) -> bool:
    return os.path.realpath(folder) == os.path.realpath(other)


def _absolute(folder: bytes, cell: str) -> str:
    return os.path.join(folder, as_bytes(cell)).decode("utf-8", "surrogateescape")


def _chosen_rows(source: ListSource, chosen: Chosen) -> Iterator[list[str]]:
    wanted = np.zeros(chosen.total, bool)
    wanted[chosen.positions] = True
    for is_wanted, (_, cells) in zip(wanted, source.rows(), strict=True):
        if is_wanted:
            yield cells


def _header_for(source: ListSource, chosen: Chosen) -> list[str] | None:
    """Return the source's header, or one of our own where the sample would be read otherwise."""
    if source.said is None and not _reads_otherwise(source, chosen):
        return source.header
    columns = source.columns
    words = ["unused"] * columns.count
    words[columns.path] = "path"
    if columns.id is not None:
        words[columns.id] = "id"
    if columns.label is not None:
        words[columns.label] = "label"
    return words


def _reads_otherwise(source: ListSource, chosen: Chosen) -> bool:
    """Say whether a header has to keep the sample from being read in another way.

    Labels none of which repeats would be ids, and a first line may look like a header, or in a list
    of one path a line like a table.
    """
    first = next(_chosen_rows(source, chosen), None)
    if first is None:
        return False
    if source.header is None:
        bare = ",".join(first) if source.form == "lines" else ""
        if find_header(first) is not None or find_form(b"", [bare]) != "lines":
            return True
    label = source.columns.label
    if not source.guessed or label is None:
        return False
    values = [cells[label] for cells in itertools.islice(_chosen_rows(source, chosen), _SOME)]
    return len(set(values)) == len(values) and "" not in values


def _write_row(file: BinaryIO, cells: list[str], form: Form) -> None:
    line = ",".join(map(_quoted, cells)) if form == "csv" else "\t".join(cells)
    # One that ends in a carriage return would lose it to a bare line feed.
    file.write(as_bytes(line) + (b"\r\n" if line.endswith("\r") else b"\n"))


def _quoted(cell: str) -> str:
    if any(char in cell for char in ',"\r\n'):
        return '"' + cell.replace('"', '""') + '"'
    return cell


# Arrays


def _sample_array(source: ArraySource, out: str, choice: Choice, *, overwrite: bool) -> Sampled:
    path = os.path.realpath(out)
    if not path.lower().endswith(".npy"):
        raise SourceError(f"{path} would not be read as the source is: its name must end with .npy")
    name = os.path.basename(path)
    parts = [(name, source.npy)]
    if source.labels is not None:
        parts.insert(0, (_labels_name(name), source.labels))
    names = tuple(part for part, _ in parts)
    output = _output(out, names, [npy.path for _, npy in parts], overwrite=overwrite)
    chosen = choose(source.items(), choice)
    with plain_errors(output.path), Stage(output, overwrite=overwrite) as stage:
        for part, npy in parts:
            _write_rows(stage.create(part), npy, chosen.positions)
        stage.put_in_place()
    notes = ("ids are row numbers, so they count anew in the sample",)
    return Sampled(chosen, tuple(output.paths), notes)


def _labels_name(name: str) -> str:
    """Name the labels of ``x.npy`` and of ``x_data.npy`` ``x_labels.npy``."""
    return name[: -len(".npy")].removesuffix("_data") + "_labels.npy"


def _write_rows(file: BinaryIO, npy: MappedNpy, positions: NDArray[np.intp]) -> None:
    array = npy.array
    header = io.BytesIO()
    shape = (len(positions), *array.shape[1:])
    described = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False}
    np.lib.format.write_array_header_1_0(header, {**described, "shape": shape})
    file.write(header.getvalue())
    row_bytes = max(1, array.dtype.itemsize * int(np.prod(array.shape[1:])))
    step = max(1, _BLOCK_BYTES // row_bytes)
    for start in range(0, len(positions), step):
        block = np.ascontiguousarray(array[positions[start : start + step]])
        file.write(block.tobytes())
        npy.forget()
