"""``lookalike regions``: from a source to the regions of its images.

They go to a folder with a file for each image (`flows.batch.region_folder`), or to one Parquet
file, by way of a `WorkFolder`.
"""

import os
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from flows.batch.detector_options import RegionsOptions
from flows.batch.failing import (
    Failed,
    failures_path,
    from_json,
    put_failures,
    refuse_own_failures,
)
from flows.batch.finding import Finder, from_bytes, items_of, packed
from flows.batch.pieces import Piece
from flows.batch.region_folder import fill
from flows.batch.region_told import RegionsReport
from flows.batch.working import BatchJob, Done, running, work_through
from flows.job.progress import Progress
from storage.exports.output import (
    Output,
    check_output,
    plan_output,
    refuse_nameless,
    refuse_sources,
)
from storage.exports.parquet import require_pyarrow
from storage.exports.regions import RegionTable
from storage.exports.stage import Stage
from storage.roots import display
from storage.sources.opening import Source, open_source
from storage.workfolder import SUFFIX, WorkFolder

if TYPE_CHECKING:
    from extractor.detectors import Detector
    from extractor.regions import Detected

PARQUET = ".parquet"
USUAL_SHARE = 4
"""Of the most regions that an image can have, one in so many is there as a rule."""


def regions_to(options: RegionsOptions, progress: Progress) -> RegionsReport:
    """Find the regions of all of a source, or of what an earlier run has left of it.

    Raises
    ------
    SourceError, ManifestError, ExportError, ExtractorError, FlowError
        What was asked for can't be done as asked.
    WorkMismatch
        What is there of an earlier run was made otherwise.
    LeaseHeld
        Another process works on the same Parquet file.
    StorageError
        The disk is in trouble.
    """
    batch = options.batch
    refuse_nameless(batch.out)
    to_table = batch.out.lower().endswith(PARQUET)
    report = RegionsReport(out=display(os.fsencode(batch.out)))
    report.format = "parquet" if to_table else "npz"
    if to_table:
        _refuse_early(options)
    with (
        running(batch, progress, report) as job,
        open_source(batch.source, batch.source_options) as source,
    ):
        report.source = source.description
        detector = _detector(job, options)
        report.model = detector.spec.architecture
        report.layers = {"box head": detector.spec.dim}
        (_to_table if to_table else fill)(job, source, detector)
    return report


def _refuse_early(options: RegionsOptions) -> None:
    """Refuse what is wrong with the file before anything is loaded."""
    require_pyarrow()
    output = plan_output(options.batch.out, "parquet", ("regions",))
    source = options.batch.source
    if not os.path.isdir(source):  # pictures in a folder are never replaced
        refuse_sources(output, (source, options.batch.source_options.labels))
        refuse_own_failures(source, failures_path(options.batch.out))
    begun = os.path.isdir(output.path + SUFFIX)
    check_output(output, overwrite=options.batch.overwrite or begun)


def _detector(job: BatchJob, options: RegionsOptions) -> "Detector":
    from extractor.detectors import open_detector

    job.progress.note("loading the detector")
    with job.spent("model"), job.fetching():
        return open_detector(options.request)


def _to_table(job: BatchJob, source: Source, detector: "Detector") -> None:
    batch, spec = job.options, detector.spec
    output = plan_output(batch.out, "parquet", ("regions",))
    fingerprint = {
        **spec.to_json(),
        "shard": None if batch.shard is None else str(batch.shard),
        "source": source.identity,
    }

    def do(finder: Finder, piece: Piece) -> Done:
        items = items_of(piece)
        job.progress.advance(len(piece.items) - len(items), len(piece.items) - len(items))
        found: dict[int, Detected] = {}

        def take(one: "Detected") -> None:
            found[one.key] = one
            job.progress.advance(1, int(one.failure is not None))

        seconds = finder.found(items, lambda _key, _digest: True, take)
        return packed(piece, found, spec.dim, seconds, source.inside)

    with WorkFolder(output.path, fingerprint, restart=batch.restart) as work:
        check_output(output, overwrite=batch.overwrite or work.was_assembling)
        finder = Finder(source, work.begun, detector, batch, job.ending)
        most_bytes = spec.num_boxes * (spec.dim + 7) * 4
        work_through(job, source, work, max(1, most_bytes // USUAL_SHARE), partial(do, finder))
        work.assembling()
        with job.spent("assemble"):
            _assemble(job, work, output, spec.dim)
        work.remove()


def _assemble(job: BatchJob, work: WorkFolder, output: Output, dim: int) -> None:
    report = job.report
    report.failed, report.failures = 0, {}
    with Stage(output, overwrite=True) as stage:
        table = RegionTable(stage, output, dim)
        if put_failures(work, _written(job, work, table)):
            report.failures_file = display(os.fsencode(failures_path(job.options.out)))
        table.finish()
        stage.put_in_place()


def _written(job: BatchJob, work: WorkFolder, table: RegionTable) -> Iterator[Failed]:
    """Write all images, and yield what failed."""
    report: Any = job.report
    total = sum(chunk.n for chunk in work.finished.values())
    n = 0
    for chunk in work.in_order():
        job.check()
        arrays = work.read(chunk)
        texts = [(id, path, label) for id, path, label in from_bytes(arrays["texts"])]
        table.append(texts, arrays)
        report.written += len(texts)
        report.regions += int(arrays["counts"].sum())
        failures = from_json(from_bytes(arrays["failures"]))
        report.add_failures([failed.failure_class for failed in failures])
        yield from failures
        n += chunk.n
        job.progress.writing(report.out, n, total)
