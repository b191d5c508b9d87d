"""How long the battery is, and what it counted: the one place that reads the environment for it.

``LOOKALIKE_LONG=1`` is the long form, ``make reliability``.  ``LOOKALIKE_TALLY`` names a file to
which every test of the battery appends what it counted, one JSON line for each.
"""

import json
import os

LONG = os.environ.get("LOOKALIKE_LONG") == "1"


def scale(*, ci, long):
    """Return how much to do: ``ci`` in every run of the suite, ``long`` in the long form."""
    return long if LONG else ci


def tally(name, **counts):
    """Print what a test counted, its seed too, and keep it where that was asked for."""
    line = json.dumps({"name": name, "long": LONG, **counts}, sort_keys=True)
    print(line)
    if path := os.environ.get("LOOKALIKE_TALLY"):
        with open(path, "a") as file:
            file.write(line + "\n")
