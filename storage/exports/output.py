"""Which files an output is made of, and whether they may be written."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from storage.exports.errors import ExportError, shown

TEXT = {"tsv": "tsv", "csv": "csv", "table": "csv"}
"""Text formats, with the suffix of a layer's file in a folder."""
FORMATS = (*TEXT, "npy", "npz", "parquet", "clip-retrieval")
"""All formats by name."""
SUFFIXES = {
    ".tsv": "tsv",
    ".csv": "csv",
    ".npy": "npy",
    ".npz": "npz",
    ".parquet": "parquet",
    ".pq": "parquet",
}
"""The format that a suffix means."""

_OWN = {
    "clip-retrieval": re.compile(r"(img_emb|metadata)(/(img_emb_\d+\.npy|metadata_\d+\.parquet))?"),
    **{name: re.compile(rf"[^/]+\.{suffix}") for name, suffix in TEXT.items()},
}
"""What an earlier output in a folder holds, where its files' names are not known."""


@dataclass(frozen=True)
class Output:
    """Where an output goes.

    Parameters
    ----------
    path
        What was asked for, absolute, without symbolic links.
    format
        Its format.
    layers
        The layers' names.
    folder
        Whether ``path`` is a folder that holds the files.
    names
        The files, in ``path`` or beside it.  Where the last one is, all are.  None are said of a
        format that numbers its files, or of a folder as long as its layers are not known.
    """

    path: str
    format: str
    layers: tuple[str, ...]
    folder: bool
    names: tuple[str, ...]

    @property
    def place(self) -> str:
        """Folder that the files are in."""
        return self.path if self.folder else os.path.dirname(self.path)

    @property
    def paths(self) -> list[str]:
        """Absolute paths of the files; of the folder where there is one."""
        if self.folder:
            return [self.path]
        return [os.path.join(self.place, name) for name in self.names]


def plan_output(out: str, format: str | None, layers: Sequence[str]) -> Output:
    """Say which files an output will be made of; nothing is looked at or written.

    Parameters
    ----------
    out
        A file; a folder for ``clip-retrieval`` and for text of several layers, or where it ends
        with a slash; for ``npy`` what the files' names begin with.
    format
        One of `FORMATS`; None is what the suffix means.
    layers
        Names of the layers, at least one.

    Raises
    ------
    ExportError
        The format is unknown, or can't hold these layers.
    """
    refuse_nameless(out)
    as_folder = out.endswith(os.sep)
    name = format or _format_of_suffix(out)
    if name not in FORMATS:
        raise ExportError(f"there is no format {name!r}; there are: {', '.join(FORMATS)}")
    _refuse_equal(layers)
    path = os.path.realpath(out)
    if name == "clip-retrieval":
        _refuse_several(layers)
        return Output(path, name, tuple(layers), True, ())
    if name in TEXT and (as_folder or len(layers) > 1):
        _refuse_suffix(out, layers)
        names = tuple(f"{safe(layer)}.{TEXT[name]}" for layer in layers)
        return Output(path, name, tuple(layers), True, names)
    if as_folder:
        raise ExportError(f"{shown(out)} is a folder, {name} is written to a file: name one")
    names = _npy_names(path, layers) if name == "npy" else (os.path.basename(path),)
    return Output(path, name, tuple(layers), False, names)


def refuse_nameless(out: str) -> None:
    """Raise ``ExportError`` where an output was not named: there is none to standard output."""
    if out in ("", "-"):
        raise ExportError("an output is a file or a folder: name one")


def check_output(output: Output, *, overwrite: bool = False) -> None:
    """Refuse an output that is there already, or that can't be where it is asked for.

    Raises
    ------
    ExportError
        With ``overwrite`` too where something else lies there: only files, and folders that hold
        nothing but an earlier output, are replaced.
    """
    parent = os.path.dirname(output.path)
    if not os.path.isdir(parent):
        raise ExportError(f"the folder {shown(parent)} is not there: make it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ExportError(f"the folder {shown(parent)} can't be written")
    for path in output.paths:
        if not os.path.lexists(path):
            continue
        if output.folder:
            _check_folder(output, overwrite=overwrite)
        elif not os.path.isfile(path):
            raise ExportError(f"{shown(path)} is not a file: name another output")
        elif not overwrite:
            raise ExportError(f"{shown(path)} is there already; --overwrite replaces it")


def refuse_sources(output: Output, sources: Iterable[str | None]) -> None:
    """Refuse an output that would replace what is read for it, or the folder that holds that.

    Parameters
    ----------
    output
        As `plan_output` gives it.
    sources
        Paths; None, and one where nothing is, say nothing.

    Raises
    ------
    ExportError
        A source would be replaced.
    """
    for source in filter(None, sources):
        if not os.path.exists(source):
            continue
        inside = os.path.realpath(source).startswith(os.path.join(output.path, ""))
        for path in output.paths:
            if (output.folder and inside) or (
                os.path.exists(path) and os.path.samefile(source, path)
            ):
                raise ExportError(f"{shown(path)} would replace the source: name another output")


def safe(layer: str) -> str:
    """Return a layer's name as that of a file."""
    return layer.replace(os.sep, "_").replace("\0", "_")


def _format_of_suffix(out: str) -> str:
    suffix = os.path.splitext(out.rstrip(os.sep))[1].lower()
    if suffix not in SUFFIXES:
        raise ExportError(
            f"the name {shown(out)} says no format: end it with {', '.join(SUFFIXES)}, or give "
            f"--format ({', '.join(FORMATS)})"
        )
    return SUFFIXES[suffix]


def _refuse_equal(layers: Sequence[str]) -> None:
    if len({safe(layer) for layer in layers}) < len(layers):
        raise ExportError(f"two of the layers have one name: {', '.join(layers)}")


def _refuse_several(layers: Sequence[str]) -> None:
    if len(layers) > 1:
        raise ExportError(
            f"clip-retrieval holds one vector an image, these are {len(layers)} "
            f"({', '.join(layers)}): use --format parquet, or one layer"
        )


def _refuse_suffix(out: str, layers: Sequence[str]) -> None:
    stem, suffix = os.path.splitext(out)
    if suffix.lower() in SUFFIXES:
        raise ExportError(
            f"{len(layers)} layers are as many files, in a folder: use {shown(stem)} --format "
            f"{SUFFIXES[suffix.lower()]} instead of {shown(out)}"
        )


def _npy_names(path: str, layers: Sequence[str]) -> tuple[str, ...]:
    stem = os.path.basename(path)
    stem = stem.removesuffix(".npy").removesuffix("_data")
    if len(layers) == 1:
        data = [f"{stem}_data.npy"]
    else:
        data = [f"{stem}_{safe(layer)}_data.npy" for layer in layers]
    return (f"{stem}_ids.npy", f"{stem}_labels.npy", *data)


def _check_folder(output: Output, *, overwrite: bool) -> None:
    if not os.path.isdir(output.path):
        raise ExportError(f"{shown(output.path)} is no folder: name another output")
    with os.scandir(output.path) as entries:
        if next(entries, None) is None:
            return
    if not overwrite:
        raise ExportError(f"{shown(output.path)} is there already; --overwrite replaces it")
    strange = _strange(output)
    if strange is not None:
        raise ExportError(
            f"{shown(output.path)} holds {shown(strange)}, which this output would not have: it is "
            "not replaced; name another output"
        )


def _strange(output: Output) -> str | None:
    """Return what a folder holds that this output would not have, relative; or None."""
    named = re.compile("|".join(map(re.escape, output.names)))
    own = named if output.names else _OWN[output.format]
    for at, folders, files in os.walk(output.path):
        for name in (*folders, *files):
            relative = os.path.relpath(os.path.join(at, name), output.path)
            if not own.fullmatch(relative):
                return relative
    return None
