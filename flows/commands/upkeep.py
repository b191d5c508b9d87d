"""``lookalike check``, ``compact`` and ``forget``."""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import click

from flows.commands.base import Command, absolute, json_option, leased, opened, settings_of
from flows.commands.show import count, printable, write_json

if TYPE_CHECKING:
    from storage.catalog import Catalog
    from storage.check import Depth, Finding
    from storage.check_again import Again

NOT_MENDED = 5
"""Exit code of a check that found trouble which is still there."""
OF_BACKUP = "`lookalike backup` into it again copies what is missing or damaged, from the store"


@click.command(
    "check",
    cls=Command,
    short_help="Verify catalog, vectors and indexes.",
    examples="""\
    lookalike check
    lookalike check --deep --repair
    """,
)
@click.option("--repair", is_flag=True, help="Mend what can be mended from what is there.")
@click.option("--deep", is_flag=True, help="Read every byte, and extract some pictures again.")
@click.option(
    "--confirm-missing", is_flag=True, help="Accept that most vectors of a space are lost."
)
@json_option
@click.pass_context
def check_command(
    ctx: click.Context, repair: bool, deep: bool, confirm_missing: bool, as_json: bool
) -> None:
    """Verify that catalog, vectors and indexes are whole and agree.

    Rows, sizes and headers are compared.  With --deep every byte is read as well: checksums, unit
    length, whose vectors they are, and whether each index holds and finds them; and up to 16
    pictures of each space are extracted again, which must give the stored vectors as closely as
    the device's precision lets them.
    A vector that is lost makes its image pending again, for the next run.  Where more than half of
    a space's vectors and more than 20 are missing, as when a disk is not mounted, nothing of it is
    repaired without --confirm-missing.
    Exit code 5 where something is wrong and was not mended.
    """
    from dataclasses import asdict

    from storage.backup_mark import is_backup
    from storage.check import Depth, check

    if confirm_missing and not repair:
        raise click.UsageError("--confirm-missing goes with --repair")
    with (
        opened(ctx, write=repair) as catalog,
        leased(catalog, "repair") if repair else nullcontext() as lease,
    ):
        depth = Depth(deep=deep, again=_again(ctx, catalog) if deep else None)
        findings = check(
            catalog, repair=repair, deep=depth, lease=lease, confirm_missing=confirm_missing
        )
    if as_json:
        write_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            mended = " (repaired)" if finding.repaired else ""
            click.echo(f"{finding.severity}: {printable(finding.what)}{mended}")
        click.echo(f"{_verdict(findings)}: {_looked_at(depth)}")
    left = [f for f in findings if f.severity == "error" and not f.repaired]
    if left and not as_json and is_backup(catalog.home.path):
        click.echo(OF_BACKUP)
    ctx.exit(NOT_MENDED if left else 0)


def _again(ctx: click.Context, catalog: "Catalog") -> "Again":
    from flows.job.again import extract_again

    settings = settings_of(ctx).settings
    return extract_again(catalog.home, settings.device, settings.workers)


def _verdict(findings: "Sequence[Finding]") -> str:
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return "clean"
    repaired = sum(finding.repaired for finding in errors)
    return f"{count(len(errors), 'error')}, {repaired:,} repaired"


def _looked_at(depth: "Depth") -> str:
    looked = depth.looked
    said = [
        count(looked.spaces, "space"),
        f"{count(looked.vectors, 'vector')} in {count(looked.parts, 'part')}",
        f"{looked.indexes:,} index{'' if looked.indexes == 1 else 'es'}",
    ]
    if depth.deep:
        said.append("every byte read")
        said.append(f"{count(looked.again, 'picture')} extracted again")
    return ", ".join(said)


@click.command(
    "compact",
    cls=Command,
    short_help="Free the disk that dead vectors take.",
    examples="""\
    lookalike compact
    lookalike compact --space vgg16-fc7 --force
    """,
)
@click.option("--space", metavar="NAME", help="Only this space; without it all of them.")
@click.option("--force", is_flag=True, help="Rewrite every part that has a dead vector.")
@click.pass_context
def compact_command(ctx: click.Context, space: str | None, force: bool) -> None:
    """Merge small parts and rewrite those with dead vectors; row numbers stay.

    Replaced files stay for a day, for readers that have them open, and go with a later compact.
    """
    from dataclasses import asdict

    from flows.job.upkeep_report import compacted_line
    from storage.cleanup import delete_old_files
    from storage.compact import compact
    from storage.publish import publish, publish_due
    from storage.reading import snapshot
    from storage.spaces import get_space, list_spaces

    with opened(ctx, write=True) as catalog, leased(catalog, "compact") as lease:
        spaces = list_spaces(catalog) if space is None else [get_space(catalog, space)]
        replaced = False
        for each in spaces:
            result = compact(catalog, lease, each, force=force)
            replaced |= bool(result.rows_dropped) or result.parts_after != result.parts_before
            click.echo(compacted_line(each.name, **asdict(result)))
            if publish_due(catalog, each) is not None:
                replaced |= snapshot(catalog, each).generation is not None
                publish(catalog, lease, each)
        deleted = delete_old_files(catalog, lease)
    later = "; what was replaced now goes after a day" if replaced else ""
    click.echo(f"{count(deleted, 'old file')} deleted{later}")


@click.command(
    "forget",
    cls=Command,
    short_help="Remove images from the index for good.",
    examples="""\
    lookalike forget ~/Pictures/private.jpg
    lookalike forget ~/Pictures/private
    """,
)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.pass_context
def forget_command(ctx: click.Context, paths: tuple[str, ...]) -> None:
    """Remove vector, thumbnails and record of the images at the PATHs for good.

    No file of the store keeps any of it.  The pictures themselves stay where they are; while they
    lie in a root, the next `lookalike index` finds them again.
    """
    from search.thumbnail_files import ThumbnailFiles, drop_unknown, thumbnails_folder
    from storage.forget import forget

    with opened(ctx, write=True) as catalog, leased(catalog, "forget") as lease:
        try:
            result = forget(catalog, lease, absolute(paths))
        finally:  # where an earlier one was killed before this, its paths are unknown by now
            drop_unknown(catalog, ThumbnailFiles(thumbnails_folder(catalog.store_id)))
    click.echo(
        f"forgotten: {count(result.images, 'image')}, {count(result.files, 'file')}, "
        f"{count(result.vectors, 'vector')}"
    )
    if result.unknown is not None:
        where = printable(os.fsdecode(result.unknown))
        click.echo(f"lookalike: nothing is known at {where}; this was left over", err=True)
