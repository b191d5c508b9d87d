"""Fill the counts of a long run into ``docs/promises.md``: ``python docs/promises.py TALLY``.

``TALLY`` is what ``make reliability`` leaves where ``LOOKALIKE_TALLY`` says: a JSON line for each
test that counts.  The lines of the short form that every test run has are left out.
"""

import json
import os
import re
import sys
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

TARGET = os.path.join(os.path.dirname(os.path.abspath(__file__)), "promises.md")
PLACE = re.compile(r"<!--counts (.+?)-->.*?<!--end-->")
NOT_RUN = "not run"
NO_COUNTS = ("seed", "seconds", "long")


def filled(page: str, lines: Iterable[dict[str, Any]]) -> str:
    """Return the page with the counts of a run; a place that nothing was counted for says so.

    A place is ``<!--counts NAMES-->...<!--end-->``: what entries whose name fits counted, added up.
    """
    entries = [entry for entry in lines if entry.get("long")]

    def counts(place: re.Match[str]) -> str:
        fitting = [entry for entry in entries if fnmatchcase(entry["name"], place[1])]
        return f"<!--counts {place[1]}-->{_said(fitting)}<!--end-->"

    return PLACE.sub(counts, page)


def _said(entries: list[dict[str, Any]]) -> str:
    totals: dict[str, int] = {}
    for entry in entries:
        for name, value in entry.items():
            if type(value) is int and name not in NO_COUNTS:
                totals[name] = totals.get(name, 0) + value
    if not entries:
        return NOT_RUN
    tests = [f"{len(entries)} entries"] if len(entries) > 1 else []
    return ", ".join(tests + [f"{n:,} {name.replace('_', ' ')}" for name, n in totals.items()])


def main() -> None:
    """Rewrite the page."""
    with open(sys.argv[1], encoding="utf-8") as file:
        lines = [json.loads(line) for line in file if line.strip()]
    with open(TARGET, encoding="utf-8") as file:
        page = file.read()
    with open(TARGET, "w", encoding="utf-8") as file:
        file.write(filled(page, lines))


if __name__ == "__main__":
    main()
