"""``lookalike roots``."""

import os

import click

from flows.commands.base import Command, Group, absolute, json_option, list_unless_named, opened
from flows.commands.show import count, printable, table, when, write_json


@click.group(
    "roots",
    cls=Group,
    invoke_without_command=True,
    short_help="List, move or remove the indexed roots.",
    examples="""\
    lookalike roots
    lookalike roots move /mnt/old/photos /mnt/new/photos
    lookalike roots remove ~/Downloads
    """,
)
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List, move or remove the roots: the directories and manifests that are indexed.

    `lookalike index PATH` adds one.
    """
    list_unless_named(ctx, list_command, as_json=as_json)


@command.command(
    "list",
    cls=Command,
    short_help="List the roots.",
    examples="""\
    lookalike roots --json
    """,
)
@json_option
@click.pass_context
def list_command(ctx: click.Context, as_json: bool) -> None:
    """List the roots with how many live and missing files each has."""
    from search.overview import roots_overview

    with opened(ctx) as catalog:
        roots = roots_overview(catalog)
    if as_json:
        write_json([root.to_json() for root in roots])
        return
    rows = [
        (printable(root.path), root.kind, root.live, root.missing, when(root.scanned_at))
        for root in roots
    ]
    click.echo(table(("root", "kind", "files", "missing", "last scan"), rows, right=(2, 3)))


@command.command(
    "move",
    cls=Command,
    short_help="Say that a root has moved as a whole.",
    examples="""\
    lookalike roots move /mnt/old/photos /mnt/new/photos
    """,
)
@click.argument("old")
@click.argument("new")
@click.pass_context
def move_command(ctx: click.Context, old: str, new: str) -> None:
    """Say that the root OLD now lies at NEW; nothing is read or extracted again."""
    from storage.moving import move_root

    before, after = absolute([old, new])
    with opened(ctx, write=True) as catalog:
        root = move_root(catalog, before, after)
    click.echo(f"moved: {printable(before)} is now {printable(os.fsdecode(root.path))}")


@command.command(
    "remove",
    cls=Command,
    short_help="Stop indexing a root.",
    examples="""\
    lookalike roots remove ~/Downloads
    """,
)
@click.argument("path")
@click.pass_context
def remove_command(ctx: click.Context, path: str) -> None:
    """Stop indexing the root at PATH and forget its files; the pictures stay where they are.

    Vectors that no other root's files need are freed by `lookalike compact`.
    """
    from storage.moving import remove_root

    [wanted] = absolute([path])
    with opened(ctx, write=True) as catalog:
        n = remove_root(catalog, wanted)
    files = count(n, "file")
    click.echo(f"removed: {printable(wanted)}, {files} forgotten; `lookalike compact` frees disk")
