"""``lookalike models``."""

import click

from flows.commands.base import Command, json_option
from flows.commands.show import write_json


@click.command(
    "models",
    cls=Command,
    short_help="List the networks that can make vectors.",
    examples="""\
    lookalike models
    lookalike models 'resnet*'
    lookalike models vgg --json
    """,
)
@click.argument("pattern", required=False)
@json_option
def command(pattern: str | None, as_json: bool) -> None:
    """List the networks whose names match PATTERN: a glob, or a part of the name."""
    from extractor.models import list_models

    names = list_models(pattern)
    if as_json:
        write_json(names)
    elif names:
        click.echo("\n".join(names))
    else:
        raise click.UsageError(f"no network matches {pattern!r}; `lookalike models` lists all")
