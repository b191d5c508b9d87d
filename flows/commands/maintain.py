"""``lookalike maintain``."""

import click

from flows.commands.base import Command, json_option
from flows.commands.show import leave


@click.command(
    "maintain",
    cls=Command,
    short_help="Verify the store, read files again, and tidy up.",
    examples="""\
    lookalike maintain
    lookalike maintain --repair
    lookalike maintain --no-verify --json | jq .rehash
    """,
)
@click.option("--repair", is_flag=True, help="Mend what can be mended from what is there.")
@click.option("--no-verify", is_flag=True, help="Do not read the whole store; the rest is done.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@json_option
@click.pass_context
def command(ctx: click.Context, repair: bool, no_verify: bool, quiet: bool, as_json: bool) -> None:
    """Do what a store wants once a week; made for a timer.

    Every byte of the store is verified, and a thirtieth of the indexed files is read again, another
    one each time: where bytes differ though size and times do not, the next `lookalike index` takes
    the file as it is then (exit code 3).  Files that are missing for more than 30 days are
    forgotten, parts compacted, indexes built anew where that is due, old files deleted.

    Where the store is in trouble that was not mended nothing of it is rewritten (exit code 5).
    A run of `index` may go on meanwhile.  Ctrl-C stops cleanly.
    """
    from flows.job.progress import Progress
    from flows.job.upkeep import maintain
    from flows.job.upkeep_options import upkeep_options

    if repair and no_verify:
        raise click.UsageError("--repair mends what the verifying finds: leave --no-verify out")
    options = upkeep_options(ctx.ensure_object(dict), repair=repair, verify=not no_verify)
    with Progress("silent" if quiet or as_json else "auto") as progress:
        report = maintain(options, progress)
    leave(ctx, report, as_json=as_json)
