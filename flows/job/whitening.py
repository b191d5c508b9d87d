"""Whiten a space: learn from its vectors, and fill a space beside it with what they become.

Ordinary functions, no Prefect and no network.  What was asked for leads to the space that was made
for it (its key), so that a second call learns nothing again: it fills what is lacking.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from extractor.whitening import Moments, Whitening, read, refuse_few
from flows.job.opened import opened_run
from flows.job.orders import Place, PublishOrder
from flows.job.patience import patiently
from flows.job.progress import Progress
from flows.job.signals import stop_on_signals
from flows.job.spaces import ALL
from flows.job.whitening_report import WhiteningReport
from flows.job.worker import Bench, bench_for, clear_bench, publish_step
from storage.catalog import Catalog
from storage.dead import entered_rows
from storage.derive import count_lacking, derive
from storage.errors import SpaceError
from storage.leases import Lease
from storage.publish import publish_due
from storage.reading import open_store, snapshot_in
from storage.runs import claim, work_in
from storage.space_names import WHITENED
from storage.spaces import (
    SpaceInfo,
    ensure_space,
    fingerprint,
    get_space,
    list_spaces,
    space_for_key,
)
from storage.verified import VerifiedRows
from storage.whitenings import keep_whitening, whitening_of, whitening_path

Answer = TypeVar("Answer")

KIND = "whiten"
"""Of the runs in the catalog."""
SAMPLE = 100_000
"""Vectors to learn from where nothing is said."""
FEW = 10
"""Learnt from fewer vectors than this for each dimension, the weak ones are mostly noise."""
BLOCK_BYTES = 64 << 20
"""Of the vectors, in float64, that are added to the moments at once."""


@dataclass(frozen=True)
class WhiteningOptions:
    """What to whiten, and how."""

    home: str
    catalog_url: str | None = None
    space: str | None = None
    """None is the current one."""
    dim: int | None = None
    """Numbers of a whitened vector; None is as many as before."""
    name: str | None = None
    """Of the new space."""
    sample: int = SAMPLE
    seed: int = 0


@dataclass
class _Work:
    """One whitening while it runs."""

    options: WhiteningOptions
    progress: Progress
    bench: Bench
    base: SpaceInfo
    report: WhiteningReport

    @property
    def catalog(self) -> Catalog:
        """The open catalog."""
        return self.bench.catalog

    @property
    def dim(self) -> int:
        """Numbers of a whitened vector."""
        return self.options.dim or self.base.dim

    @property
    def key(self) -> str:
        """What leads to the space that was made for this."""
        options = self.options
        asked = f"dim={self.dim} sample={options.sample} seed={options.seed}"
        return f"whiten {self.base.fingerprint} {asked}"

    def ask(self, question: Callable[[Catalog], Answer]) -> Answer:
        """Return what the catalog answers; it is asked again where it was busy or out of reach."""
        return patiently(self.bench.stop, lambda: question(self.catalog))


def whiten(options: WhiteningOptions, progress: Progress) -> WhiteningReport:
    """Whiten a space from a terminal: the first Ctrl-C stops cleanly, the second at once.

    Raises
    ------
    SpaceError
        There is no such space, it is whitened already, or the name belongs to another one.
    WhiteningError
        There are too few vectors, or they span fewer dimensions.
    LeaseHeld
        Another run fills, publishes or compacts the new space.
    """
    try:
        with stop_on_signals(options, progress):
            return run_whitening(options, progress)
    finally:
        clear_bench(options.home, options.catalog_url)


def run_whitening(options: WhiteningOptions, progress: Progress) -> WhiteningReport:
    """Learn, make the space, fill it, publish its index; return the report.

    Each step is left out where it was taken before.
    """
    bench = bench_for(options.home, options.catalog_url)
    base = get_space(bench.catalog, options.space)
    work = _Work(options, progress, bench, base, WhiteningReport(base=base.name))
    known = _known(work)
    with opened_run(bench, work.report, KIND, None, work.report.finish) as lease:
        work_in(bench.catalog, lease, base)
        space, whitening = (known, _of(work, known)) if known else _made(work)
        work.report.space, work.report.dims = space.name, whitening.dims
        work_in(bench.catalog, lease, space)
        _fill(work, lease, space, whitening)
        _publish(work, lease, space)
    return work.report


def _known(work: _Work) -> SpaceInfo | None:
    """Return the space that was made for this before; refuse what can't be."""
    base, name = work.base, work.options.name
    if whitening_of(base.request):
        raise SpaceError(f"the space {base.name!r} is whitened already; name the one it came from")
    if name == ALL:
        raise SpaceError(f"--space {ALL} means every space; choose another --name")
    known = space_for_key(work.catalog, work.key)
    if known is not None:
        _refuse_other_name(work, known.name)
    if known is None and name in [space.name for space in list_spaces(work.catalog)]:
        raise SpaceError(f"there is a space {name!r}, of other vectors; choose another --name")
    return known


def _refuse_other_name(work: _Work, known: str) -> None:
    name = work.options.name
    if name not in (None, known):
        raise SpaceError(
            f"these vectors are already the space {known!r}, not {name!r}; leave out --name"
        )


def _of(work: _Work, space: SpaceInfo) -> Whitening:
    return read(whitening_path(work.catalog.home, whitening_of(space.request) or ""))


def _made(work: _Work) -> tuple[SpaceInfo, Whitening]:
    """Learn a whitening and make its space: the file is durable before a row names it."""
    whitening = _learnt(work)
    data, home = whitening.to_bytes(), work.catalog.home
    digest = keep_whitening(home, data)
    base = work.base
    spec = {**base.spec, "dim": work.dim, "whitening": digest}
    space = work.ask(
        lambda catalog: ensure_space(
            catalog,
            name=_name(work, fingerprint(spec)),
            spec=spec,
            request={**base.request, "whitening": digest},
            key=work.key,
        )
    )
    if not os.path.exists(whitening_path(home, digest)):  # a space with it was just dropped
        keep_whitening(home, data)
    return space, whitening


def _name(work: _Work, digest: str) -> str:
    """Return the name of the space with these vectors; another sample may have led to it too."""
    spaces = list_spaces(work.catalog)
    same = next((space.name for space in spaces if space.fingerprint == digest), None)
    if same is not None:
        _refuse_other_name(work, same)
        return same
    if work.options.name is not None:
        return work.options.name
    dim = f"-{work.dim}" if work.dim != work.base.dim else ""
    stem = f"{work.base.name}-{WHITENED}{dim}"
    taken = {space.name for space in spaces}
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    return name


def _learnt(work: _Work) -> Whitening:
    """Learn from a seeded sample of the live vectors."""
    started = time.perf_counter()
    base, options = work.base, work.options
    with work.catalog.read() as conn:
        view = snapshot_in(conn, base)
        rows = entered_rows(conn, base.id, live=True, below=view.next_row)
    chosen = _sample(rows, options.sample, options.seed)
    refuse_few(len(chosen), work.dim)  # before anything is read
    vectors = VerifiedRows(open_store(work.catalog, base), view)
    moments = Moments(base.dim)
    most = max(1, BLOCK_BYTES // (8 * base.dim))
    for start in range(0, len(chosen), most):
        work.bench.check()
        moments.add(vectors.gather(chosen[start : start + most]))
        work.progress.learning(moments.n, len(chosen))
    whitening = moments.whitening(work.dim, base.dtype)
    if len(chosen) < FEW * work.dim:
        work.report.warnings.append(
            f"learnt from {len(chosen):,} vectors, fewer than {FEW} for each of {work.dim:,} "
            "dimensions: the weak ones may be noise, and a smaller --dim is safer"
        )
    work.report.learnt_from = len(chosen)
    work.report.seconds["learn"] = time.perf_counter() - started
    return whitening


def _sample(rows: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """Return some of the rows, ascending, the same ones for the same seed."""
    if len(rows) <= most:
        return rows
    chosen = np.random.default_rng(seed).choice(len(rows), most, replace=False)
    return rows[np.sort(chosen)]


def _fill(work: _Work, lease: Lease, space: SpaceInfo, whitening: Whitening) -> None:
    started = time.perf_counter()
    catalog, report = work.catalog, work.report
    # Until the run's end: nobody forgets images or compacts while their vectors are on the way.
    claim(catalog, lease, "space", space.id, space.id)
    total = work.ask(lambda catalog: count_lacking(catalog, work.base, space))
    work.progress.pending(total)
    for chunk in derive(catalog, lease, work.base, space, whitening.transform):
        report.filled += chunk.entered
        work.progress.advance(chunk.rows, chunk.rows - chunk.entered)
        work.bench.check()
    report.seconds["fill"] = time.perf_counter() - started


def _publish(work: _Work, lease: Lease, space: SpaceInfo) -> None:
    started = time.perf_counter()
    work.report.vectors = work.ask(lambda catalog: _entered(catalog, space))
    reason = work.ask(lambda catalog: publish_due(catalog, space))
    if reason is None:
        return
    work.progress.publishing(space.name, reason)
    place = Place(work.options.home, work.options.catalog_url, lease)
    made = publish_step(PublishOrder(place, space.name, None))
    if made:
        work.report.add_published(made)
    work.report.seconds["publish"] = time.perf_counter() - started


def _entered(catalog: Catalog, space: SpaceInfo) -> int:
    with catalog.read() as conn:
        return len(entered_rows(conn, space.id))
