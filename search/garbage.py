"""What stays in the process to its end is no work for the garbage collector."""

import atexit
import gc
import importlib
import sys


def settle() -> None:
    """Leave all that the process holds by now out of the collector's later rounds.

    Of that it frees what nobody refers to any more, and no cycle.  For programs, not for a library:
    whatever else the process holds settles too.

    With torch its modules make 400,000 objects.  A round that walks them stops all threads for a
    quarter of a second, and the hits of a thousand questions set one off.
    """
    gc.freeze()
    atexit.unregister(gc.unfreeze)
    atexit.register(gc.unfreeze)  # or extension modules take them for leaks and say so


def bring(module: str) -> None:
    """Import a module of many objects, which settle too if the process has settled."""
    if module in sys.modules:
        return
    importlib.import_module(module)
    if gc.get_freeze_count():
        gc.collect()
        settle()
