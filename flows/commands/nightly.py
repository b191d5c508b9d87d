"""``lookalike nightly``."""

from functools import partial

import click

from flows.commands.base import Command, settings_of


@click.command(
    "nightly",
    cls=Command,
    short_help="Index every night, from one process that stays.",
    examples="""\
    lookalike nightly --at 02:00
    lookalike nightly --at 23:30 --timezone Europe/Berlin --maintenance 'saturday 12:00'
    lookalike nightly --at '0 */6 * * *' --maintenance never
    """,
)
@click.option(
    "--at",
    default="02:00",
    metavar="WHEN",
    show_default=True,
    help="HH:MM, or five fields of cron.",
)
@click.option(
    "--maintenance",
    default="sunday 04:00",
    metavar="WHEN",
    show_default=True,
    help="DAY HH:MM, HH:MM, five fields of cron, or never.",
)
@click.option("--timezone", metavar="ZONE", help="Like Europe/Berlin; without it the machine's.")
@click.pass_context
def command(ctx: click.Context, at: str, maintenance: str, timezone: str | None) -> None:
    """Bring the index up to date with all known roots every night, until Ctrl-C or SIGTERM.

    Serves the deployments `nightly`, `maintenance` (weekly) and `backfill` (started from Prefect's
    page) through the Prefect API that is configured or that `lookalike up` started, else through a
    server of its own.  What is indexed is said by the settings, like for `lookalike index`.

    The first signal asks a run in progress to stop, which keeps what it has finished, pauses the
    schedules, and ends with exit code 0; a second one leaves at once, with 130.
    """
    from flows.server.clock import NEVER, when, zone
    from flows.server.nightly import Night, serve_nights

    settings = settings_of(ctx).settings
    weekly = None if maintenance.lower() == NEVER else when(maintenance).cron
    night = Night(settings.home, when(at).cron, weekly, zone(timezone))
    ctx.exit(serve_nights(settings, night, partial(click.echo, err=True)))
