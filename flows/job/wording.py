"""What a report says for its reasons, stages and exit codes."""

WHY = {
    "new": "new",
    "size": "size differs",
    "mtime": "modification time differs",
    "ctime": "status changed though size and time are the same",
    "inode": "another file stands in its place",
    "racy": "too young when last read to be trusted",
    "line": "the manifest's line differs: its path or its label",
    "missing": "gone",
    "back": "back again",
    "excluded": "excluded now",
}
"""What each reason of a scan means, in a few words."""

STAGES = {
    "scan": "Walking the roots limits this run: most of its time went into looking for changes.",
    "plan": "Counting what is pending limits this run.",
    "model": "Loading the network limits this run: there was little else to do.",
    "wait": "Reading and decoding limit this run: more --workers or faster disks would help.",
    "engine": "Making another engine ready limits this run: --engine torch does without.",
    "forward": "The forward pass limits this run: another --device would help, more threads not.",
    "write": "Writing vectors limits this run: a faster disk under the home would help.",
    "commit": "Committing to the catalog limits this run: a faster disk under it would help.",
    "publish": "Building the index limits this run.",
}
"""Stages that follow each other, and what to say when one takes the most time."""

THREADS = ("read", "hash", "decode")
"""Stages of the loader's threads, beside those of ``STAGES``: their seconds overlap."""

TOO_SHORT = "The run was too short to tell what limits it."

BUT = {
    7: "too many images failed",
    5: "the store is in trouble",
    4: "a root is unavailable",
    6: "another run holds a root",
}
"""What to say of a run at once, by the exit code that it ends with."""
