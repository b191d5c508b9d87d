"""What stays in the process to its end is no work for the garbage collector."""

import atexit
import gc


def settle() -> None:
    """Leave all that the process holds by now out of the collector's later rounds.

    Of that it frees what nobody refers to any more, and no cycle.

    With torch its modules make 400,000 objects.  A round that walks them stops all threads for a
    quarter of a second, and the hits of a thousand questions set one off.
    """
    gc.freeze()
    atexit.unregister(gc.unfreeze)
    atexit.register(gc.unfreeze)  # or extension modules take them for leaks and say so
