"""``lookalike backup`` and ``restore``."""

import os
from typing import TYPE_CHECKING

import click

from flows.commands.base import Command, json_option, opened, settings_of
from flows.commands.show import count, printable, size, when, write_json

if TYPE_CHECKING:
    from storage.backup import BackupResult


@click.command(
    "backup",
    cls=Command,
    short_help="Copy the store to another folder, also while runs go on.",
    examples="""\
    lookalike backup /mnt/disk/lookalike
    lookalike --home /mnt/disk/lookalike check --deep
    """,
)
@click.argument("dest", metavar="DEST")
@json_option
@click.pass_context
def backup_command(ctx: click.Context, dest: str, as_json: bool) -> None:
    """Copy catalog, vectors and indexes to the folder DEST, as they were at one moment.

    Runs may go on meanwhile.  Every byte is compared with the catalog's checksums on its way.
    Where DEST holds an earlier backup of this store only what is new is copied, and what is no
    longer needed is deleted; until all is there DEST remains the earlier backup.

    A backup is a home that is only read: `check`, `search` and `export` work on it with --home,
    and `restore` makes a home of it.  The pictures, the weights and settings.toml are not in it.
    """
    from storage.backup import backup

    with opened(ctx) as catalog:
        result = backup(catalog, dest)
    _tell(result, f"backed up to {printable(os.path.abspath(dest))}", as_json=as_json)


@click.command(
    "restore",
    cls=Command,
    short_help="Make a home of a backup.",
    examples="""\
    lookalike --home ~/restored restore /mnt/disk/lookalike
    lookalike --home ~/restored check --deep
    """,
)
@click.argument("backup", metavar="BACKUP")
@json_option
@click.pass_context
def restore_command(ctx: click.Context, backup: str, as_json: bool) -> None:
    """Put the backup in the folder BACKUP into the home, which must have no catalog.

    Every byte is compared with the catalog's checksums on its way, and the catalog comes last.
    With --catalog-url the catalog goes into that Postgres database, which must be empty.
    """
    from storage.restore import restore

    home = settings_of(ctx).settings.home_()
    result = restore(backup, home)
    _tell(result, f"restored to {printable(home.path)}", as_json=as_json)


def _tell(result: "BackupResult", done: str, *, as_json: bool) -> None:
    if as_json:
        from dataclasses import asdict

        write_json(asdict(result))
        return
    click.echo(
        f"{done}, as of {when(result.at)}: {count(result.spaces, 'space')}, "
        f"{count(result.vectors, 'vector')}, {count(result.files, 'file')}"
    )
    there = result.files - result.copied
    click.echo(
        f"{result.copied:,} copied ({size(result.copied_bytes)}), {there:,} there already, "
        f"{result.deleted:,} old deleted"
    )
