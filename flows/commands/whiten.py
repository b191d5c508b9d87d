"""``lookalike whiten``."""

from typing import Any

import click

from flows.commands.base import Command, json_option, settings_of
from flows.commands.show import leave


@click.command(
    "whiten",
    cls=Command,
    short_help="Make a space of PCA-whitened vectors out of another one.",
    examples="""\
    lookalike whiten
    lookalike whiten resnet50-maps-gem --dim 512
    lookalike whiten vgg16-fc7 --dim 256 --name small --sample 50000
    lookalike spaces use small
    """,
)
@click.argument("space", required=False)
@click.option("--dim", type=click.IntRange(1), help="Numbers of a vector; without it as before.")
@click.option("--name", metavar="NEW", help="What to call the new space.")
@click.option(
    "--sample",
    type=click.IntRange(2),
    default=100_000,
    show_default=True,
    help="Vectors to learn from, at most.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Which ones they are."
)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@json_option
@click.pass_context
def command(
    ctx: click.Context, /, space: str | None, quiet: bool, as_json: bool, **typed: Any
) -> None:
    """Learn PCA whitening from the vectors of SPACE, or of the current one, and make a new space.

    Directions in which vectors vary much count less then, and the others more, which often finds
    more; with --dim the weakest are left out.  The new space is filled from the stored vectors: no
    image is read.  New images come into it as into any other, by `lookalike index --space NEW`,
    with the whitening that was learnt now.

    A second call with the same options learns nothing again, and whitens what has come since.
    Ctrl-C stops cleanly, and the same command goes on.
    """
    from flows.job.progress import Progress
    from flows.job.whitening import WhiteningOptions, whiten
    from storage.catalog import Catalog

    settings = settings_of(ctx).settings
    if not settings.home_().is_made():
        Catalog.open(settings.home_(), write=False).close()  # says that nothing is indexed yet
    options = WhiteningOptions(
        home=settings.home,
        catalog_url=settings.catalog_url,
        space=space,
        **typed,
    )
    with Progress("silent" if quiet or as_json else "auto") as progress:
        report = whiten(options, progress)
    leave(ctx, report, as_json=as_json)
