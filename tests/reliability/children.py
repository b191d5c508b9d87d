"""Runs of the command line in processes that can be killed at any moment.

Children are forked from a process that has imported everything and run nothing: a kill then comes
while something happens, and not while torch is imported.
"""

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor

children = multiprocessing.get_context("forkserver")
children.set_forkserver_preload(
    ["torch", "torchvision", "faiss", "flows.cli", "flows.run", "flows.settings", "search.query",
     "extractor.engine", "extractor.graph", "extractor.extract", "storage.publish", "storage.index",
     "tests.reliability.writers"]
)  # fmt: skip

forked = multiprocessing.get_context("fork")
"""For processes that have one thread and have imported little: `lightly` makes one."""


def lightly(function, *args):
    """Return what a function returns in a new process, from which others are forked at no cost."""
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawned) as pool:
        return pool.submit(function, *args).result()


def command(words, out):
    """Run ``lookalike`` in this process; what it prints goes to a file."""
    from flows.cli import main

    with open(out, "w") as file:
        os.dup2(file.fileno(), 1)
    sys.argv = ["lookalike", *words]
    main()
