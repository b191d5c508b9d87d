"""Write vectors in the formats that other tools read.

========================  ======================================================================
``tsv``                   ``id<TAB>[0.1,...]`` a line
``csv``                   ``id,0.1,...`` a line
``table``                 ``Class,n0,...,nD-1``, then ``label,0.1,...`` a line
``npy``                   ``NAME_data.npy`` float32, ``NAME_labels.npy`` and ``NAME_ids.npy`` text
``npz``                   arrays ``data``, ``labels``, ``ids``, ``paths``
``parquet``               columns ``id``, ``path``, ``label``, ``vector`` (fixed-size list)
``clip-retrieval``        ``img_emb/img_emb_N.npy`` float16, ``metadata/metadata_N.parquet``
========================  ======================================================================

Several layers are a file each in a folder (text), a data file each (npy), an array or a column each
under the layer's name (npz, parquet).  Memory does not grow with the number of images.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

from storage.exports.errors import plain_errors
from storage.exports.output import FORMATS, TEXT, Output, check_output, plan_output
from storage.exports.records import Records
from storage.exports.stage import Stage

__all__ = ["FORMATS", "Output", "Writer", "check_output", "open_writer", "plan_output"]


class Body(Protocol):
    """What a format does with records, between the opening and the end of its files."""

    def write(self, records: Records) -> None:
        """Write a batch."""
        ...

    def finish(self) -> None:
        """Write what could only be known at the end."""
        ...


class Writer:
    """Writes one output; a context manager.

    On a clean exit the output is in its place, complete and synced; on an exception nothing of it
    is left, and what was there before is untouched.

    Attributes
    ----------
    output
        Where it goes, and in which format.
    n
        Images written so far.
    """

    def __init__(self, output: Output, dims: Mapping[str, int], *, overwrite: bool) -> None:
        self.output = output
        self.n = 0
        self._dims = dict(dims)
        self._stage = Stage(output, overwrite=overwrite)
        self._body: Body | None = None

    def __enter__(self) -> Self:
        with plain_errors(self.output.path):
            self._stage.__enter__()
            try:
                self._body = _body(self._stage, self.output, self._dims)
            except BaseException as error:
                self._stage.__exit__(type(error), error, None)
                raise
        return self

    def write(self, records: Records) -> None:
        """Write a batch; batches of any size make the same output.

        Raises
        ------
        ValueError
            The vectors are not of the layers and lengths that the writer was opened for.
        DiskFull
            The disk is full.
        ExportError
            The format can't hold a value, or the file system refuses.
        """
        if records.dims() != self._dims or self._body is None:
            raise ValueError(f"the output is opened for {self._dims}, given is {records.dims()}")
        with plain_errors(self.output.path):
            self._body.write(records)
        self.n += len(records)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self._body is not None:
                with plain_errors(self.output.path):
                    self._body.finish()
                    self._stage.put_in_place()
        finally:
            self._body = None
            self._stage.__exit__(kind, error, trace)


def open_writer(
    out: str, format: str | None, dims: Mapping[str, int], *, overwrite: bool = False
) -> Writer:
    """Return a writer for an output; nothing is written before it is entered.

    Parameters
    ----------
    out, format
        As `plan_output` takes them.
    dims
        Length of a vector by the layer's name, in the order in which they are written.
    overwrite
        Replace what is there: files, or a folder that holds nothing but an earlier output.

    Raises
    ------
    ExportError
        The format is unknown, can't hold these layers or needs a package that is missing, or the
        output is there already.
    """
    output = plan_output(out, format, list(dims))
    check_output(output, overwrite=overwrite)
    return Writer(output, dims, overwrite=overwrite)


def _body(stage: Stage, output: Output, dims: Mapping[str, int]) -> Body:
    """Open the files; each format is imported only where it is written."""
    if output.format in TEXT:
        from storage.exports.text import TextBody

        return TextBody(stage, output, dims)
    if output.format in ("npy", "npz"):
        from storage.exports.arrays import NpyBody, NpzBody

        return (NpyBody if output.format == "npy" else NpzBody)(stage, output, dims)
    from storage.exports.parquet import ClipBody, ParquetBody

    return (ParquetBody if output.format == "parquet" else ClipBody)(stage, output, dims)
