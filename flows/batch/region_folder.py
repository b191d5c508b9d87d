"""Regions into a folder with a file for each image, which is its own record of what is finished.

Any number of processes may write to one folder, as the parts of a source do.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from flows.batch.failing import HEADER, SUFFIX, Failed
from flows.batch.finding import Finder, arrays_of, items_of
from flows.batch.flight import in_flight
from flows.batch.pictures import paths_of
from flows.batch.pieces import Piece
from flows.batch.working import BatchJob, count_items, slots
from storage.region_files import BadName, FailureList, Header, RegionFolder
from storage.roots import display
from storage.scan import Signature
from storage.sources.items import Item, Unreadable
from storage.sources.opening import Source
from storage.suspects import POISON

if TYPE_CHECKING:
    from extractor.detectors import Detector
    from extractor.regions import Detected

PIECE = 64
"""Images that are worked on together; each is finished for itself."""


@dataclass
class Filled:
    """What a piece has come to."""

    done: int = 0
    kept: int = 0
    regions: int = 0
    failed: dict[int, Failed] = field(default_factory=dict)
    """By the item's number in the piece."""
    seconds: dict[str, float] = field(default_factory=dict)


def fill(job: BatchJob, source: Source, detector: "Detector") -> None:
    """Find the regions of all images that the folder lacks, and write each when it is found.

    Raises
    ------
    FlowError
        The source has no images.
    WorkMismatch
        The folder holds regions that were made otherwise.
    ExportError, DiskFull
        The folder can't be written.
    Stopped
        The run was asked to stop; everything finished is kept.
    """
    batch, report = job.options, job.report
    spec = detector.spec
    anew = batch.overwrite or batch.restart
    folder = RegionFolder(batch.out, spec.to_json(), detector.class_names, overwrite=anew)
    finder = Finder(source, folder.begun, detector, batch, job.ending)
    filler = _Filler(job, folder, finder, spec.fingerprint, source.inside)
    job.progress.pending(count_items(job, source))
    pieces = _pieces(source.items(batch.shard), batch.chunk_size or PIECE)
    path = _failures_path(job)
    with closing(folder), FailureList(path, HEADER) as failures:
        with closing(in_flight(filler, pieces, slots(batch.device), job.ending)) as results:
            for filled, _ in results:
                _tell(report, filled)
                for _, failed in sorted(filled.failed.items()):
                    failures.add(failed.line())
        job.check()
    report.written = report.extracted + report.kept
    if failures.n:
        report.failures_file = display(os.fsencode(path))


def _tell(report: Any, filled: Filled) -> None:
    report.extracted += filled.done
    report.kept += filled.kept
    report.regions += filled.regions
    report.add_seconds(filled.seconds)
    report.add_failures([failed.failure_class for failed in filled.failed.values()])


class _Filler:
    """Does a piece, image by image; any thread may call."""

    def __init__(
        self,
        job: BatchJob,
        folder: RegionFolder,
        finder: Finder,
        fingerprint: str,
        inside: bytes | None,
    ) -> None:
        self._job = job
        self._folder = folder
        self._finder = finder
        self._fingerprint = fingerprint
        self._inside = inside

    def __call__(self, piece: Piece) -> Filled:
        filled = Filled()
        all_items = items_of(piece)
        items = dict(all_items)
        for i, item in enumerate(piece.items):
            if not isinstance(item, Item):
                self._fail(filled, i, Failed.unseen(item, self._inside))
        known = self._known(items)
        sigs = {i: _signature(item) for i, item in items.items()}  # before anything is read
        for i in [i for i, header in known.items() if header.sig and header.sig == sigs[i]]:
            del items[i]
            self._keep(filled)

        def wants(key: int, digest: bytes) -> bool:
            return key not in known or known[key].digest != digest

        def take(one: "Detected") -> None:
            self._take(filled, one, items[one.key], sigs[one.key])

        filled.seconds = self._finder.found(items, wants, take)
        kinds = {i: failed.failure_class for i, failed in filled.failed.items()}
        good = [item for i, item in all_items.items() if kinds.get(i) not in POISON]
        if not self._job.ending.is_set():
            self._folder.begun.settle(paths_of(good))
        return filled

    def _known(self, items: dict[int, Item]) -> dict[int, Header]:
        """Return what is there and was made in the same way."""
        if self._job.options.restart:
            return {}
        headers = {i: self._folder.header(item.id) for i, item in items.items()}
        return {
            i: header
            for i, header in headers.items()
            if header is not None
            and header.id == items[i].id
            and header.fingerprint == self._fingerprint
        }

    def _take(self, filled: Filled, one: "Detected", item: Item, sig: Signature | None) -> None:
        if one.failure is not None:
            self._fail(filled, one.key, Failed.of(item, one.failure))
        elif one.regions is None:
            self._folder.renew(item.id, sig)
            self._keep(filled)
        else:
            header = Header(item.id, one.digest or b"", self._fingerprint, sig)
            try:
                self._folder.write(header, arrays_of(one.regions))
            except BadName as error:
                names = (os.fsdecode(item.id), os.fsdecode(item.path))
                why = ("write", "name", str(error))
                self._fail(filled, one.key, Failed(*names, *why, item.label))
                return
            filled.done += 1
            filled.regions += len(one.regions.scores)
            self._job.progress.advance(1)

    def _keep(self, filled: Filled) -> None:
        filled.kept += 1
        self._job.progress.advance(1)

    def _fail(self, filled: Filled, i: int, failed: Failed) -> None:
        filled.failed[i] = failed
        self._job.progress.advance(1, 1)


def _signature(item: Item) -> Signature | None:
    """Return what tells a file from another one and from itself when it was changed."""
    if item.row is not None:
        return None
    try:
        return Signature.of(os.stat(item.path))
    except OSError:
        return None


def _pieces(items: Iterable[Item | Unreadable], size: int) -> Iterator[Piece]:
    left = iter(items)
    start = 0
    while some := tuple(islice(left, size)):
        yield Piece(start, some)
        start += len(some)


def _failures_path(job: BatchJob) -> str:
    """Return where the failures are listed; parts of a source have lists of their own."""
    batch = job.options
    part = "" if batch.shard is None else f".{batch.shard.index}-of-{batch.shard.count}"
    return f"{os.path.abspath(batch.out)}{part}{SUFFIX}"
