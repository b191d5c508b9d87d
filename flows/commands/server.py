"""``lookalike up`` and ``lookalike down``."""

from functools import partial

import click

from flows.commands.base import Command, settings_of


@click.command(
    "up",
    cls=Command,
    short_help="Start Prefect's local server in the background.",
    examples="""\
    lookalike up          start it; `lookalike index` then shows its runs there
    lookalike down        stop it
    """,
)
@click.pass_context
def up_command(ctx: click.Context) -> None:
    """Start Prefect's own local server in the background, and remember it.

    Runs of `lookalike index` that have something to do then appear in its web page.
    """
    from flows.server.local import up

    click.echo(up(settings_of(ctx).settings, partial(click.echo, err=True)))


@click.command(
    "down",
    cls=Command,
    short_help="Stop the server that `up` started.",
    examples="""\
    lookalike down
    """,
)
@click.pass_context
def down_command(ctx: click.Context) -> None:
    """Stop the local server that `lookalike up` started."""
    from flows.server.local import down

    click.echo(down(settings_of(ctx).settings, partial(click.echo, err=True)))
