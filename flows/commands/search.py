"""``lookalike search``."""

import os
from typing import TYPE_CHECKING, Any

import click

from flows.commands.base import Command, absolute, json_option, settings_of
from flows.commands.show import printable, table, write_json

if TYPE_CHECKING:
    from search.answers import Answer


@click.command(
    "search",
    cls=Command,
    short_help="Find the images that look like the given ones.",
    examples="""\
    lookalike search holiday.jpg
    lookalike search *.jpg -k 3 --json
    lookalike search beach.png --under ~/Pictures/2019 --min-score 0.8
    lookalike search beach.png --no-self --sheet hits.png
    """,
)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("-k", "k", type=click.IntRange(1), default=10, show_default=True, help="Most hits.")
@click.option("--space", metavar="NAME", help="Space to search; without it the current one.")
@click.option(
    "--under", metavar="PATH", help="Only images at or below this path, or of this manifest."
)
@click.option("--min-score", type=float, metavar="X", help="Only scores (cosine) of at least X.")
@click.option("--no-self", is_flag=True, help="Leave out the query's own image.")
@click.option("--sheet", metavar="OUT.png", help="Draw the hits as a contact sheet.")
@click.option("--device", metavar="DEV", help="Where an image that is not indexed is run.")
@json_option
@click.pass_context
def command(
    ctx: click.Context, /, images: tuple[str, ...], sheet: str | None, as_json: bool, **typed: Any
) -> None:
    """Find the images that look most like each IMAGE.

    Scores are cosines: 1 is the same image.  An IMAGE that is indexed is looked up, any other one
    is run through the space's network first.
    """
    from search.engine import Searcher

    settings = settings_of(ctx, device=typed.pop("device")).settings
    under = typed.pop("under")
    under = None if under is None else absolute([under])[0]
    with Searcher(settings.home_(), typed.pop("space"), device=settings.device) as searcher:
        answers = searcher.search_paths(absolute(images), under=under, **typed)
        for line in searcher.warnings:
            click.echo(f"lookalike: {printable(line)}", err=True)
    if as_json:
        write_json([answer.to_json() for answer in answers])
    else:
        click.echo("\n\n".join(_text(answer) for answer in answers))
    if sheet is not None:
        from search.sheet import draw_sheet

        draw_sheet(answers, os.path.abspath(sheet))
        click.echo(f"contact sheet: {printable(os.path.abspath(sheet))}", err=True)


def _text(answer: "Answer") -> str:
    head = f"{printable(answer.query)} in space {answer.space}"
    if not answer.hits:
        return f"{head}: no hits"
    rows = []
    for rank, hit in enumerate(answer.hits, 1):
        more = len(hit.paths) - 1
        extra = [f"(and {more} more)"] if more else []
        extra += [
            f"{word}={printable(value)}"
            for word, value in (("id", hit.id), ("label", hit.label))
            if value
        ]
        rows.append((rank, f"{hit.score:.4f}", " ".join([printable(hit.path), *extra])))
    return f"{head}\n" + table(("rank", "score", "path"), rows, right=(0, 1))
