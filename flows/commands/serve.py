"""``lookalike serve``."""

import os
import signal
import sys
from typing import NoReturn

import click

from flows.commands.base import Command, settings_of
from flows.commands.show import printable


@click.command(
    "serve",
    cls=Command,
    short_help="Answer searches over HTTP.",
    examples="""\
    lookalike serve
    curl -s http://127.0.0.1:8765/healthz
    curl -s --data-binary @holiday.jpg -H 'Content-Type: image/jpeg' \\
        'http://127.0.0.1:8765/api/search?k=3'
    LOOKALIKE_TOKEN=a-long-secret lookalike serve --host 0.0.0.0
    """,
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="Port to listen at; 0 takes a free one.",
)
@click.option(
    "--allow-host",
    "allowed",
    multiple=True,
    metavar="NAME",
    help="One more name that it goes by, e.g. a proxy's; may be given several times.",
)
@click.option("--space", metavar="NAME", help="Space to stay with; without it the current one.")
@click.option("--device", metavar="DEV", help="Where an image that is not indexed is run.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    host: str,
    port: int,
    allowed: tuple[str, ...],
    space: str | None,
    device: str | None,
) -> None:
    """Answer searches over HTTP, until Ctrl-C or SIGTERM.  The first line on stdout is the URL.

    A browser finds a page there.

    After `lookalike spaces use` the next answer comes from the new space, without a gap.  Other
    machines are let in only with a token: set LOOKALIKE_TOKEN, which they send as
    `Authorization: Bearer TOKEN`, and which people give on a page.  docs/http.md has the questions
    and answers.
    """
    signal.signal(signal.SIGTERM, _end)
    from search.door import Address
    from search.following import Follower
    from search.server import serve

    settings = settings_of(ctx, device=device).settings
    address = Address(host, port, os.environ.get("LOOKALIKE_TOKEN") or None, allowed)
    with Follower(settings.home_(), space, device=settings.device) as follower:
        serve(
            follower,
            address,
            announce=click.echo,
            say=lambda line: click.echo(f"lookalike: {printable(line)}", err=True),
        )


def _end(_number: int, _frame: object) -> NoReturn:
    """End as asked: the server has sent its last answers when it raises the signal again."""
    sys.exit(0)
