"""``lookalike extract``: from a source to one file of vectors, in the format of another tool."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flows.batch.extraction import Extractor, Recipe, failures_of, records_of
from flows.batch.failing import Failed, failures_path, put_failures, refuse_own_failures
from flows.batch.options import ExtractOptions
from flows.batch.told import BatchReport
from flows.batch.working import BatchJob, running, work_through
from flows.errors import FlowError
from flows.job.progress import Progress
from storage.exports.formats import Writer, check_output, open_writer, plan_output
from storage.exports.output import refuse_sources
from storage.roots import display
from storage.sources.opening import Source, open_source
from storage.workfolder import SUFFIX, WorkFolder

if TYPE_CHECKING:
    from extractor.models import Model

NUMBER_BYTES = 4


def extract_to(options: ExtractOptions, progress: Progress) -> BatchReport:
    """Extract all of a source, or what an earlier run has left of it, and write the output.

    Raises
    ------
    SourceError, ManifestError, ExportError, ExtractorError, FlowError
        What was asked for can't be done as asked.
    WorkMismatch
        Unfinished work of another request is beside the output.
    LeaseHeld
        Another process works on the same output.
    StorageError
        The disk is in trouble.
    """
    batch = options.batch
    _refuse_early(options)
    report = BatchReport(out=display(os.fsencode(batch.out)))
    with (
        running(batch, progress, report) as job,
        open_source(batch.source, batch.source_options) as source,
    ):
        report.source = source.description
        model = _model(job, options)
        _work(job, options, source, model)
    return report


def _refuse_early(options: ExtractOptions) -> None:
    """Refuse what is wrong with the output before anything is loaded."""
    output = plan_output(options.batch.out, options.format, options.layers or ("vector",))
    source = options.batch.source
    if not os.path.isdir(source):  # pictures in a folder are never replaced
        refuse_sources(output, (source, options.batch.source_options.labels))
        refuse_own_failures(source, failures_path(options.batch.out))
    if output.folder:
        output = replace(output, names=())  # the model knows what the layers are called
    begun = os.path.isdir(output.path + SUFFIX)
    check_output(output, overwrite=options.batch.overwrite or begun)


def _model(job: BatchJob, options: ExtractOptions) -> "Model":
    from extractor.device import choose_device
    from extractor.engines import check
    from extractor.models import open_model

    check(options.batch.engine, choose_device(options.batch.device))
    job.progress.note("loading the model")
    with job.spent("model"), job.fetching():
        return open_model(options.request, options.layers if len(options.layers) > 1 else None)


def _work(job: BatchJob, options: ExtractOptions, source: Source, model: "Model") -> None:
    batch, report = options.batch, job.report
    dims = {name: spec.dim for name, spec in zip(model.layer_names, model.specs, strict=True)}
    if len(dims) < len(model.specs):
        raise FlowError(f"two of the layers are the same: {', '.join(model.layer_names)}")
    report.model, report.layers = model.spec.architecture, dims
    output = plan_output(batch.out, options.format, list(dims))
    report.format = output.format
    recipe = Recipe(
        model, options.normalize, batch.device, batch.engine, batch.batch_size, batch.workers
    )
    fingerprint = _fingerprint(options, source, model)
    with WorkFolder(output.path, fingerprint, restart=batch.restart) as work:
        overwrite = batch.overwrite or work.was_assembling
        open_writer(batch.out, options.format, dims, overwrite=overwrite)  # refuses now
        do = Extractor(source, work.begun, recipe, job.ending, job.progress)
        work_through(job, source, work, NUMBER_BYTES * sum(dims.values()), do)
        work.assembling()
        with (
            job.spent("assemble"),
            open_writer(batch.out, options.format, dims, overwrite=True) as writer,
        ):
            report.failed, report.failures = 0, {}
            if put_failures(work, _written(job, work, writer, list(dims))):
                report.failures_file = display(os.fsencode(failures_path(batch.out)))
        report.written = writer.n
        work.remove()


def _written(
    job: BatchJob, work: WorkFolder, writer: Writer, layers: Sequence[str]
) -> Iterator[Failed]:
    """Write all records, and yield what failed."""
    total = sum(chunk.n for chunk in work.finished.values())
    n = 0
    for chunk in work.in_order():
        job.check()
        arrays = work.read(chunk)
        writer.write(records_of(arrays, layers))
        failures = failures_of(arrays)
        job.report.add_failures([failed.failure_class for failed in failures])
        yield from failures
        n += chunk.n
        job.progress.writing(job.report.out, n, total)


def _fingerprint(options: ExtractOptions, source: Source, model: "Model") -> dict[str, Any]:
    """Return all that the vectors and their order depend on; what people know comes first."""
    specs = [spec.to_json() for spec in model.specs]
    return {
        "model": model.spec.architecture,
        "layers": list(model.layer_names),
        "weights": options.request.weights,
        "normalize": options.normalize,
        "shard": None if options.batch.shard is None else str(options.batch.shard),
        "source": source.identity,
        "recipe": specs,
    }
