"""``lookalike extract``."""

from typing import Any

import click

from flows.commands.base import Command, json_option
from flows.commands.running import MODEL, PASS, WORK, options
from flows.commands.show import leave
from flows.commands.sourcing import SHARD, SOURCE

LAYERS = (
    click.option(
        "--layer",
        "layers",
        multiple=True,
        metavar="NAME",
        help="fc7, avgpool, logits, ... or any node's name; repeatable.",
    ),
)
OUTPUT = (
    click.option("--overwrite", is_flag=True, help="Replace an output that is there."),
    click.option("--restart", is_flag=True, help="Throw away unfinished work and begin anew."),
)
"""Options that say what becomes of what is there."""


@click.command(
    "extract",
    cls=Command,
    short_help="Write the vectors of a directory, list or array to a file.",
    examples="""\
    lookalike extract ~/Pictures vectors.parquet
    lookalike extract products.tsv vectors.tsv --model vgg19 --layer fc7
    lookalike extract photos.csv layers --format csv --model alexnet \\
        --layer fc6 --layer fc7 --layer fc8 --no-normalize
    lookalike extract digits_data.npy digits.csv --format table --labels digits_labels.npy
    lookalike extract photos.txt part-2.npz --shard 2/4
    find . -name '*.jpg' | lookalike extract - vectors.npy
    """,
)
@click.argument("source", metavar="SOURCE")
@click.argument("out", metavar="OUT")
@options(*MODEL, *LAYERS)
@click.option(
    "--normalize/--no-normalize", default=True, help="Scale each vector to unit length (default)."
)
@click.option("--format", metavar="F", help="What to write; without it, what OUT's suffix means.")
@options(*SOURCE, SHARD, WORK[0], *PASS, *WORK[1:], *OUTPUT)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@json_option
@click.pass_context
def command(ctx: click.Context, /, **typed: Any) -> None:
    """Write the vectors of all images of SOURCE to OUT.  Needs no index and makes none.

    SOURCE is a directory (class folders give labels), a TSV, CSV or text list of paths, an npy
    array of pictures, or - for a list on standard input.

    OUT is written in the format that its suffix or --format says: tsv (id, JSON array), csv (id,
    numbers; several layers are a folder with a file each), table (Class,n0,n1,...), npy (OUT_data,
    _labels, _ids), npz, parquet, clip-retrieval.

    Images that give no vector are listed in OUT.failures.tsv (exit code 3), which can be the
    SOURCE of another run, unless they are an array's: its rows have no path.  What is finished is
    kept in OUT.partial until OUT is complete: after Ctrl-C or a crash the same command goes on
    from there, past an image that was the reason.
    """
    from flows.batch.extracting import extract_to
    from flows.batch.options import extract_options
    from flows.job.progress import Progress

    as_json, quiet = typed.pop("as_json"), typed.pop("quiet")
    chosen = extract_options({**ctx.ensure_object(dict), **typed})
    with Progress("silent" if quiet or as_json else "auto") as progress:
        report = extract_to(chosen, progress)
    leave(ctx, report, as_json=as_json)
