"""``lookalike export``."""

import os
from typing import TYPE_CHECKING, Any

import click

from flows.commands.base import Command, absolute, json_option, opened
from flows.commands.show import count, printable, size, write_json

if TYPE_CHECKING:
    from storage.exports.space import Exported
    from storage.spaces import SpaceInfo

FORMATS = ("tsv", "csv", "table", "npy", "npz", "parquet", "clip-retrieval")


@click.command(
    "export",
    cls=Command,
    short_help="Write the vectors of a space for other tools.",
    examples="""\
    lookalike export vectors.parquet
    lookalike export vgg19-fc7 fc7.tsv
    lookalike export - photos.npy --root ~/Pictures
    lookalike export - orange.csv --format table
    lookalike export - clip --format clip-retrieval
    """,
)
@click.argument("space_and_out", nargs=-1, required=True, metavar="[SPACE] OUT")
@click.option("--format", "format", type=click.Choice(FORMATS), help="Without it by OUT's suffix.")
@click.option("--root", metavar="PATH", help="Only this root, or this folder of one.")
@click.option(
    "--absolute",
    "absolute_ids",
    is_flag=True,
    help="Ids are absolute paths; what several roots name comes as often.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier output.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    space_and_out: tuple[str, ...],
    root: str | None,
    quiet: bool,
    as_json: bool,
    **typed: Any,
) -> None:
    """Write the vectors of SPACE to OUT: no picture is read, and no network is run.

    Without SPACE, or with -, those of the current one.  One record for each indexed file that has
    a vector, root by root in the order of paths: its id (the path relative to its root, or a
    manifest's id), label (a manifest's, or the first folder) and vector (float32).

    \b
    .tsv            id<TAB>[numbers], a line each
    .csv            id,numbers; with --format table a header Class,n0,n1,...
    .npy            NAME_data.npy, NAME_labels.npy and NAME_ids.npy
    .npz            arrays data, labels, ids, paths
    .parquet        columns id, path, label, vector
    clip-retrieval  a folder with img_emb/ and metadata/

    OUT appears complete or not at all.
    """  # noqa: D301 - a real \b tells click to leave the lines as they are
    from flows.job.progress import Progress
    from storage.exports.space import Wish, export_space
    from storage.spaces import get_space

    name, out = _space_and_out(space_and_out)
    under = None if root is None else absolute([root])[0]
    wish = Wish(root=under, absolute=typed.pop("absolute_ids"), **typed)
    with opened(ctx) as catalog, Progress("silent" if quiet or as_json else "auto") as progress:
        space = get_space(catalog, name)

        def tell(done: int, total: int) -> None:
            if not progress.total:
                progress.pending(total)
            progress.advance(done - progress.done)

        exported = export_space(catalog, space, out, wish, tell)
    if as_json:
        write_json(_values(exported, space))
        return
    click.echo(_text(exported, space))
    if exported.without:
        files = count(exported.without, "file")
        click.echo(
            f"lookalike: {files} without a vector in this space: not exported "
            "(`lookalike failures` says why, `lookalike index` goes on)",
            err=True,
        )


def _space_and_out(typed: tuple[str, ...]) -> tuple[str | None, str]:
    if len(typed) > 2:
        raise click.UsageError("too many arguments: [SPACE] OUT")
    *space, out = typed
    return (space[0] if space and space[0] != "-" else None), out


def _values(exported: "Exported", space: "SpaceInfo") -> dict[str, Any]:
    return {
        "space": space.name,
        "format": exported.output.format,
        "paths": [os.fsdecode(path) for path in exported.output.paths],
        "images": exported.images,
        "dim": space.dim,
        "without_vector": exported.without,
        "size_bytes": exported.size_bytes,
        "duration_s": exported.duration_s,
    }


def _text(exported: "Exported", space: "SpaceInfo") -> str:
    paths = ", ".join(printable(path) for path in exported.output.paths)
    return (
        f"{count(exported.images, 'image')} of space {space.name}, {space.dim} numbers each, as "
        f"{exported.output.format}: {paths} ({size(exported.size_bytes)})"
    )
