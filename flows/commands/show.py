"""How values are written to a terminal."""

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from flows.job.told import Ended


def printable(path: bytes | str) -> str:
    r"""Return a path for display: what a terminal can't show, or would obey, as ``\x0a``."""
    text = os.fsdecode(path)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    raw = os.fsencode(char)
    if len(raw) == 1:
        return f"\\x{raw[0]:02x}"
    return char.encode("unicode_escape").decode("ascii")


def table(head: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[int] = ()) -> str:
    """Return columns under their heads, wide enough for each value.

    Parameters
    ----------
    right
        Columns that are aligned to the right.
    """
    cells = [[str(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    lines = []
    for row in (list(head), *cells):
        aligned = [
            value.rjust(width) if i in right else value.ljust(width)
            for i, (value, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def count(n: int, word: str) -> str:
    """Return a number with its word: ``1 image``, ``1,200 images``."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def size(n_bytes: int) -> str:
    """Return a number of bytes for people: ``812 B``, ``4.1 MB``."""
    value = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def when(seconds: float | None) -> str:
    """Return a catalog's time as local date and time, ``never`` for none."""
    if seconds is None:
        return "never"
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def write_json(value: object) -> None:
    """Write JSON to stdout."""
    from flows.job.report import dump

    click.echo(dump(value))


def leave(ctx: click.Context, report: "Ended", *, as_json: bool) -> None:
    """Tell how a run ended, its troubles on stderr, and leave with its exit code."""
    write_json(report.to_json()) if as_json else click.echo(report.to_text())
    for line in report.trouble_lines():
        click.echo(f"lookalike: {printable(line)}", err=True)
    ctx.exit(report.exit_code())
