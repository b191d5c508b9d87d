"""``lookalike backfill``."""

import os
from typing import Any

import click

from flows.commands.base import Command, absolute
from flows.commands.running import ENGINE, RECIPE, TELLING, carry_out, options


@click.command(
    "backfill",
    cls=Command,
    short_help="Extract what known images lack, without walking the roots.",
    examples="""\
    lookalike backfill --model vgg16 --layer fc7   a new space; the current one goes on serving,
    lookalike spaces use vgg16-fc7                 until it is to be searched instead
    lookalike backfill --failed                    try again what has failed
    lookalike backfill ~/Pictures/2019             a year's folder
    lookalike backfill --space all --glob '*.png' --since 2026-11-01
    lookalike backfill --model vgg16 --plan        how much there is to do
    """,
)
@click.argument("roots", nargs=-1, metavar="[ROOT]...")
@click.option("--glob", "globs", multiple=True, metavar="G", help="Only such files; repeatable.")
@click.option("--failed", is_flag=True, help="Only images that failed; they are tried again.")
@click.option("--since", metavar="WHEN", help="Only files modified then or later.")
@click.option("--until", metavar="WHEN", help="Only files modified before.")
@options(*RECIPE, *ENGINE, *TELLING)
@click.pass_context
def command(ctx: click.Context, /, **typed: Any) -> None:
    """Extract what images that are known lack in a space, and publish an index of it.

    An image is pending in a space that has no vector of it, unless it has failed there before.  A
    model that has no space yet gets one beside the current one.  The roots are not walked, so what
    is new or gone there waits for `lookalike index`; a root that is unavailable is left out.

    A ROOT is a known root, or a folder or picture in one; without, all roots are meant.  G is a
    name at any depth, or with a slash a path in the root: '*.png', '2019/**'.  WHEN is a date or a
    date and time in your time zone, 2026-11-22 or 2026-11-22T14:30, or 36h, 7d, 2w ago.
    """
    typed["roots"] = [os.fsdecode(root) for root in absolute(typed["roots"])]
    carry_out(ctx, "backfill", typed)
