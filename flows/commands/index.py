"""``lookalike index``."""

import os
from typing import TYPE_CHECKING, Any

import click

from flows.commands.base import Command, absolute, json_option
from flows.commands.show import printable, write_json

if TYPE_CHECKING:
    from flows.job import IndexOptions

UNAVAILABLE = 4
PREFECT = {None: None, True: "always", False: "never"}


@click.command(
    "index",
    cls=Command,
    short_help="Bring the index up to date with the roots.",
    examples="""\
    lookalike index ~/Pictures
    lookalike index ~/Pictures /mnt/photos --exclude '*.tmp.jpg'
    lookalike index products.tsv --model vgg16 --layer fc7 --space products
    lookalike index --plan
    lookalike index --json | jq .extracted
    """,
)
@click.argument("roots", nargs=-1, metavar="[ROOT]...")
@click.option("--model", metavar="NAME", help="Network; `lookalike models` lists them.")
@click.option("--layer", metavar="NAME", help="fc7, avgpool, logits, ... or any node's name.")
@click.option("--weights", metavar="W", help="DEFAULT, a published name, a FILE or random[:SEED].")
@click.option(
    "--space", metavar="NAME", help="Space to maintain, or a new one's name; `all`: each."
)
@click.option(
    "--dtype", type=click.Choice(["float32", "float16"]), help="Stored type of a new space."
)
@click.option("--device", metavar="DEV", help="auto, cpu, cuda or cuda:N.")
@click.option("--batch-size", type=click.IntRange(1), help="Images in one forward pass.")
@click.option("--workers", type=click.IntRange(1), help="Threads that read and decode.")
@click.option("--chunk-size", type=click.IntRange(1, 8192), help="Most images of one commit.")
@click.option("--exclude", "excludes", multiple=True, metavar="GLOB", help="Leave out; repeatable.")
@click.option("--index-spec", metavar="FACTORY", help="FAISS index_factory string; publishes.")
@click.option("--max-failures", type=click.FloatRange(0, 1), help="Share that may fail, 0 to 1.")
@click.option("--confirm-missing", is_flag=True, help="Accept that most files of a root are gone.")
@click.option("--plan", is_flag=True, help="Say what would be done and touch nothing.")
@click.option("--prefect/--no-prefect", default=None, help="Force or avoid Prefect's engine.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@json_option
@click.pass_context
def command(ctx: click.Context, /, **typed: Any) -> None:
    """Bring the index up to date with the ROOTs, or with all known ones.

    A ROOT is a directory, or a manifest: a TSV or CSV file of (id, path) or (label, path), or a
    text list of paths.  Roots are remembered.  Only what is new or has changed is read, and each
    distinct image is extracted once for each space.
    """
    from flows.plan import plan as plan_of
    from flows.progress import Progress
    from flows.run import run

    as_json, plan = typed.pop("as_json"), typed.pop("plan")
    quiet = typed.pop("quiet") or as_json
    options, prefect = _options(ctx, **typed)
    if plan:
        planned = plan_of(options)
        write_json(planned.to_json()) if as_json else click.echo(planned.to_text())
        ctx.exit(UNAVAILABLE if planned.unavailable else 0)
    with Progress("silent" if quiet else "auto") as progress:
        report = run(options, progress, prefect=prefect)
    write_json(report.to_json()) if as_json else click.echo(report.to_text())
    for line in report.trouble_lines():
        click.echo(f"lookalike: {printable(line)}", err=True)
    ctx.exit(report.exit_code())


def _options(
    ctx: click.Context, *, roots: tuple[str, ...], prefect: bool | None, **typed: Any
) -> tuple["IndexOptions", str]:
    from flows.parameters import options_for

    asked = {
        **ctx.ensure_object(dict),
        **typed,
        "roots": [os.fsdecode(root) for root in absolute(roots)],
        "prefect": PREFECT.get(prefect),
    }
    return options_for(asked)
