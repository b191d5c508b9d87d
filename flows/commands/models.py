"""``lookalike models``."""

from dataclasses import asdict

import click

from flows.commands.base import Command, json_option
from flows.commands.show import table, write_json


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

    found = list_models(pattern)
    if as_json:
        write_json([asdict(model) for model in found])
        return
    if not found:
        raise click.UsageError(f"no network matches {pattern!r}; `lookalike models` lists all")
    rows = [
        (
            model.name,
            model.dim,
            model.input_size,
            f"{model.parameters / 1e6:.1f}",
            f"{model.gflop:.1f}",
            " ".join(model.weights),
        )
        for model in found
    ]
    head = ("network", "numbers", "input", "M weights", "GFLOP", "published weights")
    click.echo(table(head, rows, right=(1, 2, 3, 4)))
