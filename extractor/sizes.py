"""The sizes of pictures that a network takes, found by running it dry."""

from collections.abc import Callable

from extractor.errors import InputSizeError

MOST = 4096
"""Largest side, pixels: the maps of one larger picture would not fit into most machines."""
_STEPS = (1, 2, 4, 7, 8, 14, 16, 28, 32, 56, 64, 128, 224)


def check(name: str, side: int, usual: int, run: Callable[[int], object]) -> None:
    """Refuse a size that a network can't take, with the smallest that it can.

    Parameters
    ----------
    side
        Asked for, pixels.
    usual
        The network's own, which it surely takes.
    run
        Runs the network dry with pictures of a size, and raises whatever it likes if it can't.

    Raises
    ------
    InputSizeError
        Says which sizes there are.
    """
    if side > MOST:
        raise InputSizeError(
            f"--input-size {side} is more than the {MOST} pixels a side that {name} is run with "
            "at most"
        )

    def works(asked: int) -> bool:
        try:
            run(asked)
        except Exception:  # noqa: BLE001 - a foreign network raises what it likes
            return False
        return True

    if works(side):
        return
    step = next((s for s in _STEPS if works(usual + s) and works(usual + 2 * s)), None)
    if step is None:
        raise other(name, side, usual)
    least = _smallest(usual, step, works)
    steps = f", in steps of {step}" if step > 1 else ""
    raise InputSizeError(
        f"{name} takes pictures of {least} pixels a side or more{steps}, not {side}: "
        f"use --input-size {least}, or leave it out for {usual}"
    )


def other(name: str, side: int | None, only: int | None) -> InputSizeError:
    """Return the error for a network that takes one size only."""
    return InputSizeError(
        f"these weights of {name} take pictures of {only} pixels a side, not {side}: "
        "leave out --input-size"
    )


def _smallest(usual: int, step: int, works: Callable[[int], bool]) -> int:
    """Return the smallest of the sizes that lie whole steps below the usual one."""
    fails, fits = (usual - 1) // step + 1, 0  # in steps below the usual size
    while fails - fits > 1:
        middle = (fails + fits) // 2
        if works(usual - middle * step):
            fits = middle
        else:
            fails = middle
    return usual - fits * step
