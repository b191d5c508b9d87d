"""The command ``lookalike``: a group that loads a command only when it is called.

This module and the commands' modules import click alone, so that ``--help`` answers at once;
everything heavy is imported inside the commands.
"""

import errno
import importlib
import io
import os
import sys
import traceback
from typing import NoReturn

import click

from flows.commands.base import Group, common_options
from flows.commands.show import printable

COMMANDS = {
    "index": ("flows.commands.index:command", "Bring the index up to date with the roots."),
    "backfill": (
        "flows.commands.backfill:command",
        "Extract what known images lack, without walking the roots.",
    ),
    "extract": (
        "flows.commands.extract:command",
        "Write the vectors of a directory, list or array to a file.",
    ),
    "regions": (
        "flows.commands.regions:command",
        "Write the regions that a detector finds, with features.",
    ),
    "search": ("flows.commands.search:command", "Find the images that look like the given ones."),
    "duplicates": (
        "flows.commands.duplicates:command",
        "Find pictures that are there more than once.",
    ),
    "serve": ("flows.commands.serve:command", "Answer searches over HTTP."),
    "status": ("flows.commands.status:command", "Show settings, roots, spaces and pending work."),
    "failures": (
        "flows.commands.failures:command",
        "List images without a vector, and why.",
    ),
    "retry": ("flows.commands.failures:retry_command", "Try failed images again on the next run."),
    "check": ("flows.commands.upkeep:check_command", "Verify catalog, vectors and indexes."),
    "backup": (
        "flows.commands.backup:backup_command",
        "Copy the store to another folder, also while runs go on.",
    ),
    "restore": ("flows.commands.backup:restore_command", "Make a home of a backup."),
    "compact": ("flows.commands.upkeep:compact_command", "Free the disk that dead vectors take."),
    "maintain": (
        "flows.commands.maintain:command",
        "Verify the store, read files again, and tidy up.",
    ),
    "forget": ("flows.commands.upkeep:forget_command", "Remove images from the index for good."),
    "roots": ("flows.commands.roots:command", "List, move or remove the indexed roots."),
    "export": ("flows.commands.export:command", "Write the vectors of a space for other tools."),
    "spaces": ("flows.commands.spaces:command", "List, choose or drop the spaces of vectors."),
    "whiten": (
        "flows.commands.whiten:command",
        "Make a space of PCA-whitened vectors out of another one.",
    ),
    "sample": (
        "flows.commands.sample:command",
        "Write a seeded part of a list or an array, to try things out.",
    ),
    "models": ("flows.commands.models:command", "List the networks that can make vectors."),
    "nightly": (
        "flows.commands.nightly:command",
        "Index every night, from one process that stays.",
    ),
    "up": ("flows.commands.server:up_command", "Start Prefect's local server in the background."),
    "down": ("flows.commands.server:down_command", "Stop the server that `up` started."),
}
"""Where each command lives, and its short help, so that ``--help`` loads none of them."""

EXIT_CODES = """\
0    done
1    a bug: please report it
2    usage: an argument, a setting or a query image is wrong
3    done, but images failed in this run
4    a root is unavailable; nothing changed for it
5    trouble with the store: catalog, vectors, index or disk
6    a lease that the command needs is held by another run
7    the share of failed images passed --max-failures
130  interrupted
Where several apply: 130, 5, 7, 4, 6, 3."""


class LazyGroup(Group):
    """Knows its commands' names and short helps without loading them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table from the short helps."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples and the exit codes."""
        super().format_epilog(ctx, formatter)
        with formatter.section("Exit codes"):
            for line in EXIT_CODES.splitlines():
                formatter.write(f"  {line}\n")


@click.group(
    cls=LazyGroup,
    examples="""\
    lookalike index ~/Pictures        index a directory, and remember it
    lookalike index                   bring all known roots up to date
    lookalike search holiday.jpg      what looks like this?
    """,
)
@common_options
@click.version_option(package_name="lookalike", message="lookalike %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Keep every image under your directories searchable by likeness.

    --home and --catalog-url are understood after the command's name too.
    """


def main() -> NoReturn:
    """Run the command line; every trouble is one line on stderr and an exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - stays open to the end
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):  # a terminal that can't show a name must not end a run
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run()
        code = _flushed(code)
    except BrokenPipeError:  # the reader wanted no more, `| head`: not our trouble
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def _run() -> int:
    if "_LOOKALIKE_COMPLETE" in os.environ:  # the shell asks click for completions
        cli.main(prog_name="lookalike")
    try:
        with cli.make_context("lookalike", sys.argv[1:]) as ctx:
            cli.invoke(ctx)
        return 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        click.echo("\n".join(map(printable, said.getvalue().split("\n"))), err=True, nl=False)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _say("interrupted", 130)
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - the last place where a person can be told
        return _trouble(error)


def _flushed(code: int) -> int:
    """Write what stdout still holds; return ``code``, or that of what could not be written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _trouble(error)
    return code


def _trouble(error: Exception) -> int:
    if os.environ.get("LOOKALIKE_DEBUG"):
        traceback.print_exception(error)
    code = expected_code(error)
    if code is not None:
        return _say(str(error), code)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return _say("no space left where the output goes", 5)
    if isinstance(error, UnicodeEncodeError):
        return _say("an option holds bytes that are not UTF-8; only paths may", 2)
    kind = type(error).__name__
    return _say(f"{kind}: {error} (a bug; set LOOKALIKE_DEBUG=1 for the traceback)", 1)


def expected_code(error: BaseException) -> int | None:
    """Return the exit code of an error of our own trees, None for any other."""
    room = type(error).__module__.partition(".")[0]
    code = getattr(error, "exit_code", None)
    if room in ("flows", "search", "extractor", "storage") and isinstance(code, int):
        return code
    return None


def _say(message: str, code: int) -> int:
    click.echo(f"lookalike: {printable(' '.join(message.split()))}", err=True)
    return code


if __name__ == "__main__":
    main()
