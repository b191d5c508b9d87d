"""Devices by name, and what their exceptions mean."""

import torch

from extractor.errors import DeviceError


def choose_device(name: str) -> torch.device:
    """Return the device of that name, ``auto`` being the best one.

    Raises
    ------
    DeviceError
        No such device here.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"there is no device {name!r}: use auto, cpu, cuda or mps") from error
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(mps)}.get(device.type, 0)
    if (device.index or 0) >= count:
        raise DeviceError(
            f"this machine has no device {name!r} that torch can use: use --device auto or cpu"
        )
    return device


def is_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, with its type."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines[0] else type(error).__name__
