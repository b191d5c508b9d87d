"""``lookalike duplicates``."""

import math
import os
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from flows.commands.base import Command, absolute, json_option, opened
from flows.commands.grouped import AsJson, AsText
from flows.commands.show import count, printable
from flows.commands.writing import check_apart

if TYPE_CHECKING:
    from search.duplicate_report import Report
    from search.duplicates import Tell
    from search.groups import Group
    from storage.catalog import Catalog

THUMBNAIL = 320


@click.command(
    "duplicates",
    cls=Command,
    short_help="Find pictures that are there more than once.",
    examples="""\
    lookalike duplicates
    lookalike duplicates --exact --json
    lookalike duplicates --near 0.98 --under ~/Pictures --report review.html
    lookalike duplicates --script clean-up.sh
    """,
)
@click.option("--exact", is_flag=True, help="Only files with the same bytes; needs no vectors.")
@click.option(
    "--near",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="X",
    help="Least score (cosine) of a picture with the best of its group.  [default: 0.95]",
)
@click.option("--under", metavar="PATH", help="Only files at or below this path.")
@click.option("--space", metavar="NAME", help="Space to compare in; without it the current one.")
@click.option("--report", metavar="OUT.html", help="Write a page to review the groups by.")
@click.option("--script", metavar="OUT.sh", help="Write a script that moves or removes the others.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@json_option
@click.pass_context
def command(
    ctx: click.Context, /, report: str | None, script: str | None, as_json: bool, **typed: Any
) -> None:
    """Find groups of files that hold the same picture, and suggest which one to keep.

    Without --exact these are files with the same bytes, and pictures whose vectors are mutual
    nearest neighbours with a score of at least --near: each of two is among the 16 images that are
    most like the other one.  Every picture of a group is at least that much like the one to keep,
    so that no chain of small steps joins what is far apart.

    The one to keep has the most pixels; of equal ones the most bytes; of those it is the oldest by
    its time of modification.  A file that changed since it was indexed is left out.

    Nothing is moved or removed by this command.  The script of --script does, once you have read it
    and run it with --really: it compares every file with its indexed digest first.

    The exit code is 0 whether there are any or none; 2 where an option or an output is wrong, 5 for
    trouble with the store, and 130 after Ctrl-C, which leaves no half-written output.
    """
    if typed["exact"] and (typed["near"] is not None or typed["space"] is not None):
        raise click.UsageError("--exact compares no vectors: leave out --near and --space")
    if typed["near"] is not None and math.isnan(typed["near"]):
        raise click.BadParameter("not a number", param_hint="'--near'")
    check_apart({"--report": report, "--script": script})
    with ExitStack() as stack:
        catalog = stack.enter_context(opened(ctx))
        progress = _Shown("silent" if typed.pop("quiet") or as_json else "auto")
        asked, groups = _asked(catalog, progress.tell, **typed)
        told = AsJson(asked) if as_json else AsText(asked)
        takers = [told.add]
        pages = None
        if script is not None:
            from search.duplicate_script import Script

            takers.append(stack.enter_context(Script(os.path.abspath(script))).add)
        if report is not None:
            pages = _report(stack, catalog, os.path.abspath(report), asked["about"])
            takers.append(pages.add)
        stack.enter_context(progress)
        for group in groups:
            progress.found()
            for take in takers:
                take(group)
    told.end()
    _tell_outputs(pages, script)


def _asked(
    catalog: "Catalog",
    tell: "Tell",
    *,
    exact: bool,
    near: float | None,
    under: str | None,
    space: str | None,
) -> tuple[dict[str, Any], "Iterable[Group]"]:
    """Return what is searched for, and the groups to come."""
    from search.duplicates import NEAR, Near, exact_groups
    from storage.spaces import get_space

    path = None if under is None else absolute([under])[0]
    where = "" if under is None else f" at or below {printable(os.path.abspath(under))}"
    if exact:
        about = f"Files with the same bytes{where}."
        asked = {"space": None, "near": None, "about": about}
        return asked, exact_groups(catalog, path, tell=tell)
    least = NEAR if near is None else near
    wanted = get_space(catalog, space)
    found = Near(catalog, wanted, least, under=path)
    for line in found.warnings:
        click.echo(f"lookalike: {printable(line)}", err=True)
    about = (
        f"Pictures with a score of at least {least:g} in space {printable(wanted.name)}, and files "
        f"with the same bytes{where}."
    )
    return {"space": wanted.name, "near": least, "about": about}, found.groups(tell)


class _Shown:
    """Progress on stderr; on a terminal it ends where the groups begin."""

    def __init__(self, kind: Any) -> None:
        from flows.job.progress import Progress

        self._progress = Progress(kind)
        self._stage = ""
        self._done = 0

    def __enter__(self) -> "_Shown":
        self._progress.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._progress.__exit__(*raised)

    def tell(self, stage: str, done: int, of: int) -> None:
        """Count what is done of a stage."""
        if stage != self._stage:
            self._stage, self._done = stage, 0
            self._progress.pending(of)
        self._progress.advance(done - self._done)
        self._done = done

    def found(self) -> None:
        """Make room for the groups where both are on one terminal."""
        if sys.stdout.isatty():
            self._progress.__exit__(None, None, None)


def _report(stack: ExitStack, catalog: "Catalog", path: str, about: str) -> "Report":
    from search.duplicate_report import Report
    from search.errors import SearchError
    from search.thumbnail_files import thumbnails_folder
    from search.thumbnails import Thumbnails

    made = stack.enter_context(Thumbnails(catalog, thumbnails_folder(catalog.store_id)))

    def thumbnail(image_id: int) -> bytes | None:
        try:
            return made.of(image_id, THUMBNAIL)
        except SearchError:
            return None

    return stack.enter_context(Report(path, about, thumbnail))


def _tell_outputs(pages: "Report | None", script: str | None) -> None:
    if pages is not None:
        more = f" and {count(len(pages.paths) - 1, 'more page')}" if len(pages.paths) > 1 else ""
        click.echo(f"report: {printable(pages.paths[0])}{more}", err=True)
        if pages.hidden:
            click.echo(
                f"lookalike: {count(pages.hidden, 'group')} more than the report shows: --json "
                "lists all, --under or a higher --near finds fewer",
                err=True,
            )
    if script is not None:
        path = printable(os.path.abspath(script))
        click.echo(f"script: {path} (read it first; it does nothing without --really)", err=True)
