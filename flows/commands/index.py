"""``lookalike index``."""

import os
from typing import Any

import click

from flows.commands.base import Command, absolute
from flows.commands.running import ENGINE, RECIPE, TELLING, carry_out, options


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
@options(*RECIPE, *ENGINE)
@click.option("--exclude", "excludes", multiple=True, metavar="GLOB", help="Leave out; repeatable.")
@click.option("--index-spec", metavar="FACTORY", help="FAISS index_factory string; publishes.")
@click.option(
    "--confirm-missing", is_flag=True, help="Accept that most files of a root are gone or others."
)
@options(*TELLING)
@click.pass_context
def command(ctx: click.Context, /, **typed: Any) -> None:
    """Bring the index up to date with the ROOTs, or with all known ones.

    A ROOT is a directory, or a manifest: a TSV or CSV file of (id, path) or (label, path), or a
    text list of paths.  Roots are remembered.  Only what is new or has changed is read, and each
    distinct image is extracted once for each space.
    """
    typed["roots"] = [os.fsdecode(root) for root in absolute(typed["roots"])]
    carry_out(ctx, "index", typed)
