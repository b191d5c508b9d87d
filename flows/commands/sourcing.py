"""Options of the commands that take images from a source and not from the catalog."""

import click

SOURCE = (
    click.option("--labels", metavar="NPY", help="Labels of an npy array, one a picture."),
    click.option("--height", type=click.IntRange(1), help="Of pictures that are rows of numbers."),
    click.option("--width", type=click.IntRange(1), help="Of pictures that are rows of numbers."),
    click.option("--channels", type=click.IntRange(1), help="1, 3 or 4; with --height, --width."),
    click.option(
        "--values",
        type=click.Choice(["unit", "byte"]),
        help="White in an array that is not uint8: 1 (unit) or 255 (byte).",
    ),
    click.option(
        "--columns", metavar="WORDS", help="Columns of a list: id, path, label or -, by commas."
    ),
)
"""What a source does not say itself: the fields of ``SourceOptions``."""
SHARD = click.option("--shard", metavar="I/N", help="Only the I-th of N parts of the source.")
"""How much of a source is meant."""
