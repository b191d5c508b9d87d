"""What unfinished work is of, so that another request never goes on with it."""

import json
import os
from collections.abc import Mapping
from typing import Any

from storage.durable import write_durably
from storage.errors import WorkMismatch

FORMAT = 1
SHOWN = 60
"""Characters of a value in a message."""
TOLD = 2
"""Differences in a message."""


def write_plan(path: str, fingerprint: Mapping[str, Any]) -> None:
    """Write durably what work that begins is of."""
    values = {"format": FORMAT, "fingerprint": dict(fingerprint)}
    write_durably(path, json.dumps(values, indent=1).encode())


def is_planned(path: str, fingerprint: Mapping[str, Any]) -> bool:
    """Tell whether work of this fingerprint was begun; False where none was.

    Raises
    ------
    WorkMismatch
        Work of another one was begun, or by another version, or nobody can tell.
    OSError
        The file can't be read.
    """
    folder = os.path.dirname(path)
    try:
        with open(path, "rb") as file:
            plan = json.loads(file.read())
        version, before = plan["format"], dict(plan["fingerprint"])
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError) as error:
        raise WorkMismatch(f"{path} is damaged; --restart begins anew") from error
    if version != FORMAT:
        raise WorkMismatch(
            f"{folder} has format {version}, this version of lookalike knows {FORMAT}; use the "
            "other version, or --restart to begin anew"
        )
    wrong = differences(before, json.loads(json.dumps(dict(fingerprint))))
    if wrong:
        more = f"; and {len(wrong) - TOLD} more" if len(wrong) > TOLD else ""
        raise WorkMismatch(
            f"{folder} holds unfinished work of another request: {'; '.join(wrong[:TOLD])}{more}. "
            "Ask for that again to finish it, choose another OUT, or --restart to throw it away"
        )
    return True


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Say which values of two fingerprints differ: ``source.path was "a", is "b"``."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = [*before, *(key for key in now if key not in before)]
        return [
            line
            for key in names
            for line in differences(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
        ]
    if before == now:
        return []
    return [f"{name} was {_shown(before)}, is {_shown(now)}"]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
