"""``lookalike regions``."""

from typing import Any

import click

from flows.commands.base import Command, json_option
from flows.commands.extract import OUTPUT
from flows.commands.running import WORK, options
from flows.commands.show import leave
from flows.commands.sourcing import SHARD, SOURCE

DETECTOR = (
    click.option(
        "--model",
        metavar="NAME",
        help="fasterrcnn_resnet50_fpn (default), ..._resnet50_fpn_v2, ..._resnet101_fpn, "
        "..._resnet152_fpn, ..._mobilenet_v3_large_fpn or ..._mobilenet_v3_large_320_fpn.",
    ),
    click.option(
        "--weights",
        "--model-file",
        "weights",
        metavar="W",
        help="DEFAULT, a published name, a FILE or random[:SEED].",
    ),
    click.option(
        "--config-file",
        metavar="FILE",
        help="YAML or TOML: model, weights, num_classes, class_names, min_size, nms, ...",
    ),
    click.option(
        "--num-boxes", type=click.IntRange(1), help="Most regions of an image (default 100)."
    ),
    click.option(
        "--min-score", type=click.FloatRange(0, 1), help="Only regions above (default 0.05)."
    ),
    click.option(
        "--nms",
        type=click.FloatRange(0, 1),
        help="Most overlap of two regions of a class (default 0.5).",
    ),
)
"""Options that say how regions are found."""


@click.command(
    "regions",
    cls=Command,
    short_help="Write the regions that a detector finds, with features.",
    examples="""\
    lookalike regions ~/Pictures regions
    lookalike regions coco.tsv regions.parquet --num-boxes 36 --min-score 0.2
    lookalike regions photos regions --model fasterrcnn_resnet101_fpn --model-file vg.pth \\
        --config-file vg.yaml
    lookalike regions photos regions --shard 2/4
    """,
)
@click.argument("source", metavar="SOURCE")
@click.argument("out", metavar="OUT")
@options(*DETECTOR, *SOURCE, SHARD, *WORK, *OUTPUT)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@json_option
@click.pass_context
def command(ctx: click.Context, /, **typed: Any) -> None:
    """Find the regions of all images of SOURCE with a Faster R-CNN and write them to OUT.

    SOURCE is a directory, a TSV, CSV or text list of paths, an npy array of pictures, or - for a
    list on standard input.

    OUT is a folder that mirrors the ids: a/b.jpg has OUT/a/b.jpg.npz with features (n, D), boxes
    (n, 4: left, top, right, bottom in pixels of the upright image), classes, scores and
    image_size (width, height); OUT/regions.json says how they were made and what the classes are
    called.  Several processes may fill one folder.  Or OUT is one Parquet file, a row an image.

    The features are the box head's for the final boxes.  What is typed wins over the file of
    --config-file.  A run that was stopped goes on when the same command is given again; images
    that failed are listed in OUT.failures.tsv (exit code 3), which can be the SOURCE of another
    run, unless they are an array's: its rows have no path.
    """
    from flows.batch.detector_options import regions_options
    from flows.batch.regions import regions_to
    from flows.job.progress import Progress

    as_json, quiet = typed.pop("as_json"), typed.pop("quiet")
    chosen = regions_options({**ctx.ensure_object(dict), **typed})
    with Progress("silent" if quiet or as_json else "auto") as progress:
        report = regions_to(chosen, progress)
    leave(ctx, report, as_json=as_json)
