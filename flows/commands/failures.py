"""``lookalike failures`` and ``lookalike retry``."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from flows.commands.base import Command, absolute, json_option, opened
from flows.commands.show import count, printable, table, when, write_json

if TYPE_CHECKING:
    from storage.failures import FailureInfo


@click.command(
    "failures",
    cls=Command,
    short_help="List images without a vector, and why.",
    examples="""\
    lookalike failures
    lookalike failures -n 1000 --json
    """,
)
@click.option("-n", "limit", type=click.IntRange(1), default=20, show_default=True, help="Most.")
@click.option("--space", metavar="NAME", help="Space; without it the current one.")
@json_option
@click.pass_context
def command(ctx: click.Context, limit: int, space: str | None, as_json: bool) -> None:
    """List the images that have no vector, the latest first, and why.

    What the bytes themselves cause is not tried again until the file changes, or `lookalike retry`
    asks for it; what may pass (marked `again`) is tried on every run.
    """
    from storage.failures import counts_by_class, list_failures
    from storage.spaces import get_space

    with opened(ctx) as catalog:
        wanted = get_space(catalog, space)
        counts = counts_by_class(catalog, wanted)
        found = [_values(failure) for failure in list_failures(catalog, wanted, limit)]
    if as_json:
        write_json({"space": wanted.name, "counts": dict(counts), "failures": found})
    elif not counts:
        click.echo(f"No failures in space {wanted.name}.")
    else:
        click.echo(_text(found, counts))


def _values(failure: "FailureInfo") -> dict[str, Any]:
    return {
        "path": os.fsdecode(failure.path),
        "copies": failure.copies,
        "stage": failure.stage,
        "class": failure.failure_class,
        "message": failure.message,
        "transient": failure.transient,
        "attempts": failure.attempts,
        "first_at": failure.first_at,
        "last_at": failure.last_at,
    }


def _text(found: list[dict[str, Any]], counts: Mapping[str, int]) -> str:
    rows = [
        (
            f"{failure['stage']}/{failure['class']}" + (" again" if failure["transient"] else ""),
            failure["attempts"],
            when(failure["last_at"]),
            printable(failure["path"]),
            printable(failure["message"]),
        )
        for failure in found
    ]
    total = ", ".join(f"{n:,} {name}" for name, n in sorted(counts.items()))
    return table(("failure", "tries", "last", "path", "message"), rows, right=(1,)) + f"\n{total}"


@click.command(
    "retry",
    cls=Command,
    short_help="Try failed images again on the next run.",
    examples="""\
    lookalike retry
    lookalike retry --class truncated
    lookalike retry ~/Pictures/2019/beach.jpg
    """,
)
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--class", "failure_class", metavar="CLASS", help="Only failures of this class.")
@click.pass_context
def retry_command(ctx: click.Context, paths: tuple[str, ...], failure_class: str | None) -> None:
    """Forget recorded failures, so that the next `lookalike index` tries these images again.

    All of them, or only those of a class, or of the files at the PATHs.
    """
    from storage.failures import retry

    with opened(ctx, write=True) as catalog:
        n = retry(catalog, failure_class=failure_class, paths=absolute(paths) or None)
    click.echo(
        f"{count(n, 'failure')} forgotten; the next `lookalike index` tries these images again"
    )
