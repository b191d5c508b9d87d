"""``lookalike models``."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from flows.commands.base import Command, json_option
from flows.commands.show import write_json

if TYPE_CHECKING:
    from extractor.models import ModelInfo

_HEAD = ("network", "numbers", "input", "M weights", "GFLOP", "from", "published weights")
_WIDTHS = (34, 7, 5, 9, 7, 11)


@click.command(
    "models",
    cls=Command,
    short_help="List the networks that can make vectors.",
    examples="""\
    lookalike models
    lookalike models 'resnet*'
    lookalike models vgg --json
    lookalike models 'timm:*dinov2*'
    lookalike models 'clip:vit-b*'
    """,
)
@click.argument("pattern", required=False)
@json_option
def command(pattern: str | None, as_json: bool) -> None:
    """List the networks whose names match PATTERN: a glob, or a part of the name.

    Numbers is the size of a vector, input the side of a picture in pixels.  timm's networks are
    listed where PATTERN begins with `timm:`; each is run dry for it, which takes about half a
    second, so that all of them take ten minutes.  Those that know words as well as pictures
    (open_clip's) are listed where it begins with `clip:`, and what is told is that of the part
    which looks at pictures.
    """
    from extractor.models import described

    found = described(pattern)
    first = next(found, None)
    if as_json:
        write_json([asdict(model) for model in (first, *found) if model is not None])
        return
    if first is None:
        raise click.UsageError(f"no network matches {pattern!r}; `lookalike models` lists all")
    click.echo(_line(_HEAD))
    click.echo(_line(_cells(first)))
    for model in found:  # one by one: there are many of timm's and open_clip's
        click.echo(_line(_cells(model)))


def _cells(model: "ModelInfo") -> Sequence[str]:
    return (
        model.name,
        str(model.dim),
        str(model.input_size),
        f"{model.parameters / 1e6:.1f}",
        f"{model.gflop:.1f}",
        model.source.partition(":")[0],
        " ".join(model.weights),
    )


def _line(cells: Sequence[str]) -> str:
    """Return a line of columns whose widths are known before their values are."""
    name, *numbers, source, weights = cells
    aligned = [cell.rjust(width) for cell, width in zip(numbers, _WIDTHS[1:5], strict=True)]
    return "  ".join([name.ljust(_WIDTHS[0]), *aligned, source.ljust(_WIDTHS[5]), weights]).rstrip()
