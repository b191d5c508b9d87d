"""How groups of duplicates are written to stdout."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from flows.commands.show import count, printable, size

if TYPE_CHECKING:
    from search.groups import Group, Member


class _Counts:
    """What was told so far."""

    def __init__(self) -> None:
        self.groups = self.files = self.size_bytes = 0

    def add(self, group: "Group") -> None:
        self.groups += not group.before
        self.files += len(group.others)
        self.size_bytes += group.size_bytes


class AsJson:
    """One JSON value, written as groups come.

    Parameters
    ----------
    asked
        What was searched for: ``space``, ``near`` and, in words, ``about``.
    """

    def __init__(self, asked: dict[str, Any]) -> None:
        self._counts = _Counts()
        head = {"space": asked["space"], "near": asked["near"]}
        click.echo(json.dumps(head)[:-1] + ', "groups": [', nl=False)

    def add(self, group: "Group") -> None:
        """Write a group, or a piece of one."""
        click.echo(f"{',' if self._counts.files else ''}\n{json.dumps(group.to_json())}", nl=False)
        self._counts.add(group)

    def end(self) -> None:
        """Write what they come to."""
        counts = self._counts
        tail = {"n": counts.groups, "others": counts.files, "size_bytes": counts.size_bytes}
        click.echo("\n], " + json.dumps(tail)[1:])


class AsText:
    """A few lines for each group, and one at the end; ``asked`` as `AsJson` takes it."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self._counts = _Counts()
        self._about: str = asked["about"]

    def add(self, group: "Group") -> None:
        """Write a group, or a piece of one."""
        lines = [*self._head(group), *(_line(f"{each.score:.4f}", each) for each in group.others)]
        click.echo("\n".join(lines))
        self._counts.add(group)

    def _head(self, group: "Group") -> Iterator[str]:
        if group.before:
            return
        if group.number > 1:
            yield ""
        kind = "the same bytes" if group.is_exact else "look alike"
        yield f"group {group.number}: {kind}"
        yield _line("keep", group.keep)

    def end(self) -> None:
        """Write what they come to."""
        counts = self._counts
        if not counts.groups:
            click.echo(f"No duplicates. {self._about}")
            return
        click.echo(
            f"\n{count(counts.groups, 'group')}, {count(counts.files, 'file')} beside the kept "
            f"ones, {size(counts.size_bytes)}. {self._about}"
        )


def _line(word: str, member: "Member") -> str:
    pixels = f"{member.size[0]}x{member.size[1]}" if member.size else ""
    of_file = f"{pixels:>11}  {size(member.held.size_bytes):>9}"
    return f"  {word:>6}  {of_file}  {printable(member.held.path)}"
