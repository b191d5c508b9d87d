"""Run ``index`` or ``backfill`` from a terminal: through Prefect, or on plain threads."""

import os

from flows.errors import NO_ROOT, FlowError
from flows.job.loop import IndexOptions, run_index
from flows.job.plan import plan
from flows.job.progress import Progress
from flows.job.report import Report
from flows.job.scanning import chosen_roots
from flows.job.signals import stop_on_signals
from flows.job.spaces import find_spaces
from flows.job.steps import PlainSteps
from flows.job.worker import bench_for, clear_bench
from storage.catalog import Catalog
from storage.home import Home
from storage.roots import list_roots
from storage.spaces import list_spaces


def run(options: IndexOptions, progress: Progress, *, prefect: str = "auto") -> Report:
    """Index, through Prefect's engine where there is one to talk to, else on plain threads.

    ``prefect`` is ``auto``, ``always`` or ``never``.  On ``auto`` a run that finds nothing to do
    never loads Prefect.

    Raises
    ------
    FlowError
        No root was named, and none is known; nothing was made then.  Or Dask was asked for without
        Prefect.
    """
    if options.runner == "dask" and prefect == "never":
        raise FlowError("Dask is reached through Prefect: leave out --no-prefect or --runner dask")
    home = Home(options.home, options.catalog_url)
    known = home.is_made() or os.path.exists(home.sqlite)
    if not known and not (options.roots and options.scan):
        raise FlowError(NO_ROOT)
    try:
        with stop_on_signals(options, progress) as stop:
            try:
                return _run(options, progress, prefect)
            except Exception as error:
                if stop.is_set():  # what the stop broke off is no trouble of its own
                    raise KeyboardInterrupt from error
                raise
    finally:
        clear_bench(options.home, options.catalog_url)


def _run(options: IndexOptions, progress: Progress, prefect: str) -> Report:
    catalog = bench_for(options.home, options.catalog_url).catalog
    if not options.roots and not list_roots(catalog):
        raise FlowError(NO_ROOT)
    if not options.scan:
        chosen_roots(catalog, options)  # refuses what is no root before a run is recorded
    _say_which_space(catalog, options, progress)
    if _through_prefect(options, progress, prefect):
        from flows.engine.in_process import run_with_prefect

        return run_with_prefect(options, progress)
    with PlainSteps() as steps:
        return run_index(options, steps=steps, progress=progress)


def _through_prefect(options: IndexOptions, progress: Progress, prefect: str) -> bool:
    from flows.server.local import prefect_wanted

    wanted = options.runner == "dask" or prefect_wanted(options.home, prefect, progress.note)
    return wanted and (prefect == "always" or not plan(options).idle)


def _say_which_space(catalog: Catalog, options: IndexOptions, progress: Progress) -> None:
    """Say it where a run maintains another space than the one that is searched."""
    if options.choice.space is not None:
        return
    current = [space.name for space in list_spaces(catalog) if space.current]
    for space in find_spaces(catalog, options.choice):
        if not space.current:
            progress.note(
                f"this run maintains the space '{space.name}', searches ask '{''.join(current)}'; "
                f"`lookalike spaces use {space.name}` makes it the current one"
            )
