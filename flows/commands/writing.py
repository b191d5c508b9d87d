"""Checks of the files that a command is told to write, before it does its work."""

import os
from collections.abc import Iterable, Mapping

import click


def check_apart(outputs: Mapping[str, str | None]) -> None:
    """Refuse one file for two outputs; a device or a pipe may take several.

    Parameters
    ----------
    outputs
        By option what was typed, or None.

    Raises
    ------
    click.UsageError
        Two of them name one file.
    """
    taken: dict[str, str] = {}
    for option, path in _files(outputs):
        other = taken.setdefault(path, option)
        if other != option:
            raise click.UsageError(f"{other} and {option} name one file: give each its own")


def check_beside(outputs: Mapping[str, str | None], pictures: Iterable[bytes]) -> None:
    """Refuse an output in the place of a picture; ``outputs`` as `check_apart` takes them.

    Raises
    ------
    click.UsageError
        One of them names one of the pictures.
    """
    files = list(_files(outputs))
    kept = {os.fsdecode(os.path.realpath(path)) for path in pictures} if files else set()
    for option, path in files:
        if path in kept:
            raise click.UsageError(f"{option} names a picture of this search: give it another name")


def _files(outputs: Mapping[str, str | None]) -> Iterable[tuple[str, str]]:
    """Yield the options and the files that they name, but for devices and the like."""
    for option, path in outputs.items():
        if path is not None and (os.path.isfile(path) or not os.path.exists(path)):
            yield option, os.path.realpath(path)
