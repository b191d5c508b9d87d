"""``lookalike sample``."""

from typing import TYPE_CHECKING, Any

import click

from flows.commands.base import Command, json_option
from flows.commands.running import options
from flows.commands.show import count, printable, table, write_json
from flows.commands.sourcing import SOURCE

if TYPE_CHECKING:
    from storage.sources.sample import Sampled

MOST_SEED = 2**64 - 1
MOST_LABELS = 30  # of which each is told on a line


@click.command(
    "sample",
    cls=Command,
    short_help="Write a seeded part of a list or an array, to try things out.",
    examples="""\
    lookalike sample images.tsv few.tsv --n 1000
    lookalike sample images.csv few.csv --fraction 0.01 --seed 7 --by-label
    lookalike sample X.npy few.npy --labels y.npy --n 500 --by-label
    """,
)
@click.argument("source", metavar="SOURCE")
@click.argument("out", metavar="OUT")
@click.option("--n", "-n", "n", type=click.IntRange(1), help="How many images.")
@click.option(
    "--fraction",
    type=click.FloatRange(0, 1, min_open=True),
    help="Which part of all images, such as 0.01.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, MOST_SEED),
    default=0,
    show_default=True,
    metavar="NUMBER",
    help="Another seed chooses other images.",
)
@click.option("--by-label", is_flag=True, help="Keep each label's share of the images.")
@click.option("--overwrite", is_flag=True, help="Replace OUT.")
@options(*SOURCE)
@json_option
def command(source: str, out: str, as_json: bool, **typed: Any) -> None:
    """Write some of the images of SOURCE to OUT, in the same format and order.

    SOURCE is a list of images (TSV, CSV or one path a line; - is standard input) or an .npy array
    of pictures, whose labels go to a file beside OUT.  The same seed always chooses the same
    images; without --by-label a smaller sample is part of a larger one.
    """
    if (typed["n"] is None) == (typed["fraction"] is None):
        raise click.UsageError("say how many: either --n NUMBER or --fraction PART")
    from storage.sources.choice import Choice
    from storage.sources.opening import SourceOptions, open_source
    from storage.sources.sample import write_sample

    overwrite = typed.pop("overwrite")
    choice = Choice(**{name: typed.pop(name) for name in ("n", "fraction", "seed", "by_label")})
    with open_source(source, SourceOptions(**typed)) as opened:
        done = write_sample(opened, out, choice, overwrite=overwrite)
    write_json(_values(done)) if as_json else click.echo(_text(done))


def _values(done: "Sampled") -> dict[str, Any]:
    labels = [
        {"label": label, "images": n, "of": total}
        for label, (n, total) in done.chosen.labels.items()
    ]
    return {
        "images": len(done.chosen.positions),
        "of": done.chosen.total,
        "files": list(done.files),
        "labels": labels,
        "notes": list(done.notes),
    }


def _text(done: "Sampled") -> str:
    images = count(len(done.chosen.positions), "image")
    files = " and ".join(printable(file) for file in reversed(done.files))
    lines = [f"{images} of {done.chosen.total:,} written to {files}"]
    labels = done.chosen.labels
    if len(labels) > MOST_LABELS:
        numbers = [n for n, _ in labels.values()]
        lines.append(f"{len(labels):,} labels, {min(numbers):,} to {max(numbers):,} images each")
    elif labels:
        rows = [
            (printable(label or "(none)"), f"{n:,}", f"{total:,}")
            for label, (n, total) in labels.items()
        ]
        lines.append(table(("label", "images", "of"), rows, right=(1, 2)))
    return "\n".join([*lines, *(f"Note: {note}." for note in done.notes)])
