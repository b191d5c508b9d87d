"""Write ``docs/cli.md`` from the commands themselves: ``python docs/cli.py [--check]``."""

import os
import sys
from collections.abc import Iterator

import click

DOCS = os.path.dirname(os.path.abspath(__file__))
TARGET = os.path.join(DOCS, "cli.md")
HEAD = """\
# The command line

Written by `python docs/cli.py` from the commands themselves; `--check` says whether it is stale.
Results go to standard output, progress and errors to standard error.
"""


def pages(command: click.Command, parent: click.Context | None = None) -> Iterator[str]:
    """Yield the help page of a command as Markdown, and those of its commands after it."""
    name = "lookalike" if parent is None else command.name
    ctx = click.Context(command, info_name=name, parent=parent, terminal_width=88)
    level = "#" * (2 if parent is None or parent.parent is None else 3)
    yield f"{level} `{ctx.command_path}`\n\n```\n{command.get_help(ctx).rstrip()}\n```\n"
    if isinstance(command, click.Group):
        for each in command.list_commands(ctx):
            found = command.get_command(ctx, each)
            if found is not None:
                yield from pages(found, ctx)


def text() -> str:
    """Return the whole page."""
    sys.path.insert(0, os.path.dirname(DOCS))
    from flows.cli import cli  # noqa: PLC0415 - found once the checkout is on the path

    return "\n".join([HEAD, *pages(cli)])


def main() -> int:
    """Write the page, or with ``--check`` return 1 where it is stale."""
    wanted = text()
    if "--check" not in sys.argv[1:]:
        with open(TARGET, "w", encoding="utf-8") as file:
            file.write(wanted)
        return 0
    try:
        with open(TARGET, encoding="utf-8") as file:
            fresh = file.read() == wanted
    except FileNotFoundError:
        fresh = False
    if not fresh:
        click.echo("docs/cli.md is stale: run `python docs/cli.py`", err=True)
    return 0 if fresh else 1


if __name__ == "__main__":
    sys.exit(main())
